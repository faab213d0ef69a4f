"""Directions of the logits against the Hessian of the loss, and which losses they are derived for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.data import ekfac
from dualview.data._fisher import Fisher
from dualview.engine.tables import Rows, Table
from dualview.errors import DualViewWarning
from tests.data.test_ekfac import CLASSES, close, draw, fit, made

TASKS = [
    ("classification", F.cross_entropy, torch.tensor([1, 0, 2, 1, 0])),
    ("classification", lambda z, y: 3 * F.cross_entropy(z, y, reduction="none"), torch.tensor([1, 0, 2, 1, 0])),
    ("regression", lambda z, y: (z - y).square().mean(1), draw(5, 3)),
    ("multi-label", lambda z, y: F.binary_cross_entropy_with_logits(z, y.double(), reduction="none").sum(1),
     (draw(5, 3, seed=4) > 0).double()),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "loss", "targets"), TASKS)
def test_directions_make_the_hessian_of_the_loss_in_the_logits(problem: str, loss, targets: Tensor):
    """The mean of 20,000 draws is that of the exact directions to within five standard errors."""
    logits = draw(5, 3, seed=3)
    hessians = torch.stack(
        [
            torch.autograd.functional.hessian(lambda z, y=y: loss(z[None], y[None]).sum(), z)
            for z, y in zip(logits, targets, strict=True)
        ]
    )
    task = dv.Task(nn.Linear(2, 3), problem=problem, loss=loss)
    index = torch.arange(5)
    table = Table([Rows(logits, logits, targets, index)])
    exact = Fisher.of("exact", task, table, seed=0).directions(logits, targets, index)
    close(sum(one[:, :, None] * one[:, None] for one in exact), hessians)
    again = torch.arange(5).repeat(20_000)
    many = Table([Rows(logits[again], logits[again], targets[again], torch.arange(len(again)))])
    (drawn,) = Fisher.of("sampled", task, many, seed=0).directions(
        logits[again], targets[again], torch.arange(len(again))
    )
    outer = (drawn[:, :, None] * drawn[:, None]).reshape(20_000, 5, 3, 3)
    errors = outer.std(0) / math.sqrt(20_000)
    assert ((outer.mean(0) - hessians).abs() <= 5 * errors + 1e-12).all()
    (real,) = Fisher.of("empirical", task, table, seed=0).directions(logits, targets, index)
    leaf = logits.clone().requires_grad_()
    rows = [loss(leaf[i : i + 1], targets[i : i + 1]).sum() for i in range(5)]
    (expected,) = torch.autograd.grad(torch.stack(rows).sum(), leaf)
    close(real, expected)


def focal(z: Tensor, y: Tensor) -> Tensor:
    logs = -F.cross_entropy(z, y, reduction="none")
    return -((1 - logs.exp()) ** 2) * logs


def brier(z: Tensor, y: Tensor) -> Tensor:
    return (z.softmax(1) - F.one_hot(y, z.shape[1])).square().sum(1)


def judged(loss, problem: str, logits: Tensor, targets: Tensor) -> float:
    index = torch.arange(len(logits))
    table = Table([Rows(logits, logits, targets, index)])
    return Fisher.of("exact", dv.Task(nn.Linear(2, 3), problem=problem, loss=loss), table, seed=0).scale


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("columns", [2, 3, 600])
def test_a_loss_is_judged_alike_however_well_the_samples_are_fitted(spread: float, columns: int):
    """At 1e4 every loss of the recorded rows is 0 in float32."""
    targets = torch.arange(columns)
    logits = spread * torch.eye(columns)
    double = judged(lambda z, y: 2 * F.cross_entropy(z, y, reduction="none"), "classification", logits, targets)
    assert double == pytest.approx(2.0, rel=1e-6)
    assert judged(nn.CrossEntropyLoss(), "classification", logits, targets) == pytest.approx(1.0, rel=1e-6)
    weights = torch.ones(columns).index_fill_(0, torch.tensor(1), 2.0)
    for other in (focal, brier, nn.CrossEntropyLoss(weights)):
        with pytest.raises(ValueError, match="derived for the cross-entropy"):
            judged(other, "classification", logits, targets)


@pytest.mark.parametrize("error", [0.0, 1e-4, 0.5])
def test_a_regression_loss_is_judged_by_errors_like_those_at_hand(error: float):
    targets = draw(5, 2).float()
    logits = targets + error * torch.tensor([[1.0, -0.3]])
    assert judged(lambda z, y: (z - y).square().mean(1), "regression", logits, targets) == pytest.approx(1, rel=1e-6)
    assert judged(lambda z, y: F.huber_loss(z, y, reduction="none").sum(1), "regression", logits, targets) == 1
    with pytest.raises(ValueError, match="derived for the squared error"):
        judged(lambda z, y: (z - y).abs().sum(1), "regression", logits, targets)
    far = targets + 4.0  # Huber's loss is no square there
    with pytest.raises(ValueError, match="derived for the squared error"):
        judged(lambda z, y: F.huber_loss(z, y, reduction="none").sum(1), "regression", far, targets)


def test_auto_is_exact_where_that_is_cheap(monkeypatch):
    model, inputs, labels = made("convolution")
    assert fit(dv.EKFAC(), model, inputs, labels).certificate["fisher"] == "exact"
    monkeypatch.setattr(ekfac, "MOST_EXACT", len(inputs) * CLASSES - 1)
    with pytest.warns(DualViewWarning, match="labels that were drawn differ"):
        assert fit(dv.EKFAC(), model, inputs, labels).certificate["fisher"] == "sampled"
