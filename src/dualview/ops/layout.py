"""What the numbers of a recorded row are: named parts, one behind the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Part(NamedTuple):
    """A stretch of consecutive numbers in each row.

    Plain numbers have rank 0 and stand for themselves. A part of rank r holds the gradient of a linear map
    by its factors, Σ_k δ_k ⊗ a_k over k = 1 … r: first the r vectors a_k of `inputs` numbers, then the r
    vectors δ_k of `outputs` numbers. They stand for outputs × inputs numbers, row by row, and with `bias`
    for Σ_k δ_k behind these.

    Attributes:
        name: of the parameter, layer or site it comes from.
        width: numbers in a row.
        rank: how many pairs of factors; 0 for plain numbers.
        inputs: length of each a_k.
        outputs: length of each δ_k.
        bias: whether the map's bias is part of it.
    """

    name: str
    width: int
    rank: int = 0
    inputs: int = 0
    outputs: int = 0
    bias: bool = False

    @property
    def dense_width(self) -> int:
        """How many numbers it stands for."""
        return self.outputs * (self.inputs + self.bias) if self.rank else self.width


Layout = tuple[Part, ...]


def plain(name: str, width: int) -> Part:
    """Return a part of plain numbers."""
    return Part(name, width)


def factors(name: str, rank: int, inputs: int, outputs: int, *, bias: bool) -> Part:
    """Return a part that holds a linear map's gradient by its factors."""
    return Part(name, rank * (inputs + outputs), rank, inputs, outputs, bias)


def width_of(layout: Layout) -> int:
    """Return how many numbers a row of this layout holds."""
    return sum(part.width for part in layout)


def dense_width_of(layout: Layout) -> int:
    """Return how many numbers a row of this layout stands for."""
    return sum(part.dense_width for part in layout)


def split_parts(layout: Layout, values: Float[Tensor, "row unit"]) -> tuple[Float[Tensor, "row part_unit"], ...]:
    """Return views of the values, one for each part."""
    return torch.split(values, [part.width for part in layout], dim=1)


def split_factors(
    part: Part, values: Float[Tensor, "row part_unit"]
) -> tuple[Float[Tensor, "row k input"], Float[Tensor, "row k output"]]:
    """Return views of the values of a part that holds factors: the a_k and the δ_k."""
    half = part.rank * part.inputs
    return (
        values[:, :half].reshape(-1, part.rank, part.inputs),
        values[:, half:].reshape(-1, part.rank, part.outputs),
    )


def as_layout(description: Iterable[Iterable[Any]]) -> Layout:
    """Return the layout that JSON gives back as lists."""
    return tuple(Part(*fields) for fields in description)
