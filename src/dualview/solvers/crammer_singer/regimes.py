"""Which algorithm solves a problem, and when it has: the certificate decides, not the algorithm."""

from __future__ import annotations

import math
import time
from typing import Any, TypeAlias

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from dualview.solvers._solution import DualSolution
from dualview.solvers.crammer_singer import simplex
from dualview.solvers.crammer_singer.certificate import Certificate, certify
from dualview.solvers.crammer_singer.class_lists import ClassListAscent, SparseRows, sparse_rows
from dualview.solvers.crammer_singer.newton import ProximalNewton
from dualview.solvers.crammer_singer.problem import Floats, Problem
from dualview.solvers.crammer_singer.rows import Rows
from dualview.solvers.crammer_singer.sequential import Patience, SequentialAscent

Coefficients: TypeAlias = Floats | SparseRows

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_CUT = 1e-6  # share of the largest coefficient
_SEVERAL = 16  # classes from which rows step over lists of them
_MANY = 50  # classes above which Newton's systems are too large
_DENSE = 1_000_000  # coefficients up to which Newton's steps may follow then
_SMALL = 1.0  # C·|phi|² up to which the sequential ascent ends by itself before Newton's steps would
_FIRST = 5.0  # C·|phi|² at which the sequential ascent prepares them
_FIRST_GAP = 2e-2
_FARTHEST = 10.0  # times a solved C: where the ascent prepares Newton's steps better than that solution
_PATIENCE = {FLOAT32: Patience(5, dual=1e-3, gap=0.95), FLOAT64: Patience(5, dual=1e-9, gap=0.95)}
_PATIENCE_BEFORE_MORE = Patience(3, dual=0.05, gap=0.5)


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
        self._last: tuple[Coefficients, DualSolution] | None = None

    def solve(self, C: float) -> DualSolution:
        """Solve for this C; the certificate, not an algorithm, says whether the gap is reached."""
        rows = self._rows.at(C)
        if self._dtype == torch.float32 and not rows.problem.fits(FLOAT32):
            raise ValueError("dtype=torch.float32 would overflow with this C and these features; use torch.float64")
        run = _Run(rows, self._gap, self._max_epochs, self._dtype)
        with threadpool_limits(1):
            status = run.solve(self._start(rows))
            self._last, solution = None, run.solution(status, self._preparing)
        self._preparing = 0.0
        if run.best is not None:
            self._last = run.best, solution
        return solution

    def _start(self, rows: Rows) -> Coefficients | None:
        """Return u for the multiple of the last alpha with the largest dual that is feasible at the rows' C.

        None where there is no last one, or one so far below that a start made for this C is better.
        """
        if self._last is None:
            return None
        coefficients, last = self._last
        C, scale = rows.problem.C, rows.scale
        if scale > _FIRST and last.C * _FARTHEST < C * _FIRST / scale:
            return None
        sq_norm = float(last.weights.square().sum())
        best = (last.dual + sq_norm / 2) / sq_norm if sq_norm > 0 else 1.0
        return coefficients * min(best * last.C / C, 1.0)


class _Run:
    """One problem on its way through the algorithms that it needs."""

    def __init__(self, rows: Rows, gap: float, max_epochs: int, dtype: torch.dtype | None) -> None:
        self._rows, self._gap, self._max_epochs, self._dtype = rows, gap, max_epochs, dtype
        wide = dtype == torch.float64 or rows.matrix.dtype == FLOAT64 or not rows.problem.fits(FLOAT32)
        self._narrowest = FLOAT64 if wide else FLOAT32
        self._may_widen = dtype is None and not wide
        self._passes, self._seconds = 0.0, dict[str, float]()
        self._certificate: Certificate | None = None
        self.best: Coefficients | None = None
        self._at_hand: Coefficients | None = None  # what an interruption would otherwise lose

    def solve(self, start: Coefficients | None) -> str:
        """Run one algorithm after another until the gap is reached; return the status."""
        self._at_hand = start
        try:
            if not simplex.has_numba():
                return self._newton(start)
            if self._rows.scale <= _SMALL or self._rows.num_classes > _MANY:
                return self._by_ascent(start)
            return self._by_newton(self._prepared() if start is None else start)
        except KeyboardInterrupt:
            if self._at_hand is not None:
                self._consider(self._at_hand)
            return "interrupted"

    def _by_ascent(self, start: Coefficients | None) -> str:
        """Ascend, and let Newton's steps or float64 finish what float32 cannot."""
        if start is None and self._rows.scale > _FIRST:
            start = self._prepared()
        status = self._ascend(start, self._narrowest)
        if status == "stalled" and self._rows.num_classes <= _MANY:
            return self._by_newton(self.best)
        if status == "stalled" and self._may_widen:
            status = self._ascend(self.best, FLOAT64)
        if status == "stalled" and len(self._rows) * self._rows.num_classes <= _DENSE:
            status = self._newton(self.best)
        return status

    def _by_newton(self, start: Coefficients | None) -> str:
        status = self._newton(start)
        if status == "stalled" and self._dtype is None:
            status = self._ascend(self.best, FLOAT64)
        return status

    def solution(self, status: str, preparing: float) -> DualSolution:
        """Gather what was reached."""
        if self._certificate is None:
            self._consider(self._nothing())
        assert self._certificate is not None
        found = self._certificate
        return DualSolution(
            coefficients=found.coefficients,
            weights=torch.as_tensor(found.weights),
            gap=found.gap,
            status="converged" if found.gap <= self._gap else status,
            epochs=math.ceil(self._passes),
            regime=", ".join(self._seconds),
            primal=found.primal,
            dual=found.dual,
            seconds=preparing + sum(self._seconds.values()),
            regime_seconds=self._seconds,
            C=self._rows.problem.C,
            free=found.free,
            bound=found.bound,
        )

    def _nothing(self) -> Floats:
        return np.zeros((len(self._rows), self._rows.num_classes), self._narrowest)

    def _consider(self, coefficients: Coefficients) -> float:
        """Certify these, and keep them if none were better; return their gap."""
        certificate = _certificate(self._rows, coefficients, self._gap)
        if self._certificate is None or certificate.gap <= self._certificate.gap:
            self._certificate, self.best = certificate, coefficients
        return certificate.gap

    def _prepared(self) -> Coefficients:
        """Ascend at a C that is small enough for it, and return the coefficients as a start at the larger one."""
        C = self._rows.problem.C
        smaller = self._rows.at(C * min(1.0, _FIRST / self._rows.scale))
        ascent = self._ascent(smaller, None, self._narrowest)
        started = time.perf_counter()
        try:
            ascent.run(_FIRST_GAP, float(self._max_epochs), _PATIENCE[ascent.dtype])
        finally:
            self._book(ascent.regime, started, ascent.passes)
            self._at_hand = ascent.best * (smaller.problem.C / C)
        return self._at_hand

    def _ascent(
        self, rows: Rows, start: Coefficients | None, dtype: np.dtype[Any]
    ) -> SequentialAscent | ClassListAscent:
        if rows.num_classes < _SEVERAL:
            return SequentialAscent(rows, dtype=dtype, start=_dense(start))
        if start is not None and not isinstance(start, SparseRows):
            start = sparse_rows(start, rows.targets)
        return ClassListAscent(rows, dtype=dtype, start=start)

    def _ascend(self, start: Coefficients | None, dtype: np.dtype[Any]) -> str:
        """Ascend row by row, over all classes or lists of them; return how it ended."""
        ascent = self._ascent(self._rows, start, dtype)
        patience = _PATIENCE_BEFORE_MORE if dtype == FLOAT32 and self._may_widen else _PATIENCE[dtype]
        return self._drive(ascent, time.perf_counter(), patience)

    def _newton(self, start: Coefficients | None) -> str:
        """Take Newton's steps; return how they ended."""
        started = time.perf_counter()
        dense = _dense(start)
        newton = ProximalNewton(self._rows, start=self._nothing() if dense is None else dense)
        return self._drive(newton, started)

    def _drive(
        self, algorithm: SequentialAscent | ClassListAscent | ProximalNewton, started: float, *patience: Patience
    ) -> str:
        """Run an algorithm to ever smaller gaps until the certificate's is small enough; return how it ended."""
        target = self._gap
        try:
            while True:
                status = algorithm.run(target, self._max_epochs - self._passes, *patience)
                if self._consider(algorithm.best) <= self._gap:
                    return "converged"
                if status != "reached":
                    return status
                target /= 2  # so it seemed, in its own arithmetic
                if target <= self._gap / 100:
                    return "stalled"
        except KeyboardInterrupt:
            self._consider(algorithm.best)
            raise
        finally:
            self._book(algorithm.regime, started, algorithm.passes)

    def _book(self, regime: str, started: float, passes: float) -> None:
        self._seconds[regime] = self._seconds.get(regime, 0.0) + time.perf_counter() - started
        self._passes += passes


def _dense(start: Coefficients | None) -> Floats | None:
    return start[slice(None)] if isinstance(start, SparseRows) else start


def _certificate(rows: Rows, ordered: Coefficients, gap: float) -> Certificate:
    """Certify without the smallest coefficients, unless they are what the gap rests on."""
    coefficients = rows.given(ordered)
    cut = _CUT * float(ordered.max())
    sparse = certify(rows.problem, coefficients, cut)
    if sparse.gap <= gap:
        return sparse
    whole = certify(rows.problem, coefficients, 0.0)
    return whole if whole.gap <= gap or whole.gap < 0.9 * sparse.gap else sparse
