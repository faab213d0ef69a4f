"""Sequential dual ascent: one training row after another, each row's subproblem solved exactly."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import numpy as np

from dualview.solvers.crammer_singer._loop import kernels
from dualview.solvers.crammer_singer.problem import BLOCK_ROWS, Floats, Ints, Problem

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


class _Progress(NamedTuple):
    gap: float  # the smallest so far
    dual: float  # the largest so far


class _Evaluation(NamedTuple):
    primal: float
    dual: float
    gap: float


class SequentialAscent:
    """One problem on its way: rows, coefficients u = alpha/C and the weights they make.

    The rows are copied once, in a random order, so that the first passes may walk memory nearly in order.

    Args:
        problem: rows, targets and C.
        rows: precision of the copy.
        dtype: precision of the arithmetic (but for sums over rows: float64), no lower than `rows`.
        seed: decides every order of rows.
        compiled: False runs the loops as plain Python, for tests.

    Attributes:
        gap: relative gap of the best evaluation so far, as the arithmetic's precision sees it.
        passes: passes over the training rows so far; part of the rows counts in part, an evaluation as one.
        compiling: seconds spent in making the loops ready.
    """

    def __init__(
        self, problem: Problem, *, rows: np.dtype[Any], dtype: np.dtype[Any], seed: int, compiled: bool = True
    ) -> None:
        random = np.random.default_rng(seed)
        self._order = problem.canonical_order()[random.permutation(len(problem))]
        self._random = random.integers(1, 2**64, 1, np.uint64)
        self._features = problem.padded(self._order, rows)
        self._targets = problem.targets[self._order]
        self._C = problem.C
        self._kernels = kernels(compiled=compiled)
        self._best = np.zeros((len(problem), len(problem.classes)), dtype)
        self.gap, self.passes, self.compiling = 1.0, 0.0, 0.0
        self._last_gap, self._run_length = 1.0, 2
        self._prepare()

    def _prepare(self) -> None:
        """Set up the arithmetic in the precision of the best coefficients."""
        started = time.perf_counter()
        num_rows, num_classes = self._best.shape
        self._coefficients = self._best.copy()
        self._weights = np.zeros((num_classes, self._features.shape[1]), self.dtype)
        self._margins = np.zeros(num_rows, self.dtype)
        self._sq_norms = np.einsum("ij,ij->i", self._features, self._features, dtype=self.dtype)
        self._ascend(np.arange(0), 0, 1, math.inf)  # compiles
        self._assess(slice(0, 0))
        self.compiling += time.perf_counter() - started

    @property
    def dtype(self) -> np.dtype[Any]:
        """Precision of the arithmetic."""
        return self._best.dtype

    @property
    def coefficients(self) -> Floats:
        """U = alpha/C of the best evaluation, "train cls" over the occurring classes, in the problem's order."""
        given = np.empty_like(self._best)
        given[self._order] = self._best
        return given

    def widen(self) -> None:
        """Go on in float64 from the best coefficients; the rows stay as they are, and are widened in use."""
        self._best = self._best.astype(np.float64)
        self._prepare()
        self.gap = self._evaluate().gap

    def run(self, gap: float, max_passes: int, patience: Patience) -> str:
        """Ascend until the best relative gap is at most `gap`.

        Args:
            gap: relative gap, as this precision sees it.
            max_passes: give up when so many passes were made, earlier runs included.
            patience: when to give up.

        Returns:
            "reached", "limit" (of passes) or "stalled".
        """
        history = [_Progress(self.gap, 0.0)]
        while self.gap > gap:
            if self.passes >= max_passes:
                return "limit"
            self._ascend_awhile()
            now = self._evaluate()
            if now.gap < self.gap:
                self.gap = now.gap
                np.copyto(self._best, self._coefficients)
            history.append(_Progress(self.gap, max(now.dual, history[-1].dual)))
            if len(history) > patience.evaluations:
                before, last = history[-1 - patience.evaluations], history[-1]
                enough = patience.dual * min(last.dual, last.gap * now.primal)
                if last.dual - before.dual < enough and last.gap > patience.gap * before.gap:
                    return "stalled"
        return "reached"

    def _ascend_awhile(self) -> None:
        """Visit the rows that may still move, in longer and longer runs."""
        if self.passes == 0:  # everything moves at first, so rows may be taken nearly as memory holds them
            rows, window, shrink = np.arange(len(self._targets)), _NEARBY, math.inf
        else:
            shrink = min(max(3 * self._last_gap, 0.02), 0.3)
            rows = np.flatnonzero(self._margins <= shrink)
            window = len(rows)
        self.passes += self._ascend(rows, self._run_length, window, shrink)
        self._run_length = min(_LONGEST_RUN, int(1.5 * self._run_length) + 1)

    def _ascend(self, rows: Ints, num_passes: int, window: int, shrink: float) -> float:
        """Visit `rows` in `num_passes` passes; return the visits as a share of all rows."""
        number = self.dtype.type
        visits = self._kernels.ascend(
            self._features,
            self._targets,
            self._sq_norms,
            self._coefficients,
            self._weights,
            rows,
            num_passes,
            window,
            number(self._C),
            number(shrink),
            self._random,
        )
        return visits / len(self._targets)

    def _evaluate(self) -> _Evaluation:
        """Rebuild the weights from the coefficients, and evaluate P, D and every row's margin there."""
        blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, len(self._targets), BLOCK_ROWS)]
        weights = np.zeros(self._weights.shape)
        for rows in blocks:
            weights += self._coefficients[rows].T @ self._features[rows]
        weights *= self._C
        self._weights[:] = weights
        sums = np.zeros(3)
        for rows in blocks:
            sums += self._assess(rows)
        losses, gap, own = self._C * sums
        half_norm = 0.5 * float(np.vdot(weights, weights))
        primal = half_norm + losses
        self.passes += 1
        self._last_gap = float(gap / primal)
        return _Evaluation(float(primal), float(own - half_norm), self._last_gap)

    def _assess(self, rows: slice) -> tuple[float, float, float]:
        """Score a block of rows with the weights at hand; see the loop of the same name."""
        scores = self._features[rows] @ self._weights.T
        return self._kernels.assess(scores, self._targets[rows], self._coefficients[rows], self._margins[rows])
