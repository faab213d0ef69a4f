"""The compiled loops of the regime for many classes, in which each row has a list of classes in play.

Imported when the first such problem is solved. As in `_loop`, each also runs uncompiled (its `py_func`).

A set of lists is three arrays: row i's entries stand at `starts[i]` up to `starts[i + 1]` of `classes` and `values`,
its target first. `values` are u = alpha/C_i; classes that are not listed have u = 0.
"""

from __future__ import annotations

import numpy as np

from dualview.solvers.crammer_singer._loop import compiled, threshold

_PATIENCE = 6  # passes without a smaller gap, at least, before rounding is to blame


@compiled
def sweep(
    scores, products, features, targets, costs, sq_norms, starts, classes, values, weights, new_starts, new_classes,
    new_values, filled
):  # fmt: skip
    """Solve a block of rows' subproblems over all classes, one after another.

    The scores of the whole block come from one matrix product. What the block's earlier rows have changed since
    reaches a later row's scores through the products phi_i·phi_j, so that each row is solved exactly for the
    weights of the moment, without another pass over its features.

    Args:
        scores: w_m·phi_i, "row cls", at the weights given; changed in place.
        products: phi_i·phi_j, "row row".
        features: phi_i, "row width".
        targets: class of each row.
        costs: C_i of each row, of the weights' type.
        sq_norms: |phi_i|².
        starts: "row + 1" the rows' lists.
        classes: their classes.
        values: their u.
        weights: W = Σ_i C_i u_iᵀ phi_i, "cls width", changed in place.
        new_starts: "row + 1" the lists after the step: non-zeros and the target; the first entry is given.
        new_classes: receives their classes; long enough.
        new_values: receives their u.
        filled: entries that are in use before; equal to new_starts[0].

    Returns:
        How many entries are in use after.
    """
    num_rows, num_classes = scores.shape
    width = features.shape[1]
    zero, one = weights.dtype.type(0), weights.dtype.type(1)
    u = np.zeros(num_classes, weights.dtype)
    r = np.empty(num_classes, weights.dtype)
    changed_starts = np.zeros(num_rows + 1, np.int64)
    changed_classes = np.empty(64 * num_rows + num_classes, np.int32)
    changes = np.empty(64 * num_rows + num_classes, weights.dtype)
    num_changed = 0
    for i in range(num_rows):
        y = targets[i]
        C = costs[i]
        score = scores[i]
        for j in range(i):
            product = products[i, j]
            for entry in range(changed_starts[j], changed_starts[j + 1]):
                score[changed_classes[entry]] += changes[entry] * product
        score[y] -= one
        top = score[0]
        for m in range(1, num_classes):
            top = max(top, score[m])
        for entry in range(starts[i], starts[i + 1]):
            u[classes[entry]] = values[entry]
        curvature = C * sq_norms[i]
        for m in range(num_classes):
            r[m] = (score[m] - top) / curvature - u[m]
        tau, inside = threshold(r, num_classes, y)

        if num_changed + num_classes > len(changes):
            longer_classes = np.empty(2 * len(changes) + num_classes, np.int32)
            longer = np.empty(2 * len(changes) + num_classes, weights.dtype)
            longer_classes[:num_changed] = changed_classes[:num_changed]
            longer[:num_changed] = changes[:num_changed]
            changed_classes, changes = longer_classes, longer
        own = filled
        new_classes[own] = y
        filled += 1
        total = zero
        own_change = zero
        for m in range(num_classes):
            if m != y and (r[m] > tau or u[m] != zero):
                share = min(max(r[m] - tau, zero), one)
                if inside == 1 and share > zero:
                    share = one  # but for rounding
                change = -share - u[m]
                total += share
                if change != zero:
                    own_change -= change
                    changed_classes[num_changed] = m
                    changes[num_changed] = C * change
                    num_changed += 1
                if share > zero:
                    new_classes[filled] = m
                    new_values[filled] = -share
                    filled += 1
        new_values[own] = min(total, one) if own_change != zero else u[y]
        if own_change != zero:
            changed_classes[num_changed] = y
            changes[num_changed] = C * own_change
            num_changed += 1
        changed_starts[i + 1] = num_changed
        new_starts[i + 1] = filled
        for entry in range(starts[i], starts[i + 1]):
            u[classes[entry]] = zero
        for entry in range(changed_starts[i], num_changed):
            w = weights[changed_classes[entry]]
            change = changes[entry]
            for j in range(width):
                w[j] += change * features[i, j]
    return filled


@compiled
def select(
    scores, targets, costs, starts, classes, values, in_play, reach, new_starts, new_classes, new_values,
    filled, sums
):  # fmt: skip
    """Evaluate a block of rows and list the classes of each that may matter from here on.

    With G_m = scores_m + [m ≠ y] and p = e_y - u, row i adds C_i (max G - G_y) to the losses and
    C_i Σ_m p_m (max G - G_m), which is never negative, to the gap. The gap has three parts: of rows that were not
    in play; of classes that were not listed, C_i (max G - listed max G); and the rest, which the last passes left.

    Args:
        scores: w_m·phi_i, "row cls"; changed in place.
        targets: class of each row.
        costs: C_i of each row.
        starts: "row + 1" the rows' lists so far.
        classes: their classes.
        values: their u.
        in_play: "row" whether the row was visited since the last evaluation; written: whether it may be now.
        reach: "row": a class is listed if its u is not zero, or if its G is no further than this below the largest.
            A row that stands at a corner of its simplex with no other class in reach is not in play.
        new_starts: "row + 1" the new lists; the first entry is given.
        new_classes: receives their classes; long enough.
        new_values: receives their u.
        filled: entries in use before; equal to new_starts[0].
        sums: losses, gap, its parts of rows not in play and of classes not listed, alpha's target column; added to.

    Returns:
        How many entries are in use after.
    """
    num_rows, num_classes = scores.shape
    one = scores.dtype.type(1)
    u = np.zeros(num_classes, scores.dtype)
    for i in range(num_rows):
        y = targets[i]
        score = scores[i]
        score[y] -= one
        top = score[0]
        for m in range(1, num_classes):
            top = max(top, score[m])
        C = np.float64(costs[i])
        own = values[starts[i]]
        loss = np.float64(top) - np.float64(score[y])
        gap = (1.0 - np.float64(own)) * loss
        corner = y if own == 0 else -1
        listed = score[y]
        for entry in range(starts[i], starts[i + 1]):
            m = classes[entry]
            u[m] = values[entry]
            listed = max(listed, score[m])
            if m != y and values[entry] != 0:
                gap -= np.float64(values[entry]) * (np.float64(top) - np.float64(score[m]))
                if values[entry] == -1:
                    corner = m
        sums[0] += C * loss
        sums[1] += C * gap
        if in_play[i]:
            sums[2] += C * (np.float64(top) - np.float64(listed))
        else:
            sums[2] += C * gap
        sums[3] += C * np.float64(own)

        lowest = top - reach[i]
        new_classes[filled] = y
        new_values[filled] = own
        filled += 1
        in_play[i] = corner < 0
        for m in range(num_classes):
            if score[m] >= lowest or u[m] != 0:
                if m != corner and score[m] >= lowest:
                    in_play[i] = True
                if m != y:
                    new_classes[filled] = m
                    new_values[filled] = u[m]
                    filled += 1
        for entry in range(starts[i], starts[i + 1]):
            u[classes[entry]] = 0
        new_starts[i + 1] = filled
    return filled


@compiled
def ascend(
    features, order, live, costs, sq_norms, starts, classes, values, weights, rows, num_passes, reach, enough,
    random
):  # fmt: skip
    """Maximise the dual over the listed coefficients of one row after another, in passes over `rows`.

    As `_loop.ascend`, whose step and arguments these are, but for the classes: those of the row's list.

    Args:
        features: see there.
        order: see there.
        live: see there.
        costs: see there.
        sq_norms: see there.
        starts: see the top of this file.
        classes: see there.
        values: see there; changed in place.
        weights: see `_loop.ascend`; changed in place.
        rows: see there.
        num_passes: see there.
        reach: "row": a row that stands at a corner by a larger margin is not visited again.
        enough: stop after a pass in which the visited rows' gap, each as it stood before its step, is no larger;
            or where it does not fall any more, by rounding.
        random: see there.

    Returns:
        How many visits were made, and that gap of the last pass.
    """
    width = weights.shape[1]
    num_rows = len(rows)
    zero, one = weights.dtype.type(0), weights.dtype.type(1)
    lowest = weights.dtype.type(-np.inf)
    longest = 1
    for k in range(num_rows):
        longest = max(longest, starts[rows[k] + 1] - starts[rows[k]])
    r = np.empty(longest, weights.dtype)
    x = np.ones(width, weights.dtype)
    num_live = len(live)
    visits = 0
    gap = 0.0
    least, least_at = np.inf, 0
    state = random[0]
    for done in range(num_passes):
        for k in range(num_rows - 1, 0, -1):
            state ^= state << np.uint64(13)
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            other = np.int64(((state >> np.uint64(32)) * np.uint64(k + 1)) >> np.uint64(32))
            rows[k], rows[other] = rows[other], rows[k]
        kept = 0
        gap = 0.0
        for k in range(num_rows):
            i = rows[k]
            C = costs[i]
            first = starts[i]
            size = starts[i + 1] - first
            u = values[first : first + size]
            cls = classes[first : first + size]
            if num_live == 0:
                for j in range(width):
                    x[j] = features[i, j]
            else:
                for j in range(num_live):
                    x[j] = features[order[i], live[j]]
            m = 0
            while m + 2 <= size:
                w0, w1 = weights[cls[m]], weights[cls[m + 1]]
                s0, s1 = zero, zero
                for j in range(width):
                    s0 += w0[j] * x[j]
                    s1 += w1[j] * x[j]
                r[m], r[m + 1] = s0, s1
                m += 2
            if m < size:
                w0 = weights[cls[m]]
                s0 = zero
                for j in range(width):
                    s0 += w0[j] * x[j]
                r[m] = s0

            r[0] -= one
            top = r[0]
            for m in range(1, size):
                top = max(top, r[m])
            curvature = C * sq_norms[i]
            row_gap = (one - u[0]) * (top - r[0])
            r[0] = (r[0] - top) / curvature - u[0]
            for m in range(1, size):
                row_gap -= u[m] * (top - r[m])
                r[m] = (r[m] - top) / curvature - u[m]
            gap += np.float64(C) * np.float64(row_gap)
            own = r[0]
            tau, inside = threshold(r, size, 0)

            own_change = zero
            for m in range(1, size):
                share = min(max(r[m] - tau, zero), one)
                if inside == 1 and share > zero:
                    share = one  # but for rounding
                change = -share - u[m]
                if change != zero:
                    u[m] = -share
                    own_change -= change
                    change *= C
                    w0 = weights[cls[m]]
                    for j in range(width):
                        w0[j] += change * x[j]
            if own_change != zero:
                total = zero
                for m in range(1, size):
                    total -= u[m]
                u[0] = min(total, one)
                own_change *= C
                w0 = weights[cls[0]]
                for j in range(width):
                    w0[j] += own_change * x[j]

            if inside == 1:
                second = own + one if own <= tau - one else lowest
                for m in range(1, size):
                    if r[m] <= tau:
                        second = max(second, r[m])
                if (tau - second) * curvature > reach[i]:
                    continue
            rows[kept] = i
            kept += 1
        visits += num_rows
        num_rows = kept
        if gap < least:
            least, least_at = gap, done
        if gap <= enough or done - least_at > max(_PATIENCE, done // 3):
            break
    random[0] = state
    return visits, gap


@compiled
def accumulate(features, costs, starts, classes, values, weights):
    """Add Σ_i C_i u_iᵀ phi_i of a block of rows to float64 weights.

    Args:
        features: phi_i, "row width".
        costs: C_i, float64.
        starts: "row + 1" the rows' lists.
        classes: their classes.
        values: their u.
        weights: "cls width", changed in place.
    """
    width = features.shape[1]
    for i in range(len(features)):
        for entry in range(starts[i], starts[i + 1]):
            if values[entry] != 0:
                alpha = costs[i] * np.float64(values[entry])
                w = weights[classes[entry]]
                for j in range(width):
                    w[j] += alpha * np.float64(features[i, j])
