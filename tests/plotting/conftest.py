"""A result made by hand, so that every number in its figure is known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dualview import DataAttribution, Task
from dualview.engine.datasets import as_samples
from dualview.engine.source import Source

SCORES = torch.tensor([[0.5, -0.25, 0.125, -0.0625, 0.75, -2e-5, 0.0, 0.3, -0.4, 0.2], [0.1] * 10])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def make(test: Any, train: Any, *, display: Callable[[Any], Any] | None = None, **settings: Any) -> DataAttribution:
    """Attribute two test samples, explained as classes 0 and 1, to ten training samples."""
    facts: dict[str, Any] = {
        "scores": SCORES,
        "train_index": torch.arange(10),
        "num_train": 10,
        "kind": "share",
        "measured": "logit",
        "linearised": False,
        "lower_is_better": False,
        "bias": torch.tensor([-0.5, 0.25]),
        "bias_shares": torch.zeros_like(SCORES),
        "test_index": torch.tensor([0, 1]),
        "targets": torch.tensor([0, 1]),
        "predicted": torch.tensor([0, 2]),
        "train_targets": LABELS,
        "method": "DualView(C=0.001)",
        "source": Source(Task(nn.Linear(1, 3), display=display), test, as_samples((train, LABELS))),
    }
    return DataAttribution(**{**facts, **settings})


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def attribution() -> Callable[..., DataAttribution]:
    return make


@pytest.fixture
def grey() -> DataAttribution:
    return make(noise(2, 1, 8, 8), noise(10, 1, 8, 8))
