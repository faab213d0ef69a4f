"""KernelInfluence: damped Gauss-Newton influence through the margin, in the space of samples.

Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017 (arXiv 1703.04730), with the
curvature of the loss as a function of one scalar, the margin of the label, as in Park et al. 2023 (arXiv 2303.14186),
and the inverse by the Woodbury identity.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import (
    check_cross_entropy,
    doubts,
    gradient_sides,
    member_blocks,
    member_layout,
    parameter_names,
)
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import checkpoints_of
from dualview.engine.gradients import members
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, margin
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.errors import DualViewWarning
from dualview.ops.gradients import apply, combine, dense, products, squared_norms
from dualview.ops.krylov import conjugate_gradients
from dualview.ops.layout import Layout

MAX_KERNEL = 20_000  # samples of which a matrix of all pairs is made: 1.6 GB in float32
MAX_STEPS = 500
SELF_ROWS = 512  # samples that are paired with all others at a time, for their product with themselves


class KernelState(NamedTuple):
    """A fitted kernel, or what conjugate gradients need.

    Attributes:
        positions: "fitted" positions that are scored.
        roots: "checkpoint fitted", the roots r of the curvatures R of the loss in the margin.
        slopes: "checkpoint fitted", minus the slopes of the loss in the margin, 1 − p.
        damping: "checkpoint", λ.
        factors: "checkpoint fitted fitted", Cholesky factors of λI + rKr, lower; empty for conjugate gradients.
    """

    positions: Int[Tensor, " fitted"]
    roots: Float[Tensor, "checkpoint fitted"]
    slopes: Float[Tensor, "checkpoint fitted"]
    damping: Float[Tensor, " checkpoint"]
    factors: Float[Tensor, "checkpoint row column"]


@dataclass(frozen=True)
class KernelInfluence(DataMethod):
    """Estimate the effect of including each training sample by influence through all parameters.

    With g_i the gradient of the label's margin m_i, the loss log(1 + exp(−m_i)) has the slope −(1 − p_i) and the
    curvature R_i = p_i(1 − p_i) in it, and

        score(x, i) = ∇φ(x)ᵀ (λI + Σ_j R_j g_j g_jᵀ)⁻¹ g_i (1 − p_i)
                    = (1/λ) [k_x − k_x R^½ (λI + R^½ K R^½)⁻¹ R^½ K]_i (1 − p_i),

    K and k_x the inner products of gradients, in units of the measured output φ. With several checkpoints the mean.
    For a regression with one output m is the output, R = 1, and the slope the residual y − m. Self-influence is what
    including a sample takes from its own loss.

    Args:
        damping: λ, as a multiple of the mean of R_i ‖g_i‖².
        parameters: names of parameters or modules; by default all that require gradients.
        solver: "kernel" makes the matrix of all pairs of training samples, "cg" solves for each test sample by
            conjugate gradients without it; "auto" makes it of up to 20,000.
        tolerance: of conjugate gradients, relative to the right-hand side.

    Example:
        >>> method = KernelInfluence(damping=0.1)
    """

    damping: float = 1.0
    _: KW_ONLY
    parameters: str | Sequence[str] | None = None
    solver: str = "auto"
    tolerance: float = 1e-5

    State: ClassVar[type[KernelState]] = KernelState
    kind: ClassVar[Kind] = "effect"
    reads_loss: ClassVar[bool] = True
    inverts_curvature: ClassVar[bool] = True
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        for name in ("damping", "tolerance"):
            object.__setattr__(self, name, positive(getattr(self, name), name))
        if self.solver not in ("auto", "kernel", "cg"):
            raise ValueError(f"`solver` is {self.solver!r}; choose from 'auto', 'kernel' and 'cg'")

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        of_train = margin if task.problem == "classification" else first_output
        return gradient_sides(task, of_train, checkpoints_of(task), parameters=self.parameters)

    # ── fitting ──────────────────────────────────────────────────────────────────────────────────

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[KernelState, dict[str, Any]]:
        if task.problem == "classification":
            check_cross_entropy(task, train, "KernelInfluence")
        else:
            _check_squares(task, train)
        num_members, num_rows = len(members(train.layout, train.parts[0].values[:1])), len(positions)
        as_kernel = self.solver == "kernel" or self.solver == "auto" and num_rows <= MAX_KERNEL
        roots, slopes = (train.parts[0].values.new_empty(num_members, num_rows) for _ in range(2))
        damping = torch.empty(num_members, dtype=torch.float64)
        factors = roots.new_empty(num_members, *(2 * [num_rows] if as_kernel else [0, 0]))
        for k in range(num_members):
            layout, blocks = member_layout(train, k), list(member_blocks(train, positions, k))
            curvatures, slopes[k] = (torch.cat(part) for part in zip(*map(_slopes, blocks), strict=True))
            smallest = float(curvatures.mean()) * torch.finfo(train.dtype).eps ** 2  # divided by; changes no digit
            roots[k] = curvatures.clamp(min=smallest).sqrt()
            norms = torch.cat([squared_norms(layout, rows.values) for rows in blocks])
            damping[k] = self.damping * float((curvatures * norms).double().mean())
            if not damping[k] > 0:
                raise ValueError("all training gradients are zero, or the loss is flat for all: nothing can be scored")
            if as_kernel:
                _fill(factors[k], layout, blocks, roots[k])
                factors[k].diagonal().add_(float(damping[k]))
                _factorise(factors[k], self.damping)
        facts = {"damping": damping.tolist(), "solver": "kernel" if as_kernel else "cg"}
        return KernelState(positions, roots, slopes, damping, factors), facts

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────

    def prepare(self, state: KernelState, task: Task, test: Rows, train: Table) -> Prepared:
        near = [
            self._products(state, k, one.gradients, train) for k, one in enumerate(members(train.layout, test.values))
        ]
        return Prepared(torch.cat(near, dim=1), test.outputs, train.layout)

    def score(self, state: KernelState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        place = torch.searchsorted(state.positions, train.index)
        near = test.values.unflatten(1, state.slopes.shape)[..., place]
        return (near * state.slopes[:, place]).mean(1)

    def joint_scores(
        self, state: KernelState, test: Prepared, group: Int[Tensor, " member"], train: Table
    ) -> Float[Tensor, " test"]:
        """Return ∇φᵀ A⁻¹ G_F (I − R_F G_Fᵀ A⁻¹ G_F)⁻¹ (1 − p_F), mean over checkpoints.

        That is the Newton step that leaves the group F out, its own curvature included; A is the damped curvature of
        all, G_F the gradients of the group's margins. Exact for least squares.
        """
        place = torch.searchsorted(state.positions, group)
        near = test.values.unflatten(1, state.slopes.shape)[..., place]
        total = near.new_zeros(len(near))
        for k, one in enumerate(members(train.layout, train.rows(group).values)):
            among = self._products(state, k, one.gradients, train)[:, place]
            left = torch.eye(len(place), dtype=among.dtype) - state.roots[k, place].square()[:, None] * among
            total += near[:, k] @ torch.linalg.solve(left, state.slopes[k, place])
        return total / len(state.damping)

    def self_scores(self, state: KernelState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        place = torch.searchsorted(state.positions, train.index)
        total = train.values.new_zeros(len(place))
        for k, one in enumerate(members(table.layout, train.values)):
            for some in torch.arange(len(place)).split(SELF_ROWS):
                among = self._products(state, k, one.gradients[some], table)
                own = among.gather(1, place[some, None]).squeeze(1)
                total[some] += own * state.slopes[k, place[some]].square()
        return total / len(state.damping)

    def _products(
        self, state: KernelState, member: int, gradients: Float[Tensor, "row unit"], train: Table
    ) -> Float[Tensor, "row fitted"]:
        """Return gᵀ (λI + Σ_j R_j g_j g_jᵀ)⁻¹ g_i of some gradients g and those of the fitted samples i."""
        layout, blocks = member_layout(train, member), member_blocks(train, state.positions, member)
        factor, roots = state.factors[member], state.roots[member]
        if not len(factor):
            held = list(blocks)  # every step walks them
            vectors = self._solve(state, member, dense(layout, gradients), layout, held)
            return torch.cat([apply(layout, rows.values, vectors) for rows in held]).T
        near = torch.cat([products(layout, gradients, rows.values) for rows in blocks], dim=1)
        half = torch.linalg.solve_triangular(factor, near.mul_(roots).T, upper=False)
        return torch.linalg.solve_triangular(factor.mT, half, upper=True).T / roots

    def _solve(
        self, state: KernelState, member: int, right: Tensor, layout: Layout, blocks: list[Rows]
    ) -> Float[Tensor, "k param"]:
        """Solve (λI + Σ_j R_j g_j g_jᵀ) w = right, "k param", for all rows at once by conjugate gradients.

        Warns:
            DualViewWarning: the tolerance was not reached.
        """
        weights = state.roots[member].square().split([len(rows.index) for rows in blocks])
        damping = float(state.damping[member])

        def product(vectors: Tensor) -> Tensor:
            total = damping * vectors
            for rows, weight in zip(blocks, weights, strict=True):
                total += combine(layout, (apply(layout, rows.values, vectors) * weight[:, None]).T, rows.values)
            return total

        found = conjugate_gradients(product, right, tolerance=self.tolerance, steps=MAX_STEPS)
        reached = float(found.residuals.max())
        if reached > self.tolerance:
            warnings.warn(
                f"conjugate gradients came to a relative residual of {reached:.1e} in {MAX_STEPS} steps, above "
                f"tolerance={self.tolerance:.1e}: give more damping, or a larger tolerance",
                DualViewWarning,
                stacklevel=2,
            )
        return found.vectors


def first_output(outputs: Float[Tensor, "row output"], targets: Tensor) -> Float[Tensor, " row"]:
    """Measure the only output of a regression."""
    if outputs.shape[1] != 1:
        raise ValueError(f"KernelInfluence explains regressions with one output; this network has {outputs.shape[1]}")
    return outputs[:, 0]


def _slopes(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the curvature of each row's loss in its margin or output, and minus its slope."""
    if rows.targets.is_floating_point():
        return torch.ones_like(rows.outputs[:, 0]), (rows.targets - rows.outputs)[:, 0]
    doubt = doubts(rows.outputs, rows.targets)
    return doubt * (1 - doubt), doubt


def _check_squares(task: Task, table: Table) -> None:
    with torch.no_grad():
        own = task.losses(table.outputs, table.targets)
    expected = 0.5 * (table.outputs - table.targets).square().sum(1)
    if not torch.allclose(own, expected, rtol=1e-3) and not torch.allclose(own, 2 * expected, rtol=1e-3):
        raise ValueError("KernelInfluence of a regression is derived for squared errors, and this `loss` is another")


def _fill(kernel: Tensor, layout: Layout, blocks: list[Rows], roots: Tensor) -> None:
    """Write r K r into the lower triangle of a matrix, block by block; of blocks on the diagonal all."""
    start = 0
    for i, rows in enumerate(blocks):
        stop, first = start + len(rows.index), 0
        for others in blocks[: i + 1]:
            last = first + len(others.index)
            near = products(layout, rows.values, others.values)
            kernel[start:stop, first:last] = near.mul_(roots[start:stop, None]).mul_(roots[first:last])
            first = last
        start = stop


def _factorise(kernel: Tensor, damping: float) -> None:
    """Turn the lower triangle of a matrix into its Cholesky factor, in place: there is nothing larger."""
    upper = kernel.mT
    _, failed = torch.linalg.cholesky_ex(upper, upper=True, out=(upper, torch.empty((), dtype=torch.int32)))
    if bool(failed):
        raise ValueError(
            f"damping={damping:g} is too small: in {kernel.dtype} the kernel with it is singular. Give a larger one"
        )
