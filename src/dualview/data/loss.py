"""Loss: each training sample's own loss, whatever the test sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._suspicions import Suspicions
from dualview.engine.batches import Inputs
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind
from dualview.engine.record import Outputs, Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task


@dataclass(frozen=True)
class Loss(DataMethod):
    """Score training samples by the network's loss on them: what every search for wrong labels has to beat.

    All test samples have the same scores, and self-influence is the loss too.

    Example:
        >>> method = Loss()
    """

    State: ClassVar[type[Suspicions]] = Suspicions
    kind: ClassVar[Kind] = "similarity"
    reads_loss: ClassVar[bool] = True
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return Sides(Outputs(), Outputs())

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Suspicions, dict[str, Any]]:
        logits, one_logit = task.logits(train.outputs), train.num_classes == 1
        with torch.no_grad():
            return Suspicions(positions, task.losses(logits, train.targets, one_logit=one_logit)), {}

    def score(self, state: Suspicions, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return state.values[train.index].repeat(len(test.values), 1)

    def self_scores(self, state: Suspicions, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return state.values[train.index]
