"""The multi-class support vector machine of Crammer and Singer, solved in the dual and certified."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from dualview.errors import GapWarning
from dualview.solvers._solution import DualSolution
from dualview.solvers.crammer_singer.problem import pose
from dualview.solvers.crammer_singer.regimes import Solver

__all__ = ["crammer_singer", "path"]

_ENDINGS = {"limit": "reached max_epochs", "stalled": "made no more progress", "interrupted": "was interrupted"}


def crammer_singer(
    features: Float[Tensor, "train unit"] | Float[NDArray[Any], "train unit"],
    labels: Int[Tensor, " train"] | Int[NDArray[Any], " train"],
    *,
    C: float,
    gap: float = 1e-6,
    max_epochs: int | None = None,
    num_classes: int | None = None,
    sample_weight: Any = None,
    class_weight: Any = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    low_memory: bool = False,
) -> DualSolution:
    """Fit a multi-class support vector machine and return its dual variables with a certificate.

    With phi_i = [features_i, 1] (the bias is regularised like any weight), the primal is
    (Crammer and Singer, 2001)

        min over W of  P = ½‖W‖² + C·Σ_i max_m (w_m·phi_i + [m ≠ y_i] - w_{y_i}·phi_i)

    and its dual, with W = alphaᵀ·phi,

        max over alpha of  D = Σ_i alpha_i,y_i - ½‖W‖²,
        0 ≤ alpha_i,y_i ≤ C,  -C ≤ alpha_im ≤ 0 for m ≠ y_i,  Σ_m alpha_im = 0.

    D ≤ optimum ≤ P whatever the solver did, and ‖W - W*‖ ≤ √(2(P - D)). alpha itself has no such bound
    and need not be unique.

    Three algorithms share the work, and `regime` says which did. "sequential": the dual is ascended row by
    row, each row's subproblem solved exactly, while rows that stand firmly at their bounds are left alone; it
    is all that is needed where C·‖phi‖² is about 1 or less. "class lists": the same, where classes are many,
    over the few classes that may matter to each row. "newton": proximal-point steps with semismooth Newton
    inside, from where one of the others began, for larger C and for the last digits. Without numba Newton's
    steps do it all.

    Coefficients below a millionth of the largest one are set to zero where the gap allows.

    Args:
        features: float32 or float64, any strides; half precision is upcast to float32. One copy is made,
            of the columns that are not all zero, in the precision of `dtype`.
        labels: class of each row, in 0 .. num_classes - 1. Classes without rows take no part; their column
            of coefficients and row of weights are zero, and they are not among the losses' m.
        C: weight of the sum (not the mean) of the losses, positive.
        gap: relative gap (P - D)/P at which to stop.
        max_epochs: passes over the training rows at which to give up. A pass over part of the rows counts
            in part, an evaluation of the gap as one pass. None: 2,000, or more where rows, units and
            classes are few: up to 100,000, while they make no more than 5e10 multiplications.
        num_classes: columns of the solution; by default the largest label plus one.
        sample_weight: "train" factor of each row's loss, not negative: C_i = C·sample_weight_i·class_weight_{y_i}.
            A row of weight zero takes no part, as if it were not there.
        class_weight: "cls" factor of the losses of each class, a mapping from some labels to theirs, or "balanced":
            rows / (classes × rows of the class).
        dtype: torch.float32 or torch.float64, the precision of the rows and of the ascent over them (Newton's
            steps decide, and the certificate is evaluated, in float64). None: that of the features, and where a
            float32 ascent ends above `gap`, Newton's steps or float64 arithmetic go on from there.
        seed: decides the order in which rows are visited. The same seed gives the same bits.
        low_memory: make no copy of the features; each pass then gathers its rows from them as they are.

    Returns:
        The solution; P, D and gap are evaluated in float64 from its coefficients and the features given.

    Raises:
        NonFiniteError: features are NaN or infinite.
        ValueError: another argument is not as described, or all labels are the same.

    Warns:
        GapWarning: the asked gap was not reached.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
        >>> solution = crammer_singer(features, torch.tensor([0, 0, 1, 1]), C=10.0)
        >>> solution.status, solution.coefficients.to_dense().abs().sum(1).gt(0).tolist()
        ('converged', [False, True, True, False])
    """
    problem = pose(
        features, labels, C=C, num_classes=num_classes, sample_weight=sample_weight, class_weight=class_weight
    )
    solver = Solver(problem, gap=gap, max_epochs=max_epochs, dtype=dtype, seed=seed, low_memory=low_memory)
    return _announced(solver.solve(problem.C), gap)


def path(
    features: Float[Tensor, "train unit"] | Float[NDArray[Any], "train unit"],
    labels: Int[Tensor, " train"] | Int[NDArray[Any], " train"],
    C_values: Iterable[float],
    *,
    gap: float = 1e-6,
    max_epochs: int | None = None,
    num_classes: int | None = None,
    sample_weight: Any = None,
    class_weight: Any = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    low_memory: bool = False,
) -> Iterator[DualSolution]:
    """Solve `crammer_singer` for one C after another, each from where the last one ended.

    The rows are copied once. Each solution carries its own certificate and agrees with a single solve within
    both certificates; rising values are the cheapest order. Nothing is solved before it is asked for, so that
    `C_values` may be a generator which looks at the solutions so far before it gives the next value.

    Args:
        features: see `crammer_singer`, as all that is not listed here.
        labels: see there.
        C_values: positive, in any order.
        gap: relative gap of every solution.
        max_epochs: passes over the training rows for each solution.
        num_classes: see there.
        sample_weight: see there.
        class_weight: see there.
        dtype: see there.
        seed: see there.
        low_memory: see there.

    Yields:
        The solution of each value; its `C` says which.

    Raises:
        NonFiniteError: features are NaN or infinite.
        ValueError: another argument is not as described.

    Warns:
        GapWarning: the asked gap was not reached.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
        >>> [solution.bound for solution in path(features, torch.tensor([0, 0, 1, 1]), [1e-3, 10.0])]
        [4, 0]
    """
    solver: Solver | None = None
    for C in C_values:
        if solver is None:
            problem = pose(
                features, labels, C=C, num_classes=num_classes, sample_weight=sample_weight, class_weight=class_weight
            )
            solver = Solver(problem, gap=gap, max_epochs=max_epochs, dtype=dtype, seed=seed, low_memory=low_memory)
        yield _announced(solver.solve(C), gap)


def _announced(solution: DualSolution, gap: float) -> DualSolution:
    """Warn of a gap that was not reached."""
    if solution.status != "converged":
        warnings.warn(
            f"crammer_singer {_ENDINGS[solution.status]} after {solution.epochs} passes at a relative gap of "
            f"{solution.gap:.1e}, above gap={gap:.1e}; its weights are within {solution.distance:.2g} of the optimum, "
            f"their norm being {float(solution.weights.square().sum().sqrt()):.2g}. Use a smaller C or a larger gap"
            f" (the solver itself also takes {'max_epochs=' if solution.status == 'limit' else 'dtype=torch.float64'})",
            GapWarning,
            stacklevel=3,
        )
    return solution
