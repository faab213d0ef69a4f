"""Fits in a store: they survive, come back, grow with the data, and are refused where they do not belong."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dualview as dv
from dualview.data import _stored_fit
from dualview.errors import DamagedFile, StoreError, StoreMismatch

METHOD = dv.DualView(C=0.02)
HERE = Path(__file__).parent


def fit(model: nn.Module, train: object, store: object, **settings: object) -> dv.Explainer:
    return dv.fit(settings.pop("method", METHOD), model, train, store=store, progress=False, **settings)


def fit_files(store: Path) -> list[Path]:
    return sorted(store.glob("*/fits/*.safetensors"))


def assert_same_scores(first: dv.Explainer, second: dv.Explainer, inputs: object) -> None:
    found, expected = first.explain(inputs), second.explain(inputs)
    for field in dataclasses.fields(found):
        value = getattr(expected, field.name)
        if isinstance(value, Tensor):
            assert torch.equal(getattr(found, field.name), value), field.name
    assert found.bias.abs().max() > 0


def test_a_stored_fit_is_the_one_in_memory_and_comes_back(problem, explainer, tmp_path):
    names = [f"n{i}" for i in range(120)]
    stored = fit(problem.model, problem.train, tmp_path / "store", held_out=problem.test, names=names)
    opened = dv.open(str(tmp_path / "store"), problem.model)
    for other in (stored, opened):
        assert_same_scores(other, explainer, problem.test[0])
        assert torch.equal(other.self_influence(), explainer.self_influence())
        assert other.method == METHOD and list(other.names) == names
        assert other.fidelity == explainer.fidelity
        for name in ("gap", "primal", "dual", "support", "status"):
            assert other.certificate[name] == explainer.certificate[name]
    assert {*stored.certificate} - {*opened.certificate} == {"seconds", "regime_seconds"}
    assert opened.certificate.items() <= stored.certificate.items()
    assert opened.spec == stored.spec and torch.equal(opened.positions, stored.positions)
    assert repr(opened) == repr(stored)
    with pytest.raises(ValueError, match=r"expected \(test, 6\) as in training"):
        opened.explain(problem.test[0][:, :5])


def test_killed_in_another_process_resumed_there_and_opened_here(problem, tmp_path):
    inputs, labels = problem.train
    tensors = {**problem.model.state_dict(), "inputs": inputs, "labels": labels}
    safetensors.torch.save_file(tensors, tmp_path / "problem.safetensors")
    command = [sys.executable, HERE / "interrupted_fit.py", tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    batches = json.loads(run.stdout)
    assert batches.count(8) == 7  # rows 64 to 119: four shards of 16 were whole when it was killed
    assert set(batches) == {1, 4, 8}  # the others are the probe, and one of it alone
    opened = dv.open(tmp_path / "store", problem.model)
    undisturbed = dv.fit(METHOD, problem.model, problem.train, batch_size=8, progress=False)
    assert torch.equal(opened.table.values, undisturbed.table.values)
    opened = dataclasses.replace(opened, batch_size=8)
    assert_same_scores(opened, undisturbed, problem.test[0])


def test_appended_data_costs_its_own_rows_only(problem, tmp_path):
    inputs, labels = problem.train
    seen: list[int] = []
    handle = problem.model.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    try:
        fit(problem.model, (inputs[:80], labels[:80]), tmp_path, batch_size=8)
        assert seen.count(8) == 10
        seen.clear()
        grown = fit(problem.model, problem.train, tmp_path, batch_size=8)
        assert seen.count(8) == 5
        seen.clear()
        fit(problem.model, problem.train, tmp_path, batch_size=8, method=dv.DualView(C=0.1))
        assert seen.count(8) == 0
    finally:
        handle.remove()
    alone = dv.fit(METHOD, problem.model, problem.train, batch_size=8, progress=False)
    assert_same_scores(grown, alone, problem.test[0])
    with pytest.raises(ValueError, match="3 fits") as caught:
        dv.open(tmp_path, problem.model)
    assert "C=0.02, gap=1e-06, seed=0) on 80 of 80 samples" in str(caught.value)
    assert "C=0.02, gap=1e-06, seed=0) on 120 of 120 samples" in str(caught.value)
    before = [name for name in str(caught.value).split() if name.startswith("DualView-")]
    tables = {len(dv.open(tmp_path, problem.model, method=name).table) for name in before}
    assert tables == {80, 120}


def test_several_fits_are_told_apart(problem, tmp_path):
    small, large = dv.DualView(C=0.001), dv.DualView(C=0.1)
    explainers = {m: fit(problem.model, problem.train, tmp_path, method=m) for m in (small, large)}
    with pytest.raises(ValueError, match=r"2 fits: say which with method= .*; there are DualView-") as caught:
        dv.open(tmp_path, problem.model)
    assert "C=0.001," in str(caught.value) and "C=0.1," in str(caught.value)
    for method, expected in explainers.items():
        assert_same_scores(dv.open(tmp_path, problem.model, method=method), expected, problem.test[0])
    names = [path.stem for path in fit_files(tmp_path)]
    assert {dv.open(tmp_path, problem.model, method=name).method for name in names} == {small, large}
    with pytest.raises(StoreError, match=r"no fit 'DualView-0'.*it has: DualView-"):
        dv.open(tmp_path, problem.model, method="DualView-0")
    with pytest.raises(StoreError, match=r"no fit DualView\(C=0.5.*it has: DualView-"):
        dv.open(tmp_path, problem.model, method=dv.DualView(C=0.5))


def test_a_held_out_fraction_comes_back(problem, tmp_path):
    stored = fit(problem.model, problem.train, tmp_path, held_out=0.25)
    opened = dv.open(tmp_path, problem.model)
    assert len(opened.positions) == 90 and torch.equal(opened.positions, stored.positions)
    assert opened.fidelity == stored.fidelity and set(opened.fidelity) == {"train", "held_out"}
    assert len(opened.errors()) == len(stored.errors())


def test_errors_of_a_held_out_data_set_that_is_gone_are_refused(problem, tmp_path):
    stored = fit(problem.model, problem.train, tmp_path, held_out=problem.test)
    opened = dv.open(tmp_path, problem.model)
    with pytest.raises(ValueError, match="give data=.*held-out data set"):
        opened.errors()
    assert opened.errors(problem.test).rows() == stored.errors().rows()


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("damage", ["altered", "truncated"])
@pytest.mark.parametrize("file", ["fits/*.safetensors", "shard-*.safetensors", "probe.safetensors", "manifest.json"])
def test_a_damaged_file_is_refused(problem, tmp_path, file: str, damage: str):
    fit(problem.model, problem.train, tmp_path)
    (path,) = tmp_path.glob(f"*/{file}")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content if damage == "altered" else content[:-5])
    with pytest.raises(DamagedFile, match=path.name.replace(".", r"\.")):
        dv.open(tmp_path, problem.model)


def test_a_probe_that_is_gone_is_missed(problem, tmp_path):
    fit(problem.model, problem.train, tmp_path)
    next(tmp_path.glob("*/probe.safetensors")).unlink()
    with pytest.raises(DamagedFile, match="probe samples .* are gone"):
        dv.open(tmp_path, problem.model)


def test_another_model_is_refused(problem, tmp_path):
    fit(problem.model, problem.train, tmp_path)
    other = problem.to(torch.float64).model
    other[2].bias.data[0] += 0.1
    with pytest.raises(StoreMismatch, match="no features of this Sequential with these weights.*fit again"):
        dv.open(tmp_path, other)
    with pytest.raises(StoreMismatch, match=r"it holds: nothing"):
        dv.open(tmp_path / "nowhere", problem.model)
    fit(other, problem.train, tmp_path)  # beside the first, in a folder of its own
    assert torch.equal(dv.open(tmp_path, problem.model).table.values, dv.open(tmp_path, other).table.values)


def test_rows_without_a_fit_are_no_fit(problem, tmp_path):
    fit(problem.model, problem.train, tmp_path)
    fit_files(tmp_path)[0].unlink()
    with pytest.raises(StoreError, match="has no fit of this model; it has: none"):
        dv.open(tmp_path, problem.model)


class Scaled(nn.Module):
    """Its forward has a factor that is neither parameter, buffer nor setting."""

    def __init__(self, body: nn.Sequential, factor: float) -> None:
        super().__init__()
        self.body, self.factor = body, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.body[2](self.body[:2](x) * self.factor)


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_changed_code_with_equal_weights_is_caught(problem, tmp_path, factor: float):
    original, changed = Scaled(problem.model, 1.0), Scaled(problem.model, factor)
    expected = fit(original, problem.train, tmp_path)
    message = "has the stored weights but gives other outputs on the stored probe samples: its code or settings changed"
    with pytest.raises(StoreMismatch, match=message):
        dv.open(tmp_path, changed)
    if factor == 1.5:  # the rows of the old code must not be taken over, nor the probe replaced
        for train in (problem.train, tuple(torch.cat([part, part]) for part in problem.train)):
            with pytest.raises(StoreMismatch, match=message):
                fit(changed, train, tmp_path)
    assert_same_scores(dv.open(tmp_path, original), expected, problem.test[0])


def test_another_data_set_is_refused(problem, tmp_path):
    fit(problem.model, problem.train, tmp_path)
    inputs, labels = problem.train
    relabelled = labels.clone()
    relabelled[60] = (relabelled[60] + 1) % 4
    for other in ((inputs + 1, labels), (inputs, relabelled), (inputs.flip(0), labels.flip(0))):
        with pytest.raises(StoreMismatch, match="another data set"):
            fit(problem.model, other, tmp_path)
    with pytest.raises(StoreMismatch, match="holds 120 rows, but this data set has only 100"):
        fit(problem.model, (inputs[:100], labels[:100]), tmp_path)
    fit(problem.model, (inputs + 1, labels), tmp_path, data_id="shifted")
    with pytest.raises(ValueError, match="2 fits"):
        dv.open(tmp_path, problem.model)


def test_another_training_set_is_refused_at_opening(problem, tmp_path):
    fit(problem.model, problem.train, tmp_path)
    inputs, labels = problem.train
    for other in ((inputs + 0.5, labels), (inputs.flip(0), labels.flip(0))):
        with pytest.raises(StoreMismatch, match="`train` is not the data set of the fit: samples .* differ"):
            dv.open(tmp_path, problem.model, train=other)
    with pytest.raises(StoreMismatch, match=r"`train` is not the data set of the fit: .*\(test, 6\) as in training"):
        dv.open(tmp_path, problem.model, train=(inputs[:, :5], labels))
    with pytest.raises(StoreMismatch, match="`train` holds 119 samples; the fit was made on 120"):
        dv.open(tmp_path, problem.model, train=(inputs[1:], labels[1:]))
    longer = torch.cat([inputs, inputs]), torch.cat([labels, labels])
    for train in (problem.train, longer):
        assert dv.open(tmp_path, problem.model, train=train).samples is not None


def test_class_names_must_fit_at_opening_too(problem, tmp_path):
    fit(problem.model, problem.train, tmp_path)
    with pytest.raises(ValueError, match="`class_names` hold 2 names for 4 output columns"):
        dv.open(tmp_path, dv.Task(problem.model, class_names=["a", "b"]))
    assert dv.open(tmp_path, dv.Task(problem.model, class_names="abcd")).explain(problem.test[0]).class_names == "abcd"


def test_a_fit_of_an_unknown_method_is_refused(problem, tmp_path):
    fit(problem.model, problem.train, tmp_path)
    store = dv.Store(tmp_path)
    (key,) = store.keys()
    tensors, facts = store.load_fit(key, fit_files(tmp_path)[0].stem)
    for name in ("Oracle", "os", "DataMethod"):
        store.save_fit(key, fit_files(tmp_path)[0].stem, dict(tensors), {**facts, "method": {"method": name}})
        with pytest.raises(StoreError, match=f"of method '{name}', which this version of dualview does not know"):
            dv.open(tmp_path, problem.model)


# ── pictures without the training set ────────────────────────────────────────────────────────────


@pytest.fixture
def images() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    inputs = torch.rand(40, 1, 8, 8, generator=generator) * 0.5
    inputs[labels == 1, :, :4] += 0.25
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, (inputs, labels)


def grey(image: Tensor) -> np.ndarray:
    return (image[0].double() * 255).round().to(torch.uint8).numpy()


def test_thumbnails_of_support_samples_stand_in_for_the_training_set(images, tmp_path):
    model, train = images
    fit(model, train, tmp_path, method=dv.DualView(C=1.0))
    support = set(dv.open(tmp_path, model).state.support.tolist())
    assert 0 < len(support) < 40
    alone = dv.open(tmp_path, model).explain(train[0][:2])
    with_train = dv.open(tmp_path, model, train=train).explain(train[0][:2])
    for position in range(40):
        assert (with_train.source.train_picture(position).image == grey(train[0][position])).all()
        picture = alone.source.train_picture(position)
        if position in support:
            assert (picture.image == grey(train[0][position])).all()
        else:
            assert picture.image is None and picture.text == "give train= to see it"
    assert (alone.source.test_picture(1).image == grey(train[0][1])).all()


def test_of_very_many_support_samples_the_most_important_are_shown(images, tmp_path, monkeypatch):
    monkeypatch.setattr(_stored_fit, "MAX_THUMBNAILS", 3)
    model, train = images
    explainer = fit(model, train, tmp_path, method=dv.DualView(C=1.0))
    kept = set(dv.open(tmp_path, model).thumbnails)
    importance = explainer.importance()
    assert len(kept) == 3
    assert importance[sorted(kept)].min() >= importance.sort().values[-3]


def test_samples_that_are_no_images_leave_no_thumbnails(problem, tmp_path):
    fit(problem.model, problem.train, tmp_path)
    opened = dv.open(tmp_path, problem.model)
    assert opened.thumbnails == {}
    picture = opened.explain(problem.test[0]).source.train_picture(int(opened.state.support[0]))
    assert picture.text == "give train= to see it"


class Brightened(Dataset):
    """Images that get a random brightness at each read, unless `transform` says otherwise."""

    def __init__(self, data: tuple[Tensor, Tensor]) -> None:
        self.data, self.transform = data, lambda image: image * torch.rand(())

    def __len__(self) -> int:
        return len(self.data[1])

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.data[0][position]), self.data[1][position]


def test_an_augmenting_training_set_is_opened_with_its_evaluation_transform(images, tmp_path):
    model, (inputs, labels) = images
    for layer in (model[1], model[3]):
        layer.bias.data.zero_()  # heat maps of so faint a network would be of its biases
    train, evaluated = Brightened((inputs, labels)), lambda image: image / 2
    fit(model, train, tmp_path, transform=evaluated)
    with pytest.raises(StoreMismatch, match=r"samples .* differ.* give transform= \(--transform on the command line\)"):
        dv.open(tmp_path, model, train=train)
    with pytest.raises(ValueError, match="`transform` is of the training set: give train="):
        dv.open(tmp_path, model, transform=evaluated)
    opened = dv.open(tmp_path, model, train=train, transform=evaluated)
    suspects = opened.suspects(3)
    for position in suspects.index.tolist():
        for source in (suspects.source, opened.explain(inputs[:1]).source):
            assert (source.train_picture(position).image == grey(inputs[position] / 2)).all()
    # A heat map on a training sample is made of the sample as it was fitted: that of the halved data set.
    halves = fit(model, (inputs / 2, labels), None)
    maps = [dv.render(dv.relate(each, inputs[:1]), dv.LRP("epsilon"), k=2) for each in (opened, halves)]
    assert torch.equal(maps[0].train_index, maps[1].train_index) and torch.equal(maps[0].train, maps[1].train)
