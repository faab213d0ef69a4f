"""Same class: 1 for a training sample with the label that is explained, else 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import Scored
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.engine.batches import Inputs
from dualview.engine.outputs import Kind
from dualview.engine.record import Outputs, Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task


@dataclass(frozen=True)
class SameClass(DataMethod):
    """Score a training sample 1 where its label is the explained class, else 0: what the labels alone tell.

    Self-influence is 1 for every sample.

    Example:
        >>> method = SameClass()
    """

    kind: ClassVar[Kind] = "similarity"

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return Sides(Outputs(), Outputs())

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Scored, dict[str, Any]]:
        return Scored(positions), {}

    def state_from(self, tensors: dict[str, Tensor]) -> Scored:
        return Scored(tensors["positions"])

    def scored(self, state: Scored) -> Int[Tensor, " train"]:
        return state.positions

    def prepare(self, state: Scored, task: Task, test: Rows, train: Table) -> Prepared:
        return Prepared(test.targets[:, None].to(test.outputs.dtype), test.outputs)

    def score(self, state: Scored, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return (test.values == train.targets).to(test.values.dtype)

    def self_scores(self, state: Scored, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return train.outputs.new_ones(len(train.index))
