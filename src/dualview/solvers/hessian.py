"""The Hessian of a dual-family problem as products with blocks of rows, and its inverse by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.solvers.losses import Loss
from dualview.solvers.metrics import Metric

_BLOCK_ENTRIES = 2**20


def logits(features: Float[Tensor, "row feature"], weights: Float[Tensor, "out unit"]) -> Float[Tensor, "row out"]:
    """Return [features, 1] @ weightsᵀ in the weights' precision, without a copy of all features."""
    found = weights.new_empty(len(features), len(weights))
    for rows in blocks(features, len(weights)):
        torch.addmm(weights[:, -1], features[rows].to(weights.dtype), weights[:, :-1].T, out=found[rows])
    return found


def gather(features: Float[Tensor, "row feature"], alpha: Float[Tensor, "row out"]) -> Float[Tensor, "out unit"]:
    """Return alphaᵀ @ [features, 1] in alpha's precision, without a copy of all features."""
    found = alpha.new_zeros(alpha.shape[1], features.shape[1] + 1)
    found[:, -1] = alpha.sum(0)
    for rows in blocks(features, alpha.shape[1]):
        found[:, :-1].addmm_(alpha[rows].T, features[rows].to(alpha.dtype))
    return found


def blocks(features: Tensor, num_columns: int) -> list[slice]:
    """Cut the rows so that neither a block of features nor its products take many megabytes."""
    size = max(1, _BLOCK_ENTRIES // max(features.shape[1], num_columns))
    return [slice(start, start + size) for start in range(0, len(features), size)]


@dataclass(frozen=True, eq=False)
class Hessian:
    """H = blockdiag(M_c) + Σ_i C_i J_i ⊗ phi_i phi_iᵀ, phi = [features, 1].

    Attributes:
        features: rows whose loss is curved.
        slopes: C_i s_i: C_i J_i = diag(C_i s_i) - C_i s_i s_iᵀ/Σs_i where classes are coupled, else its first part.
        coupled: whether they are.
        metric: M.
        dtype: precision of the products with rows.
    """

    features: Float[Tensor, "row feature"]
    slopes: Float[Tensor, "row cls"]
    coupled: bool
    metric: Metric
    dtype: torch.dtype

    @classmethod
    def at(
        cls,
        features: Float[Tensor, "row feature"],
        loss: Loss,
        residual: Float[Tensor, "row cls"],
        targets: Tensor,
        costs: Float[Tensor, " row"],
        metric: Metric,
        dtype: torch.dtype,
    ) -> Hessian:
        """Return the (generalised) Hessian where the rows have these residuals."""
        slopes = loss.slopes(residual, targets) * costs[:, None]
        curved = (slopes > 0).sum(1) > int(loss.coupled)  # one class alone has no rival to trade with
        if not curved.all():
            features, slopes = features[curved], slopes[curved]
        return cls(features, slopes.to(dtype), loss.coupled, metric, dtype)

    def product(self, directions: Float[Tensor, "test cls unit"]) -> Float[Tensor, "test cls unit"]:
        """Return H v for each of several v."""
        flat = directions.flatten(0, 1).to(self.dtype)
        total = torch.zeros_like(directions).flatten(0, 1)
        for rows in blocks(self.features, len(flat)):
            moved = logits(self.features[rows], flat).view(-1, *directions.shape[:2])
            slopes = self.slopes[rows, None]
            curved = slopes * moved
            if self.coupled:
                curved -= slopes * (curved.sum(2, keepdim=True) / slopes.sum(2, keepdim=True))
            total += gather(self.features[rows], curved.flatten(1))
        return self.metric.product(directions) + total.view(directions.shape)

    @cached_property
    def preconditioner(self) -> Metric:
        """M_c + Σ_i C_i tr(J_i)/K phi_i phi_iᵀ: it is H itself where classes are curved alike and not coupled."""
        trace = self.slopes
        if self.coupled:
            trace = trace - trace.square() / trace.sum(1, keepdim=True)
        weights = trace.mean(1, keepdim=True)
        num_units = self.features.shape[1] + 1
        total = torch.zeros(num_units, num_units, dtype=torch.float64)
        for rows in blocks(self.features, num_units):
            block = _with_constant(self.features[rows].to(self.dtype))
            total += (block * weights[rows]).T @ block
        return self.metric.plus((total + total.T) / 2)

    def dense(self) -> Float[Tensor, "weight weight"]:
        """Return H over the flattened weights, "cls·unit"."""
        num_classes, num_units = self.slopes.shape[1], self.features.shape[1] + 1
        total = torch.zeros(num_classes, num_units, num_classes, num_units, dtype=torch.float64)
        eye = torch.eye(num_units, dtype=torch.float64)
        own = self.metric.product(eye[:, None].expand(-1, num_classes, -1))
        for c in range(num_classes):
            total[c, :, c] = own[:, c]
        for rows in blocks(self.features, num_units):
            block, slopes = _with_constant(self.features[rows].to(self.dtype)), self.slopes[rows]
            for c in range(num_classes):
                total[c, :, c] += (block * slopes[:, c, None]).T @ block
                if self.coupled:
                    shared = slopes[:, c, None] * block / slopes.sum(1, keepdim=True)
                    for other in range(num_classes):
                        total[c, :, other] -= shared.T @ (block * slopes[:, other, None])
        return total.view(num_classes * num_units, -1)

    def solve(
        self, sums: Float[Tensor, "test cls unit"], tolerance: float, max_steps: int
    ) -> tuple[Float[Tensor, "test cls unit"], int]:
        """Solve H x = b for several b by preconditioned conjugate gradients.

        Args:
            sums: b.
            tolerance: of the residual's norm relative to b's, both in the norm of the preconditioner's inverse.
            max_steps: at which to give up.

        Returns:
            x, and the number of steps; max_steps + 1 where the tolerance was not reached.
        """
        found, left = torch.zeros_like(sums), sums
        eased = self.preconditioner.solve(left)
        direction, size = eased, _dots(left, eased)
        goal = tolerance**2 * size
        for step in range(max_steps + 1):
            if (size <= goal).all():
                return found, step
            product = self.product(direction)
            length = torch.where(size > goal, size / _dots(direction, product), 0.0)
            found = found + length * direction
            left = left - length * product
            eased = self.preconditioner.solve(left)
            before, size = size, _dots(left, eased)
            direction = eased + torch.where(before > 0, size / before, 0.0) * direction
        return found, max_steps + 1


def _with_constant(block: Tensor) -> Tensor:
    return torch.nn.functional.pad(block, (0, 1), value=1.0)


def _dots(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum((1, 2), keepdim=True)
