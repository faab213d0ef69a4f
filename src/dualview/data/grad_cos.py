"""GradCos: the cosine between a training sample's loss gradient and the gradient of the measured output.

Source: Hanawa, Yokoi, Hara and Inui, "Evaluation of Similarity-based Explanations", ICLR 2021
(arXiv 2006.04528). Independent implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import Scored, check_projection, gradient_sides, parameter_names
from dualview.data._guards import cosine_noise
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.gradients import Member, members
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, loss
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.gradients import products, squared_norms
from dualview.ops.projection import Kind as Projection


@dataclass(frozen=True)
class GradCos(DataMethod):
    """Compare the direction in which each training sample pulls the network with that of the measured output.

        score(x, i) = −⟨∇φ(x; θ), ∇ℓ(x_i, y_i; θ)⟩ / (‖∇φ(x; θ)‖ ‖∇ℓ(x_i, y_i; θ)‖),

    from −1 to 1 and without unit; 0 where a gradient is zero. Sums over samples mean nothing. Self-influence is 1
    for each sample with a gradient, and says nothing.

    Args:
        parameters: names of parameters or modules; by default all that require gradients.
        projection: numbers that gradients are projected to; None: they are exact.
        kind_of_projection: see `ops.projection.project`.
        seed: of the projection.

    Example:
        >>> method = GradCos()
    """

    parameters: str | Sequence[str] | None = None
    projection: int | None = None
    _: KW_ONLY
    kind_of_projection: Projection = "khatri-rao"
    seed: int = 0

    State: ClassVar[type[Scored]] = Scored
    kind: ClassVar[Kind] = "similarity"
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        check_projection(self.projection, self.kind_of_projection, self.seed)

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return gradient_sides(
            task,
            loss,
            (Checkpoint(task.model),),
            parameters=self.parameters,
            width=self.projection,
            kind=self.kind_of_projection,
            seed=self.seed,
        )

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Scored, dict[str, Any]]:
        return Scored(positions), {}

    def score(self, state: Scored, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        (mine,), (theirs,) = members(test.layout, test.values), members(test.layout, train.values)
        found = products(mine.layout, mine.gradients, theirs.gradients).neg_()
        return found.mul_(_inverse_norms(mine)[:, None]).mul_(_inverse_norms(theirs))

    def noise(
        self, state: Scored, test: Prepared, train: Rows, scores: Float[Tensor, "test train"]
    ) -> Float[Tensor, "test train"] | None:
        return cosine_noise(test, scores, self.projection, self.kind_of_projection)

    def self_scores(self, state: Scored, train: Rows, table: Table) -> Float[Tensor, " train"]:
        (one,) = members(table.layout, train.values)
        return (_inverse_norms(one) > 0).to(train.values.dtype)


def _inverse_norms(rows: Member) -> Float[Tensor, " row"]:
    """Return 1 / ‖g‖, 0 for zero; in float64, since squares of a well-fitted sample's gradient underflow sooner."""
    squares = squared_norms(rows.layout, rows.gradients.double())
    return torch.where(squares > 0, squares.rsqrt(), 0.0).to(rows.gradients.dtype)
