"""The dual family: one fit, other losses and metrics, with dual coefficients and their certificate."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.errors import GapWarning, NonFiniteError
from dualview.solvers._solution import DualSolution
from dualview.solvers.crammer_singer import crammer_singer
from dualview.solvers.crammer_singer.certificate import feasible
from dualview.solvers.crammer_singer.problem import row_weights
from dualview.solvers.hessian import gather, logits
from dualview.solvers.losses import DeviationLoss, LabelLoss, Loss, SimplexLoss, named
from dualview.solvers.metrics import Metric, plain
from dualview.solvers.newton import Newton, Problem

_NEARER, _TIGHTER = 0.5, 0.1  # factors of gamma and of the tolerance from one round to the next
_FIRST_TOLERANCE = 1e-3  # of the first smoothed problem
_LEAST_TOLERANCE = 1e-26  # about the square of float64's rounding, and Newton's last step goes beyond
_REPORTED_ROWS = 10
_ENDINGS = {"limit": "reached max_steps", "stalled": "made no more progress"}


def dual(
    features: Float[Tensor, "train feature"],
    targets: Int[Tensor, " train"] | Float[Tensor, "train out"],
    *,
    loss: str,
    C: float,
    metric: Metric | None = None,
    gap: float = 1e-6,
    smoothing: float | None = None,
    epsilon: float = 0.1,
    num_classes: int | None = None,
    sample_weight: Float[Tensor, " train"] | None = None,
    max_steps: int = 1000,
) -> DualSolution:
    """Fit linear weights under a loss and a metric, and return the dual variables with a certificate.

    With phi_i = [features_i, 1] and z_i = W phi_i, the primal and its dual are

        min over W of  P = ½ Σ_c W_cᵀ M_c W_c + Σ_i C_i L(z_i, t_i)
        max over alpha of  D = -½ Σ_c W_cᵀ M_c W_c - Σ_i C_i L*(-alpha_i/C_i, t_i),  W_c = M_c⁻¹ Σ_i alpha_ic phi_i,

    and alpha_i = -C_i dL/dz_i at the optimum. The weights are made from the coefficients, whatever the solver did, so
    Σ_i alpha_ic phi_iᵀ M_c⁻¹ phi(x) is the surrogate's logit but for rounding. alpha is exactly zero where the row's
    loss is flat: beyond the margin 1/(order - 1) of "entmax" and "sparsemax", 1 + smoothing of "smooth-hinge", and in
    the tube of "epsilon".

    The hinge between classes, under a metric they share, is `crammer_singer` on whitened features. All else is
    Newton's method on the primal, its steps found by conjugate gradients, whose preconditioner is exact for "squared".
    A loss with a kink is smoothed first: ½·gamma·|u - u⁰|² is added to its conjugate, with u⁰ the last residuals and
    gamma smaller each time (the proximal point method in the dual). The certificate is that of the loss itself.

    Args:
        features: floating-point and finite; not copied, but read in blocks.
        targets: integers "train", the class of each row; under "squared" they stand for one-hot numbers. Floats
            "train out" are numbers under "squared" and "epsilon". Under the other losses they are labels, 0 or 1: each
            a problem of two classes by itself, with one logit (the log-odds under "softmax") and one coefficient.
        loss: "hinge", "smooth-hinge", "softmax", "entmax" (of order 1.5), "sparsemax", "squared" or "epsilon".
        C: weight of the sum (not the mean) of the losses, positive.
        metric: M; None: the identity.
        gap: relative gap (P - D)/P at which to stop.
        smoothing: gamma of "smooth-hinge"; None: 1.
        epsilon: deviation that costs nothing under "epsilon".
        num_classes: columns of the solution, where targets are classes; None: the largest class plus one. A class
            without rows takes no part: its coefficients and weights are zero.
        sample_weight: factor of each row's loss, not negative. A row of weight zero takes no part.
        max_steps: Newton's steps at which to give up.

    Returns:
        The solution; P, D and gap are evaluated in float64 from its coefficients and the features given.

    Raises:
        NonFiniteError: features or targets are NaN or infinite.
        ValueError: another argument is not as described.

    Warns:
        GapWarning: the asked gap was not reached.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
        >>> solution = dual(features, torch.tensor([0, 0, 1, 1]), loss="sparsemax", C=10.0)
        >>> solution.status, solution.coefficients.to_dense().abs().sum(1).gt(0).tolist()
        ('converged', [False, True, True, False])
    """
    started = time.perf_counter()
    chosen = named(loss, smoothing=smoothing, epsilon=epsilon)
    posed = _pose(features, targets, chosen, C, metric or plain(), num_classes, sample_weight)
    if chosen == named("hinge") and posed.problem.loss.coupled and not posed.problem.metric.by_class:
        found = _by_crammer_singer(posed, C, gap)
    else:
        found = _by_newton(posed, C, gap, max_steps)
        if found.status != "converged":
            warnings.warn(
                f"dual {_ENDINGS[found.status]} after {found.epochs} passes at a relative gap of {found.gap:.1e}, "
                f"above gap={gap:.1e}. Use a smaller C, a larger gap or max_steps, or float64 features",
                GapWarning,
                stacklevel=2,
            )
    seconds = time.perf_counter() - started
    return replace(found, seconds=seconds, regime_seconds=found.regime_seconds or {found.regime: seconds})


@dataclass(frozen=True, eq=False)
class _Posed:
    """A problem over the rows and columns that take part, and where they stand among all.

    Attributes:
        problem: over these rows and columns.
        rows: positions of its rows.
        columns: positions of its columns.
        shape: of the coefficients, "train out".
    """

    problem: Problem
    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]


def _by_crammer_singer(posed: _Posed, C: float, gap: float) -> DualSolution:
    problem = posed.problem
    found = crammer_singer(
        problem.metric.whiten(problem.features), problem.targets, C=C, gap=gap, sample_weight=problem.costs / C
    )
    certified = _certified(posed, found.coefficients.to_dense() / problem.costs[:, None], C)
    return replace(
        certified, status=found.status, epochs=found.epochs, regime=found.regime, regime_seconds=found.regime_seconds
    )


def _by_newton(posed: _Posed, C: float, gap: float, max_steps: int) -> DualSolution:
    """Descend on the loss, or on smoothed ones ever nearer to it, until the certificate is good enough."""
    problem, loss = posed.problem, posed.problem.loss
    newton = Newton(problem, len(posed.columns))
    best = _certified(posed, newton.residual, C)
    gamma = best.primal / float(problem.costs.sum())  # the mean loss of zero weights: what residuals are made of
    tolerance, status = _FIRST_TOLERANCE if loss.kinked else gap, "reached"
    while best.gap > gap and status == "reached":
        taken = newton.steps
        near, offset = (loss.smoothed(gamma), -gamma * newton.residual) if loss.kinked else (loss, 0.0)
        status = newton.minimise(near, offset, tolerance, max_steps)
        found = _certified(posed, newton.residual, C)
        if found.gap >= best.gap and tolerance == _LEAST_TOLERANCE:
            status = "stalled"
        best = found if found.gap < best.gap else best
        if newton.steps > taken + 1:  # else the active set is found, and a smaller gamma would add but rounding errors
            gamma *= _NEARER
        tolerance = max(tolerance * _TIGHTER, _LEAST_TOLERANCE)
    status = "converged" if best.gap <= gap else status
    return replace(best, status=status, epochs=newton.passes, regime="newton")


def _certified(posed: _Posed, residual: Float[Tensor, "row out"], C: float) -> DualSolution:
    """Make residuals feasible exactly, and weights of them, and evaluate both values in float64."""
    problem, loss = posed.problem, posed.problem.loss
    costs = problem.costs[:, None]
    if loss.coupled:
        shares, labels = residual.numpy(), problem.targets.numpy()
        alpha = torch.as_tensor(feasible(shares, labels, problem.costs.numpy(), 0.0))
    else:
        alpha = costs * residual
    sums = gather(problem.features, alpha)
    weights = problem.metric.solve(sums)
    half_norm = 0.5 * float((weights * sums).sum())
    z = logits(problem.features, weights)
    primal = half_norm + float(problem.costs @ loss.value(z, problem.targets))
    dual = -half_norm - float(problem.costs @ loss.conjugate(alpha / costs, problem.targets))
    largest = alpha.abs().amax(1)
    row, column = alpha.nonzero(as_tuple=True)
    full = torch.zeros(posed.shape[1], weights.shape[1], dtype=torch.float64)
    full[posed.columns] = weights
    return DualSolution(
        coefficients=torch.sparse_coo_tensor(  # pyright: ignore[reportUnknownMemberType]
            torch.stack([posed.rows[row], posed.columns[column]]),
            alpha[row, column],
            posed.shape,
            is_coalesced=True,
            check_invariants=False,
        ),
        weights=full,
        gap=max(primal - dual, 0.0) / primal if primal else 0.0,
        status="limit",
        epochs=0,
        regime="",
        primal=primal,
        dual=dual,
        seconds=0.0,
        regime_seconds={},
        C=C,
        free=int(((largest > 0) & (largest < problem.costs * loss.bound)).sum()),
        bound=int((largest >= problem.costs * loss.bound).sum()),
    )


def _pose(
    features: Tensor,
    targets: Tensor,
    loss: SimplexLoss | DeviationLoss,
    C: float,
    metric: Metric,
    num_classes: int | None,
    sample_weight: Tensor | None,
) -> _Posed:
    """Check the arguments, and leave out the rows and classes that take no part."""
    if not (math.isfinite(C) and C > 0):
        raise ValueError(f"C must be a positive, finite number; got {C}")
    features = _finite("features", features)
    if len(targets) != len(features):
        raise ValueError(f"targets must be one for each of the {len(features)} rows; got {tuple(targets.shape)}")
    weights = torch.as_tensor(row_weights(np.zeros(len(features), np.int64), 1, sample_weight, None))
    rows = weights.nonzero().squeeze(1)
    if not len(rows):
        raise ValueError("sample_weight is zero for every row; at least one must take part")
    targets, num_columns = _columns(targets, loss, num_classes)
    columns, used = torch.arange(num_columns), targets[rows]
    chosen: Loss = loss
    if targets.ndim == 1:
        classes, inverse = np.unique(used.numpy(), return_inverse=True)
        columns, used = torch.as_tensor(classes), torch.as_tensor(inverse)
        if len(columns) < 2:
            raise ValueError(f"targets hold one class only ({int(columns[0])}); a loss between classes needs two")
    elif isinstance(loss, SimplexLoss):
        chosen = LabelLoss(loss)
    num_units = features.shape[1] + 1
    if metric.factors is not None:
        expected = (num_columns if metric.by_class else 1, num_units, num_units)
        if tuple(metric.factors.shape) != expected:
            raise ValueError(
                f"metric must fit {num_columns} classes and {num_units} units with the constant: factors of shape "
                f"{expected}; got {tuple(metric.factors.shape)}"
            )
    kept = features if len(rows) == len(features) else features[rows]
    problem = Problem(kept, used, C * weights[rows], chosen, metric.of(columns))
    return _Posed(problem, rows, columns, (len(features), num_columns))


def _columns(targets: Tensor, loss: SimplexLoss | DeviationLoss, num_classes: int | None) -> tuple[Tensor, int]:
    """Return targets as the loss reads them, "row" classes or float64 "row out", and the number of columns."""
    targets = targets.detach().cpu()
    if not targets.is_floating_point():
        if targets.ndim != 1 or targets.dtype == torch.bool or loss.bound == 1 and isinstance(loss, DeviationLoss):
            raise ValueError(
                f"targets must be integers (train) or floats (train, out), floats under loss='epsilon'; "
                f"got {targets.dtype} {tuple(targets.shape)}"
            )
        targets = targets.to(torch.int64)
        num_columns = int(targets.max()) + 1 if num_classes is None else num_classes
        if int(targets.min()) < 0 or int(targets.max()) >= num_columns:
            raise ValueError(
                f"targets must lie in 0 .. num_classes - 1 = {num_columns - 1}; they lie in {int(targets.min())} .. "
                f"{int(targets.max())}"
            )
        if isinstance(loss, DeviationLoss):
            return torch.nn.functional.one_hot(targets, num_columns).double(), num_columns
        return targets, num_columns
    if num_classes is not None:
        raise ValueError(f"num_classes={num_classes} goes with integer targets; these are {targets.dtype}")
    targets = _finite("targets", targets).double()
    if isinstance(loss, SimplexLoss) and not ((targets == 0) | (targets == 1)).all():
        raise ValueError("targets of several labels must be 0 or 1; numbers go with loss='squared' or 'epsilon'")
    return targets, targets.shape[1]


def _finite(name: str, values: Tensor) -> Tensor:
    """Return rows of numbers on the CPU, half precision as float32, and refuse others."""
    values = values.detach().cpu()
    if values.ndim != 2 or not values.is_floating_point() or not values.numel():
        raise ValueError(f"{name} must be floats with two axes, not empty; got {values.dtype} {tuple(values.shape)}")
    bad = (~values.isfinite().all(1)).nonzero().squeeze(1)
    if len(bad):
        raise NonFiniteError(
            f"{name} must be finite; {len(bad)} of {len(values)} rows hold NaN or infinity, the first of them row "
            f"{int(bad[0])}. Look at what the model makes of these samples, or leave them out",
            tuple(int(row) for row in bad[:_REPORTED_ROWS]),
        )
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
