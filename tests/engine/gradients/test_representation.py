"""Rows of gradients: members for each checkpoint or class, projected or not, and the key they are stored by."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dualview.engine import outputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.gradients import Gradients, members
from dualview.engine.task import Task
from dualview.ops import gradients
from dualview.ops.layout import factors, plain, width_of
from dualview.ops.projection import project
from tests.engine.gradients.one_by_one import one_by_one

# float64 sums of the same terms in another order
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
TARGETS = torch.tensor([2, 0, 1, 1, 2, 0, 0])
INPUTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def models() -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double() for _ in range(2)]


def rows(model: nn.Module, targets: torch.Tensor, measure=F.cross_entropy) -> torch.Tensor:
    return torch.cat([*one_by_one(model, INPUTS, targets, measure).values()], dim=1)


def test_members_are_views_of_their_stretch():
    layout = (plain("a", 2), factors("b", 1, 2, 1, bias=True), plain("outputs", 3), plain("c", 1), plain("outputs", 2))
    values = torch.arange(22.0).reshape(2, 11)
    first, second = members(layout, values)
    assert first.layout == layout[:2] and second.layout == layout[3:4]
    assert first.gradients[0].tolist() == [0, 1, 2, 3, 4] and first.outputs[0].tolist() == [5, 6, 7]
    assert second.gradients[1].tolist() == [19] and second.outputs[1].tolist() == [20, 21]
    second.outputs[0, 0] = -1
    assert values[0, 9] == -1


def test_each_checkpoint_has_its_gradients_and_outputs(models):
    task = Task(models[0])
    chosen = Gradients(outputs.loss, tuple(map(Checkpoint, models[::-1])), loss=outputs.loss)
    plan = chosen.plan(task, INPUTS)
    values, raw, targets = plan.record(INPUTS, TARGETS)
    assert values.shape == (7, width_of(plan.layout)) and torch.equal(targets, TARGETS)
    torch.testing.assert_close(raw, models[0](INPUTS).detach(), **CLOSE)
    for one, model in zip(members(plan.layout, values), models[::-1], strict=True):
        torch.testing.assert_close(gradients.dense(one.layout, one.gradients), rows(model, TARGETS), **CLOSE)
        torch.testing.assert_close(one.outputs, model(INPUTS).detach(), **CLOSE)
    assert plan.coverage["checkpoints[1]: 0.weight"] == "factors" and len(plan.coverage) == 8


def test_missing_targets_are_predictions_of_the_tasks_model(models):
    """Not of the checkpoint that comes first."""
    differs = models[0](INPUTS).argmax(1) != models[1](INPUTS).argmax(1)
    assert differs.any()
    for order in (models, models[::-1], models[1:]):
        plan = Gradients(outputs.logit, tuple(map(Checkpoint, order))).plan(Task(models[0]), INPUTS)
        values, raw, targets = plan.record(INPUTS, None)
        predicted = models[0](INPUTS).argmax(1)
        assert torch.equal(targets, predicted) and torch.equal(raw.argmax(1), predicted)
        for one, model in zip(members(plan.layout, values), order, strict=True):
            expected = rows(model, predicted, lambda z, y: z[0, y[0]])
            torch.testing.assert_close(gradients.dense(one.layout, one.gradients), expected, **CLOSE)


def test_each_class_is_a_member(models):
    plan = Gradients(outputs.logit, (Checkpoint(models[0]),), each_class=True).plan(Task(models[0]), INPUTS)
    values, _, _ = plan.record(INPUTS, TARGETS)
    found = members(plan.layout, values)
    assert len(found) == 3
    for column, one in enumerate(found):
        expected = rows(models[0], torch.full((7,), column), lambda z, y: z[0, y[0]])
        torch.testing.assert_close(gradients.dense(one.layout, one.gradients), expected, **CLOSE)


@pytest.mark.parametrize("kind", ["rademacher", "khatri-rao", "two-sided"])
def test_each_member_is_projected_with_a_seed_of_its_own(models, kind: str):
    checkpoints = (Checkpoint(models[0]), Checkpoint(copy.deepcopy(models[0])))
    whole = Gradients(outputs.logit, checkpoints)
    small = Gradients(outputs.logit, checkpoints, width=9, kind=kind, seed=5)
    task = Task(models[0])
    plan, exact = small.plan(task, INPUTS), whole.plan(task, INPUTS)
    values = plan.finish(plan.record(INPUTS, TARGETS).values)
    assert values.shape == (7, width_of(plan.layout)) and plan.rows_at_once > 1
    pairs = zip(members(plan.layout, values), members(exact.layout, exact.record(INPUTS, TARGETS).values), strict=True)
    for k, (one, dense) in enumerate(pairs):
        expected = project(dense.layout, dense.gradients, width=9, kind=kind, seed=5 + k)
        torch.testing.assert_close(one.gradients, expected, **CLOSE)
        torch.testing.assert_close(one.outputs, dense.outputs, **CLOSE)
    first, second = members(plan.layout, values)
    assert not torch.allclose(first.gradients, second.gradients)


def test_the_key_tells_apart_what_is_recorded_differently(models):
    one = (Checkpoint(models[0]),)
    base = Gradients(outputs.loss, one, loss=outputs.loss)
    others = [
        Gradients(outputs.logit, one),
        Gradients(outputs.margin, one),
        Gradients(outputs.loss, one, loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
        Gradients(outputs.loss, one, loss=Task(models[0], problem="regression").training_loss),
        Gradients(outputs.loss, one, loss=Task(models[0], problem="multi-label").training_loss),
        Gradients(outputs.loss, (Checkpoint(models[1]),), loss=outputs.loss),
        Gradients(outputs.loss, one * 2, loss=outputs.loss),
        Gradients(outputs.loss, one, ("2",), loss=outputs.loss),
        Gradients(outputs.loss, one, loss=outputs.loss, each_class=True),
        Gradients(outputs.loss, one, loss=outputs.loss, width=8),
        Gradients(outputs.loss, one, loss=outputs.loss, width=8, seed=1),
        Gradients(outputs.loss, one, loss=outputs.loss, width=8, kind="rademacher"),
    ]
    keys = [str(one.describe()) for one in (base, *others)]
    assert len({*keys}) == len(keys)
    same = Gradients(outputs.loss, (Checkpoint(copy.deepcopy(models[0]), 0.1),), loss=outputs.loss, seed=3)
    assert same.describe() == base.describe()  # a learning rate, and a seed of nothing, do not change rows


def test_a_checkpoint_with_other_outputs_is_named(models):
    for columns in (2, 4):
        other = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, columns)).double()
        chosen = Gradients(outputs.logit, (Checkpoint(models[0]), Checkpoint(other)))
        message = rf"`checkpoints\[1\]` has {columns} output columns, and the task's model has 3"
        with pytest.raises(ValueError, match=message):
            chosen.plan(Task(models[0]), INPUTS)
