"""Random scores: what a metric or a table shows where nothing is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.engine.batches import Inputs
from dualview.engine.fingerprint import hash_bytes, model_fingerprint
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind
from dualview.engine.record import Outputs, Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task


class Drawn(NamedTuple):
    """Where noise comes from.

    Attributes:
        positions: "train" positions that are scored.
        seed: "1", of the noise: of the method's seed and the network.
    """

    positions: Int[Tensor, " train"]
    seed: Int[Tensor, " 1"]


@dataclass(frozen=True)
class Random(DataMethod):
    """Score training samples by normal noise that depends on the seed, the network, and the two samples' positions.

    Args:
        seed: of the noise.

    Example:
        >>> method = Random(seed=1)
    """

    seed: int = 0

    State: ClassVar[type[Drawn]] = Drawn
    kind: ClassVar[Kind] = "effect"
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return Sides(Outputs(), Outputs())

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Drawn, dict[str, Any]]:
        seed = int(hash_bytes(model_fingerprint(task.model), str(self.seed))[:12], 16)
        return Drawn(positions, torch.tensor([seed])), {}

    def prepare(self, state: Drawn, task: Task, test: Rows, train: Table) -> Prepared:
        noise = [_noise(int(state.seed) + 1 + position, len(train)) for position in test.index.tolist()]
        return Prepared(torch.stack(noise).to(test.values.dtype), test.outputs)

    def score(self, state: Drawn, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return test.values[:, train.index]

    def self_scores(self, state: Drawn, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return _noise(int(state.seed), len(table)).to(table.dtype)[train.index]


def _noise(seed: int, length: int) -> Float[Tensor, " train"]:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))
