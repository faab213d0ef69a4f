"""The loops of the solver that must be compiled, and the only file that knows numba.

It is imported when the first problem is solved, never when the library is. Each loop is plain Python that
also runs uncompiled (its `py_func`), which is what the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# Lets the compiler vectorise the dot products; NaN and infinity keep their meaning.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def compiled(loop: Callable[..., Any]) -> Any:
    """Return the loop, compiled at its first call with each floating-point type.

    The machine code is kept on disk where numba finds a place that can be written (beside this file,
    in the user's cache, in NUMBA_CACHE_DIR), and made anew in each process where it finds none.
    """
    try:
        return numba.njit(loop, fastmath=_FASTMATH, nogil=True, cache=True)
    except RuntimeError:  # numba's "no locator available": nowhere to write
        return numba.njit(loop, fastmath=_FASTMATH, nogil=True)


@compiled
def threshold(r, num_entries, y):
    """Find where the projection of r + e_y on the probability simplex cuts.

    The projection is e_y - u with u_m = -max(r_m - tau, 0) for m ≠ y and u_y = -(their sum). tau rises from its
    lower bound max(r + e_y) - 1 in Newton steps (Michelot), in which no entry comes back that was once cut.
    The 1 of e_y is never added to r: u much smaller than 1 would drown in it.

    Args:
        r: the point less e_y; the first `num_entries` entries count.
        num_entries: see above.
        y: position of the target's entry.

    Returns:
        tau, and how many entries are inside; 1 where the projection is a corner.
    """
    zero, one = r.dtype.type(0), r.dtype.type(1)
    tau = r[y]
    for m in range(num_entries):
        if m != y:
            tau = max(tau, r[m] - one)
    inside = num_entries + 1
    while True:
        total = zero
        count = 0
        for m in range(num_entries):
            if m != y and r[m] > tau:
                total += r[m]
                count += 1
        if r[y] > tau - one:
            total += r[y]
            count += 1
        else:
            total -= one
        if count >= inside:  # the same entries as before; or more, by rounding
            break
        inside = count
        tau = total / r.dtype.type(count)
        if count == 1:
            break
    return tau, inside


@compiled
def ascend(
    features, order, live, targets, costs, sq_norms, coefficients, weights, rows, num_passes, window, shrink, random
):
    """Maximise the dual over one row of coefficients after another, in passes over `rows`.

    Row i's subproblem is solved exactly. With u = alpha/C_i, G_m = w_m·phi_i + [m ≠ y], A = |phi_i|² and

        r = (G - max G)/(C_i A) - u,      e_y - u_new = projection of r + e_y on the probability simplex.

    A row that stands at a corner of its simplex (no loss, or all of C on one rival) by a score margin
    above `shrink` is not visited again.

    Args:
        features: rows phi_i, "train unit", the constant included; unless `live` is given.
        order: position in `features` of each row, where `live` is given.
        live: empty, or the columns of `features` that phi_i consists of beside the constant, which is last.
        targets: label of each row, int64.
        costs: C_i of each row, of the weights' type.
        sq_norms: |phi_i|².
        coefficients: u, "train cls", changed in place.
        weights: W = Σ_i C_i u_iᵀ phi_i, "cls unit", changed in place.
        rows: positions of the rows to visit; overwritten.
        num_passes: number of passes.
        window: each pass's order is new, but entries of `rows` trade places within so many. A small window
            walks memory nearly in order, several times faster than random access where rows are many;
            passes in nearly the same order converge several times slower in the end.
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
    x = np.ones(width, weights.dtype)
    num_live = len(live)
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
            C = costs[i]
            if num_live == 0:
                for j in range(width):
                    x[j] = features[i, j]
            else:
                for j in range(num_live):
                    x[j] = features[order[i], live[j]]

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
            for m in range(num_classes):
                scores[m] = (scores[m] - top) / curvature - u[m]
            own = scores[y]
            tau, inside = threshold(scores, num_classes, y)

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


@compiled
def assess(scores, targets, costs, coefficients, margins):
    """Sum a block of rows' losses, gap and coefficients, and say how firmly each row stands.

    With G_m = scores_m + [m ≠ y] and p = e_y - u, row i adds C_i (max G - G_y) to the losses and
    C_i sum_m p_m (max G - G_m), which is never negative, to the gap.

    Args:
        scores: w_m·phi_i, "row cls"; changed in place.
        targets: label of each row, int64.
        costs: C_i of each row.
        coefficients: u = alpha/C_i, "row cls".
        margins: "row", written: for a row at a corner of its simplex, how far that corner's score is
            above all others (negative if it is not the best corner); minus infinity for other rows.

    Returns:
        Sums of the losses, of the gap's terms, and of alpha's target column.
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
        C = np.float64(costs[i])
        losses += C * loss
        gap += C * (1.0 - np.float64(u[y])) * loss
        own += C * np.float64(u[y])
        for m in range(num_classes):
            if m != y and u[m] != 0:
                gap -= C * np.float64(u[m]) * (np.float64(top) - np.float64(score[m]))
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


@compiled
def settle(scores, steps, length, rows, targets, costs, anchors, reach, coefficients):
    """Find each row's best coefficients near its anchor, for scores moved by `length` times `steps`.

    With G_m = scores_m + length·steps_m + [m ≠ y], a row's u maximises, over its simplex,

        <e_y - u, G> - |u - anchor|²/(2 reach).

    Args:
        scores: w_m·phi_i of the rows, "row cls".
        steps: change of the scores per unit of length, "row cls".
        length: see above.
        rows: positions of the rows in the three that follow.
        targets: label of each row, int64.
        costs: C_i of each row.
        anchors: u that the new ones stay near to, "train cls".
        reach: see above.
        coefficients: "row cls", written: u.

    Returns:
        Sums over the rows of C_i u·steps, of the gap's terms C_i sum_m p_m (max G - G_m) with p = e_y - u, and of
        C_i u_y.
    """
    num_rows, num_classes = scores.shape
    r = np.empty(num_classes, np.float64)
    zero, one = np.float64(0), np.float64(1)
    slope, gap, own = 0.0, 0.0, 0.0
    for k in range(num_rows):
        i = rows[k]
        y = targets[i]
        u = coefficients[k]
        top = -np.inf
        for m in range(num_classes):
            r[m] = scores[k, m] + length * np.float64(steps[k, m])
            if m == y:
                r[m] -= one
            top = max(top, r[m])
        for m in range(num_classes):
            r[m] = reach * (r[m] - top) - anchors[i, m]
        tau, inside = threshold(r, num_classes, y)
        total, along, below = zero, zero, zero
        for m in range(num_classes):
            if m != y:
                share = min(max(r[m] - tau, zero), one)
                if inside == 1 and share > zero:
                    share = one  # but for rounding
                u[m] = -share
                total += share
                along -= share * np.float64(steps[k, m])
                below -= share * (r[m] + anchors[i, m])
        total = min(total, one)
        u[y] = total
        along += total * np.float64(steps[k, y])
        below -= (one - total) * (r[y] + anchors[i, y])
        slope += costs[i] * along
        gap += costs[i] * below
        own += costs[i] * total
    return slope, gap / reach, own


@compiled
def contract(rows, owner, directions, weights, products):
    """Write each pair's sum_m directions_pm w_m·phi_owner(p); most of a pair's directions are zero.

    Args:
        rows: phi, "row unit".
        owner: position of each pair's row.
        directions: "pair cls".
        weights: w, "cls unit".
        products: "pair", written.
    """
    num_pairs, num_classes = directions.shape
    width = rows.shape[1]
    for p in range(num_pairs):
        x = rows[owner[p]]
        total = 0.0
        for m in range(num_classes):
            factor = directions[p, m]
            if factor != 0:
                w = weights[m]
                part = 0.0
                for j in range(width):
                    part += w[j] * x[j]
                total += factor * part
        products[p] = total


@compiled
def expand(rows, owner, directions, products, weights):
    """Add sum_p products_p directions_pm phi_owner(p) to each w_m: the transpose of `contract`."""
    num_pairs, num_classes = directions.shape
    width = rows.shape[1]
    for p in range(num_pairs):
        x = rows[owner[p]]
        for m in range(num_classes):
            factor = directions[p, m] * products[p]
            if factor != 0:
                w = weights[m]
                for j in range(width):
                    w[j] += factor * x[j]
