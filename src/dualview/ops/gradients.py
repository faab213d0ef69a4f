"""Arithmetic of per-sample gradients that are held as rows, dense or by their factors.

A part of rank r holds G = Σ_k δ_k ⊗ a_k, the gradient of a linear map's weight, and Σ_k δ_k, that of its
bias (see `ops.layout`). Inner products and sums of such gradients need the factors only:
⟨G, G'⟩ = Σ_kl ⟨δ_k, δ'_l⟩ (⟨a_k, a'_l⟩ + 1), the 1 standing for the bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.ops.layout import Layout, Part, dense_width_of, split_factors, split_parts

BLOCK_FACTORS = 512
"""Factors on a side of one block of products: its temporaries stay in the processor's cache."""

BLOCK_NUMBERS = 2**22
"""Numbers in any other temporary, about."""


def products(
    layout: Layout, left: Float[Tensor, "left unit"], right: Float[Tensor, "right unit"]
) -> Float[Tensor, "left right"]:
    """Return the inner products of the dense gradients of two sets of rows, without building these."""
    result = left.new_zeros(len(left), len(right))
    left_parts, right_parts = _pieces(layout, left), _pieces(layout, right)
    size = BLOCK_FACTORS // max((1, *(part.rank for part in layout)))
    for columns in _slices(len(right), size):
        for rows in _slices(len(left), size):
            block = result[rows, columns]
            for part, mine, theirs in zip(layout, left_parts, right_parts, strict=True):
                _add_products(block, part, [piece[rows] for piece in mine], [piece[columns] for piece in theirs])
    return result


def squared_norms(layout: Layout, rows: Float[Tensor, "row unit"]) -> Float[Tensor, " row"]:
    """Return the squared Euclidean norm of each row's dense gradient."""
    result = rows.new_zeros(len(rows))
    for part, values in zip(layout, split_parts(layout, rows), strict=True):
        if not part.rank:
            result += values.square().sum(1)
            continue
        inputs, deltas = split_factors(part, values)
        for block in _blocks(len(rows), part.rank**2):
            pairs = inputs[block] @ inputs[block].mT + float(part.bias)
            result[block] += (pairs * (deltas[block] @ deltas[block].mT)).sum((1, 2))
    return result


def dense(layout: Layout, rows: Float[Tensor, "row unit"]) -> Float[Tensor, "row param"]:
    """Return the gradients themselves, part by part as `Part.dense_width` describes them."""
    pieces: list[Tensor] = []
    for part, values in zip(layout, split_parts(layout, rows), strict=True):
        if not part.rank:
            pieces.append(values)
            continue
        inputs, deltas = split_factors(part, values)
        pieces.append((deltas.mT @ inputs).flatten(1))
        if part.bias:
            pieces.append(deltas.sum(1))
    return torch.cat(pieces, dim=1) if pieces else rows


def combine(
    layout: Layout, weights: Float[Tensor, "k row"], rows: Float[Tensor, "row unit"]
) -> Float[Tensor, "k param"]:
    """Return Σ_i weights_ki g_i, weighted sums of the dense gradients, without building each gradient."""
    result = rows.new_empty(len(weights), dense_width_of(layout))
    sums = torch.split(result, [part.dense_width for part in layout], dim=1)
    for part, values, total in zip(layout, split_parts(layout, rows), sums, strict=True):
        if not part.rank:
            total.copy_(weights @ values)
            continue
        inputs, deltas = split_factors(part, values)
        matrix, bias = _matrices(part, total)
        for k, weight in enumerate(weights):
            weighted = deltas * weight[:, None, None]
            matrix[k] = weighted.flatten(0, 1).T @ inputs.flatten(0, 1)
            if part.bias:
                bias[k] = weighted.sum((0, 1))
    return result


def apply(layout: Layout, rows: Float[Tensor, "row unit"], vectors: Float[Tensor, "k param"]) -> Float[Tensor, "row k"]:
    """Return ⟨g_i, vectors_k⟩, inner products of the rows' gradients with dense vectors of parameters."""
    result = rows.new_zeros(len(rows), len(vectors))
    pieces = torch.split(vectors, [part.dense_width for part in layout], dim=1)
    for part, values, vector in zip(layout, split_parts(layout, rows), pieces, strict=True):
        if not part.rank:
            result += values @ vector.T
            continue
        inputs, deltas = split_factors(part, values)
        matrix, bias = _matrices(part, vector)
        for block in _blocks(len(rows), part.rank * part.outputs):
            for k in range(len(vectors)):
                mapped = inputs[block] @ matrix[k].T
                if part.bias:
                    mapped += bias[k]
                result[block, k] += (mapped * deltas[block]).sum((1, 2))
    return result


def _pieces(layout: Layout, rows: Tensor) -> list[tuple[Tensor, ...]]:
    """Return each part's numbers: (values,) or (inputs, deltas)."""
    parts = zip(layout, split_parts(layout, rows), strict=True)
    return [split_factors(part, values) if part.rank else (values,) for part, values in parts]


def _add_products(block: Tensor, part: Part, left: list[Tensor], right: list[Tensor]) -> None:
    if not part.rank:
        block.addmm_(left[0], right[0].T)
        return
    of_inputs, of_deltas = (
        mine.reshape(-1, mine.shape[2]) @ theirs.reshape(-1, theirs.shape[2]).T
        for mine, theirs in zip(left, right, strict=True)
    )
    if part.bias:
        of_inputs += 1
    if part.rank == 1:
        block.addcmul_(of_inputs, of_deltas)
    else:
        pairs = of_inputs.mul_(of_deltas).reshape(len(left[0]), part.rank, len(right[0]), part.rank)
        block += pairs.sum((1, 3))


def _matrices(part: Part, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of dense gradients "k param": the weight's "k output input", the bias's "k output" or nothing."""
    size = part.outputs * part.inputs
    return vectors[:, :size].reshape(-1, part.outputs, part.inputs), vectors[:, size:]


def _blocks(rows: int, numbers_per_row: int) -> Iterator[slice]:
    """Yield slices of the rows, each of about `BLOCK_NUMBERS` numbers."""
    return _slices(rows, BLOCK_NUMBERS // numbers_per_row)


def _slices(rows: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(rows, start + size)) for start in range(0, rows, size))
