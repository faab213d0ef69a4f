"""Sequential dual ascent: one training row after another, each row's subproblem solved exactly."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dualview.solvers.crammer_singer.problem import Floats, Ints, slices
from dualview.solvers.crammer_singer.rows import Rows

_LONGEST_RUN = 200  # passes over the rows in play between two evaluations
_NEARBY = 64  # rows


class Patience(NamedTuple):
    """When to give up: where the last few evaluations brought too little, in the dual and in the gap.

    Attributes:
        evaluations: how many are looked back.
        dual: the dual's rise in them that is too little, as a share both of the dual and of its distance
            to the primal.
        gap: what the gap became in them, as a share of what it was, that is too much.
    """

    evaluations: int
    dual: float
    gap: float


class Progress:
    """The smallest gap and the largest dual so far, at one evaluation after another.

    Args:
        gap: before the first evaluation.
    """

    def __init__(self, gap: float) -> None:
        self._gaps, self._duals = [gap], [0.0]

    def is_too_slow(self, gap: float, dual: float, primal: float, patience: Patience) -> bool:
        """Note the smallest gap so far and the values of an evaluation; return whether to give up."""
        self._gaps.append(gap)
        self._duals.append(max(dual, self._duals[-1]))
        if len(self._gaps) <= patience.evaluations:
            return False
        before = -1 - patience.evaluations
        enough = patience.dual * min(self._duals[-1], gap * primal)
        return self._duals[-1] - self._duals[before] < enough and gap > patience.gap * self._gaps[before]


class _Evaluation(NamedTuple):
    primal: float
    dual: float
    gap: float


class SequentialAscent:
    """Coefficients u = alpha/C_i on their way up, and the weights they make.

    Args:
        rows: what is fitted.
        dtype: precision of the arithmetic (but for sums over rows: float64), no lower than that of the rows.
        start: u to begin from, "row cls" in the order of the rows; None: zero.
        compiled: False runs the loops as plain Python, for tests.

    Attributes:
        best: u of the best evaluation so far, "row cls" in the order of the rows.
        gap: its relative gap, as the arithmetic's precision sees it; 1 before the first evaluation.
        passes: passes over the training rows so far; part of the rows counts in part, an evaluation as one.
    """

    regime: ClassVar[str] = "sequential"

    def __init__(self, rows: Rows, *, dtype: np.dtype[Any], start: Floats | None = None, compiled: bool = True) -> None:
        from dualview.solvers.crammer_singer import _loop

        self._rows = rows
        self._random = rows.random.integers(1, 2**64, 1, np.uint64)
        self._loops = (_loop.ascend, _loop.assess) if compiled else (_loop.ascend.py_func, _loop.assess.py_func)
        self.gap, self.passes = 1.0, 0.0
        self._last_gap, self._run_length = 1.0, 2
        if start is None:
            self.best = np.zeros((len(rows), rows.num_classes), dtype)
        else:
            self.best = start.astype(dtype)
        self._coefficients = self.best.copy()
        self._weights = np.zeros((self._rows.num_classes, self._rows.width), self.best.dtype)
        self._margins = np.zeros(len(self._rows), self.best.dtype)
        self._costs = self._rows.costs.astype(self.best.dtype)
        self._sq_norms = self._rows.sq_norms.astype(self.best.dtype)
        self._ascend(np.arange(0), 0, 1, math.inf)  # compiles
        self._assess(slice(0, 0))
        if start is not None:
            self.gap = self._evaluate().gap

    @property
    def dtype(self) -> np.dtype[Any]:
        """Precision of the arithmetic."""
        return self.best.dtype

    def run(self, gap: float, max_passes: float, patience: Patience) -> str:
        """Ascend until the best relative gap is at most `gap`.

        Args:
            gap: relative gap, as this precision sees it.
            max_passes: give up when so many passes were made, earlier runs included.
            patience: when to give up.

        Returns:
            "reached", "limit" (of passes) or "stalled".
        """
        progress = Progress(self.gap)
        while self.gap > gap:
            if self.passes >= max_passes:
                return "limit"
            self._ascend_awhile()
            now = self._evaluate()
            if now.gap < self.gap:
                self.gap = now.gap
                np.copyto(self.best, self._coefficients)
            if progress.is_too_slow(self.gap, now.dual, now.primal, patience):
                return "stalled"
        return "reached"

    def _ascend_awhile(self) -> None:
        """Visit the rows that may still move, in longer and longer runs."""
        if self.passes == 0:  # everything moves at first, so rows may be taken nearly as memory holds them
            rows, window, shrink = np.arange(len(self._rows)), _NEARBY, math.inf
        else:
            shrink = min(max(3 * self._last_gap, 0.02), 0.3)
            rows = np.flatnonzero(self._margins <= shrink)
            window = len(rows)
        self.passes += self._ascend(rows, self._run_length, window, shrink)
        self._run_length = min(_LONGEST_RUN, int(1.5 * self._run_length) + 1)

    def _ascend(self, rows: Ints, num_passes: int, window: int, shrink: float) -> float:
        """Visit `rows` in `num_passes` passes; return the visits as a share of all rows."""
        ascend, _ = self._loops
        visits = ascend(
            self._rows.matrix,
            self._rows.order,
            self._rows.live,
            self._rows.targets,
            self._costs,
            self._sq_norms,
            self._coefficients,
            self._weights,
            rows,
            num_passes,
            window,
            self.dtype.type(shrink),
            self._random,
        )
        return visits / len(self._rows)

    def _evaluate(self) -> _Evaluation:
        """Rebuild the weights from the coefficients, and evaluate P, D and every row's margin there."""
        weights = np.zeros(self._weights.shape)
        for rows in slices(len(self._rows)):
            weights += (self._costs[rows, None] * self._coefficients[rows]).T @ self._rows[rows]
        self._weights[:] = weights
        losses, gap, own = np.sum([self._assess(rows) for rows in slices(len(self._rows))], axis=0)
        half_norm = 0.5 * float(np.vdot(weights, weights))
        primal = half_norm + losses
        self.passes += 1
        self._last_gap = float(gap / primal)
        return _Evaluation(float(primal), float(own - half_norm), self._last_gap)

    def _assess(self, rows: slice) -> tuple[float, float, float]:
        """Score a block of rows with the weights at hand; see the loop of the same name."""
        _, assess = self._loops
        scores = self._rows[rows] @ self._weights.T
        return assess(
            scores, self._rows.targets[rows], self._costs[rows], self._coefficients[rows], self._margins[rows]
        )
