"""Influence: influence functions through any parameters, with the curvature of the training loss itself.

Sources: Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017 (arXiv 1703.04730);
LiSSA: Agarwal, Bullins and Hazan, JMLR 2017; leave-one-out of linear models: Cook and Weisberg 1982.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import BLOCK, gradient_sides, member_layout, parameter_names
from dualview.data._influence import (
    DENSE_NUMBERS,
    SOLVED_NUMBERS,
    absolute_damping,
    class_gradients,
    measured_gradients,
)
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive, whole
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.curvature import Jacobians, LossCurvature, gauss_newton, logit_curvatures
from dualview.engine.curvature import Kind as Curvature
from dualview.engine.gradients import Gradients
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, logit, loss
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.errors import DualViewWarning
from dualview.ops.krylov import arnoldi, conjugate_gradients, deflation, dominant, neumann
from dualview.ops.layout import Layout

MOST_EXPLICIT = 2048  # parameters of which "auto" builds the whole matrix
MAX_DENSE = 20_000  # and of which it is built when it is asked for
REFINEMENTS = 3  # times that conjugate gradients start, the later ones from what is left
LEAST_PIVOT = 1e-12  # of I − A K, below which it counts as singular
LANCZOS_STEPS, KEPT = 64, 48  # that find the largest eigenvalues, and how many of these precondition cg
ADVICE = {
    "hessian": "give more damping, or take curvature='gauss-newton', which has no negative eigenvalues",
    "gauss-newton": "give more damping",
}


class InfluenceState(NamedTuple):
    """What a fit leaves; fields that a solver does not need are empty.

    Attributes:
        positions: "fitted" positions that are scored.
        damping: λ.
        scale: of LiSSA; zero for other solvers.
        factor: "param param", lower Cholesky factor of H + λI; of the explicit solver.
        eigenvalues: "rank", some of the largest of H; this and the next with cg alone.
        vectors: "rank param", theirs, about.
        slopes: "fitted cls", r, the gradient of each loss in the logits; this and the next two with leverage alone.
        refits: "fitted cls", (I − A K)⁻¹ r.
        bends: "fitted cls cls", A.
    """

    positions: Int[Tensor, " fitted"]
    damping: Float[Tensor, ""]
    scale: Float[Tensor, ""]
    factor: Float[Tensor, "param column"]
    eigenvalues: Float[Tensor, " rank"]
    vectors: Float[Tensor, "rank size"]
    slopes: Float[Tensor, "leveraged cls"]
    refits: Float[Tensor, "leveraged cls"]
    bends: Float[Tensor, "leveraged cls cls"]


@dataclass(frozen=True)
class Influence(DataMethod):
    """Estimate the effect of including each training sample by influence functions through any parameters.

        score(x, i) = −∇φ(x)ᵀ (H + λI)⁻¹ ∇ℓ_i / n,

    H the Hessian of the mean training loss or its Gauss-Newton matrix (1/n) Σ_j J_jᵀ A_j J_j, J the Jacobian of the
    logits and A the loss's Hessian in these, in units of the measured output φ. Self-influence is what including a
    sample takes from its own loss. With `leverage` the sample's own part of H is taken out, as leaving it out would:

        score(x, i) = −∇φ(x)ᵀ (H + λI − J_iᵀA_iJ_i/n)⁻¹ ∇ℓ_i / n = −∇φ(x)ᵀ (H + λI)⁻¹ J_iᵀ (I − A_i K_i)⁻¹ r_i / n,

    K_i = J_i (H + λI)⁻¹ J_iᵀ/n, r_i the loss's gradient in the logits: exact leave-one-out where outputs are linear in
    the parameters and the loss is quadratic, one Newton step elsewhere.

    Args:
        damping: λ, as a multiple of the mean diagonal of the Gauss-Newton matrix, which is the unit for the Hessian
            too: the trace of that may vanish.
        absolute: whether `damping` is λ itself; then it may be zero.
        curvature: "gauss-newton" or "hessian".
        solver: "explicit" builds and factorises H; "cg" and "lissa" (a Neumann series on random batches) run the model
            on the training samples for each block of test samples; "auto" is explicit up to 2,048 parameters, else cg.
        parameters: names of parameters or modules; by default all that require gradients.
        leverage: see above; for the Gauss-Newton matrix and the explicit solver.
        tolerance: relative residual that cg stops at, and above which cg and lissa warn.
        steps: at most, of cg; of the series, of lissa.
        batch: samples in each step of lissa.
        scale: of lissa, at least the largest eigenvalue of any batch's H + λI; None: twice that of all samples.
        seed: of batches, and of the estimated unit of damping where there are more than 16 logits.

    Example:
        >>> method = Influence(damping=1.0, parameters="fc")
    """

    damping: float = 10.0
    _: KW_ONLY
    absolute: bool = False
    curvature: Curvature = "gauss-newton"
    solver: str = "auto"
    parameters: str | Sequence[str] | None = None
    leverage: bool = False
    tolerance: float = 1e-3
    steps: int = 1000
    batch: int = 64
    scale: float | None = None
    seed: int = 0

    State: ClassVar[type[InfluenceState]] = InfluenceState
    kind: ClassVar[Kind] = "effect"
    reads_loss: ClassVar[bool] = True
    inverts_curvature: ClassVar[bool] = True
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        object.__setattr__(self, "damping", positive(self.damping, "damping", or_zero=True))
        object.__setattr__(self, "tolerance", positive(self.tolerance, "tolerance"))
        if self.scale is not None:
            object.__setattr__(self, "scale", positive(self.scale, "scale"))
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(getattr(self, name), name, least))
        if self.curvature not in ("gauss-newton", "hessian"):
            raise ValueError(f"`curvature` is {self.curvature!r}; choose from 'gauss-newton' and 'hessian'")
        if self.solver not in ("auto", "explicit", "cg", "lissa"):
            raise ValueError(f"`solver` is {self.solver!r}; choose from 'auto', 'explicit', 'cg' and 'lissa'")
        if self.leverage and (self.curvature != "gauss-newton" or self.solver not in ("auto", "explicit")):
            raise ValueError("leverage=True needs curvature='gauss-newton' and solver='explicit'")

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        checkpoints = (Checkpoint(task.model),)
        sides = gradient_sides(task, loss, checkpoints, parameters=self.parameters)
        if not self.leverage:
            return sides
        names = parameter_names(self.parameters)
        return sides._replace(train=Gradients(logit, checkpoints, names, each_class=True))

    # ── fitting ──────────────────────────────────────────────────────────────────────────────────

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[InfluenceState, dict[str, Any]]:
        curvature = self._curvature(train, positions)
        is_small = self.leverage or curvature.size <= MOST_EXPLICIT
        solver = self.solver if self.solver != "auto" else "explicit" if is_small else "cg"
        if solver == "explicit" and curvature.size > MAX_DENSE:
            raise ValueError(
                f"{curvature.size:,} parameters are too many for a matrix of all: name some parameters=, or take "
                "solver='cg' without leverage"
            )
        damping, how = self.damping, "given"
        if not self.absolute:
            damping, how = absolute_damping(self.damping, curvature, self.seed)
        facts: dict[str, Any] = {"damping": damping, "unit_of_damping": how, "solver": solver}
        state = _bare(positions, damping, train.dtype)
        if self.leverage:
            whole = gauss_newton(recorded_jacobians(task, train, positions), len(positions))
            factor = self._factor(whole, damping)
            slopes, refits, bends = left_out(task, train, positions, factor)
            return state._replace(factor=factor, slopes=slopes, refits=refits, bends=bends), facts
        if solver == "explicit":
            return state._replace(factor=self._factor(curvature.matrix(), damping)), facts
        values, vectors = _largest(curvature, self.seed)
        facts["largest_eigenvalue"] = float(values[0])
        if solver == "cg":
            return state._replace(eigenvalues=values[values > 0], vectors=vectors[values > 0]), facts
        facts["scale"] = self.scale or 2 * (float(values[0].abs()) + damping)
        return state._replace(scale=state.scale.new_tensor(facts["scale"])), facts

    def _curvature(self, train: Table, positions: Tensor) -> LossCurvature:
        return LossCurvature(train, positions, member_layout(train, 0), self.curvature)

    def _factor(self, matrix: Tensor, damping: float) -> Tensor:
        """Return the Cholesky factor of a matrix with damping.

        Raises:
            ValueError: it is singular or not positive.
        """
        matrix.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal().square()
        if bool(failed) or not pivots.min() > len(pivots) * torch.finfo(pivots.dtype).eps * pivots.max():
            lowest = float(torch.linalg.eigvalsh(matrix)[0]) - damping
            raise ValueError(
                f"the smallest eigenvalue of the curvature, {lowest:.3g}, and λ = {damping:.3g} leave no positive "
                f"definite matrix: {ADVICE[self.curvature]}"
            )
        return factor

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────

    def prepare(self, state: InfluenceState, task: Task, test: Rows, train: Table) -> Prepared:
        return Prepared(self.solve(state, measured_gradients(test, train), train), test.outputs, train.layout)

    def score(self, state: InfluenceState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        blocks = (test.values @ left.T for _, left in self._gradients(state, test.layout, train))
        return torch.cat(list(blocks), dim=1).div_(-len(state.positions))

    def self_scores(self, state: InfluenceState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        blocks = self._gradients(state, table.layout, train, SOLVED_NUMBERS)
        own = [(self.solve(state, one, table) * left).sum(1) for one, left in blocks]
        return torch.cat(own) / len(state.positions)

    def joint_scores(
        self, state: InfluenceState, test: Prepared, group: Int[Tensor, " member"], train: Table
    ) -> Float[Tensor, " test"] | None:
        if not self.leverage:
            return None
        place = torch.searchsorted(state.positions, group)
        gradients = torch.cat([block for _, block in class_gradients(train.layout, train.rows(group))]).double()
        found = joint_effects(
            test.values.double() @ gradients.flatten(0, 1).T,
            _kernels(gradients.flatten(0, 1)[None], state.factor)[0] / len(state.positions),
            state.slopes[place],
            state.bends[place],
        )
        return found.to(test.values.dtype) / len(state.positions)

    def solve(self, state: InfluenceState, vectors: Float[Tensor, "k param"], train: Table) -> Float[Tensor, "k param"]:
        if len(state.factor):
            return torch.cholesky_solve(vectors.double().T, state.factor).T.to(vectors.dtype)
        blocks = vectors.split(max(1, SOLVED_NUMBERS // vectors.shape[1]))
        curvature = self._curvature(train, state.positions)
        found = [self._iterated(state, block, curvature) for block in blocks]
        worst = float(torch.cat([residuals for _, residuals in found]).max())
        if not worst <= self.tolerance:
            warnings.warn(
                f"Influence came to a relative residual of {worst:.1e} in steps={self.steps}, above "
                f"tolerance={self.tolerance:.1e}: give more damping, more steps, or a larger tolerance",
                DualViewWarning,
                stacklevel=2,
            )
        return torch.cat([solved for solved, _ in found])

    def _iterated(
        self, state: InfluenceState, right: Tensor, curvature: LossCurvature
    ) -> tuple[Float[Tensor, "k param"], Float[Tensor, " k"]]:
        """Return solutions that come from products alone, and their relative residuals."""
        damping, generator = float(state.damping), torch.Generator().manual_seed(self.seed)

        def product(vectors: Tensor) -> Tensor:
            return curvature.product(vectors) + damping * vectors

        def of_batch(vectors: Tensor) -> Tensor:
            drawn = torch.randperm(len(state.positions), generator=generator)[: self.batch]
            return curvature.product(vectors, state.positions[drawn]) + damping * vectors

        if state.scale > 0:
            solved = neumann(of_batch, right, scale=float(state.scale), steps=self.steps)
            sizes = right.norm(dim=1).clamp(min=torch.finfo(right.dtype).tiny)
            return solved, (product(solved) - right).norm(dim=1) / sizes
        conditioner = deflation(state.eigenvalues + damping, state.vectors)
        solved, left, sizes = torch.zeros_like(right), right, right.norm(dim=1).clamp(min=torch.finfo(right.dtype).tiny)
        residuals = torch.ones_like(sizes)
        for _ in range(REFINEMENTS):  # rounding leaves more than the residual that the recursion believes in
            tolerance = self.tolerance / float(residuals.max())
            found = conjugate_gradients(product, left, tolerance=tolerance, steps=self.steps, precondition=conditioner)
            if not found.lowest > 0:
                raise ValueError(
                    f"conjugate gradients met a direction of curvature {found.lowest - damping:.3g}, which λ = "
                    f"{damping:.3g} does not make positive: {ADVICE[self.curvature]}"
                )
            solved = solved + found.vectors
            left = right - product(solved)
            residuals = left.norm(dim=1) / sizes
            if float(residuals.max()) <= self.tolerance or float(found.residuals.max()) > tolerance:
                break
        return solved, residuals

    def _gradients(
        self, state: InfluenceState, layout: Layout, rows: Rows, numbers: int = DENSE_NUMBERS
    ) -> Iterator[tuple[Float[Tensor, "row param"], Float[Tensor, "row param"]]]:
        """Walk the loss gradients of some rows, in blocks, and what stands in for them: Jᵀ(I − A K)⁻¹ r."""
        place = torch.searchsorted(state.positions, rows.index)
        for some, block in class_gradients(layout, rows, numbers):
            if self.leverage:
                slopes, refits = (part[place[some], None].to(block) for part in (state.slopes, state.refits))
                yield (slopes @ block).squeeze(1), (refits @ block).squeeze(1)
            else:
                yield block[:, 0], block[:, 0]


# ── leaving out ──────────────────────────────────────────────────────────────────────────────────


def recorded_jacobians(task: Task, train: Table, positions: Int[Tensor, " row"]) -> Iterator[Jacobians]:
    """Walk the Jacobians of samples of which the gradient of each class is recorded."""
    for rows in train.blocks(BLOCK, positions):
        bends = logit_curvatures(task, rows.outputs, rows.targets)
        for some, block in class_gradients(train.layout, rows):
            yield Jacobians(block.double(), bends[some])


def left_out(
    task: Task, train: Table, positions: Int[Tensor, " row"], factor: Float[Tensor, "param column"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each sample's r, (I − A K)⁻¹ r and A, K = J H⁻¹ Jᵀ/n of the sample alone, in float64."""
    slopes = task.loss_directions(train.outputs[positions], train.targets[positions]).double()
    kernels, bends = [], []
    for gradients, curved in recorded_jacobians(task, train, positions):
        kernels.append(_kernels(gradients, factor) / len(positions))
        bends.append(curved)
    whole = torch.cat(bends)
    return slopes, refitted(slopes, whole, torch.cat(kernels)), whole


def refitted(
    slopes: Float[Tensor, "group m"], bends: Float[Tensor, "group m m"], kernels: Float[Tensor, "group m m"]
) -> Float[Tensor, "group m"]:
    """Return (I − A K)⁻¹ r: the slopes of losses after a Newton step without the samples of the group themselves.

    Raises:
        ValueError: without them some output is free.
    """
    one = torch.eye(slopes.shape[1], dtype=slopes.dtype)
    factors, places, _ = torch.linalg.lu_factor_ex(one - bends @ kernels)
    pivots = factors.diagonal(dim1=1, dim2=2).abs()
    if bool((pivots.amin(1) <= LEAST_PIVOT).any()):
        raise ValueError("a sample has leverage 1: without it some output is free. Give more damping")
    return torch.linalg.lu_solve(factors, places, slopes[..., None]).squeeze(2)


def joint_effects(
    near: Float[Tensor, "test m"],
    kernel: Float[Tensor, "m m"],
    slopes: Float[Tensor, "member cls"],
    bends: Float[Tensor, "member cls cls"],
) -> Float[Tensor, " test"]:
    """Return the exact effect of including a group F in the linearised model, times n: −xᵀH⁻¹J_Fᵀ(I − A_F K_F)⁻¹ r_F.

    Args:
        near: xᵀ H⁻¹ J_Fᵀ, m counting the classes of the first member, then those of the second, ...
        kernel: K_F = J_F H⁻¹ J_Fᵀ/n.
        slopes: r, gradients of the members' losses in their logits.
        bends: A, Hessians of these.
    """
    return -near @ refitted(slopes.flatten()[None], torch.block_diag(*bends)[None], kernel[None])[0]


def _kernels(
    gradients: Float[Tensor, "group m param"], factor: Float[Tensor, "param column"]
) -> Float[Tensor, "group m m"]:
    """Return J H⁻¹ Jᵀ by the Cholesky factor of H."""
    half = torch.linalg.solve_triangular(factor, gradients.flatten(0, 1).T, upper=False).T.view_as(gradients)
    return half @ half.mT


def _bare(positions: Tensor, damping: float, dtype: torch.dtype) -> InfluenceState:
    """Return a state without what the solvers need."""
    number = torch.tensor(damping, dtype=torch.float64)
    none = number.new_empty(0, 0)
    vectors, bends = torch.empty(0, 0, dtype=dtype), number.new_empty(0, 0, 0)
    return InfluenceState(
        positions, number, torch.zeros_like(number), none, number.new_empty(0), vectors, none, none, bends
    )


def _largest(curvature: LossCurvature, seed: int) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank param"]]:
    """Return eigenvalues of largest size, and about their vectors, by some Lanczos steps."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(curvature.size, generator=generator, dtype=torch.float64).to(curvature.table.dtype)
    return dominant(arnoldi(curvature.product, start, steps=LANCZOS_STEPS, generator=generator), KEPT)
