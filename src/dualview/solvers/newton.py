"""Newton's method on the primal of a dual-family problem, globalised by a line search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.solvers.hessian import Hessian, gather, logits
from dualview.solvers.losses import Loss
from dualview.solvers.metrics import Metric

_ARMIJO = 1e-4
_SHORTEST = 2.0**-20
_ROUNDING = 1e-14  # of the objective's value: a step that looks worse by less may be better
_PATIENCE = 5  # steps of which neither the value nor the gradient tells any progress
_MAX_PRODUCTS = 500  # of one step; what conjugate gradients have by then is still a direction of descent


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise P(W) = ½ Σ_c W_cᵀ M_c W_c + Σ_i C_i L(z_i, t_i), z_i = W [f_i, 1].

    Attributes:
        features: f, "row feature".
        targets: t, "row" classes or "row out" numbers.
        costs: C_i, float64 "row", positive.
        loss: L.
        metric: M.
    """

    features: Tensor
    targets: Tensor
    costs: Tensor
    loss: Loss
    metric: Metric


class Newton:
    """A point that descends.

    Attributes:
        weights: W, float64 "out unit".
        residual: u = -dL/dz there, "row out", of the loss that was last minimised.
        steps: taken so far.
        passes: over the rows so far; a product with the Hessian is one, though curved rows alone take part.
    """

    def __init__(self, problem: Problem, num_outputs: int) -> None:
        self._problem = problem
        self.weights: Tensor = torch.zeros(num_outputs, problem.features.shape[1] + 1, dtype=torch.float64)
        self.residual = self._logits = torch.zeros(len(problem.features), num_outputs, dtype=torch.float64)
        self.steps = self.passes = 0

    def minimise(self, loss: Loss, offset: Float[Tensor, "row out"] | float, tolerance: float, max_steps: int) -> str:
        """Descend until ½|gradient|² is small in the norm of M⁻¹; it is the gap between W and alpha_i = C_i u_i.

        Args:
            loss: a smooth one in place of the problem's.
            offset: added to the logits.
            tolerance: of ½|gradient|² relative to P.
            max_steps: in total, over all calls.

        Returns:
            "reached", "limit" or "stalled".
        """
        problem, metric = self._problem, self._problem.metric
        least_gap, flat, last_value = math.inf, 0, math.inf
        while True:
            z = self._logits + offset
            self.residual = loss.residual(z, problem.targets)
            gradient = metric.product(self.weights) - gather(problem.features, problem.costs[:, None] * self.residual)
            value = self._value(loss, z, self.weights)
            gap = 0.5 * float((gradient * metric.solve(gradient)).sum())
            self.passes += 1
            if gap <= tolerance * abs(value):
                return "reached"
            if self.steps == max_steps:
                return "limit"
            flat = flat + 1 if gap > least_gap / 2 and value > last_value - _ROUNDING * abs(value) else 0
            if flat > _PATIENCE:
                return "stalled"
            least_gap, last_value = min(gap, least_gap), value
            hessian = Hessian.at(
                problem.features, loss, self.residual, problem.targets, problem.costs, metric, problem.features.dtype
            )
            forcing = min(0.1, (gap / abs(value)) ** 0.25)
            found, products = hessian.solve(-gradient[None], forcing, _MAX_PRODUCTS)
            step = found[0]
            moved = logits(problem.features, step)
            length = self._length(loss, z, moved, step, value, float((gradient * step).sum()))
            self.steps += 1
            self.passes += products + 2
            if not length:
                return "stalled"
            self.weights = self.weights + length * step
            self._logits = self._logits + length * moved

    def _length(self, loss: Loss, z: Tensor, moved: Tensor, step: Tensor, value: float, slope: float) -> float:
        """Halve the step until it descends by a share of what its slope promises; zero where none does."""
        length = 1.0
        while length > _SHORTEST:
            reached = self._value(loss, z + length * moved, self.weights + length * step)
            if reached <= value + _ARMIJO * length * slope + _ROUNDING * abs(value):
                return length
            length /= 2
        return 0.0

    def _value(self, loss: Loss, z: Tensor, weights: Tensor) -> float:
        problem = self._problem
        norm = (weights * problem.metric.product(weights)).sum()
        return 0.5 * float(norm) + float(problem.costs @ loss.value(z, problem.targets))
