"""TracIn: inner products of loss gradients and gradients of the measured output, at checkpoints.

Source: Pruthi, Liu, Kale and Sundararajan, "Estimating Training Data Influence by Tracing Gradient
Descent", NeurIPS 2020 (arXiv 2002.08484), TracInCP. Independent implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import check_projection, gradient_sides, parameter_names
from dualview.data._guards import products_noise
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import checkpoints_of
from dualview.engine.gradients import members
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, loss
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.gradients import products, squared_norms
from dualview.ops.projection import Kind as Projection


class Rates(NamedTuple):
    """What weighs the checkpoints.

    Attributes:
        positions: "train" positions that are scored.
        rates: "checkpoint" learning rates.
    """

    positions: Int[Tensor, " train"]
    rates: Float[Tensor, " checkpoint"]


@dataclass(frozen=True)
class TracIn(DataMethod):
    """Estimate what one gradient step on each training sample, at each checkpoint, does to the measured output.

        score(x, i) = −Σ_k η_k ⟨∇φ(x; θ_k), ∇ℓ(x_i, y_i; θ_k)⟩,

    in units of the measured output φ, where the k-th checkpoint stands for one visit of each sample. Differs from
    the paper in the output: there it is the test sample's loss, and its sign is turned (`Task(output=dv.loss)` gives
    the paper's numbers times −1). Self-influence is Σ_k η_k ‖∇ℓ(x_i, y_i; θ_k)‖², the paper's.

    Args:
        learning_rates: one for each of the task's checkpoints, where these do not have theirs; without any all are 1.
        parameters: names of parameters or modules; by default all that require gradients. The last layer alone
            is the paper's shortcut.
        projection: numbers that a checkpoint's gradients are projected to; None: they are exact.
        kind_of_projection: see `ops.projection.project`.
        seed: of the projection.

    Example:
        >>> method = TracIn(parameters="fc")
    """

    learning_rates: tuple[float, ...] | None = None
    _: KW_ONLY
    parameters: str | Sequence[str] | None = None
    projection: int | None = None
    kind_of_projection: Projection = "khatri-rao"
    seed: int = 0

    State: ClassVar[type[Rates]] = Rates
    kind: ClassVar[Kind] = "effect"
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        check_projection(self.projection, self.kind_of_projection, self.seed)
        if self.learning_rates is not None:
            given: Any = self.learning_rates
            if not isinstance(given, Sequence) or not all(
                isinstance(one, (int, float)) and 0 < one < math.inf for one in given
            ):
                raise ValueError(f"`learning_rates` must be positive numbers in a tuple; they are {given!r}")
            object.__setattr__(self, "learning_rates", tuple(map(float, given)))

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        checkpoints = checkpoints_of(task)
        if self.learning_rates is not None and len(self.learning_rates) != len(checkpoints):
            raise ValueError(f"{len(self.learning_rates)} `learning_rates` for {len(checkpoints)} checkpoints")
        if self.learning_rates is not None and checkpoints[0].learning_rate is not None:
            raise ValueError("`learning_rates` are given twice: leave them out here, or in the task's checkpoints")
        return gradient_sides(
            task,
            loss,
            checkpoints,
            parameters=self.parameters,
            width=self.projection,
            kind=self.kind_of_projection,
            seed=self.seed,
        )

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Rates, dict[str, Any]]:
        given = self._rates(task)
        return Rates(positions, torch.tensor(given, dtype=torch.float64)), {"learning_rates": given}

    def resolved(self, task: Task) -> dict[str, Any]:
        return {"learning_rates": self._rates(task)}

    def _rates(self, task: Task) -> list[float]:
        return list(self.learning_rates or [one.learning_rate or 1.0 for one in checkpoints_of(task)])

    def score(self, state: Rates, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        total = test.values.new_zeros(len(test.values), len(train.index))
        pairs = zip(members(test.layout, test.values), members(test.layout, train.values), strict=True)
        for rate, (mine, theirs) in zip(state.rates.tolist(), pairs, strict=True):
            total.sub_(products(mine.layout, mine.gradients, theirs.gradients), alpha=rate)
        return total

    def noise(
        self, state: Rates, test: Prepared, train: Rows, scores: Float[Tensor, "test train"]
    ) -> Float[Tensor, "test train"] | None:
        return products_noise(test, train, scores, state.rates.tolist(), self.projection, self.kind_of_projection)

    def self_scores(self, state: Rates, train: Rows, table: Table) -> Float[Tensor, " train"]:
        total = train.values.new_zeros(len(train.index))
        for rate, one in zip(state.rates.tolist(), members(table.layout, train.values), strict=True):
            total += rate * squared_norms(one.layout, one.gradients)
        return total
