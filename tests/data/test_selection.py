"""A selection is a value: it slices, saves, loads and converts."""

import dataclasses
from pathlib import Path

import pytest
import torch

import dualview as dv
from dualview.data.support_spectrum import NO_SUPPORT, PATH
from dualview.errors import DamagedFile

FIELDS = ("train_index", "row_start", "num_support", "test_index", "targets", "predicted", "train_targets")


@pytest.fixture
def selection() -> dv.Selection:
    """Three test samples with 2, 0 and 3 training samples of six."""
    return dv.Selection(
        train_index=torch.tensor([4, 1, 0, 2, 5]),
        row_start=torch.tensor([0, 2, 2, 5]),
        columns={"importance": torch.tensor([3.0, 1.0, 9.0, 8.0, 7.0]), "kernel": torch.arange(5.0)},
        by="from globally important to locally similar",
        num_support=torch.tensor([4, 0, 3]),
        ended=(PATH, NO_SUPPORT, PATH),
        num_train=6,
        test_index=torch.tensor([0, 1, 2]),
        targets=torch.tensor([1, 0, 1]),
        predicted=torch.tensor([1, 0, 0]),
        train_targets=torch.tensor([1, 1, 1, 0, 1, 1]),
        method="SupportSpectrum()",
        names=[f"file{i}" for i in range(6)],
        class_names=["cat", "dog"],
        version="1",
    )


def same(first: dv.Selection, second: dv.Selection) -> bool:
    tensors = [(getattr(first, name), getattr(second, name)) for name in FIELDS]
    tensors += [(column, second.columns[name]) for name, column in first.columns.items()]
    facts = ("by", "ended", "num_train", "method", "names", "class_names", "version")
    return (
        all(torch.equal(one, other) and one.dtype == other.dtype for one, other in tensors)
        and all(getattr(first, name) == getattr(second, name) for name in facts)
        and list(first.columns) == list(second.columns)
    )


def test_slices_are_selections(selection: dv.Selection):
    assert len(selection) == 3 and selection.counts.tolist() == [2, 0, 3]
    assert same(selection[:], selection)
    swapped = selection[[2, 1, 0]]
    assert swapped.train_index.tolist() == [0, 2, 5, 4, 1] and swapped.row_start.tolist() == [0, 3, 3, 5]
    assert swapped.columns["importance"].tolist() == [9, 8, 7, 3, 1]
    assert swapped.test_index.tolist() == [2, 1, 0] and swapped.num_support.tolist() == [3, 0, 4]
    assert swapped.ended == (PATH, NO_SUPPORT, PATH) and swapped.predicted.tolist() == [0, 0, 1]
    assert selection[1].train_index.tolist() == [] and selection[1].row_start.tolist() == [0, 0]
    assert same(selection[-1], selection[2]) and same(selection[torch.tensor([True, False, True])], selection[[0, 2]])
    assert len(selection[3:]) == 0 and "0 test" in repr(selection[3:])
    with pytest.raises(IndexError):
        selection[3]


def test_rankings_hold_one_row_in_order(selection: dv.Selection):
    ranking = selection.ranking(2)
    assert ranking.rows() == [
        {"index": 0, "importance": 9.0, "kernel": 2.0, "name": "file0"},
        {"index": 2, "importance": 8.0, "kernel": 3.0, "name": "file2"},
        {"index": 5, "importance": 7.0, "kernel": 4.0, "name": "file5"},
    ]
    assert ranking.num_samples == 6 and len(selection.ranking(1)) == 0


def test_it_says_what_it_is(selection: dv.Selection):
    assert repr(selection) == (
        "Selection(3 test × 6 train, 0 to 3 samples each, none for 1, from globally important to locally similar; "
        "columns importance, kernel; SupportSpectrum())"
    )


def test_pandas_has_a_line_for_each_sample(selection: dv.Selection):
    frame = selection.to_pandas()
    assert frame["test"].tolist() == [0, 0, 2, 2, 2] and frame["place"].tolist() == [0, 1, 0, 1, 2]
    assert frame["train"].tolist() == [4, 1, 0, 2, 5] and frame["kernel"].tolist() == [0, 1, 2, 3, 4]
    assert frame["train_name"].tolist() == ["file4", "file1", "file0", "file2", "file5"]
    assert frame["target_name"].tolist() == ["dog"] * 5 and frame["predicted"].tolist() == [1, 1, 0, 0, 0]
    bare = dataclasses.replace(selection, names=None, class_names=None).to_pandas()
    assert list(bare) == ["test", "place", "train", "importance", "kernel", "target", "predicted", "train_target"]


def test_what_is_saved_comes_back(selection: dv.Selection, tmp_path: Path):
    for name, one in {"whole": selection, "empty": selection[1]}.items():
        one.save(tmp_path / name)
        assert same(dv.Selection.load(tmp_path / name), one)


def test_a_file_that_is_something_else_is_refused(selection: dv.Selection, problem, explainer, tmp_path: Path):
    explainer.explain(problem.test[0]).save(tmp_path / "scores")
    with pytest.raises(DamagedFile, match="holds no Selection"):
        dv.Selection.load(tmp_path / "scores")
    selection.save(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "whole").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedFile, match="altered"):
        dv.Selection.load(tmp_path / "whole")


def test_an_explainer_fills_in_what_a_method_cannot_know(problem):
    names = [f"file{i}" for i in range(120)]
    explainer = dv.fit(dv.SupportSpectrum(), problem.model, problem.train, names=names, progress=False)
    selection = explainer.select(problem.test[0], problem.test[1])
    assert selection.names == names and selection.version == dv.__version__
    assert torch.equal(selection.targets, problem.test[1])
    assert torch.equal(selection.predicted, problem.model(problem.test[0]).argmax(1))
    assert selection.source is not None and selection.source.train is not None
