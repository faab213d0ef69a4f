"""Which algorithm solves a problem, and when it has: the certificate decides, not the algorithm."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from dualview.solvers._solution import DualSolution
from dualview.solvers.crammer_singer.certificate import Certificate, certify
from dualview.solvers.crammer_singer.problem import Floats, Problem
from dualview.solvers.crammer_singer.rows import Rows
from dualview.solvers.crammer_singer.sequential import Patience, SequentialAscent

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_CUT = 1e-6  # share of the largest coefficient
_PATIENCE = {FLOAT32: Patience(5, dual=1e-3, gap=0.95), FLOAT64: Patience(5, dual=1e-9, gap=0.95)}
_PATIENCE_BEFORE_WIDENING = Patience(3, dual=0.05, gap=0.5)  # a pass in float64 takes only a third longer


class Solver:
    """One set of rows, solved for one C after another, each from where the last one ended.

    Args:
        problem: what is solved.
        gap: relative gap to reach.
        max_epochs: passes over the rows at which to give up; None: see `crammer_singer`.
        dtype: precision of the arithmetic; None: float32 where the rows are, and float64 where that ends too soon.
        seed: decides the order of visits.
        low_memory: make no copy of the features.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        gap: float,
        max_epochs: int | None,
        dtype: torch.dtype | None,
        seed: int,
        low_memory: bool,
    ) -> None:
        if not (math.isfinite(gap) and gap > 0):
            raise ValueError(f"gap must be a positive, finite number; got {gap}")
        if max_epochs is not None and max_epochs < 1:
            raise ValueError(f"max_epochs must be at least 1; got {max_epochs}")
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32, torch.float64 or None; got {dtype}")
        if max_epochs is None:
            per_pass = len(problem) * len(problem.classes) * (len(problem.live) + 1)
            max_epochs = int(min(max(5e10 / per_pass, 2_000), 100_000))
        self._gap, self._max_epochs, self._dtype = float(gap), max_epochs, dtype
        started = time.perf_counter()
        narrow = dtype == torch.float32 or problem.features.dtype == FLOAT32
        self._rows = Rows(problem, dtype=FLOAT32 if narrow else FLOAT64, seed=seed, low_memory=low_memory)
        self._preparing = time.perf_counter() - started
        self._start: Floats | None = None

    def solve(self, C: float) -> DualSolution:
        """Solve for this C; its certificate, not the algorithm, says whether the gap is reached."""
        rows = self._rows.at(C)
        if self._dtype == torch.float32 and not rows.problem.fits(FLOAT32):
            raise ValueError("dtype=torch.float32 would overflow with this C and these features; use torch.float64")
        with threadpool_limits(1, "blas"):
            solution, self._start = solve(rows, self._gap, self._max_epochs, self._dtype, self._start)
        return solution


def solve(
    rows: Rows, gap: float, max_epochs: int, dtype: torch.dtype | None, start: Floats | None = None
) -> tuple[DualSolution, Floats]:
    """Solve, certified.

    Args:
        rows: what is fitted.
        gap: relative gap to reach.
        max_epochs: passes over the rows at which to give up.
        dtype: precision of the arithmetic; None: float32 where the rows are, and float64 where that ends too soon.
        start: u = alpha/C_i to begin from, in the order of the rows.

    Returns:
        The solution, and its u in the order of the rows.
    """
    started = time.perf_counter()
    problem = rows.problem
    wide = dtype == torch.float64 or rows.matrix.dtype == FLOAT64 or not problem.fits(FLOAT32)
    ascent = SequentialAscent(rows, dtype=FLOAT64 if wide else FLOAT32, start=start)
    target = gap
    while True:
        may_widen = dtype is None and ascent.dtype == FLOAT32
        status = ascent.run(target, max_epochs, _PATIENCE_BEFORE_WIDENING if may_widen else _PATIENCE[ascent.dtype])
        certificate = _certificate(rows, ascent.best, gap)
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
    seconds = time.perf_counter() - started - ascent.compiling
    solution = DualSolution(
        coefficients=certificate.coefficients,
        weights=torch.as_tensor(certificate.weights),
        gap=certificate.gap,
        status=status,
        epochs=math.ceil(ascent.passes),
        regime="sequential",
        primal=certificate.primal,
        dual=certificate.dual,
        seconds=seconds,
        regime_seconds={"sequential": seconds},
        C=problem.C,
        free=certificate.free,
        bound=certificate.bound,
    )
    return solution, ascent.best


def _certificate(rows: Rows, ordered: Floats, gap: float) -> Certificate:
    """Certify without the smallest coefficients, unless they are what the gap rests on."""
    coefficients = rows.given(ordered)
    cut = _CUT * float(coefficients.max())
    sparse = certify(rows.problem, coefficients, cut)
    if sparse.gap <= gap:
        return sparse
    whole = certify(rows.problem, coefficients, 0.0)
    return whole if whole.gap <= gap or whole.gap < 0.9 * sparse.gap else sparse
