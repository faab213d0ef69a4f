"""The loops of the solver that must be compiled, and the only file that knows numba.

Each kernel is plain Python that also runs uncompiled, which is what the tests compare with. numba is
imported when the first problem is solved, never when the library is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

# Lets the compiler vectorise the dot products; NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


class Kernels(NamedTuple):
    """The two loops, compiled or not."""

    ascend: Callable[..., Any]
    assess: Callable[..., Any]


@cache
def kernels(*, compiled: bool = True) -> Kernels:
    """Return the loops, compiled at their first call with each floating-point type.

    The machine code is kept on disk where numba finds a place that can be written (beside this file,
    in the user's cache, in NUMBA_CACHE_DIR), and made anew in each process where it finds none.
    """
    if not compiled:
        return Kernels(ascend, assess)
    import numba

    def compile_loop(loop: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(loop, fastmath=_FASTMATH, nogil=True, cache=True)
        except RuntimeError:  # numba's "no locator available": nowhere to write
            return numba.njit(loop, fastmath=_FASTMATH, nogil=True)

    return Kernels(compile_loop(ascend), compile_loop(assess))


def ascend(features, targets, sq_norms, coefficients, weights, rows, num_passes, window, C, shrink, random):
    """Maximise the dual over one row of coefficients after another, in passes over `rows`.

    Row i's subproblem is solved exactly. With u = alpha/C, G_m = w_m·phi_i + [m ≠ y], A = |phi_i|² and

        r = (G - max G)/(C A) - u,      e_y - u_new = projection of r + e_y on the probability simplex:
        u_new_m = -max(r_m - tau, 0) for m ≠ y,     u_new_y = -(their sum).

    tau rises from its lower bound max(r + e_y) - 1 in Newton steps (Michelot), in which no class comes
    back that was once cut. The 1 of e_y is never added to r: u much smaller than 1 would drown in it.

    A row that stands at a corner of its simplex (no loss, or all of C on one rival) by a score margin
    above `shrink` is not visited again.

    Args:
        features: rows phi_i, "train unit", the constant included.
        targets: label of each row, int64.
        sq_norms: |phi_i|².
        coefficients: u, "train cls", changed in place.
        weights: W = C·uᵀ·phi, "cls unit", changed in place.
        rows: positions of the rows to visit; overwritten.
        num_passes: number of passes.
        window: each pass's order is new, but entries of `rows` trade places within so many. A small window
            walks memory nearly in order, several times faster than random access where rows are many;
            passes in nearly the same order converge several times slower in the end.
        C: weight of the losses, of the features' type.
        shrink: see above; infinity leaves no row out.
        random: one uint64, the xorshift generator's state, never zero; changed in place.

    Returns:
        How many visits were made.
    """
    num_classes, width = weights.shape
    num_rows = len(rows)
    zero = weights.dtype.type(0)
    one = weights.dtype.type(1)
    lowest = weights.dtype.type(-np.inf)
    scores = np.empty(num_classes, weights.dtype)
    x = np.empty(width, weights.dtype)
    visits = 0
    state = random[0]
    for _ in range(num_passes):
        for k in range(num_rows - 1, 0, -1):
            state ^= state << np.uint64(13)
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            reach = np.uint64(min(k + 1, window))
            other = k - np.int64(((state >> np.uint64(32)) * reach) >> np.uint64(32))
            rows[k], rows[other] = rows[other], rows[k]
        kept = 0
        for k in range(num_rows):
            i = rows[k]
            u = coefficients[i]
            y = targets[i]
            for j in range(width):
                x[j] = features[i, j]

            # Five classes share each load of x; more would spill the registers.
            m = 0
            while m + 5 <= num_classes:
                w0, w1, w2, w3, w4 = weights[m], weights[m + 1], weights[m + 2], weights[m + 3], weights[m + 4]
                s0, s1, s2, s3, s4 = zero, zero, zero, zero, zero
                for j in range(width):
                    value = x[j]
                    s0 += w0[j] * value
                    s1 += w1[j] * value
                    s2 += w2[j] * value
                    s3 += w3[j] * value
                    s4 += w4[j] * value
                scores[m], scores[m + 1], scores[m + 2], scores[m + 3], scores[m + 4] = s0, s1, s2, s3, s4
                m += 5
            while m < num_classes:
                w0 = weights[m]
                s0 = zero
                for j in range(width):
                    s0 += w0[j] * x[j]
                scores[m] = s0
                m += 1

            # From here on scores[m] is r_m.
            scores[y] -= one
            top = scores[0]
            for m in range(1, num_classes):
                top = max(top, scores[m])
            curvature = C * sq_norms[i]
            tau = lowest
            for m in range(num_classes):
                scores[m] = (scores[m] - top) / curvature - u[m]
                if m != y:
                    tau = max(tau, scores[m] - one)
            own = scores[y]
            tau = max(tau, own)

            inside = num_classes + 1
            while True:
                total = zero
                count = 0
                for m in range(num_classes):
                    if m != y and scores[m] > tau:
                        total += scores[m]
                        count += 1
                if own > tau - one:
                    total += own
                    count += 1
                else:
                    total -= one
                if count >= inside:  # the same classes as before; or more, by rounding
                    break
                inside = count
                tau = total / weights.dtype.type(count)
                if count == 1:
                    break

            own_change = zero
            for m in range(num_classes):
                if m != y:
                    share = min(max(scores[m] - tau, zero), one)
                    if inside == 1 and share > zero:
                        share = one  # but for rounding
                    change = -share - u[m]
                    if change != zero:
                        u[m] = -share
                        own_change -= change
                        change *= C
                        w0 = weights[m]
                        for j in range(width):
                            w0[j] += change * x[j]
            if own_change != zero:
                total = zero
                for m in range(num_classes):
                    if m != y:
                        total -= u[m]
                u[y] = min(total, one)
                own_change *= C
                w0 = weights[y]
                for j in range(width):
                    w0[j] += own_change * x[j]

            if inside == 1:
                # At a corner. Its entry of r + e_y is tau + 1, and is the largest by 1 or more: the rest is margin.
                second = own + one if own <= tau - one else lowest
                for m in range(num_classes):
                    if m != y and scores[m] <= tau:
                        second = max(second, scores[m])
                if (tau - second) * curvature > shrink:
                    continue
            rows[kept] = i
            kept += 1
        visits += num_rows
        num_rows = kept
    random[0] = state
    return visits


def assess(scores, targets, coefficients, margins):
    """Sum a block of rows' losses, gap and coefficients, and say how firmly each row stands.

    With G_m = scores_m + [m ≠ y] and p = e_y - u, row i adds max G - G_y to the losses and
    sum_m p_m (max G - G_m), which is never negative, to the gap.

    Args:
        scores: w_m·phi_i, "row cls"; changed in place.
        targets: label of each row, int64.
        coefficients: u = alpha/C, "row cls".
        margins: "row", written: for a row at a corner of its simplex, how far that corner's score is
            above all others (negative if it is not the best corner); minus infinity for other rows.

    Returns:
        Sum of the losses, of the gap's terms, and of u's target column; all to be multiplied by C.
    """
    num_rows, num_classes = scores.shape
    losses, gap, own = 0.0, 0.0, 0.0
    for i in range(num_rows):
        y = targets[i]
        score = scores[i]
        u = coefficients[i]
        score[y] -= score.dtype.type(1)
        top = score[0]
        for m in range(1, num_classes):
            top = max(top, score[m])
        corner = y if u[y] == 0 else -1
        loss = np.float64(top) - np.float64(score[y])
        losses += loss
        gap += (1.0 - np.float64(u[y])) * loss
        own += np.float64(u[y])
        for m in range(num_classes):
            if m != y and u[m] != 0:
                gap -= np.float64(u[m]) * (np.float64(top) - np.float64(score[m]))
                if u[m] == -1:
                    corner = m
        margins[i] = -np.inf
        if corner >= 0:
            second = score[0] if corner != 0 else score[1]
            for m in range(num_classes):
                if m != corner:
                    second = max(second, score[m])
            margins[i] = score[corner] - second
    return losses, gap, own
