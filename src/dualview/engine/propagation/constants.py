"""Constants as inputs of their own: their relevance is booked instead of handed on.

`x + c`, `cat([x, c])` or a write into a buffer split relevance between what depends on the input
and what does not. Autograd does that split by itself once the constant takes part in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualview.engine.propagation.account import Ledger, Place


def spread(constant: Any, x: Tensor, *shapes: tuple[int, ...]) -> Tensor:
    """Return a constant in the type and shape of what it makes with x, so that its share is known by sample.

    Args:
        constant: a number or a tensor.
        x: what it is added to, or stands beside.
        shapes: of whatever else takes part.
    """
    constant = torch.as_tensor(constant, dtype=torch.result_type(x, constant), device=x.device)
    return constant.expand(torch.broadcast_shapes(constant.shape, x.shape, *shapes))


class Constant(torch.autograd.Function):
    """The constant forward; backward books m · c as absorbed.

    It hangs on an anchor, a leaf without meaning that every pass asks for, so that the engine
    visits it.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, place: Place, ledger: Ledger) -> Tensor:
        """Return a copy of the constant that takes part in the graph."""
        ctx.value, ctx.place, ctx.ledger = value.detach().clone(), place, ledger
        return ctx.value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        """Book the constant's relevance; −∞ that no maximum took has none."""
        ctx.ledger.book(ctx.place, "constant", (gradient * ctx.value).masked_fill_(gradient == 0, 0))
        return None, None, None, None


class LostShadow(torch.autograd.Function):
    """Zeros forward; backward books what a terminal rule wrote onto a constant (see `shadows`)."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, like: Tensor, place: Place, ledger: Ledger) -> Tensor:
        """Return zeros shaped like the constant."""
        ctx.place, ctx.ledger = place, ledger
        return torch.zeros_like(like)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[None, None, None, None]:
        """Book the relevance written there."""
        ctx.ledger.book(ctx.place, "constant", relevance)
        return None, None, None, None
