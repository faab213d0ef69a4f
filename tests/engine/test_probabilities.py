"""Outputs that are probabilities are told from logits."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from dualview.engine.probabilities import BLOCK, warn_if_probabilities
from dualview.engine.task import Task
from dualview.errors import DualViewWarning, ProbabilityWarning

TASK = Task(nn.Linear(2, 3))


def draws(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))


def said(raw: Tensor, task: Task = TASK) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_probabilities(task, raw.split(7), stacklevel=1)
    assert all(issubclass(one.category, ProbabilityWarning) for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("columns", [2, 3, 1000])
def test_a_softmax_is_named(columns: int):
    (message,) = said(draws(20, columns).softmax(1))
    assert message.startswith("the model's outputs look like probabilities") and "leave the softmax out" in message


def test_a_sigmoid_is_named():
    (message,) = said((4 * draws(20, 1)).sigmoid())
    assert "leave the sigmoid out" in message and 'problem="regression"' in message


LOGITS = {
    "logits": draws(50, 3),
    "log-probabilities": draws(50, 3).log_softmax(1),
    "positive": draws(50, 3).abs(),
    "several in 0 to 1": draws(50, 3).sigmoid(),
    "one row otherwise": torch.cat([draws(49, 3).softmax(1), torch.tensor([[0.5, 0.5, 0.1]])]),
    "few": draws(19, 3).softmax(1),
    "few of one": (4 * draws(19, 1)).sigmoid(),
    "rows of 1.01": 1.01 * draws(50, 3).softmax(1),
    "rows of 0.99": 0.99 * draws(50, 3).softmax(1),
    "one logit in 0 to 1": 0.01 * draws(50, 1) + 0.5,
    "one logit near 0 only": torch.linspace(0.01, 0.89, 50)[:, None],
    "one logit near 1 only": torch.linspace(0.11, 0.99, 50)[:, None],
    "one logit beyond 1": torch.linspace(0, 1.01, 50)[:, None],
    "one logit below 0": torch.linspace(-0.01, 1, 50)[:, None],
    "one logit": draws(50, 1),
    "one positive logit": draws(50, 1).abs() + 0.1,
    "all equal": torch.full((50, 1), 0.5),
}


@pytest.mark.parametrize("kind", LOGITS)
def test_logits_are_passed(kind: str):
    assert said(LOGITS[kind]) == []


def test_one_column_must_come_near_both_ends():
    """In which of the parts it does so is one."""
    rows = torch.linspace(0.09, 0.91, 50)[:, None]
    assert len(said(rows)) == len(said(rows.flip(0))) == 1


def test_numbers_to_be_met_may_lie_anywhere():
    for problem in ("regression", "multi-label"):
        assert said((4 * draws(50, 1)).sigmoid(), Task(TASK.model, problem=problem)) == []
        assert said(draws(50, 3).softmax(1), Task(TASK.model, problem=problem)) == []


def test_a_later_block_counts():
    rows = draws(BLOCK + 30, 3).softmax(1)
    assert len(said(rows)) == 1
    rows[-1] *= 2
    assert said(rows) == []
    assert issubclass(ProbabilityWarning, DualViewWarning)
