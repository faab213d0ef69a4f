"""What must not be silently wrong: precision, labels, mappings, and models that are not what they seem."""

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.errors import DamagedFile, DualViewWarning, StoreMismatch

METHOD = dv.DualView(C=0.02)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(90) % 3
    centres = torch.randn(3, 6, generator=generator)
    return centres[labels] + torch.randn(90, 6, generator=generator), labels


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def fit(model, data, **options):
    return dv.fit(METHOD, model, data, progress=False, **options)


def test_the_callers_autocast_changes_nothing(model, data):
    inputs = data[0][:9]
    plain = fit(model, data, held_out=0.2)
    expected = plain.explain(inputs).dense()
    relation = dv.relate(plain, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fit(model, data, held_out=0.2)
        assert torch.equal(inside.explain(inputs).dense(), expected)
        assert inside.fidelity == plain.fidelity
        assert torch.equal(plain.explain(inputs).dense(), expected)
        assert torch.equal(plain.explain_classes(inputs)[1].scores, plain.explain_classes(inputs)[1].scores)
        assert torch.equal(plain.surrogate_logits(inputs), inside.surrogate_logits(inputs))
        cast = dv.relate(plain, inputs)
        assert torch.equal(cast.by_train(), expected)
        units, pair = cast.by_unit(), cast.pair(2, 5)
    assert torch.equal(units, relation.by_unit()) and torch.equal(pair, relation.pair(2, 5))


def test_a_data_id_does_not_hide_changed_labels(model, data, tmp_path):
    fit(model, data, store=tmp_path, data_id="mine")
    inputs, labels = data
    changed = labels.clone()
    changed[:5] = (changed[:5] + 1) % 3
    with pytest.raises(StoreMismatch, match="another data set: samples 0 to 89 differ"):
        fit(model, (inputs, changed), store=tmp_path, data_id="mine")


def test_permuting_float32_training_data_permutes_the_scores_exactly(data):
    """Features are the inputs here, so their bits do not depend on the batch they stand in."""
    model = nn.Linear(6, 3)
    inputs, labels = data
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    one, other = fit(model, data), fit(model, (inputs[order], labels[order]))
    # the solver orders rows by content, so alpha is the same bits; products of 6 units may round otherwise
    assert torch.equal(one.state.coefficients(order), other.state.coefficients(torch.arange(90)))
    scores = one.explain(inputs).dense()[:, order]
    torch.testing.assert_close(other.explain(inputs).dense(), scores, rtol=1e-5, atol=1e-7)


def test_two_fits_leave_the_same_bytes(model, data, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        fit(model, data, store=folder)
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in folders]
    assert files[0] == files[1] and len(files[0]) > 3
    assert all((folders[0] / p).read_bytes() == (folders[1] / p).read_bytes() for p in files[0])


def test_a_damaged_fit_does_not_shut_the_others(model, data, tmp_path):
    fit(model, data, store=tmp_path)
    other = dv.DualView(C=0.5)
    dv.fit(other, model, data, store=tmp_path, progress=False)
    (damaged,) = [p for p in tmp_path.glob("*/fits/*.safetensors") if b'C\\\\\\": 0.5' in p.read_bytes()]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert dv.open(tmp_path, model, method=METHOD).method == METHOD
    for method in (None, other):
        with pytest.raises(DamagedFile, match="run dualview.fit with this store and this method once more"):
            dv.open(tmp_path, model, method=method)


def test_a_damaged_manifest_of_another_model_does_not_shut_this_one(model, data, tmp_path):
    fit(model, data, store=tmp_path)
    (mine,) = tmp_path.glob("*/manifest.json")
    another = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    fit(another, data, store=tmp_path)
    (theirs,) = [path for path in tmp_path.glob("*/manifest.json") if path != mine]
    theirs.write_text(theirs.read_text()[:50])
    assert dv.open(tmp_path, model).method == METHOD
    with pytest.raises(DamagedFile):
        dv.open(tmp_path, another)


def test_a_damaged_probe_says_what_to_do(model, data, tmp_path):
    fit(model, data, store=tmp_path)
    (probe,) = tmp_path.glob("*/probe.safetensors")
    probe.write_bytes(probe.read_bytes()[:-4])
    for door in (lambda: dv.open(tmp_path, model), lambda: fit(model, data, store=tmp_path)):
        with pytest.raises(DamagedFile, match="remove this file and run dualview.fit"):
            door()
    probe.unlink()
    fit(model, data, store=tmp_path)
    assert dv.open(tmp_path, model).method == METHOD


def test_another_mapping_of_labels_is_refused_at_opening(model, data, tmp_path):
    fit(dv.Task(model, classes={0: 0, 1: 1, 2: 2}), data, store=tmp_path)
    assert len(dv.open(tmp_path, dv.Task(model, classes={2: 2, 1: 1, 0: 0})).table) == 90
    for classes in ({0: 2, 1: 1, 2: 0}, None):
        with pytest.raises(StoreMismatch, match="classes="):
            dv.open(tmp_path, dv.Task(model, classes=classes))


def test_a_training_set_with_other_labels_or_order_is_refused_at_opening(model, data, tmp_path):
    fit(model, data, store=tmp_path)
    inputs, labels = data
    assert len(dv.open(tmp_path, model, train=data).table) == 90
    swapped = torch.arange(90)
    swapped[[10, 11]] = torch.tensor([11, 10])
    for other in ((inputs, (labels + 1) % 3), (inputs[swapped], labels[swapped])):
        with pytest.raises(StoreMismatch, match="samples 0 to 89 differ, in labels or inputs"):
            dv.open(tmp_path, model, train=other)


class Clamped(nn.Module):
    def __init__(self, limit: float) -> None:
        super().__init__()
        self.fc, self.limit = nn.Linear(6, 3), limit

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).clamp(-self.limit, self.limit)


def test_a_readout_that_is_changed_for_later_samples_only_is_found_out(data):
    model = Clamped(1e6)
    inputs = data[0].clone()
    model.limit = float(model.fc(inputs[:4]).detach().abs().max()) + 0.1  # the first samples stay below
    inputs[50:] *= 10
    with pytest.raises(ValueError, match="readout='fc' does not make the model's output for these samples"):
        fit(model, (inputs, data[1]))


class Unsteady(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + torch.randn_like(x) if self.kind == "random" else x - x.mean(0))


@pytest.mark.parametrize("kind", ["random", "batch"])
def test_a_model_whose_output_is_not_the_samples_own_is_warned_of(data, kind):
    with pytest.warns(DualViewWarning, match="gives a sample another output alone than among others"):
        fit(Unsteady(kind), data)


def test_a_labelled_batch_is_explained_without_its_labels(model, data):
    explainer = fit(model, data)
    expected = explainer.explain(data[0]).dense()
    assert torch.equal(explainer.explain(data).dense(), expected)
    assert torch.equal(dv.relate(explainer, data).by_train(), expected)
    with pytest.raises(ValueError, match="parts"):
        explainer.explain((data[0], data[0]))  # a second input is no label
    for nothing in (None, "x"):
        with pytest.raises(TypeError, match="`inputs` hold no tensor; expected a batch"):
            explainer.explain(nothing)


def test_inputs_of_another_precision_are_refused_in_words(model, data):
    with pytest.raises(ValueError, match=r"are float64; the training samples were float32.*\.to\(torch.float32\)"):
        fit(model, data).explain(data[0].double())


def test_the_published_settings_have_their_frozen_places(model, data):
    assert dv.DualView(1e-3, "hinge", "plain") == dv.DualView(C=1e-3)
    for wrong in ({"loss": "logistic"}, {"metric": "cosine"}):
        with pytest.raises(ValueError, match=r"is '(logistic|cosine)'; choose from '(hinge|plain)', "):
            dv.DualView(1e-3, **wrong)
    with pytest.raises(ValueError, match="`batch_size` is 0; expected at least 1"):
        fit(model, data, batch_size=0)


def test_errors_of_a_held_out_share_are_among_the_held_out(model, data):
    explainer = fit(model, data, held_out=0.3)
    found = set(explainer.errors().index.tolist())
    assert found and not found & set(explainer.positions.tolist())


def test_a_class_without_samples_cannot_be_contrasted(data):
    model = nn.Linear(6, 4)
    task = dv.Task(model, output=dv.contrast(0, 3))
    explainer = fit(task, data)
    with pytest.raises(ValueError, match=r"contrast\(0, 3\) asks for class 3, which has no training samples"):
        explainer.explain(data[0], 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = dataclasses.replace(explainer, task=dataclasses.replace(explainer.task, output=dv.contrast(0, 2)))
        assert len(seen.explain(data[0], 0)) == 90
