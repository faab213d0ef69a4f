"""Blocks of a factored curvature: which numbers of a recorded row, or of a vector of parameters, each one concerns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.ops.kronecker import Basis, Terms, dense_scores, own_scores, pair_scores, solve, turn_factors
from dualview.ops.layout import Layout, split_factors, split_parts


class Shape(NamedTuple):
    """What a block is, as whole numbers.

    Attributes:
        weight: which part of a row holds the weight, or its factors.
        bias: which part holds the bias; −1: none does, or the factors stand for it.
        outputs: of the layer.
        inputs: of the layer, the bias as one more.
        transposed: 1 where the weight is held "input output".
        output_basis: 1 where there are eigenvectors of the outputs, 0 for the identity.
        input_basis: likewise.
        terms: of the inverse; 0: it is used as it is.
    """

    weight: int
    bias: int
    outputs: int
    inputs: int
    transposed: int = 0
    output_basis: int = 0
    input_basis: int = 0
    terms: int = 0

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Shapes of the matrices that describe it: two bases, eigenvalues, and terms of both sides."""
        outs, ins = self.outputs, self.inputs
        left, right = outs * self.output_basis, ins * self.input_basis
        return [(left, left), (right, right), (outs, ins), (self.terms, outs), (self.terms, ins)]


class Block(NamedTuple):
    """The curvature H of a layer's parameters, or of others by its diagonal.

    Attributes:
        shape: what it concerns.
        basis: eigenvectors.
        eigenvalues: Λ.
        terms: of the inverse.
        damping: λ.
    """

    shape: Shape
    basis: Basis
    eigenvalues: Float[Tensor, "j k"]
    terms: Terms
    damping: float

    @property
    def inverse(self) -> Float[Tensor, "j k"]:
        """W = 1 / (Λ + λ)."""
        return 1 / (self.eigenvalues + self.damping)

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.basis, self.eigenvalues, *self.terms]

    def solved(self, pieces: Sequence[Float[Tensor, "row _"]]) -> list[Tensor]:
        """Return (H + λ)⁻¹ g of gradients, given and returned as weight and, where there is one, bias."""
        weight, *bias = pieces
        outs = self.shape.outputs
        matrices = (
            weight.reshape(len(weight), -1, outs).mT
            if self.shape.transposed
            else weight.reshape(-1, outs, weight.shape[1] // outs)
        )
        whole = torch.cat([matrices, bias[0][:, :, None]], dim=2) if bias else matrices
        result = solve(self.basis, self.inverse, whole)
        weight, *bias = (result[:, :, :-1], result[:, :, -1]) if bias else (result,)
        return [(weight.mT if self.shape.transposed else weight).flatten(1), *bias]


def packed(blocks: Sequence[Block], dtype: torch.dtype) -> tuple[Int[Tensor, "block fact"], Float[Tensor, " number"]]:
    """Return the blocks' shapes and all their numbers, behind each other."""
    numbers = [tensor.flatten() for block in blocks for tensor in block.tensors]
    return torch.tensor([block.shape for block in blocks]), torch.cat(numbers).to(dtype)


def unpacked(
    shapes: Int[Tensor, "block fact"], numbers: Float[Tensor, " number"], damping: Float[Tensor, " block"]
) -> list[Block]:
    """Return the blocks again; views of the numbers."""
    blocks, start = [], 0
    for fields, amount in zip(shapes.tolist(), damping.tolist(), strict=True):
        shape, matrices = Shape(*fields), []
        for rows, columns in shape.sizes:
            matrices.append(numbers[start : start + rows * columns].reshape(rows, columns))
            start += rows * columns
        blocks.append(Block(shape, Basis(*matrices[:2]), matrices[2], Terms(*matrices[3:]), amount))
    return blocks


def _places(shape: Shape) -> list[int]:
    """Return which parts of a row the block concerns."""
    return [shape.weight] if shape.bias < 0 else [shape.weight, shape.bias]


def prepared(blocks: Sequence[Block], layout: Layout, rows: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """Return the rows, what they hold as plain numbers multiplied by (H + λ)⁻¹."""
    result = rows.clone()
    parts = split_parts(layout, result)
    for block in blocks:
        if not layout[block.shape.weight].rank:
            pieces = [parts[place] for place in _places(block.shape)]
            for piece, solved in zip(pieces, block.solved(pieces), strict=True):
                piece.copy_(solved)
    return result


def scores(
    blocks: Sequence[Block],
    layout: Layout,
    test: Float[Tensor, "test unit"],
    train: Float[Tensor, "train unit"],
    *,
    exact: bool = False,
) -> Float[Tensor, "test train"]:
    """Return gᵀ (H + λ)⁻¹ g' of `prepared` rows and others; `exact` goes without the blocks' terms."""
    result = test.new_zeros(len(test), len(train))
    left, right = split_parts(layout, test), split_parts(layout, train)
    for block in blocks:
        part, place = layout[block.shape.weight], block.shape.weight
        if not part.rank:
            for piece in _places(block.shape):
                result.addmm_(left[piece], right[piece].T)
            continue
        turned = [
            turn_factors(block.basis, *split_factors(part, rows[place]), bias=part.bias) for rows in (left, right)
        ]
        if part.rank > 1:
            result += dense_scores(block.inverse, *turned)
        else:
            found = block.terms if not exact else Terms(*(one[:0] for one in block.terms))
            result += pair_scores(block.inverse, found, *turned)
    return result


def own_products(blocks: Sequence[Block], layout: Layout, rows: Float[Tensor, "row unit"]) -> Float[Tensor, " row"]:
    """Return gᵀ (H + λ)⁻¹ g of each row."""
    result = rows.new_zeros(len(rows))
    parts = split_parts(layout, rows)
    for block in blocks:
        part = layout[block.shape.weight]
        pieces = [parts[place] for place in _places(block.shape)]
        if part.rank:
            turned = turn_factors(block.basis, *split_factors(part, pieces[0]), bias=part.bias)
            result += own_scores(block.inverse, turned)
        else:
            for piece, solved in zip(pieces, block.solved(pieces), strict=True):
                result += (piece * solved).sum(1)
    return result


def solved_vectors(
    blocks: Sequence[Block], layout: Layout, vectors: Float[Tensor, "k param"]
) -> Float[Tensor, "k param"]:
    """Return (H + λ)⁻¹ times dense gradients."""
    result = vectors.clone()
    parts = torch.split(result, [part.dense_width for part in layout], dim=1)
    for block in blocks:
        part, pieces = layout[block.shape.weight], [parts[place] for place in _places(block.shape)]
        if part.rank and part.bias:
            pieces = list(pieces[0].split([part.outputs * part.inputs, part.outputs], dim=1))
        for piece, solved in zip(pieces, block.solved(pieces), strict=True):
            piece.copy_(solved)
    return result
