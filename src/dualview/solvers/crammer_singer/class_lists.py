"""Dual ascent for many classes: each row steps over a short list of the classes that may matter to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualview.solvers.crammer_singer.problem import BLOCK_ROWS, Floats, Ints, slices
from dualview.solvers.crammer_singer.rows import Rows
from dualview.solvers.crammer_singer.sequential import Patience, Progress

_SWEEP_ROWS = 64  # their mutual products cost as much as so many classes
_LONGEST_RUN = 200  # passes over the rows in play between two evaluations
_LONGEST_LISTS = 16  # entries a row, on average, unless the non-zeros alone are more
_ENOUGH = 0.1  # share of the last gap, or of the asked one, down to which the lists' own problem is solved
_FIRST_REACH, _LARGEST_REACH = 1e-3, 2.0  # in units of the bound on a score's change; see `_Evaluation.missed`


@dataclass(frozen=True, eq=False)
class SparseRows:
    """u = alpha/C_i of every row, of some of its classes; u of the others is zero.

    Attributes:
        starts: "row + 1": row i's entries stand from starts[i] to starts[i + 1]; its target's is the first.
        classes: class of each entry, no class twice in a row.
        values: u of each entry.
        num_classes: how many classes there are.
    """

    starts: Ints
    classes: NDArray[np.int32]
    values: Floats
    num_classes: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def astype(self, dtype: np.dtype[Any]) -> SparseRows:
        """Return the rows with a copy of u in a precision."""
        return SparseRows(self.starts, self.classes, self.values.astype(dtype), self.num_classes)

    def __getitem__(self, rows: slice | Ints) -> Floats:
        """Return u of these rows, "row cls"."""
        index = np.arange(len(self))[rows]
        sizes = self.starts[index + 1] - self.starts[index]
        dense = np.zeros((len(index), self.num_classes), self.values.dtype)
        before = np.cumsum(sizes) - sizes
        entries = np.arange(int(sizes.sum())) + np.repeat(self.starts[index] - before, sizes)
        dense[np.repeat(np.arange(len(index)), sizes), self.classes[entries]] = self.values[entries]
        return dense

    def __mul__(self, factor: float) -> SparseRows:
        """Return the rows with u scaled."""
        return SparseRows(self.starts, self.classes, self.values * self.values.dtype.type(factor), self.num_classes)

    def max(self) -> float:
        """Return the largest u."""
        return float(self.values.max())

    def compact(self) -> SparseRows:
        """Return a copy without zeros, but for the targets'."""
        kept = self.values != 0
        kept[self.starts[:-1]] = True
        kept_before = np.concatenate([[0], np.cumsum(kept)])
        return SparseRows(kept_before[self.starts], self.classes[kept], self.values[kept], self.num_classes)


def sparse_rows(dense: Floats, targets: Ints) -> SparseRows:
    """Return u "row cls" as lists of the non-zeros and the targets."""
    listed = dense != 0
    listed[np.arange(len(dense)), targets] = True
    rows, classes = np.nonzero(listed)
    order = np.lexsort((classes != targets[rows], rows))
    starts = np.concatenate([[0], np.cumsum(listed.sum(axis=1))])
    rows, classes = rows[order], classes[order]
    return SparseRows(starts, classes.astype(np.int32), dense[rows, classes], dense.shape[1])


class _Growing:
    """Lists that are filled row after row."""

    def __init__(self, num_rows: int, dtype: np.dtype[Any]) -> None:
        self.starts = np.zeros(num_rows + 1, np.int64)
        self.classes, self.values = np.empty(3 * num_rows, np.int32), np.empty(3 * num_rows, dtype)
        self.filled = 0

    def reserve(self, more: int) -> None:
        """Make room for so many more entries."""
        if self.filled + more > len(self.classes):
            longer = int(1.5 * self.filled) + more
            self.classes = np.concatenate([self.classes, np.empty(longer - len(self.classes), np.int32)])
            self.values = np.concatenate([self.values, np.empty(longer - len(self.values), self.values.dtype)])

    def finished(self, num_classes: int) -> SparseRows:
        """Return the lists, without the room that was not used."""
        return SparseRows(
            self.starts, self.classes[: self.filled].copy(), self.values[: self.filled].copy(), num_classes
        )


class _Evaluation(NamedTuple):
    """P, D and P - D, and what a larger reach would have spared.

    Attributes:
        primal: P.
        dual: D.
        gap: P - D, as the arithmetic's precision sees it.
        missed: share of the gap in rows that were not in play and classes that were not listed. W* is no further
            away than √(2(P - D)), so that no score changes by more than |phi_i| times that before the optimum is
            reached. Most change by much less: lists reach a fraction of it, which follows from what they missed.
    """

    primal: float
    dual: float
    gap: float
    missed: float


class ClassListAscent:
    """Sparse coefficients u = alpha/C_i on their way up, and the weights they make.

    The first pass steps over all classes. Then, again and again, all scores are evaluated, block by block; each
    row lists its non-zero classes and those whose scores are close to the largest; and the lists' own problem is
    solved, by passes of exact steps, to a share of the gap. Nothing is ever "row cls".

    Args:
        rows: what is fitted.
        dtype: precision of the arithmetic (but for sums over rows: float64), no lower than that of the rows.
        start: u to begin from, in the order of the rows; None: zero.
        compiled: False runs the loops as plain Python, for tests.

    Attributes:
        best: u of the best evaluation so far, in the order of the rows.
        gap: its relative gap, as the arithmetic's precision sees it; 1 before the first evaluation.
        passes: passes over the training rows so far; part of the rows counts in part, an evaluation as one.
    """

    regime: ClassVar[str] = "class lists"

    def __init__(
        self, rows: Rows, *, dtype: np.dtype[Any], start: SparseRows | None = None, compiled: bool = True
    ) -> None:
        from dualview.solvers.crammer_singer import _lists_loop

        def loop(name: str) -> Callable[..., Any]:
            made = getattr(_lists_loop, name)
            return made if compiled else made.py_func

        self._sweep_block, self._select, self._ascend = loop("sweep"), loop("select"), loop("ascend")
        self._accumulate = loop("accumulate")
        self._rows = rows
        self._random = rows.random.integers(1, 2**64, 1, np.uint64)
        self.gap, self.passes = 1.0, 0.0
        self._run_length, self._reach, self._list_gap = 2, _FIRST_REACH, 0.0
        self._last: _Evaluation | None = None
        given = start or SparseRows(
            np.arange(len(rows) + 1), rows.targets.astype(np.int32), np.zeros(len(rows)), rows.num_classes
        )
        self.best = given.astype(dtype)
        self._lists = self.best.astype(self.dtype)
        self._weights = np.zeros((self._rows.num_classes, self._rows.width), self.dtype)
        self._costs = self._rows.costs.astype(self.dtype)
        self._sq_norms = self._rows.sq_norms.astype(self.dtype)
        self._reaches = np.zeros(len(self._rows), self.dtype)
        self._in_play = np.zeros(len(self._rows), np.bool_)
        none = slice(0, 0)  # compiles
        self._sweep_rows(none, _Growing(0, self.dtype))
        self._select_rows(none, _Growing(0, self.dtype))
        self._accumulate_rows(none, np.zeros(self._weights.shape))
        self._visit(np.arange(0), 0, 0.0)
        if start is not None:
            self._evaluate()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Precision of the arithmetic."""
        return self.best.values.dtype

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
            if self._last is None:
                self._sweep()
            else:
                self._ascend_awhile(self._last, gap)
            now = self._evaluate()
            if progress.is_too_slow(self.gap, now.dual, now.primal, patience):
                return "stalled"
        return "reached"

    def _sweep(self) -> None:
        """Step over all classes of each row in turn."""
        lists = _Growing(len(self._rows), self.dtype)
        for first in range(0, len(self._rows), _SWEEP_ROWS):
            self._sweep_rows(slice(first, min(first + _SWEEP_ROWS, len(self._rows))), lists)
        self._lists = lists.finished(self._rows.num_classes)
        self.passes += 1

    def _sweep_rows(self, rows: slice, lists: _Growing) -> None:
        """Sweep over a block; see the loop of the same name."""
        lists.reserve((rows.stop - rows.start) * self._rows.num_classes)
        block = self._rows[rows].astype(self.dtype, copy=False)
        lists.filled = self._sweep_block(
            block @ self._weights.T,
            block @ block.T,
            block,
            self._rows.targets[rows],
            self._costs[rows],
            self._sq_norms[rows],
            *self._listed(rows),
            self._weights,
            lists.starts[rows.start : rows.stop + 1],
            lists.classes,
            lists.values,
            lists.filled,
        )

    def _ascend_awhile(self, last: _Evaluation, gap: float) -> None:
        """Pass over the rows in play until their lists' problem is solved well enough, or the lists are old."""
        enough = _ENOUGH * max(last.gap, 3 * gap * last.primal)
        visits, self._list_gap = self._visit(np.flatnonzero(self._in_play), self._run_length, enough)
        self.passes += visits / len(self._rows)

    def _visit(self, rows: Ints, num_passes: int, enough: float) -> tuple[int, float]:
        """Make passes over the lists of these rows; return visits and the lists' gap."""
        return self._ascend(
            self._rows.matrix,
            self._rows.order,
            self._rows.live,
            self._costs,
            self._sq_norms,
            *self._listed(slice(0, len(self._rows))),
            self._weights,
            rows,
            num_passes,
            self._reaches,
            enough,
            self._random,
        )

    def _evaluate(self) -> _Evaluation:
        """Rebuild the weights from the coefficients, evaluate P and D there, and make new lists."""
        weights = np.zeros(self._weights.shape)
        for rows in slices(len(self._rows)):
            self._accumulate_rows(rows, weights)
        self._weights[:] = weights
        self._foresee()
        while (made := self._select_all()) is None:
            self._shorten()
        self._lists, (losses, gap, missed, own) = made
        half_norm = 0.5 * float(np.vdot(weights, weights))
        primal = half_norm + losses
        now = _Evaluation(primal, own - half_norm, max(gap, 0.0), missed / gap if gap > 0 else 0.0)
        self.passes += 1
        if now.gap < self.gap * primal:
            self.gap = now.gap / primal
            self.best = self._lists.compact()
        if self._last is not None:
            self._adapt(now.missed)
        self._last = now
        return now

    def _accumulate_rows(self, rows: slice, weights: Floats) -> None:
        """Add a block's part of the weights; see the loop of the same name."""
        self._accumulate(self._rows[rows], self._rows.costs[rows], *self._listed(rows), weights)

    def _adapt(self, missed: float) -> None:
        """Let lists reach further if they missed much of the gap, and less far, in longer runs, if they did not."""
        if missed > 0.3:
            self._reach = min(2 * self._reach, _LARGEST_REACH)
        else:
            self._run_length = min(_LONGEST_RUN, int(1.5 * self._run_length) + 1)
            if missed < 0.1:
                self._reach *= 0.6

    def _foresee(self) -> None:
        """Choose how far lists reach, by the gap and the lists' length that a sample of the rows lets expect."""
        sample = slice(0, min(BLOCK_ROWS, len(self._rows)))  # the rows' order is random
        in_play = self._in_play[sample].copy()
        self._reaches[sample] = 0
        lists, sums = self._sampled(sample, in_play)
        share = float(self._rows.costs[sample].sum() / self._rows.costs.sum())
        bound = math.sqrt(2 * max(float(sums[1]) / share, self._list_gap, 0.0))
        self._reaches[:] = bound * np.sqrt(self._rows.sq_norms) * self._reach
        longest = max(_LONGEST_LISTS * len(in_play), 2 * lists)
        while self._sampled(sample, in_play)[0] > longest:
            self._shorten()

    def _sampled(self, sample: slice, in_play: NDArray[np.bool_]) -> tuple[int, Floats]:
        """Make the lists of a few rows, and throw them away; return their length and the sums over the rows."""
        lists = _Growing(sample.stop, self.dtype)
        sums = self._select_rows(sample, lists)
        self._in_play[sample] = in_play
        return lists.filled, sums

    def _shorten(self) -> None:
        """Let lists reach half as far."""
        self._reach /= 2
        self._reaches /= 2

    def _select_all(self) -> tuple[SparseRows, list[float]] | None:
        """Make new lists and evaluate all rows; None if the lists become too long."""
        lists, sums = _Growing(len(self._rows), self.dtype), np.zeros(4)
        in_play = self._in_play.copy()
        fewest = np.count_nonzero(self._lists.values) + 2 * len(self._rows)
        longest = max(2 * _LONGEST_LISTS * len(self._rows), 2 * fewest)
        for rows in slices(len(self._rows)):
            sums += self._select_rows(rows, lists)
            if lists.filled > longest:
                self._in_play = in_play
                return None
        return lists.finished(self._rows.num_classes), sums.tolist()

    def _select_rows(self, rows: slice, lists: _Growing) -> Floats:
        """Evaluate a block and make its lists; see the loop of the same name."""
        lists.reserve((rows.stop - rows.start) * self._rows.num_classes)
        sums = np.zeros(4)
        lists.filled = self._select(
            self._rows[rows] @ self._weights.T,
            self._rows.targets[rows],
            self._costs[rows],
            *self._listed(rows),
            self._in_play[rows],
            self._reaches[rows],
            lists.starts[rows.start : rows.stop + 1],
            lists.classes,
            lists.values,
            lists.filled,
            sums,
        )
        return sums

    def _listed(self, rows: slice) -> tuple[Ints, NDArray[np.int32], Floats]:
        """Return where a block's entries stand, and all entries."""
        return self._lists.starts[rows.start : rows.stop + 1], self._lists.classes, self._lists.values
