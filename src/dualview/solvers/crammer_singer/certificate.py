"""The end of a run: exactly feasible coefficients, the weights they make, and the gap between the two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dualview.solvers.crammer_singer.problem import Blocks, Floats, Ints, Problem

_ROUNDING = 1e-12  # far above float64's rounding of a row sum, far below any cut that matters


class Certificate(NamedTuple):
    """A dual point, the primal point it makes, and their values, all in float64.

    Attributes:
        coefficients: alpha, sparse "train class", over all classes.
        weights: alphaᵀ·[features, 1], "class unit", over all classes and units.
        primal: P = ½‖W‖² + Σ C_i·loss_i, at `weights`.
        dual: D = Σ_i alpha_i,y_i - ½‖W‖², at `coefficients`.
        gap: (P - D)/P.
        free: rows with 0 < alpha_y < C_i.
        bound: rows with alpha_y = C_i; without any, a larger C has the same solution.
    """

    coefficients: torch.Tensor
    weights: Floats
    primal: float
    dual: float
    gap: float
    free: int
    bound: int


def certify(problem: Problem, coefficients: Blocks, cut: float) -> Certificate:
    """Make coefficients exactly feasible and evaluate P and D at them, in float64, block by block.

    Only alpha enters P and D, so nothing that the solver did in another precision can flatter them.

    Args:
        problem: the rows, as given.
        coefficients: u = alpha/C_i, "row cls" over the occurring classes, feasible but for rounding.
        cut: share of C_i; p = C_i e_y - alpha is zero where it is no larger.
    """
    num_classes = len(problem.classes)
    weights = np.zeros((num_classes, len(problem.live) + 1))
    row_index: list[Ints] = []
    class_index: list[Ints] = []
    values: list[Floats] = []
    own, free, bound = 0.0, 0, 0
    costs = problem.costs
    for rows, block in problem.blocks():
        targets = problem.targets[rows]
        alpha = feasible(coefficients[rows], targets, costs[rows], cut)
        weights += alpha.T @ block
        owned = alpha[np.arange(len(targets)), targets]
        own += float(owned.sum())
        free += int(((owned > 0) & (owned < costs[rows])).sum())
        bound += int((owned >= costs[rows]).sum())
        row, column = np.nonzero(alpha)
        row_index.append(problem.rows[row + rows.start])
        class_index.append(problem.classes[column])
        values.append(alpha[row, column])
    losses = 0.0
    for rows, block in problem.blocks():
        losses += float(costs[rows] @ hinge_losses(block @ weights.T, problem.targets[rows]))
    half_norm = 0.5 * float(np.vdot(weights, weights))
    primal = half_norm + losses
    dual = own - half_norm
    index = np.stack([np.concatenate(row_index), np.concatenate(class_index)])
    sparse = torch.sparse_coo_tensor(  # pyright: ignore[reportUnknownMemberType]
        torch.as_tensor(index),
        torch.as_tensor(np.concatenate(values)),
        (len(problem.features), problem.num_classes),
        is_coalesced=True,
        check_invariants=False,
    )
    full = np.zeros((problem.num_classes, problem.features.shape[1] + 1))
    full[np.ix_(problem.classes, np.append(problem.live, full.shape[1] - 1))] = weights
    return Certificate(sparse, full, primal, dual, max(primal - dual, 0.0) / primal, free, bound)


def feasible(coefficients: Floats, targets: Ints, costs: NDArray[np.float64], cut: float) -> Floats:
    """Turn coefficients that are feasible but for rounding into alpha that are feasible exactly.

    Shares p/C_i = e_y - u no larger than `cut` become zero and the rest of a row's p is scaled to the sum
    C_i again. alpha is then rounded to multiples of the last binary digit of the row's alpha_y: every sum of a
    row's entries is an exact float64, so bounds and row sums hold without error, in whatever order one adds.

    Args:
        coefficients: u = alpha/C_i, "row cls".
        targets: class of each row.
        costs: C_i, the weight of each row's loss.
        cut: see above.

    Returns:
        alpha, float64: 0 ≤ alpha_y ≤ C_i, -C_i ≤ alpha_m ≤ 0 for m ≠ y, row sums 0.
    """
    index = np.arange(len(targets))
    shares = -coefficients.astype(np.float64)
    shares[index, targets] = 0.0
    shares[shares <= cut] = 0.0
    taken = shares.sum(axis=1)
    at_bound = ((1.0 - coefficients[index, targets] <= cut) & (taken > 0)) | (taken >= 1.0 - _ROUNDING)
    shares *= np.where(at_bound, (1.0 - _ROUNDING) / np.where(at_bound, taken, 1.0), 1.0)[:, None]
    digit = np.spacing(np.where(at_bound | (taken == 0), costs, costs * taken))
    whole = costs / digit
    digits = np.floor(shares * whole[:, None])
    missing = np.where(at_bound, whole - digits.sum(axis=1), 0.0)
    digits[index, digits.argmax(axis=1)] += missing
    alpha = -digits
    alpha[index, targets] = digits.sum(axis=1)
    return alpha * digit[:, None]


def hinge_losses(scores: Floats, targets: Ints) -> Floats:
    """Return max_m (scores_m + [m ≠ y]) - scores_y of each row."""
    index = np.arange(len(targets))
    own = scores[index, targets]
    costs = scores + 1.0
    costs[index, targets] = own
    return costs.max(axis=1) - own
