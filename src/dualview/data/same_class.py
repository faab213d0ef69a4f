"""Same class: 1 for a training sample with the label that is explained, else 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
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

    Where a loss is measured, which such samples make smaller, the score is −1. Self-influence is 1 for every sample.

    Example:
        >>> method = SameClass()
    """

    State: ClassVar[type[Scored]] = Scored
    kind: ClassVar[Kind] = "similarity"

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return Sides(Outputs(), Outputs())

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Scored, dict[str, Any]]:
        return Scored(positions), {}

    def prepare(self, state: Scored, task: Task, test: Rows, train: Table) -> Prepared:
        sign = -1.0 if getattr(task.single_output, "lower_is_better", False) else 1.0
        return Prepared(test.targets[:, None].to(test.outputs.dtype), torch.full_like(test.outputs[:, :1], sign))

    def score(self, state: Scored, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return (test.values == train.targets).to(test.values.dtype) * test.directions

    def self_scores(self, state: Scored, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return train.outputs.new_ones(len(train.index))
