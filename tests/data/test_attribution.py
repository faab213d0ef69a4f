"""Results as values, on numbers small enough to check by eye."""

import dataclasses

import pandas
import pytest
import safetensors.torch
import torch

import dualview as dv
from dualview.errors import DamagedFile

NAMES = [f"n{i}" for i in range(6)]


def attribution(**changes: object) -> dv.DataAttribution:
    """Three test and six training samples, of which 1, 3, 4 and 5 are named."""
    fields = {
        "scores": torch.tensor([[0.5, -2.0, 0.5, 0.0], [-1.0, 3.0, 1.0, -4.0], [0.0, 0.0, 0.0, 0.0]]),
        "train_index": torch.tensor([1, 3, 4, 5]),
        "num_train": 6,
        "kind": "share",
        "measured": "logit",
        "linearised": False,
        "lower_is_better": False,
        "bias": torch.tensor([0.25, -0.5, 0.0]),
        "bias_shares": torch.tensor([[0.1, -0.2, 0.3, 0.0], [-0.1, 0.4, 0.2, -0.8], [0.0, 0.0, 0.0, 0.0]]),
        "test_index": torch.tensor([0, 1, 2]),
        "targets": torch.tensor([1, 0, 1]),
        "predicted": torch.tensor([1, 1, 0]),
        "train_targets": torch.tensor([0, 1, 0, 0, 1, 1]),
        "method": "DualView(C=0.5)",
        "certificate": {"gap": 1e-7, "status": "converged"},
        "checks": {"fidelity": {"train": {"matthews": float("nan")}}},
        "names": NAMES,
        "class_names": ("no", "yes"),
        "version": "0.1",
    }
    return dv.DataAttribution(**{**fields, **changes})


def running(**changes: object) -> dv.DataAttribution:
    """The same scores as a running top 2 keeps them: proponents, then opponents, padded with −1."""
    return attribution(
        scores=torch.tensor([[0.5, 0.5, -2.0, 0.0], [3.0, 1.0, -4.0, -1.0], [0.0, 0.0, 0.0, 0.0]]),
        train_index=torch.tensor([[1, 4, 3, -1], [3, 4, 5, 1], [-1, -1, -1, -1]]),
        bias_shares=torch.tensor([[0.1, 0.3, -0.2, 0.0], [0.4, 0.2, -0.8, -0.1], [0.0, 0.0, 0.0, 0.0]]),
        **{"top_k": 2, **changes},
    )


LAYOUTS = pytest.mark.parametrize("make", [attribution, running])
DENSE = [[0.0, 0.5, 0.0, -2.0, 0.5, 0.0], [0.0, -1.0, 0.0, 3.0, 1.0, -4.0], [0.0] * 6]


@LAYOUTS
def test_dense(make):
    assert make().dense().tolist() == DENSE


@LAYOUTS
def test_top_names_the_strongest_of_each_sign_and_pads(make):
    top = make().top(2)
    assert top.proponents.train_index.tolist() == [[1, 4], [3, 4], [-1, -1]]  # a tie: the lower position first
    assert top.proponents.scores.tolist() == [[0.5, 0.5], [3.0, 1.0], [0.0, 0.0]]
    assert top.opponents.train_index.tolist() == [[3, -1], [5, 1], [-1, -1]]
    assert top.opponents.scores.tolist() == [[-2.0, 0.0], [-4.0, -1.0], [0.0, 0.0]]


def test_top_of_more_than_there_are_pads():
    top = attribution().top(6)
    assert top.proponents.train_index.tolist() == [[1, 4, -1, -1, -1, -1], [3, 4, -1, -1, -1, -1], [-1] * 6]
    assert top.proponents.scores.shape == top.opponents.scores.shape == (3, 6)


def test_top_of_no_scores_at_all():
    empty = attribution(
        scores=torch.empty(3, 0), bias_shares=torch.empty(3, 0), train_index=torch.empty(0, dtype=torch.int64)
    )
    assert empty.top(2).proponents.train_index.tolist() == [[-1, -1]] * 3
    assert empty.dense().tolist() == [[0.0] * 6] * 3
    assert len(empty.to_pandas()) == 0


@LAYOUTS
def test_proponents_of_a_loss_are_negative(make):
    loss, gain = make(lower_is_better=True, measured="loss").top(2), make().top(2)
    assert torch.equal(loss.proponents.scores, gain.opponents.scores)
    assert torch.equal(loss.proponents.train_index, gain.opponents.train_index)
    assert torch.equal(loss.opponents.train_index, gain.proponents.train_index)


def test_top_refuses_what_was_not_kept():
    with pytest.raises(ValueError, match=r"only the top 2 of each sign were kept; explain again with top=3"):
        running().top(3)
    with pytest.raises(ValueError, match="`k` must be at least 1; it is 0"):
        attribution().top(0)


@LAYOUTS
def test_to_pandas(make):
    frame = make().to_pandas()
    expected = pandas.DataFrame(
        {
            "test": [0, 0, 0, 1, 1, 1, 1],
            "train": [3, 1, 4, 5, 3, 1, 4],
            "score": [-2.0, 0.5, 0.5, -4.0, 3.0, -1.0, 1.0],
            "bias_share": [-0.2, 0.1, 0.3, -0.8, 0.4, -0.1, 0.2],
            "target": [1, 1, 1, 0, 0, 0, 0],
            "predicted": [1] * 7,
            "train_target": [0, 1, 1, 1, 0, 1, 1],
            "train_name": ["n3", "n1", "n4", "n5", "n3", "n1", "n4"],
            "target_name": ["yes"] * 3 + ["no"] * 4,
            "train_target_name": ["no", "yes", "yes", "yes", "no", "yes", "yes"],
        }
    )
    if make is running:  # equal strengths: proponents stand first there
        expected = expected.iloc[[0, 1, 2, 3, 4, 6, 5]].reset_index(drop=True)
    pandas.testing.assert_frame_equal(
        frame, expected.astype({"score": "float32", "bias_share": "float32"}), check_dtype=False
    )


def test_to_pandas_follows_the_order_of_the_rows_and_leaves_out_unknown_names():
    frame = attribution(names=None, class_names=None)[[1, 0]].to_pandas()
    assert frame["test"].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert "train_name" not in frame and "target_name" not in frame


@LAYOUTS
@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([True, False, True]), [0, 2]),
    ],
    ids=str,
)
def test_slicing_takes_rows_of_everything(make, rows, kept: list[int]):
    whole = make()
    part = whole[rows]
    assert part.dense().tolist() == [DENSE[row] for row in kept]
    for name in ("bias", "bias_shares", "test_index", "targets", "predicted"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[kept])
    assert part.train_targets is whole.train_targets and part.num_train == 6
    assert part.top(1).proponents.train_index.tolist() == [
        whole.top(1).proponents.train_index.tolist()[r] for r in kept
    ]


def test_rows_that_are_not_there_are_refused_and_iterating_ends():
    with pytest.raises(IndexError):
        attribution()[3]
    assert [int(row.test_index[0]) for row in attribution()] == [0, 1, 2]


@LAYOUTS
def test_save_and_load(make, tmp_path):
    saved = make(source=None)
    saved.save(tmp_path / "scores.safetensors")
    loaded = dv.DataAttribution.load(tmp_path / "scores.safetensors")
    for field in dataclasses.fields(saved):
        before, after = getattr(saved, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after) and before.dtype == after.dtype, field.name
        elif field.name == "class_names":
            assert after == ["no", "yes"]
        elif field.name == "checks":
            matthews = after["fidelity"]["train"]["matthews"]
            assert matthews != matthews
        else:
            assert before == after, field.name


def test_what_was_explained_is_saved_without_its_source(problem, explainer, tmp_path):
    scores = explainer.explain(problem.test[0], top=3)
    assert scores.source is not None
    scores.save(tmp_path / "scores")
    loaded = dv.DataAttribution.load(tmp_path / "scores")
    assert loaded.source is None
    assert torch.equal(loaded.dense(), scores.dense())
    assert loaded.certificate == scores.certificate and loaded.method == "DualView(C=0.02, gap=1e-06, seed=0)"
    assert loaded.checks == scores.checks == {"fidelity": explainer.fidelity}


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "not one of ours", "another result"])
def test_a_damaged_file_is_refused(damage: str, tmp_path):
    path = tmp_path / "scores.safetensors"
    attribution().save(path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-9])
    elif damage == "altered":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "not one of ours":
        safetensors.torch.save_file({"scores": torch.zeros(2)}, path)
    else:
        from dualview.engine.files import save_tensors

        save_tensors(path, {"scores": torch.zeros(2)}, {"result": "Selection"})
    with pytest.raises(DamagedFile, match=r"scores\.safetensors"):
        dv.DataAttribution.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        dv.DataAttribution.load(tmp_path / "nothing")


def test_repr_says_what_the_scores_are():
    assert repr(attribution()) == (
        "DataAttribution(3 test × 6 train, every non-zero score; share of logit, DualView(C=0.5))"
    )
    assert repr(running(measured="margin", linearised=True)) == (
        "DataAttribution(3 test × 6 train, the top 2 of each sign; share of margin (linearised), DualView(C=0.5))"
    )


def test_notebooks_show_the_neighbours(problem, explainer):
    import dualview.plotting  # noqa: F401  (registers what shows a DataAttribution)

    picture = explainer.explain(problem.test[0][:1])._repr_png_()
    assert picture is not None and picture.startswith(b"\x89PNG\r\n\x1a\n")
