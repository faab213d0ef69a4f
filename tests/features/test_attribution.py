"""Feature attributions as values: slices, files."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.errors import DamagedFile

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(3, 5), nn.Linear(2, 5), nn.Linear(5, 4)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.fc(torch.relu(self.a(image) + self.b(row)))


@pytest.fixture(scope="module")
def task() -> dv.Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dv.Task(TwoInputs().double().eval(), class_names=["a", "b", "c", "d"])


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda width: torch.randn(6, width, dtype=torch.float64, generator=generator)  # noqa: E731
    return {"image": draw(3), "row": draw(2)}


def leaves(value: object) -> list:
    """Return every tensor and plain value of a result, in order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.name != "source"]
        return [leaf for name in fields for leaf in leaves(getattr(value, name))]
    if isinstance(value, Mapping):
        return [leaf for key in sorted(value, key=str) for leaf in (key, *leaves(value[key]))]
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (tuple, list)) else [value]


def assert_same(one: object, other: object) -> None:
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


METHODS = [
    dv.LRP("epsilon"),
    dv.IntegratedGradients(site="fc"),
    dv.Taylor("pairs", players={"image": torch.tensor([0, 0, 1]), "row": torch.tensor([2, -1])}),
]


@pytest.mark.parametrize("method", METHODS, ids=["LRP", "site", "players"])
@pytest.mark.parametrize("outputs", [dv.logit, (dv.logit, dv.margin)], ids=["one", "two"])
def test_a_saved_result_comes_back_whole(method, outputs, task: dv.Task, inputs, tmp_path: Path):
    found = method.attribute(dataclasses.replace(task, output=outputs), inputs, targets=2)
    if isinstance(method, dv.LRP):
        sites = {dv.Site("fc", "input"): found.targets.double()}
        found = dataclasses.replace(found, sites=sites) if not found.outputs else found
    found.save(tmp_path / "scores.safetensors")
    again = dv.FeatureAttribution.load(tmp_path / "scores.safetensors")
    assert again.source is None and repr(again) == repr(found)
    assert_same(found, again)


def test_each_output_keeps_what_is_said_of_it(task: dv.Task, inputs, tmp_path: Path):
    several = dataclasses.replace(task, output=(dv.logit, dv.loss))
    found = dv.LRP("epsilon").attribute(several, inputs, targets=2)
    found.save(tmp_path / "scores.safetensors")
    for result in (found, found[[3, 1]], dv.FeatureAttribution.load(tmp_path / "scores.safetensors")):
        logit, loss = result.of_output(0), result.of_output(1)
        assert (logit.lower_is_better, loss.lower_is_better) == (False, True)
        assert (logit.linearised, loss.linearised) == (False, True)


def test_a_regression_with_several_columns_is_explained_for_one_of_them(task: dv.Task, inputs):
    numbers = dv.Task(task.model, problem="regression")
    found = dv.IntegratedGradients(steps=200).attribute(numbers, inputs, targets=3)
    assert torch.equal(found.targets, torch.full((6,), 3)) and torch.equal(found.predicted, found.targets)
    same = dv.IntegratedGradients(steps=200).attribute(task, inputs, targets=3)
    assert torch.equal(found.values["row"], same.values["row"])
    with pytest.raises(ValueError, match="give targets="):
        dv.IntegratedGradients().attribute(numbers, inputs)


def test_methods_print_what_differs_from_the_defaults():
    for method, text in (
        (dv.IntegratedGradients(), "IntegratedGradients()"),
        (dv.IntegratedGradients(0.0, steps=50), "IntegratedGradients()"),
        (dv.IntegratedGradients(dv.Blur(3), steps=7), "IntegratedGradients(baseline=Blur(sigma=3), steps=7)"),
        (dv.Taylor("exact", players=dv.Patches(4)), "Taylor(form='exact', players=Patches(size=4))"),
        (dv.Conductance("fc"), "Conductance(site='fc')"),
        (dv.CrediblePath(), "CrediblePath()"),
        (dv.Noise(count=3), "Noise(count=3)"),
    ):
        assert repr(method) == text and eval(text, vars(dv)) == method


def test_another_file_is_refused(task: dv.Task, inputs, tmp_path: Path):
    path = tmp_path / "scores.safetensors"
    dv.Gradient().attribute(task, inputs).save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedFile):
        dv.FeatureAttribution.load(path)


def test_a_slice_keeps_everything_of_its_rows(task: dv.Task, inputs):
    method = METHODS[2]
    found = method.attribute(task, inputs, targets=1)
    picked = {name: part[[4, 0]] for name, part in inputs.items()}
    alone = method.attribute(task, picked, targets=1)
    taken = found[[4, 0]]
    for name in ("values", "split", "tables", "change", "completeness_error"):
        for a, b in zip(leaves(getattr(taken, name)), leaves(getattr(alone, name)), strict=True):
            if isinstance(a, Tensor):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert len(found[3]) == 1 and torch.equal(found[-1].values["row"], found.values["row"][5:])
    with pytest.raises(ValueError, match="only logit was measured"):
        found.of_output(0)


def test_a_change_that_is_rounding_alone_is_none(recwarn: pytest.WarningsRecorder):
    """A sample that is its own baseline: its scores are 0, and two batches' last bits are no change."""
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 3)).eval()
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found = dv.IntegratedGradients(rows).attribute(model, rows)
    assert (found.values == 0).all() and (found.change == 0).all() and (found.completeness_error == 0).all()
    assert not [one for one in recwarn if "miss what they should" in str(one.message)]


def test_what_goes_round_a_site_is_said():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + torch.tanh(self.inner(x)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual().double().eval()
    with pytest.warns(dv.errors.DualViewWarning, match="goes round the site"):
        dv.Conductance("inner").attribute(model, torch.ones(2, 4, dtype=torch.float64), targets=0)


def test_bad_input_is_refused_in_words(task: dv.Task, inputs):
    with pytest.raises(ValueError, match="empty tuple"):
        dataclasses.replace(task, output=())
    with pytest.raises(ValueError, match="names nothing"):
        dv.IntegratedGradients({}).attribute(task, inputs)
    with pytest.raises(ValueError, match="holds whole numbers"):
        dv.Occlusion(baseline={"1": 0.5}).attribute(Embedded().eval(), (torch.randn(2, 3), torch.ones(2, 3).long()))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.fc(x + self.table(ids).mean(1))


def test_its_annotations_can_be_evaluated():
    one, several = get_args(get_type_hints(dv.FeatureAttribution)["values"])
    assert isinstance(torch.zeros(2, 3), one) and not isinstance(torch.zeros(2, 3).long(), one)
    assert several == dict[str, Tensor]
