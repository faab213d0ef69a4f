"""What no other entry beats in both of two numbers: exact Pareto fronts, row by row."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pareto_fronts(
    first: Float[Tensor, "row entry"], second: Float[Tensor, "row entry"], allowed: Bool[Tensor, "row entry"]
) -> tuple[Int[Tensor, " point"], Int[Tensor, " point"]]:
    """Return the entries of each row that no other allowed one equals or exceeds in both numbers.

    They are what the largest `first` among entries with `second` > delta runs through as delta falls, so that no delta
    needs to be chosen. Along a front `first` falls and `second` rises, strictly. Of equal `first` the larger `second`
    is kept, of entries that are equal in both the one that stands first.

    Returns:
        rows: rising; a row with nothing allowed has no point.
        entries: from the largest `first` to the largest `second` of each row.
    """
    order = first.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, second.gather(1, order).argsort(dim=1, descending=True, stable=True))
    heights = first.masked_fill(~allowed, -torch.inf).gather(1, order)
    reached = torch.nn.functional.pad(heights, (1, 0), value=-torch.inf).cummax(1).values[:, :-1]
    rows, places = (heights > reached).flip(1).nonzero(as_tuple=True)
    return rows, order.flip(1)[rows, places]
