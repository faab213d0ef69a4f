"""D-TRAK: TRAK's projected Newton step for denoisers, with an output that is not their loss.

Source: Zheng, Pang, Du, Jiang and Lin, "Intriguing Properties of Data Attribution on Diffusion Models", ICLR 2024
(arXiv 2311.00500). Independent implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import check_projection, gradient_sides, parameter_names
from dualview.data._guards import newton_noise
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._newton import Newton, checked_ridge, leverages, newton, prepared, scores
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import checkpoints_of
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, logit
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.projection import Kind as Projection


@dataclass(frozen=True)
class DTRAK(DataMethod):
    """Score training samples by TRAK's kernel of the measured output on both sides, without its slope.

        score(x, i) = mean over k of φ_k(x)ᵀ (Φ_kᵀ Φ_k + λI)⁻¹ φ_k(x_i),    φ_k = P_k ∇f(·; θ_k),

    f the task's measured output, on training samples too. For a denoiser the paper found best the mean square of
    its prediction, `Task(output=dv.mean_square, problem="regression")`, averaged over time steps before anything is
    projected: let the model return the predictions of all steps, flattened, with fixed noise for each sample. Ranks
    foretell retraining; the unit is arbitrary, since f is not the training loss. Self-influence is the leverage.

    Args:
        projection: numbers that each model's gradients are projected to; None: all parameters, at most 20,000.
        ridge: λ, as a multiple of the mean of ‖φ_i‖². The paper tunes it for each data set.
        absolute: take `ridge` as λ itself.
        parameters: names of parameters or modules; by default all that require gradients.
        kind_of_projection: see `ops.projection.project`.
        seed: of the projections; each checkpoint has its own.

    Example:
        >>> method = DTRAK(projection=1024)
    """

    projection: int | None = 2048
    ridge: float = 1.0
    _: KW_ONLY
    absolute: bool = False
    parameters: str | Sequence[str] | None = None
    kind_of_projection: Projection = "khatri-rao"
    seed: int = 0

    State: ClassVar[type[Newton]] = Newton
    kind: ClassVar[Kind] = "effect"
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        check_projection(self.projection, self.kind_of_projection, self.seed)
        object.__setattr__(self, "ridge", checked_ridge(self.ridge))

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        if task.problem != "classification" and task.single_output == logit:
            raise ValueError(
                "D-TRAK measures the whole prediction, of training samples too: give the task output=dv.mean_square, "
                "or a function of yours"
            )
        return gradient_sides(
            task,
            task.single_output,
            checkpoints_of(task),
            parameters=self.parameters,
            width=self.projection,
            kind=self.kind_of_projection,
            seed=self.seed,
        )

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Newton, dict[str, Any]]:
        return newton(train, positions, self.ridge, absolute=self.absolute, sloped=False)

    def prepare(self, state: Newton, task: Task, test: Rows, train: Table) -> Prepared:
        return prepared(state, test, train)

    def score(self, state: Newton, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return scores(state, test, train)

    def noise(
        self, state: Newton, test: Prepared, train: Rows, scores: Float[Tensor, "test train"]
    ) -> Float[Tensor, "test train"] | None:
        return newton_noise(state, test, train, self.projection, self.kind_of_projection)

    def self_scores(self, state: Newton, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return leverages(state, train, table).mean(0)
