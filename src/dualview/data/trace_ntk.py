"""TraceNTK: a linear model on the network's tangent kernel, read by its dual variables.

Source: Engel, Wang, Frank, Dumitriu, Choudhury, Sarwate and Chiang, "Faithful and Efficient Explanations for Neural
Networks via Neural Tangent Kernel Surrogate Models", ICLR 2024 (arXiv 2305.14585). Independent implementation.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._dual_state import DualState
from dualview.data._gradients import check_projection, parameter_names
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data.dualview import DualView
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.gradients import Gradients
from dualview.engine.outputs import Kind, logit
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.projection import Kind as Projection


@dataclass(frozen=True)
class TraceNTK(DataMethod):
    """Explain a classifier by a kernel machine on the inner products of its logits' gradients.

    With ψ(x) the gradients of all logits behind each other, projected and divided by their norm, the kernel
    ⟨ψ(x), ψ(x')⟩ estimates the cosine of Σ_c ⟨∇z_c(x), ∇z_c(x')⟩, and the surrogate's logit of class c is

        logit_c(x) = bias_c + Σ_i alpha_ic ⟨ψ(x_i), ψ(x)⟩,        bias_c = Σ_i alpha_ic,

    alpha of the softmax loss with an L2 penalty. A sample's score for class c is alpha_ic ⟨ψ(x_i), ψ(x)⟩: an exact
    share of that logit. Differs from the paper in the fit, which there is stochastic gradient descent on alpha without
    a penalty, and in the projection, which there is one for all classes or none.

    Args:
        C: weight of the sum of losses; "auto" as for `DualView`.
        projection: numbers that each logit's gradient is projected to.
        parameters: names of parameters or modules; by default all that require gradients.
        kind_of_projection: see `ops.projection.project`.
        gap: relative duality gap to reach.
        seed: of the projections, and of the samples that C is chosen on.

    Example:
        >>> method = TraceNTK(projection=256)
    """

    C: float | str = "auto"
    projection: int = 128
    _: KW_ONLY
    parameters: tuple[str, ...] | None = None
    kind_of_projection: Projection = "khatri-rao"
    gap: float = 1e-6
    seed: int = 0

    State: ClassVar[type[DualState]] = DualState
    kind: ClassVar[Kind] = "share"
    has_surrogate: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        if self.projection is None:
            raise ValueError("`projection` must be a number: gradients of all logits are too many to keep as they are")
        check_projection(self.projection, self.kind_of_projection, self.seed)
        _ = self._on_rows  # refuses C and gap that are no numbers

    @property
    def _on_rows(self) -> DualView:
        """What is done with the rows ψ, once they are there."""
        return DualView(self.C, "softmax", gap=self.gap, seed=self.seed)

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        gradients = Gradients(
            logit,
            (Checkpoint(task.model),),
            self.parameters,
            each_class=True,
            width=self.projection,
            kind=self.kind_of_projection,
            seed=self.seed,
        )
        return Sides(gradients, gradients)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[DualState, dict[str, Any]]:
        rows = Table([_normalised(part) for part in train.parts])
        if held_out is not None:
            same = held_out.table is train
            other = rows if same else Table([_normalised(part) for part in held_out.table.parts])
            held_out = HeldOut(other, held_out.positions)
        return self._on_rows.fit(task, rows, positions, held_out)

    def scored(self, state: DualState) -> Int[Tensor, " train"]:
        return state.support

    def known_classes(self, state: DualState, train: Table, positions: Int[Tensor, " train"]) -> Int[Tensor, " cls"]:
        return self._on_rows.known_classes(state, train, positions)

    def prepare(self, state: DualState, task: Task, test: Rows, train: Table) -> Prepared:
        return self._on_rows.prepare(state, task, _normalised(test), train)

    def score(self, state: DualState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return self._on_rows.score(state, test, _normalised(train))

    def self_scores(self, state: DualState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return self._on_rows.self_scores(state, _normalised(train), table)

    def importances(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        return self._on_rows.importances(state, train)

    def slacks(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        return self._on_rows.slacks(state, _normalised(train))

    def bias(self, state: DualState, test: Prepared) -> Float[Tensor, " test"]:
        return self._on_rows.bias(state, test)

    def bias_shares(self, state: DualState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return self._on_rows.bias_shares(state, test, train)

    def logits(self, state: DualState, values: Float[Tensor, "test unit"]) -> Float[Tensor, "test cls"]:
        return self._on_rows.logits(state, _unit(values))

    def check_targets(self, state: DualState, targets: Int[Tensor, " test"], task: Task, *, given: bool) -> None:
        self._on_rows.check_targets(state, targets, task, given=given)


def _normalised(rows: Rows) -> Rows:
    return rows._replace(values=_unit(rows.values))


def _unit(values: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """Divide rows by their norm; a row of zeros stays."""
    return torch.nn.functional.normalize(values, dim=1, eps=torch.finfo(values.dtype).tiny)
