"""The multi-class support vector machine of Crammer and Singer, solved in the dual and certified."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from dualview.errors import GapWarning
from dualview.solvers._solution import DualSolution
from dualview.solvers.crammer_singer.certificate import Certificate, certify
from dualview.solvers.crammer_singer.problem import Floats, Problem, pose
from dualview.solvers.crammer_singer.sequential import Patience, SequentialAscent

__all__ = ["crammer_singer"]

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_CUT = 1e-6  # share of the largest coefficient
_PATIENCE = {_FLOAT32: Patience(5, dual=1e-3, gap=0.95), _FLOAT64: Patience(5, dual=1e-9, gap=0.95)}
_PATIENCE_BEFORE_WIDENING = Patience(3, dual=0.05, gap=0.5)  # a pass in float64 takes only a third longer
_ENDINGS = {"limit": "reached max_epochs", "stalled": "made no more progress"}


def crammer_singer(
    features: Float[Tensor, "train unit"] | Float[NDArray[Any], "train unit"],
    labels: Int[Tensor, " train"] | Int[NDArray[Any], " train"],
    *,
    C: float,
    gap: float = 1e-6,
    max_epochs: int | None = None,
    num_classes: int | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> DualSolution:
    """Fit a multi-class support vector machine and return its dual variables with a certificate.

    With phi_i = [features_i, 1] (the bias is regularised like any weight), the primal is
    (Crammer and Singer, 2001)

        min over W of  P = ½‖W‖² + C·Σ_i max_m (w_m·phi_i + [m ≠ y_i] - w_{y_i}·phi_i)

    and its dual, with W = alphaᵀ·phi,

        max over alpha of  D = Σ_i alpha_i,y_i - ½‖W‖²,
        0 ≤ alpha_i,y_i ≤ C,  -C ≤ alpha_im ≤ 0 for m ≠ y_i,  Σ_m alpha_im = 0.

    D ≤ optimum ≤ P whatever the solver did, and ‖W - W*‖ ≤ √(2(P - D)). alpha itself has no such bound
    and need not be unique.

    The dual is ascended row by row, each row's subproblem solved exactly; rows that stand firmly at
    their bounds are left alone between two evaluations of the gap. The time to a given gap grows with
    C·‖phi‖²: where that is far above 1 the last digits come slowly.

    Coefficients below a millionth of the largest one are set to zero where the gap allows.

    Args:
        features: float32 or float64, any strides; half precision is upcast to float32. One copy is made,
            of the columns that are not all zero, in the precision of `dtype`.
        labels: class of each row, in 0 .. num_classes - 1. Classes without rows take no part; their column
            of coefficients and row of weights are zero, and they are not among the losses' m.
        C: weight of the sum (not the mean) of the losses, positive.
        gap: relative gap (P - D)/P at which to stop.
        max_epochs: passes over the training rows at which to give up. A pass over part of the rows counts
            in part, an evaluation of the gap as one pass. None: 2,000, or more where rows, units and
            classes are few: up to 100,000, while they make no more than 5e10 multiplications.
        num_classes: columns of the solution; by default the largest label plus one.
        dtype: torch.float32 or torch.float64, the precision of the solver's arithmetic (never that of the
            certificate). None: that of the features, and float64 arithmetic on the same copy where
            float32 ends above `gap`; this costs time, and memory for the coefficients, not the features.
        seed: decides the order in which rows are visited. The same seed gives the same bits.

    Returns:
        The solution; P, D and gap are evaluated in float64 from its coefficients and the features given.

    Raises:
        NonFiniteError: features are NaN or infinite.
        ValueError: another argument is not as described, or all labels are the same.

    Warns:
        GapWarning: the asked gap was not reached.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
        >>> solution = crammer_singer(features, torch.tensor([0, 0, 1, 1]), C=10.0)
        >>> solution.status, solution.coefficients.to_dense().abs().sum(1).gt(0).tolist()
        ('converged', [False, True, True, False])
    """
    if not (math.isfinite(gap) and gap > 0):
        raise ValueError(f"gap must be a positive, finite number; got {gap}")
    if max_epochs is not None and max_epochs < 1:
        raise ValueError(f"max_epochs must be at least 1; got {max_epochs}")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32, torch.float64 or None; got {dtype}")
    started = time.perf_counter()
    problem = pose(features, labels, C=float(C), num_classes=num_classes)
    if max_epochs is None:
        per_pass = len(problem) * len(problem.classes) * (len(problem.live) + 1)
        max_epochs = int(min(max(5e10 / per_pass, 2_000), 100_000))
    with threadpool_limits(1, "blas"):
        solution = _solve(problem, float(gap), max_epochs, dtype, seed, started)
    if solution.status != "converged":
        distance = math.sqrt(2 * max(solution.primal - solution.dual, 0.0))
        warnings.warn(
            f"crammer_singer {_ENDINGS[solution.status]} after {solution.epochs} passes at a relative gap of "
            f"{solution.gap:.1e}, above gap={gap:.1e}; its weights are within {distance:.2g} of the optimum, "
            f"their norm being {float(solution.weights.square().sum().sqrt()):.2g}. Use a smaller C or a larger gap"
            f" (the solver itself also takes {'max_epochs=' if solution.status == 'limit' else 'dtype=torch.float64'})",
            GapWarning,
            stacklevel=2,
        )
    return solution


def _solve(
    problem: Problem, gap: float, max_epochs: int, dtype: torch.dtype | None, seed: int, started: float
) -> DualSolution:
    """Ascend until the certificate, not the ascent, says that the gap is reached."""
    if dtype == torch.float32 and not problem.fits(_FLOAT32):
        raise ValueError("dtype=torch.float32 would overflow with this C and these features; use torch.float64")
    narrow = dtype == torch.float32 or problem.features.dtype == _FLOAT32
    wide = dtype == torch.float64 or not narrow or not problem.fits(_FLOAT32)
    ascent = SequentialAscent(
        problem, rows=_FLOAT32 if narrow else _FLOAT64, dtype=_FLOAT64 if wide else _FLOAT32, seed=seed
    )
    target = gap
    while True:
        may_widen = dtype is None and ascent.dtype == _FLOAT32
        status = ascent.run(target, max_epochs, _PATIENCE_BEFORE_WIDENING if may_widen else _PATIENCE[ascent.dtype])
        certificate = _certificate(problem, ascent.coefficients, gap)
        if certificate.gap <= gap:
            status = "converged"
        elif status != "limit" and may_widen:
            ascent.widen()
            continue
        elif status == "reached":  # so it seemed in this precision
            status = "stalled"
            target /= 2
            if target > gap / 100:
                continue
        break
    return DualSolution(
        coefficients=certificate.coefficients,
        weights=torch.as_tensor(certificate.weights),
        gap=certificate.gap,
        status=status,
        epochs=math.ceil(ascent.passes),
        regime="sequential",
        primal=certificate.primal,
        dual=certificate.dual,
        seconds=time.perf_counter() - started - ascent.compiling,
    )


def _certificate(problem: Problem, coefficients: Floats, gap: float) -> Certificate:
    """Certify without the smallest coefficients, unless they are what the gap rests on."""
    cut = _CUT * float(coefficients.max())
    sparse = certify(problem, coefficients, cut)
    if sparse.gap <= gap:
        return sparse
    whole = certify(problem, coefficients, 0.0)
    return whole if whole.gap <= gap or whole.gap < 0.9 * sparse.gap else sparse
