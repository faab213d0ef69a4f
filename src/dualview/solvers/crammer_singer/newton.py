"""The proximal-point method with semismooth Newton steps, for costs at which single rows reach too far.

Li, Sun and Toh, "A highly efficient semismooth Newton augmented Lagrangian method for solving lasso problems",
SIAM J. Optim. 28 (2018), gives the method for another problem; this is its form for the simplices of Crammer and
Singer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualview.solvers.crammer_singer import simplex
from dualview.solvers.crammer_singer.class_lists import SparseRows, sparse_rows
from dualview.solvers.crammer_singer.newton_system import FreeRows, NewtonSystem
from dualview.solvers.crammer_singer.problem import Floats, Ints, slices
from dualview.solvers.crammer_singer.rows import Rows

_FIRST_REACH = 16.0  # of the largest coefficient, but no more than
_MOST_FIRST_REACH = 1.0
_LAST_REACH = 1000.0
_GROWTH = 2.0  # of the reach, from anchor to anchor
_MOST_STEPS = 40  # of Newton's, around one anchor
_DECREMENT = 0.03  # of the gap that is left around an anchor: what F may be above its minimum
_SLOPE = 0.3  # of the slope along a step: what may be left of it
_TYPICAL = 0.9  # quantile of the rows' moves: how far others are expected to move
_SAMPLE = 2000  # rows whose moves are looked at
_NEAR = 1e-3  # of a margin: rows beyond it add nothing to the gap, whatever rounding does to their scores
_FEW = 1 / 16  # of the rows: so few are copied, to stand close together
_PATIENCE = 12  # anchors without progress
_CLOSE = 5.0  # times the asked gap: where the next anchor may be the last
_TIGHT, _TIGHTEST = 1e-6, 1e-14  # share of the gap that ½|W - W(u)|² may be then


class _Value(NamedTuple):
    gap: float
    dual: float


@dataclass
class _Around:
    """The rows that may move around one anchor.

    Attributes:
        index: their positions.
        scores: w_m·phi_i, float64.
        coefficients: u at these scores.
        outer: sum of their gap terms there.
        own: sum of C_i u_y there.
        settled: whether the weights are near enough to the minimum.
    """

    index: Tensor
    scores: Tensor
    coefficients: Tensor
    outer: float = 0.0
    own: float = 0.0
    settled: bool = False


class ProximalNewton:
    """Coefficients u = alpha/C_i and weights W that draw near to each other and to the optimum.

    Around an anchor u° the objective

        F(W) = ½|W|² - Σ_i C_i w_y·phi_i + Σ_i C_i max over u_i of (<e_y - u_i, G_i> - |u_i - u_i°|²/(2 reach))

    is convex and once differentiable, with gradient W - W(u) at the maximisers u, which are feasible: every
    step has a gap. Newton's steps minimise it (Hessian: `NewtonSystem`) until the dual has risen and W is near
    enough to W(u); then u becomes the anchor, and the reach doubles. Only rows that may leave their corner
    within a step take part; the others are looked at between anchors. Everything but the rows is float64.

    Args:
        rows: what is fitted.
        start: u to begin from, "row cls" in the order of the rows.
        compiled: False does without numba; None: where it is not installed.

    Attributes:
        best: u of the smallest gap so far, "row cls" in the order of the rows.
        gap: its relative gap.
        passes: passes over the rows so far; part of the rows counts in part.
    """

    regime: ClassVar[str] = "newton"

    def __init__(self, rows: Rows, *, start: Floats, compiled: bool | None = None) -> None:
        self._rows = rows
        self._dtype = torch.float32 if rows.matrix.dtype == np.float32 else torch.float64
        self._targets, self._costs = torch.as_tensor(rows.targets), torch.as_tensor(rows.costs)
        self._arithmetic = simplex.arithmetic(compiled=compiled)
        self._system = NewtonSystem(self._arithmetic)
        self._coefficients: Tensor = torch.as_tensor(start.astype(np.float64))
        self._margins = torch.zeros(len(rows), dtype=torch.float64)
        self._made: Tensor
        self._make()
        self._weights: Tensor = self._made
        self._reach = min(_FIRST_REACH * float(start.max()), _MOST_FIRST_REACH) or _MOST_FIRST_REACH
        self._typical_move = 1.0
        self.passes = 0.0
        self.best: Floats | SparseRows = start
        self.gap = self._value(self._made).gap

    def run(self, gap: float, max_passes: float) -> str:
        """Go from anchor to anchor until the relative gap at W(u) is at most `gap`.

        Returns:
            "reached", "limit" (of passes) or "stalled".
        """
        now, best, since, share = _Value(self.gap, -math.inf), _Value(math.inf, 0.0), 0, 1.0
        try:
            while self.gap > gap:
                ended = self.passes >= max_passes
                if ended or since > _PATIENCE or share < _TIGHTEST:
                    self._keep_if_better()
                    return "limit" if ended else "stalled"
                now = self._advance(now, share, max_passes)
                progress = now.gap < 0.9 * best.gap or now.dual > 1.1 * best.dual  # the gap may stay near 1 for long
                since = 0 if progress else since + 1
                if progress:
                    best = _Value(min(now.gap, best.gap), max(now.dual, best.dual))
                if now.gap <= gap:
                    self._keep_if_better()
                if now.gap <= _CLOSE * gap:
                    share = min(_TIGHT, 1e-2 * share)  # less, if W is still too far from W(u)
        except KeyboardInterrupt:  # amid a change of the one but not the other
            self._make()
            self._keep_if_better()
            raise
        return "reached"

    def _keep_if_better(self) -> None:
        """Compare the present coefficients with the best ones by what a certificate looks at: the gap at W(u)."""
        at_made = self._value(self._made).gap
        if at_made < self.gap:
            self.gap, self.best = at_made, sparse_rows(self._coefficients.numpy(), self._rows.targets)

    def _advance(self, before: _Value, share: float, max_passes: float) -> _Value:
        """Minimise around the present anchor and make the next, or restore it where that failed."""
        reachable = min(1.0, self._typical_move) + 2 / max(self._reach, 2.0)
        working = np.flatnonzero(self._margins.numpy() <= reachable)
        made, weights = self._made, self._weights
        index, coefficients, settled = self._minimise(working, share, max_passes)
        self._exchange(index, coefficients)
        now = self._value(self._weights)
        if settled or now.dual >= before.dual:
            growth = _GROWTH if settled and share == 1.0 else math.sqrt(_GROWTH)
            self._reach = min(_LAST_REACH, self._reach * growth)
            return now
        self._exchange(index, coefficients)
        self._made, self._weights = made, weights
        self._reach /= 2 * _GROWTH
        return self._value(self._weights)

    def _exchange(self, index: Tensor, coefficients: Tensor) -> None:
        """Let the anchor's u and these rows' u trade places."""
        for block in slices(len(index)):
            anchored = self._coefficients[index[block]]
            self._coefficients[index[block]] = coefficients[block]
            coefficients[block] = anchored

    def _minimise(self, working: Ints, share: float, max_passes: float) -> tuple[Tensor, Tensor, bool]:
        """Take Newton's steps around the present anchor, and leave its u as it is.

        Args:
            working: positions of the rows that take part.
            share: of the rows' gap terms: what ½|W - W(u)|² may be.
            max_passes: at which to give up.

        Returns:
            The rows, their new u, and whether the weights came near enough to the minimum.
        """
        index = torch.as_tensor(working)
        scores = self._scores(working, self._weights, torch.empty(len(index), len(self._weights), dtype=torch.float64))
        around = _Around(index, scores, torch.empty_like(scores))
        sample = slice(None, None, 1 + len(working) // _SAMPLE)
        begun, trial = scores[sample].clone(), torch.empty_like(scores)
        steps = torch.empty_like(scores, dtype=self._dtype)
        own = self._coefficients[index, self._targets[index]]
        anchored = float(self._costs[index] @ own) - 0.5 * float(self._made.square().sum())
        _, around.outer, around.own = self._settle(around, scores, 0.0, around.coefficients)
        self._made = self._made.clone()
        torch.index_select(self._coefficients, 0, index, out=trial)
        self._add(working, torch.sub(around.coefficients, trial, out=trial))
        for _ in range(_MOST_STEPS):
            gradient = self._weights - self._made
            apart = 0.5 * float(gradient.square().sum())
            risen = around.own - 0.5 * float(self._made.square().sum()) - anchored
            if apart <= share * around.outer and risen >= -1e-3 * around.outer:
                around.settled = True
                break
            if self.passes >= max_passes:
                break
            step = self._newton_step(around, gradient)
            self._scores(working, step, steps)
            slope = float((gradient * step).sum())
            along = self._along(around, steps)

            def search(length: float) -> float:
                moved, around.outer, around.own = self._settle(around, steps, length, trial)  # noqa: B023
                return slope + length * float(step.square().sum()) - (moved - along)  # noqa: B023

            length = _length(search, slope)
            self._add(working, torch.sub(trial, around.coefficients, out=around.coefficients))
            around.coefficients, trial = trial, around.coefficients
            self._weights = self._weights + length * step
            around.scores.add_(steps, alpha=length)
            self.passes += 2 * len(working) / len(self._rows)
            risen = around.own - 0.5 * float(self._made.square().sum()) - anchored
            if share == 1.0 and -0.5 * slope <= _DECREMENT * around.outer and risen >= 0:
                around.settled = True
                break
        if len(working):
            moves = (around.scores[sample] - begun).abs().amax(1).numpy()
            self._typical_move = float(np.quantile(moves, _TYPICAL))
        return index, around.coefficients, around.settled

    def _newton_step(self, around: _Around, gradient: Tensor) -> Tensor:
        """Return the step of the weights that the rows between corners ask for."""
        own = self._targets[around.index, None]
        inside = around.coefficients < 0
        inside.scatter_(1, own, around.coefficients.gather(1, own) < 1)
        free = (inside.sum(1) > 1).nonzero().squeeze(1)
        index = around.index[free]
        if len(self._rows.live) or len(index) <= _FEW * len(self._rows):
            rows = FreeRows(torch.as_tensor(self._rows[index.numpy()]), torch.arange(len(index)))
        else:
            rows = FreeRows(torch.as_tensor(self._rows.matrix), index)
        return self._system.solve(rows, inside[free], self._reach * self._costs[index], gradient)

    def _settle(self, around: _Around, steps: Tensor, length: float, written: Tensor) -> tuple[float, float, float]:
        """Write the rows' maximisers at scores moved by so much of `steps`; see the loop of the same name."""
        return self._arithmetic.settle(
            around.scores,
            steps,
            length,
            around.index,
            self._targets,
            self._costs,
            self._coefficients,
            self._reach,
            written,
        )

    def _along(self, around: _Around, steps: Tensor) -> float:
        """Return the sum of C_i u·steps."""
        return sum(
            float(self._costs[around.index[block]] @ (around.coefficients[block] * steps[block]).sum(1))
            for block in slices(len(steps))
        )

    def _value(self, weights: Tensor) -> _Value:
        """Evaluate the gap between these weights and the coefficients, and every row's margin at these weights."""
        losses, gap, own = 0.0, 0.0, 0.0
        narrow = weights.to(self._dtype).T
        for block in slices(len(self._rows)):
            scores = torch.as_tensor(self._rows[block]) @ narrow
            found = self._arithmetic.assess(
                scores, self._targets[block], self._costs[block], self._coefficients[block], self._margins[block]
            )
            losses, gap, own = losses + found[0], gap + found[1], own + found[2]
        if self._dtype == torch.float32:
            near = np.flatnonzero(self._margins.numpy() <= _NEAR)
            gap = 0.0
            for block in slices(len(near)):
                index = torch.as_tensor(near[block])
                scores = self._scores(near[block], weights, torch.empty(len(index), len(weights), dtype=torch.float64))
                margins = torch.empty(len(index), dtype=torch.float64)
                gap += self._arithmetic.assess(
                    scores, self._targets[index], self._costs[index], self._coefficients[index], margins
                )[1]
        self.passes += 1
        primal = 0.5 * float(weights.square().sum()) + losses
        apart = 0.5 * float((weights - self._made).square().sum())
        return _Value((gap + apart) / primal, own - 0.5 * float(self._made.square().sum()))

    def _scores(self, rows: Ints, weights: Tensor, written: Tensor) -> Tensor:
        """Write w_m·phi_i of these rows, "row cls", in the precision of what is written, and return it."""
        narrow = weights.to(written.dtype).T
        for block in slices(len(rows)):
            torch.mm(torch.as_tensor(self._rows[rows[block]]).to(written.dtype), narrow, out=written[block])
        return written

    def _make(self) -> None:
        """Make W(u) anew."""
        self._made = torch.zeros(self._rows.num_classes, self._rows.width, dtype=torch.float64)
        self._add(np.arange(len(self._rows)), self._coefficients)

    def _add(self, rows: Ints, change: Tensor) -> None:
        """Add to W(u) what a change of these rows' u makes."""
        moved = change.any(1).nonzero().squeeze(1)
        for block in slices(len(moved)):
            index = rows[moved[block].numpy()]
            by = change[moved[block]] * self._costs[index][:, None]
            self._made.addmm_(by.T, torch.as_tensor(self._rows[index]).to(torch.float64))


def _length(slope_at: Callable[[float], float], slope: float) -> float:
    """Find a length at which a rising slope, negative at 0, is nearly zero; `slope_at` was called with it last."""
    low, high, length = 0.0, math.inf, 1.0
    low_slope, high_slope = slope, math.inf
    for trial in range(10):
        now = slope_at(length)
        if abs(now) <= _SLOPE * abs(slope) or trial == 9:
            break
        if now < 0:
            low, low_slope = length, now
        else:
            high, high_slope = length, now
        if high == math.inf:
            length = 2 * length
        else:
            part = low_slope / (low_slope - high_slope)
            length = low + (high - low) * min(max(part, 0.1), 0.9)
    return length
