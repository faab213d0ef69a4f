"""Confidence: how much more probable the network finds another class than a training sample's label.

Source: the normalised margin of Northcutt, Jiang and Chuang, "Confident Learning", JAIR 2021 (arXiv 1911.00068).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._suspicions import Suspicions
from dualview.engine.batches import Inputs
from dualview.engine.outputs import Kind
from dualview.engine.record import Outputs, Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task


@dataclass(frozen=True)
class Confidence(DataMethod):
    """Score training samples by max_{c ≠ y} p_c − p_y, from −1 (sure of the label y) to 1 (sure of another class).

    All test samples have the same scores, and self-influence is the same number.

    Example:
        >>> method = Confidence()
    """

    State: ClassVar[type[Suspicions]] = Suspicions
    kind: ClassVar[Kind] = "similarity"

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return Sides(Outputs(), Outputs())

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Suspicions, dict[str, Any]]:
        probabilities, labels = task.logits(train.outputs).softmax(1), train.targets[:, None]
        rivals = probabilities.scatter(1, labels, -1.0).amax(1)
        return Suspicions(positions, rivals - probabilities.gather(1, labels).squeeze(1)), {}

    def score(self, state: Suspicions, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return state.values[train.index].repeat(len(test.values), 1)

    def self_scores(self, state: Suspicions, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return state.values[train.index]
