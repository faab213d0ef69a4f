"""How near rows of numbers are to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

METRICS = ("dot", "cosine", "euclidean")
"""dot: ⟨x, x'⟩. cosine: that of their directions, 0 where a row is zero. euclidean: 1/(1 + ‖x − x'‖)."""


def similarities(
    metric: str, left: Float[Tensor, "left unit"], right: Float[Tensor, "right unit"]
) -> Float[Tensor, "left right"]:
    """Return the similarity of every two rows. Distances are sums of squared differences: that of equals is 0."""
    if metric == "euclidean":  # ‖x‖² + ‖x'‖² − 2⟨x, x'⟩ is faster, and for near duplicates nothing but rounding
        return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").add_(1).reciprocal_()
    if metric == "cosine":
        left, right = directions(left), directions(right)
    return left @ right.T


def spread(blocks: Sequence[Float[Tensor, "row unit"]]) -> float:
    """Return the root mean squared distance of two of the rows, √2 times that from their mean; 1 where it is 0."""
    number = sum(len(rows) for rows in blocks)
    mean = torch.stack([rows.double().sum(0) for rows in blocks]).sum(0) / number
    return (2 * sum(float((rows.double() - mean).square().sum()) for rows in blocks) / number) ** 0.5 or 1.0


def self_similarities(metric: str, rows: Float[Tensor, "row unit"]) -> Float[Tensor, " row"]:
    """Return the similarity of each row with itself: ‖x‖², 1 (0 where it is zero), or 1."""
    if metric == "euclidean":
        return rows.new_ones(len(rows))
    return (directions(rows) if metric == "cosine" else rows).square().sum(1)


def directions(rows: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """Divide rows by their norm, however small or large; rows of zeros stay."""
    largest = rows.abs().amax(1, keepdim=True)
    return torch.nn.functional.normalize(rows / torch.where(largest > 0, largest, 1.0), dim=1)


def inverse_roots(matrices: Float[Tensor, "*row out out"], cutoff: float) -> Float[Tensor, "*row out out"]:
    """Return the pseudo-inverse roots K^(−½) of symmetric matrices without negative eigenvalues.

    Args:
        matrices: K.
        cutoff: eigenvalues up to this share of the matrix's largest one count as zero.
    """
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(matrices))  # pyright: ignore[reportUnknownMemberType]
    kept = values > cutoff * values[..., -1:].clamp(min=0)
    return (vectors * torch.where(kept, values, torch.inf).rsqrt()[..., None, :]) @ vectors.mT
