"""Linear systems and eigenvectors of a symmetric matrix that is known by its products with vectors alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""Multiplies vectors, "k param", by the matrix."""


class Solved(NamedTuple):
    """Solutions of H x = g for several g.

    Attributes:
        vectors: x.
        residuals: ‖H x − g‖/‖g‖ of each.
        lowest: the least dᵀHd/dᵀd that was met; where it is not positive, the matrix is not, and nothing is solved.
    """

    vectors: Float[Tensor, "k param"]
    residuals: Float[Tensor, " k"]
    lowest: float = float("inf")


class Krylov(NamedTuple):
    """A matrix on a subspace.

    Attributes:
        basis: orthonormal rows.
        projected: the matrix between these, float64; the upper triangle holds it.
    """

    basis: Float[Tensor, "step param"]
    projected: Float[Tensor, "step step"]


def conjugate_gradients(
    product: Product,
    right: Float[Tensor, "k param"],
    *,
    tolerance: float,
    steps: int,
    precondition: Product = torch.clone,
) -> Solved:
    """Solve for all right-hand sides at once, each with a step of its own (Hestenes and Stiefel 1952).

    Args:
        product: of a positive definite matrix; it gets those vectors alone that are not solved yet.
        right: g.
        tolerance: relative residual to reach.
        steps: at most.
        precondition: product with about the inverse, up to a factor; positive definite.
    """
    scale = right.abs().amax(1, keepdim=True).clamp(min=torch.finfo(right.dtype).tiny)  # squares must not underflow
    solved, residual = torch.zeros_like(right), right / scale
    direction, sizes = precondition(residual), residual.square().sum(1)
    gains = (residual * direction).sum(1)
    start, lowest = sizes.clamp(min=torch.finfo(right.dtype).tiny), float("inf")
    for _ in range(steps):
        left = (sizes > start * tolerance**2).nonzero().flatten()
        if not len(left):
            break
        along = direction[left]
        image = product(along)
        bend = (along * image).sum(1)
        quotient = float((bend / along.square().sum(1)).min())
        if not quotient > 0:  # or NaN
            return Solved(solved * scale, (sizes / start).sqrt(), quotient)
        lowest = min(lowest, quotient)
        step = (gains[left] / bend)[:, None]
        solved[left] += step * along
        residual[left] -= step * image
        sizes[left] = residual[left].square().sum(1)
        image = precondition(residual[left])
        gain = (residual[left] * image).sum(1)
        direction[left] = image + (gain / gains[left])[:, None] * along
        gains[left] = gain
    return Solved(solved * scale, (sizes / start).sqrt(), lowest)


def deflation(values: Float[Tensor, " rank"], vectors: Float[Tensor, "rank param"]) -> Product:
    """Return a preconditioner that takes known eigenvalues, all positive, to the least of them.

    With Ritz pairs it is Lanczos' subspace that conjugate gradients need not find again for each right-hand side.
    """
    if not len(values):
        return torch.clone
    shares = 1 - values.min() / values
    return lambda residuals: residuals - residuals @ vectors.T * shares.to(vectors) @ vectors


def neumann(product: Product, right: Float[Tensor, "k param"], *, scale: float, steps: int) -> Float[Tensor, "k param"]:
    """Return Σ_{t ≤ steps} (I − H/scale)^t g/scale, which tends to H⁻¹ g where 0 < H < 2·scale.

    The recursion of LiSSA (Agarwal, Bullins and Hazan 2017), x ← g + x − H_t x/scale.

    Args:
        product: of the matrix, or of another estimate H_t of it in each call.
        right: g.
        scale: at least half the largest eigenvalue.
        steps: of the recursion.
    """
    total = right.clone()
    for _ in range(steps):
        total += right - product(total) / scale
    return total / scale


def arnoldi(product: Product, start: Float[Tensor, " param"], *, steps: int, generator: torch.Generator) -> Krylov:
    """Build a Krylov basis of a symmetric matrix, orthogonalised in full and twice (Arnoldi 1951; Lanczos 1950).

    Where the subspace is invariant it is continued from another random vector: eigenvalues that are there several times
    show up several times.

    Args:
        product: of the matrix.
        start: first vector, not zero.
        steps: vectors in the basis, at most; no more than there are numbers in a vector.
        generator: of the random vectors.
    """
    steps = min(steps, len(start))
    basis, projected = start.new_zeros(steps, len(start)), torch.zeros(steps, steps, dtype=torch.float64)
    rounding = 100 * torch.finfo(start.dtype).eps
    following = _unit(start)
    for m in range(steps):
        basis[m] = following
        image, coefficients = _orthogonal(basis[: m + 1], product(following[None])[0])
        projected[: m + 1, m] = coefficients
        if m + 1 == steps:
            break
        if bool(image.square().sum().sqrt() <= rounding * projected.abs().max()):
            drawn = torch.randn(len(start), generator=generator, dtype=torch.float64).to(start)
            image, _ = _orthogonal(basis[: m + 1], drawn)
        following = _unit(image)
    return Krylov(basis, projected)


def dominant(found: Krylov, rank: int) -> tuple[Float[Tensor, " rank"], Float[Tensor, "rank param"]]:
    """Return the Ritz values of largest size, in float64 and falling, and their vectors."""
    values, rotation = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(found.projected, UPLO="U"))  # pyright: ignore[reportUnknownMemberType]
    kept = values.abs().argsort(descending=True)[:rank]
    return values[kept], rotation[:, kept].T.to(found.basis) @ found.basis


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


def _orthogonal(basis: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Take the basis out of a vector; a second time, since the first leaves rounding where little is left."""
    total = torch.zeros(len(basis), dtype=torch.float64)
    for _ in range(2):
        coefficients = basis @ vector
        vector = vector - coefficients @ basis
        total += coefficients.double().cpu()
    return vector, total
