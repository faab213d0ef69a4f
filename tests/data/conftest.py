"""A small problem with a trained network, and a fit of it, that the tests of this room share."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import dualview as dv

CLASSES = 4


class Problem(NamedTuple):
    """A trained classifier with its data; everything in one precision."""

    model: nn.Sequential
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def to(self, dtype: torch.dtype) -> "Problem":
        model = copy.deepcopy(self.model).to(dtype)
        return Problem(model, *((inputs.to(dtype), labels) for inputs, labels in (self.train, self.test)))


def blobs(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping clusters, one a class, in float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    labels[:CLASSES] = torch.arange(CLASSES)
    noise = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return 1.5 * torch.eye(6, dtype=torch.float64)[labels] + noise, labels


@pytest.fixture(scope="session")
def problem() -> Problem:
    """120 training and 30 test samples with 6 inputs, 10 units and 4 classes, in float64."""
    train, test = blobs(120, seed=0), blobs(30, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, CLASSES)).double()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(train[0]), train[1]).backward()
            optimiser.step()
    model.zero_grad(set_to_none=True)
    return Problem(model, train, test)


@pytest.fixture(scope="session")
def explainer(problem: Problem) -> dv.Explainer:
    """DualView fitted in float64, with held-out data."""
    return dv.fit(dv.DualView(C=0.02), problem.model, problem.train, held_out=problem.test, progress=False)
