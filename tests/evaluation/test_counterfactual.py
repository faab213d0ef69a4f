"""Retraining without samples, with recipes whose answer is known."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.evaluation import counterfactual
from dualview.evaluation.counterfactual import accuracy_and_loss, removal_effect

INPUTS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 1, 0])  # the identity gets the third one wrong


IDENTITY = nn.Linear(2, 2, bias=False)
IDENTITY.weight.data = torch.eye(2)


def identity() -> nn.Linear:
    return copy.deepcopy(IDENTITY)  # making a new one would draw its weights


def cross_entropy(logits: list[list[float]], labels: list[int]) -> float:
    losses = [math.log(sum(map(math.exp, row))) - row[y] for row, y in zip(logits, labels, strict=True)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_accuracy_and_loss(monkeypatch, dtype: torch.dtype):
    monkeypatch.setattr(counterfactual, "batch_size_for", lambda _inputs: 2)  # batches of 2, 2 and 1
    model = identity().to(dtype).train()
    right, loss = accuracy_and_loss(dv.Task(model), (INPUTS.to(dtype), LABELS))
    assert right == 4 / 5
    rel = 1e-6 if dtype == torch.float32 else 1e-14
    assert loss == pytest.approx(cross_entropy(INPUTS.tolist(), LABELS.tolist()), rel=rel)
    assert model.training


def test_accuracy_and_loss_use_the_tasks_loss_and_labels():
    task = dv.Task(identity(), loss=nn.MultiMarginLoss(), classes={"left": 0, "right": 1})
    data = list(zip(INPUTS, [["left", "right"][y] for y in LABELS], strict=True))
    right, loss = accuracy_and_loss(task, data)
    # one rival each: max(0, 1 − own + rival)/2
    own = [(2.0, 0.0), (1.0, 0.0), (0.0, 3.0), (0.5, 0.0), (1.0, 0.0)]
    assert loss == pytest.approx(sum(max(0.0, 1 - a + b) / 2 for a, b in own) / 5, rel=1e-6)
    assert right == 4 / 5


def test_accuracy_and_loss_of_one_logit():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[-1.0, 1.0]])
    right, loss = accuracy_and_loss(dv.Task(model, loss=nn.BCEWithLogitsLoss()), (INPUTS, LABELS))
    z = (INPUTS[:, 1] - INPUTS[:, 0]).tolist()
    losses = [math.log1p(math.exp(-v if y else v)) for v, y in zip(z, LABELS.tolist(), strict=True)]
    assert right == 4 / 5
    assert loss == pytest.approx(sum(losses) / 5, rel=1e-6)


class Recipe:
    """Returns a right model unless a bad sample was kept, and remembers what it was asked."""

    def __init__(self, bad: list[int]) -> None:
        self.bad = torch.tensor(bad)
        self.calls: list[tuple[list[bool], int]] = []

    def __call__(self, mask: Tensor, seed: int) -> nn.Module:
        self.calls.append((mask.tolist(), seed))
        model = identity()
        if mask[self.bad].any():
            model.weight.data = torch.eye(2).flip(0) * (1 + seed)
        return model


def test_dropping_the_bad_samples_helps_and_random_ones_do_not():
    recipe = Recipe(bad=[3, 5])
    state = torch.get_rng_state()
    effect = removal_effect(recipe, torch.tensor([5, 3]), 40, dv.Task(identity()), (INPUTS, LABELS), seeds=(0, 7))
    assert torch.equal(torch.get_rng_state(), state)
    assert [seed for _, seed in recipe.calls] == [0, 0, 0, 7, 7, 7]
    masks = [mask for mask, _ in recipe.calls]
    for everything, without, random_ones in (masks[:3], masks[3:]):
        assert all(everything)
        assert [i for i, kept in enumerate(without) if not kept] == [3, 5]
        assert random_ones.count(False) == 2 and random_ones != without
    assert masks[2] != masks[5]  # another seed leaves out others
    assert effect.num_removed == 2
    everything, without, random_ones = effect.accuracy
    assert effect.accuracy == {everything: [1 / 5, 1 / 5], without: [4 / 5, 4 / 5], random_ones: [1 / 5, 1 / 5]}
    right = cross_entropy(INPUTS.tolist(), LABELS.tolist())
    assert effect.loss[without] == pytest.approx([right, right], rel=1e-6)
    wrong = [cross_entropy((INPUTS.flip(1) * scale).tolist(), LABELS.tolist()) for scale in (1, 8)]
    assert effect.loss[everything] == pytest.approx(wrong, rel=1e-6)

    rows = effect.rows()
    assert [row["trained on"] for row in rows] == [everything, without, random_ones]
    assert rows[1] == {
        "trained on": without,
        "accuracy": pytest.approx(4 / 5),
        "accuracy_sd": 0.0,
        "loss": pytest.approx(right, rel=1e-6),
        "seeds": 2,
    }
    assert rows[0]["loss"] == pytest.approx(sum(wrong) / 2, rel=1e-6)


def test_deviation_over_seeds():
    effect = counterfactual.RemovalEffect(1, {"a": [0.5, 0.7], "b": [0.25]}, {"a": [1.0, 2.0], "b": [3.0]})
    first, second = effect.rows()
    assert first["accuracy_sd"] == pytest.approx(math.sqrt(0.02), rel=1e-5)  # n − 1 in the denominator
    assert math.isnan(second["accuracy_sd"]) and second["seeds"] == 1  # one number has no spread


def test_a_recipe_that_returns_no_model_is_refused():
    with pytest.raises(TypeError, match="`train` must return the trained model; it returned NoneType"):
        removal_effect(lambda mask, seed: None, torch.tensor([0]), 5, dv.Task(identity()), (INPUTS, LABELS))


def test_suspects_outside_the_training_set_are_refused():
    recipe = Recipe(bad=[0])
    with pytest.raises(IndexError, match="5"):
        removal_effect(recipe, torch.tensor([5]), 5, dv.Task(identity()), (INPUTS, LABELS))
    assert recipe.calls == []


def test_what_cannot_be_called_is_refused_before_anything_is_trained(monkeypatch):
    read = []
    monkeypatch.setattr(counterfactual, "as_samples", lambda *_, **__: read.append(1))
    with pytest.raises(TypeError, match=r"called as train\(mask, seed\); this one takes \(mask\)$"):
        removal_effect(lambda mask: identity(), torch.tensor([0]), 5, dv.Task(identity()), (INPUTS, LABELS))
    assert read == []
    with pytest.raises(ValueError, match="`seeds` are none"):
        removal_effect(Recipe([0]), torch.tensor([0]), 5, dv.Task(identity()), (INPUTS, LABELS), seeds=())


def test_progress_says_how_many_and_counts_each(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    arguments = Recipe([0]), torch.tensor([0]), 5, dv.Task(identity()), (INPUTS, LABELS)
    removal_effect(*arguments, seeds=(0, 1), progress=True)
    said = capsys.readouterr().err
    assert "retraining 6 models (3 training sets × 2 seeds)" in said and "6/6" in said
    removal_effect(*arguments, seeds=(0, 1))
    assert capsys.readouterr().err == ""
