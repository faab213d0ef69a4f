"""GradDot: the inner product of a training sample's loss gradient and the gradient of the measured output.

Source: Charpiat, Girard, Felardos and Tarabalka, "Input Similarity from the Neural Network Perspective",
NeurIPS 2019; as a baseline: Hanawa et al., ICLR 2021 (arXiv 2006.04528). Independent implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import Scored, check_projection, gradient_sides, parameter_names
from dualview.data._guards import products_noise
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.gradients import members
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, loss
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.gradients import products, squared_norms
from dualview.ops.projection import Kind as Projection


@dataclass(frozen=True)
class GradDot(DataMethod):
    """Estimate what one gradient step of the final network on each training sample does to the measured output.

        score(x, i) = −⟨∇φ(x; θ), ∇ℓ(x_i, y_i; θ)⟩,

    in units of the measured output φ, for a step of size 1. Self-influence is ‖∇ℓ(x_i, y_i)‖².

    Args:
        parameters: names of parameters or modules; by default all that require gradients.
        projection: numbers that gradients are projected to; None: they are exact.
        kind_of_projection: see `ops.projection.project`.
        seed: of the projection.

    Example:
        >>> method = GradDot()
    """

    parameters: str | Sequence[str] | None = None
    projection: int | None = None
    _: KW_ONLY
    kind_of_projection: Projection = "khatri-rao"
    seed: int = 0

    State: ClassVar[type[Scored]] = Scored
    kind: ClassVar[Kind] = "effect"
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
        return products(mine.layout, mine.gradients, theirs.gradients).neg_()

    def noise(
        self, state: Scored, test: Prepared, train: Rows, scores: Float[Tensor, "test train"]
    ) -> Float[Tensor, "test train"] | None:
        return products_noise(test, train, scores, [1.0], self.projection, self.kind_of_projection)

    def self_scores(self, state: Scored, train: Rows, table: Table) -> Float[Tensor, " train"]:
        (one,) = members(table.layout, train.values)
        return squared_norms(one.layout, one.gradients)
