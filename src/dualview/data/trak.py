"""TRAK: random projections of margin gradients, one Newton step of a logistic regression, averaged over models.

Source: Park, Georgiev, Ilyas, Leclerc and Madry, "TRAK: Attributing Model Behavior at Scale", ICML 2023
(arXiv 2303.14186). Independent implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import check_cross_entropy, check_projection, doubts, gradient_sides, parameter_names
from dualview.data._guards import newton_noise
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._newton import Newton, checked_ridge, leverages, newton, prepared, scores
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import checkpoints_of
from dualview.engine.gradients import members
from dualview.engine.outputs import Kind, margin
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.projection import Kind as Projection


@dataclass(frozen=True)
class TRAK(DataMethod):
    """Estimate the effect of including each training sample by one Newton step of a logistic regression.

    With φ_k(z) = P_k ∇f(z; θ_k), f = log(p/(1 − p)) the margin of the label, and Φ_k the training rows,

        score(x, i) = [mean over k of φ_k(x)ᵀ (Φ_kᵀΦ_k + λI)⁻¹ φ_k(x_i)] · [mean over k of 1 − p_k(y_i | x_i)],

    in units of the measured output, which f stands for on the test side: the paper's is `Task(output=dv.margin)`.
    Self-influence is what a sample takes from its own loss. Differs from the paper's code in the ridge, which there
    is 0, and keeps the unit, which the code divides away. The leverage 1/(1 − h) and the soft threshold of the paper
    are left out, as in its code.

    Args:
        projection: numbers that each model's gradients are projected to; None: all parameters, at most 20,000.
        ridge: λ, as a multiple of the mean of ‖φ_i‖² (with R_i where weighted): the same unit as
            `KernelInfluence.damping`, whatever the projection.
        weighted: weigh Φᵀ R Φ by R = p(1 − p), the curvature of the logistic loss. Without, as the paper.
        absolute: take `ridge` as λ itself.
        parameters: names of parameters or modules; by default all that require gradients.
        kind_of_projection: see `ops.projection.project`.
        seed: of the projections; each checkpoint has its own.

    Example:
        >>> method = TRAK(projection=1024)
    """

    projection: int | None = 2048
    ridge: float = 1.0
    _: KW_ONLY
    weighted: bool = False
    absolute: bool = False
    parameters: str | Sequence[str] | None = None
    kind_of_projection: Projection = "khatri-rao"
    seed: int = 0

    State: ClassVar[type[Newton]] = Newton
    kind: ClassVar[Kind] = "effect"
    reads_loss: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        check_projection(self.projection, self.kind_of_projection, self.seed)
        object.__setattr__(self, "ridge", checked_ridge(self.ridge))

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return gradient_sides(
            task,
            margin,
            checkpoints_of(task),
            parameters=self.parameters,
            width=self.projection,
            kind=self.kind_of_projection,
            seed=self.seed,
        )

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Newton, dict[str, Any]]:
        check_cross_entropy(task, train, "TRAK")
        return newton(train, positions, self.ridge, absolute=self.absolute, weighted=self.weighted)

    def prepare(self, state: Newton, task: Task, test: Rows, train: Table) -> Prepared:
        return prepared(state, test, train)

    def score(self, state: Newton, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return scores(state, test, train)

    def noise(
        self, state: Newton, test: Prepared, train: Rows, scores: Float[Tensor, "test train"]
    ) -> Float[Tensor, "test train"] | None:
        return newton_noise(state, test, train, self.projection, self.kind_of_projection)

    def self_scores(self, state: Newton, train: Rows, table: Table) -> Float[Tensor, " train"]:
        own = [doubts(one.outputs, train.targets) for one in members(table.layout, train.values)]
        return (leverages(state, train, table) * torch.stack(own)).mean(0) * state.slopes[train.index]
