"""Batch norm that directly follows a linear operation becomes part of it, for that use alone.

In evaluation y = k (W x + b − mean) + β with k = γ / √(var + ε) is one linear operation with weight
k W and bias k (b − mean) + β. Whoever else uses W x + b keeps the unfolded value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dualview.engine.propagation.linear_ops import LinearOp
from dualview.engine.site import Site


def rescale_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """Scale a weight whose first axis is the output channel: linear layers and convolutions."""
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


def rescale_transposed(weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    """Scale a transposed convolution's weight, "in, out / groups, ...", whose groups follow each other."""
    per_input = scale.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).reshape(weight.shape[:2])
    return weight * per_input.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def normalisation(
    mean: Tensor, variance: Tensor, weight: Any, bias: Any, eps: float, ndim: int
) -> tuple[Tensor, Tensor]:
    """Return batch norm's scale and shift in evaluation, shaped to broadcast over "row channel ..."."""
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = (-1, *[1] * (ndim - 2))
    return scale.reshape(shape).detach(), shift.reshape(shape).detach()


def fold_into(x: Tensor, scale: Tensor, shift: Tensor, noted: Mapping[Any, Site]) -> LinearOp | None:
    """Return the linear operation that made `x`, with the scale and shift folded in; None if none did.

    Args:
        x: what batch norm gets.
        scale: see `normalisation`.
        shift: likewise.
        noted: graph nodes at which relevance is to be read, with the sites that asked for it.

    Raises:
        ValueError: relevance was to be read between the two, where after folding there is nothing.
    """
    node: Any = x.grad_fn
    site = noted.get(node)
    if site is not None and site.side == "input":  # a copy was handed to the module, so that its use alone counts
        node = node.next_functions[0][0]
    op = getattr(node, "op", None)
    if not isinstance(op, LinearOp) or op.rescale is None or op.z.ndim < 2:
        return None
    if op.kind == "linear" and op.z.ndim != 2:  # its channels are the last axis, batch norm's are axis 1
        return None
    if site is not None:
        raise ValueError(
            f"site {tuple(site)} lies between {op.place} and the batch norm that is folded into it, where no relevance "
            "passes: read the batch norm's output instead"
        )
    return op.scaled(scale, shift, "batch_norm")
