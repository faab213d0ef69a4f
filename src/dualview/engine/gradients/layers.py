"""Per-sample gradients of single layers, from what went in (a) and the gradient at what came out (δ)."""

from __future__ import annotations

from typing import TypeGuard, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.gradients.capture import upcast

LinearMap = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm | nn.LayerNorm
Layer = LinearMap | Norm | nn.Embedding

KNOWN_FORWARDS = {kind.forward for kind in get_args(Layer)}

PATCH_NUMBERS = 2**22
"""Numbers in one block of a convolution's patches, about."""


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Whether the formulas of this file apply: its class is one of these, or leaves their `forward` as it is."""
    tracked = getattr(module, "running_mean", module) is not None  # without, a BatchNorm couples its samples
    return isinstance(module, Layer) and type(module).forward in KNOWN_FORWARDS and tracked


def holds_rows(layer: Layer, inputs: Tensor, rows: int) -> bool:
    """Whether the first axis of a layer's input can be the samples'."""
    own = 0 if isinstance(layer, nn.Embedding) else 1
    if isinstance(layer, nn.LayerNorm):
        own = len(layer.normalized_shape)
    elif isinstance(layer, LinearMap) and not isinstance(layer, nn.Linear):
        own = 1 + len(layer.kernel_size)
    return inputs.ndim > own and len(inputs) == rows


def weight_gradient(layer: Layer, inputs: Tensor, deltas: Tensor) -> Tensor:
    """Return each row's gradient of the layer's weight for one call, "row ..." in the weight's shape.

    Args:
        layer: in evaluation mode.
        inputs: what it was called with; first axis "row".
        deltas: gradient of each row's scalar with respect to the layer's output, in that shape.
    """
    if isinstance(layer, nn.Embedding):
        return _embedding(layer, inputs, deltas)
    if isinstance(layer, Norm):
        return _summed(layer, deltas * _normalised(layer, inputs))
    deltas = _positions_last(layer, deltas).unflatten(1, (_groups(layer), -1))
    rows = max(1, PATCH_NUMBERS // (layer.weight[0].numel() * _groups(layer) * deltas.shape[3]))
    blocks = zip(inputs.split(rows), deltas.split(rows), strict=True)
    found = [delta @ _patches(layer, block).mT for block, delta in blocks]
    return torch.cat(found).reshape(len(inputs), *layer.weight.shape)


def bias_gradient(layer: Layer, _inputs: Tensor, deltas: Tensor) -> Tensor:
    """Return each row's gradient of the layer's bias for one call."""
    assert not isinstance(layer, nn.Embedding)  # it has none
    return _summed(layer, deltas) if isinstance(layer, Norm) else _positions_last(layer, deltas).sum(2)


def factor_pairs(layer: LinearMap, inputs: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Return a "row position input" and δ "row position output" of an ungrouped linear map: G = Σ_p δ_p ⊗ a_p."""
    return _patches(layer, inputs)[:, 0].mT, _positions_last(layer, deltas).mT


def _groups(layer: LinearMap) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _positions_last(layer: LinearMap, deltas: Tensor) -> Tensor:
    """Return δ "row output position"."""
    if isinstance(layer, nn.Linear):
        return deltas.reshape(len(deltas), -1, deltas.shape[-1]).mT
    return deltas.flatten(2)


def _patches(layer: LinearMap, inputs: Tensor) -> Tensor:
    """Return what each output position sees of the input, "row group input position"."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), 1, -1, inputs.shape[-1]).mT
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    windows = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        windows = windows.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    dims = len(layer.kernel_size)  # "row channel position… kernel…" becomes "row channel kernel… position…"
    windows = windows.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return windows.reshape(len(inputs), layer.groups, -1, windows.shape[2 + dims :].numel())


def _normalised(layer: Norm, inputs: Tensor) -> Tensor:
    """Return what the layer scales by its weight."""
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    assert layer.running_mean is not None and layer.running_var is not None
    return F.batch_norm(inputs, upcast(layer.running_mean), upcast(layer.running_var), eps=layer.eps)


def _summed(layer: Norm, terms: Tensor) -> Tensor:
    """Return the sum over what a norm's parameters are shared over: leading positions, or all behind the channels."""
    if isinstance(layer, nn.LayerNorm):
        return terms.reshape(len(terms), -1, *layer.normalized_shape).sum(1)
    return terms.reshape(*terms.shape[:2], -1).sum(2)


def _embedding(layer: nn.Embedding, inputs: Tensor, deltas: Tensor) -> Tensor:
    tokens = inputs.reshape(len(inputs), -1, 1)
    deltas = deltas.reshape(len(inputs), -1, layer.embedding_dim)
    if layer.padding_idx is not None:
        deltas = deltas.masked_fill(tokens == layer.padding_idx, 0)
    gradient = deltas.new_zeros(len(inputs), *layer.weight.shape)
    return gradient.scatter_add_(1, tokens.expand_as(deltas), deltas)
