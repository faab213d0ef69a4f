"""The linear system of a Newton step: conjugate gradients, preconditioned by an earlier step's exact inverse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dualview.solvers.crammer_singer.simplex import Arithmetic

_TOLERANCE = 0.02  # of the residual, in the preconditioner's norm
_MOST_STEPS = 150
_BLOCK = 256
_ROWS = 2048
# Costs are counted in multiplications of a large matrix product.
_OVERHEAD = 3e6  # of a step, whatever its size
_STREAMED = 2.0  # of a multiplication that waits for memory


class FreeRows(NamedTuple):
    """Rows phi_i, where they stand: a copy of them may be as large as all else that a step needs.

    Attributes:
        matrix: "row unit".
        positions: "free" where in it.
    """

    matrix: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def width(self) -> int:
        """Entries of a row."""
        return self.matrix.shape[1]


class _Hessian:
    """I + B Bᵀ; a column of B is phi_i of a free row times one direction in which its coefficients may move.

    With an orthonormal basis of those directions, Σ_d d dᵀ = diag(inside_i) - inside_i inside_iᵀ/|inside_i|.
    """

    def __init__(self, rows: FreeRows, inside: Tensor, weights: Tensor, arithmetic: Arithmetic) -> None:
        self.rows, self.inside, self.weights = rows, inside, weights
        self.directions, owner = _helmert(inside, weights.dtype)
        self.directions *= weights[owner, None].sqrt()
        self.owner = rows.positions[owner]
        self._arithmetic = arithmetic

    def contract(self, step: Tensor) -> Tensor:
        """Return Bᵀ·step."""
        products = step.new_empty(len(self.owner))
        self._arithmetic.contract(self.rows.matrix, self.owner, self.directions, step, products)
        return products

    def add_expanded(self, products: Tensor, to: Tensor) -> Tensor:
        """Return `to` + B·products, changed in place."""
        self._arithmetic.expand(self.rows.matrix, self.owner, self.directions, products, to)
        return to

    def times(self, step: Tensor) -> Tensor:
        """Return H·step."""
        return self.add_expanded(self.contract(step), step.clone())


class _Inverse(ABC):
    """The inverse of a Hessian, or nearly.

    Attributes:
        operations: multiplications that `times` takes.
    """

    operations: float

    @abstractmethod
    def times(self, residual: Tensor) -> Tensor:
        """Return H⁻¹·residual, or nearly."""


class NewtonSystem:
    """Solve for one Newton step after another.

    H·step = -gradient, with H = I + Σ_i weight_i (diag(inside_i) - inside_i inside_iᵀ/|inside_i|) ⊗ phi_i phi_iᵀ.
    From one Newton step to the next few rows become free or cease to be, so the inverse of an earlier H is
    what preconditions conjugate gradients; where it no longer does, a new one is made. It is exact (H
    factored as it is, or in Woodbury's form with one unknown for each free direction, whichever is smaller)
    where this is cheaper than the steps which H's diagonal blocks would need instead.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self._arithmetic = arithmetic
        self._kept: _Inverse | None = None
        self._expected = 20  # steps with new diagonal blocks

    def solve(
        self,
        rows: FreeRows,
        inside: Bool[Tensor, "free cls"],
        weights: Float[Tensor, " free"],
        gradient: Float[Tensor, "cls unit"],
    ) -> Float[Tensor, "cls unit"]:
        """Return the step, within a few per cent.

        Args:
            rows: those that are free.
            inside: the classes over which each one's cost is spread, two or more.
            weights: see above, positive, of the gradient's type.
            gradient: of the objective, float64.
        """
        if len(rows) == 0:
            return -gradient
        hessian = _Hessian(rows, inside, weights, self._arithmetic)
        num_pairs, width, unknowns = len(hessian.owner), rows.width, gradient.numel()
        by_pairs = num_pairs**3 / 3 + 2 * num_pairs**2 * width
        whole = unknowns**3 / 3 + 6 * len(rows) * width**2
        exact = min(by_pairs, whole)
        product = _OVERHEAD + _STREAMED * 12 * num_pairs * width
        step = torch.zeros_like(gradient)
        if self._kept is not None:
            limit = int(max(3, min(exact / (product + self._kept.operations) / 2, _MOST_STEPS)))
            step, taken = _conjugate_gradients(hessian, self._kept, -gradient, step, limit)
            if taken < limit:
                return step
        if exact <= self._expected * (product + _STREAMED * 2 * unknowns * width):
            self._kept = None  # before the next takes its room
            self._kept = _PairInverse(hessian) if by_pairs <= whole else _WholeInverse(hessian)
            return self._kept.times(-gradient)
        self._kept = _BlockInverse(hessian)
        step, self._expected = _conjugate_gradients(hessian, self._kept, -gradient, step, _MOST_STEPS)
        return step


def _conjugate_gradients(
    hessian: _Hessian, inverse: _Inverse, goal: Tensor, start: Tensor, limit: int
) -> tuple[Tensor, int]:
    """Return an approximate H⁻¹·goal and the steps taken, `limit` where it was not reached before."""
    step = start
    residual = goal - hessian.times(step) if bool(step.any()) else goal
    direction, before, first = residual, 1.0, 0.0
    for taken in range(limit):
        scaled = inverse.times(residual)
        now = float((residual * scaled).sum())
        first = max(first, now)
        if not now > _TOLERANCE**2 * first:
            return step, taken
        direction = scaled if taken == 0 else scaled + now / before * direction
        moved = hessian.times(direction)
        length = now / float((direction * moved).sum())
        step = step + length * direction
        residual = residual - length * moved
        before = now
    return step, limit


class _BlockInverse(_Inverse):
    """The inverses of H's diagonal blocks, one for each class, in the precision of the rows."""

    def __init__(self, hessian: _Hessian) -> None:
        rows, inside, matrix = hessian.rows, hessian.inside, hessian.rows.matrix
        blocks = torch.eye(rows.width, dtype=matrix.dtype, device=matrix.device).repeat(inside.shape[1], 1, 1)
        factors = (hessian.weights * (1 - 1 / inside.sum(1))).to(matrix.dtype)
        for k in range(inside.shape[1]):
            _add_products(blocks[k], rows, inside[:, k], factors)
        self._inverses = torch.cholesky_inverse(_cholesky(blocks))
        self.operations = _STREAMED * 2.0 * self._inverses.numel()

    def times(self, residual: Tensor) -> Tensor:
        narrow = residual.to(self._inverses.dtype)
        # A batched product of matrices and vectors takes five times as long.
        return torch.stack([inverse @ part for inverse, part in zip(self._inverses, narrow, strict=True)]).to(
            residual.dtype
        )


class _WholeInverse(_Inverse):
    """The inverse of H, factored as it is."""

    def __init__(self, hessian: _Hessian) -> None:
        rows, inside, weights = hessian.rows, hessian.inside, hessian.weights
        num_classes, width = inside.shape[1], rows.width
        whole = torch.eye(num_classes * width, dtype=weights.dtype, device=weights.device)
        blocks = whole.view(num_classes, width, num_classes, width)
        shares = weights / inside.sum(1)
        for k in range(num_classes):
            for m in range(k + 1):  # the lower half is what is factored
                factors = weights - shares if k == m else -shares
                _add_products(blocks[k, :, m], rows, inside[:, k] & inside[:, m], factors)
        self._factor = _cholesky(whole)
        self.operations = 4.0 * whole.numel()

    def times(self, residual: Tensor) -> Tensor:
        return _solved(self._factor, residual.reshape(-1, 1)).view_as(residual)


class _PairInverse(_Inverse):
    """The inverse of H = I + B Bᵀ as I - B (I + BᵀB)⁻¹ Bᵀ."""

    def __init__(self, hessian: _Hessian) -> None:
        self._hessian = hessian
        rows = hessian.rows.matrix[hessian.owner].to(hessian.weights.dtype)
        gram = rows @ rows.T
        for first in range(0, len(rows), _BLOCK):
            block = slice(first, first + _BLOCK)
            gram[block] *= hessian.directions[block] @ hessian.directions.T
        gram.diagonal().add_(1)
        self._factor = _cholesky(gram)
        self.operations = 4.0 * gram.numel() + _STREAMED * 12.0 * rows.numel()

    def times(self, residual: Tensor) -> Tensor:
        products = _solved(self._factor, self._hessian.contract(residual)[:, None]).squeeze(1)
        return self._hessian.add_expanded(products.neg_(), residual.clone())


def _add_products(to: Tensor, rows: FreeRows, chosen: Tensor, factors: Tensor) -> None:
    """Add the sum of factor_i phi_i phi_iᵀ over the chosen rows, in the precision of the factors."""
    there = chosen.nonzero().squeeze(1)
    for start in range(0, len(there), _ROWS):
        part = there[start : start + _ROWS]
        values = rows.matrix[rows.positions[part]].to(factors.dtype)
        to += values.T @ (values * factors[part, None])


def _cholesky(matrix: Tensor) -> Tensor:
    """Factor by the lower half, past rounding where the matrix is singular.

    It is done in place, as columns: a matrix may be as large as all else that a step needs.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    diagonal += matrix.shape[-1] * torch.finfo(matrix.dtype).eps * diagonal.amax(-1, keepdim=True)
    torch.linalg.cholesky(matrix.mT, upper=True, out=matrix.mT)  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
    return matrix


def _solved(factor: Tensor, goal: Tensor) -> Tensor:
    """Solve by a Cholesky factor; for one right-hand side two triangular solves are faster than the joint one."""
    half = _triangular(factor, goal, upper=False)
    return _triangular(factor.T, half, upper=True)


def _triangular(factor: Tensor, goal: Tensor, *, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(factor, goal, upper=upper)  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]


def _helmert(inside: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of each row's {d: Σ d = 0, d = 0 outside}, "pair cls", and whose each one is.

    The j-th vector (Helmert) stands on the row's first j + 1 classes: (1, ..., 1, -j)/√(j(j + 1)).
    """
    rank = inside.cumsum(1)
    last = inside & (rank > 1)
    owner, column = last.nonzero(as_tuple=True)
    number = (rank[owner, column] - 1).to(dtype)
    earlier = inside[owner] & (rank[owner] < rank[owner, column, None])
    directions = earlier.to(dtype)
    directions[torch.arange(len(owner), device=owner.device), column] = -number
    return directions / (number * (number + 1)).sqrt()[:, None], owner
