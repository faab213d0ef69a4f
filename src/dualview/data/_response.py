"""What a surrogate of the dual family does when a training sample is included, as a method of its own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._dual_state import DualState
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data.dualview import DualView
from dualview.engine.batches import Inputs
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.errors import DualViewWarning
from dualview.solvers import response
from dualview.solvers.losses import DeviationLoss, LabelLoss, SimplexLoss, named


def response_of(method: DataMethod, certificate: dict[str, Any], positions: Int[Tensor, " fitted"]) -> Response:
    """Return what scores samples by the response of a fit.

    Raises:
        TypeError: the method is no member of the DualView family.

    Warns:
        DualViewWarning: no row gives way, so that all effects are zero.
    """
    if not isinstance(method, DualView):
        raise TypeError(f"a response needs a fitted DualView; this explainer holds {method!r}")
    pinned = method.loss in ("hinge", "epsilon") and certificate["bound"] == 0
    if pinned:
        warnings.warn(
            f"no sample stands at its bound under loss={method.loss!r}: small changes of weights change nothing, and "
            "all effects are zero. A smooth loss answers: 'smooth-hinge', 'softmax' or 'sparsemax'",
            DualViewWarning,
            stacklevel=3,
        )
    return Response(method, float(certificate["C"]), positions, pinned)


@dataclass(frozen=True, eq=False)
class Response(DataMethod):
    """Score training samples by the derivative of the refitted surrogate in their weight.

        score(x, i) = (v ⊗ [f(x), 1])ᵀ H⁻¹ (alpha_i ⊗ [f_i, 1]),
        H = blockdiag(A_c) + Σ_j C_j J_j ⊗ [f_j, 1][f_j, 1]ᵀ,

    J_j the curvature of its loss, in units of the surrogate's output. Samples without a dual variable score zero.

    Attributes:
        of: the fitted method.
        C: at which it was fitted.
        positions: the rows that it was fitted on.
        pinned: whether no row gives way, so that there is no effect.
    """

    of: DualView
    C: float
    positions: Int[Tensor, " fitted"]
    pinned: bool

    State: ClassVar[type[DualState]] = DualState
    kind: ClassVar[Kind] = "effect"
    problems: ClassVar[tuple[Problem, ...]] = DualView.problems

    def __repr__(self) -> str:
        return f"response of {self.of!r}"

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return self.of.representations(task, probe)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[DualState, dict[str, Any]]:
        return self.of.fit(task, train, positions, held_out)

    def scored(self, state: DualState) -> Int[Tensor, " train"]:
        return state.support

    def check_targets(self, state: DualState, targets: Int[Tensor, " test"], task: Task, *, given: bool) -> None:
        self.of.check_targets(state, targets, task, given=given)

    def prepare(self, state: DualState, task: Task, test: Rows, train: Table) -> Prepared:
        if self.pinned:
            nothing = test.values.new_zeros(len(test.values), state.weights.numel() + len(state.bias))
            return Prepared(nothing, test.values.new_zeros(len(test.values), len(state.bias)))
        setting = self.of.setting(task, train, self.positions)
        columns = (state.class_counts > 0).nonzero().squeeze(1)
        phi = F.pad(test.values.double(), (0, 1), value=1.0)
        directions = task.directions(test.outputs, test.targets).double()
        targets, loss = setting.targets, named(self.of.loss, smoothing=self.of.smoothing, epsilon=self.of.epsilon)
        if targets.is_floating_point():
            loss, targets = LabelLoss(loss) if isinstance(loss, SimplexLoss) else loss, targets.double()
        else:
            ranks = torch.searchsorted(columns, targets)  # samples of classes without a column have no weight
            targets = (targets[:, None] == columns).double() if isinstance(loss, DeviationLoss) else ranks
        solved = response(
            setting.features,
            targets,
            state.coefficients(self.positions)[:, columns],
            directions[:, columns, None] * phi[:, None],
            loss=loss,
            costs=self.C * setting.weights,
            metric=setting.metric.of(columns),
        )
        whole = solved.new_zeros(len(phi), len(state.bias), phi.shape[1])
        whole[:, columns] = solved
        return Prepared(whole.flatten(1).to(test.values.dtype), directions.to(test.values.dtype))

    def score(self, state: DualState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        alpha = state.coefficients(train.index).to(test.values.dtype)
        phi = F.pad(train.values.to(test.values.dtype), (0, 1), value=1.0)
        total = test.values.new_zeros(len(test.values), len(phi))
        for column, solved in enumerate(test.values.unflatten(1, (alpha.shape[1], -1)).unbind(1)):
            total += (solved @ phi.T).mul_(alpha[:, column])
        return total

    def self_scores(self, state: DualState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        raise TypeError("ask the explainer for its self-influence; a response has none of its own")
