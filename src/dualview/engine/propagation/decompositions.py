"""Torch's larger functions written in calls that `difference_rules` know; arguments are torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Write it as x - log Σ exp x."""
    x = input if dtype is None else input.to(dtype)
    return x - x.logsumexp(dim, keepdim=True)


def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Write it as exp(log softmax): multipliers stay bounded where exp x and Σ exp x apart would overflow."""
    return log_softmax(input, dim, dtype).exp()


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *args: Any,
    label_smoothing: float | int = 0.0,
    **kwargs: Any,
) -> Tensor:
    """Write it as the negative log-likelihood of log softmax."""
    if label_smoothing or target.is_floating_point():
        raise NotImplementedError("no DeepLIFT rule for cross_entropy with label smoothing, or with probabilities")
    return F.nll_loss(log_softmax(input, 1 if input.ndim > 1 else 0), target, weight, *args, **kwargs)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """Write it, with logits, as (1 - t) z - (1 + (p - 1) t) log sigmoid z; reductions are none, mean, sum."""
    positive = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    losses = (1 - target) * input - positive * F.logsigmoid(input)
    losses = losses if weight is None else losses * weight
    return (losses, losses.mean(), losses.sum())[reduction]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float | int = 0.0,
    is_causal: bool = False,
    scale: float | int | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Write scaled dot-product attention as softmax(q kᵀ scale + mask) v."""
    if dropout_p:
        raise NotImplementedError("no DeepLIFT rule for scaled_dot_product_attention with dropout")
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return softmax(scores, -1) @ value


def product_and_sum(input: Tensor, a: Tensor, b: Tensor, *, beta: float | int = 1, alpha: float | int = 1) -> Tensor:
    """Write `addmm` and its like as β c + α a b."""
    return beta * input + alpha * (a @ b)


def gated(input: Tensor, dim: int = -1) -> Tensor:
    """Write `glu` as a · sigmoid(b)."""
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


def standardised(x: Tensor, dims: tuple[int, ...], eps: float | int) -> Tensor:
    """Write (x - mean) / √(var + ε) as a product with the inverse square root."""
    centred = x - x.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | int = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Write it as standardising over the last axes, then scale and shift."""
    return _affine(standardised(input, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | int | None = None
) -> Tensor:
    """Write it as a product with the inverse root of the mean square."""
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(input * (input.square().mean(dims, keepdim=True) + eps).rsqrt(), weight, None)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | int = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Write it as standardising over each group of channels and all places."""
    groups = input.unflatten(1, (num_groups, -1))
    made = standardised(groups, tuple(range(2, groups.ndim)), eps).flatten(1, 2)
    return _affine(made, *(_by_channel(x, input.ndim) for x in (weight, bias)))


def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float | int,
    eps: float | int,
    cudnn_enabled: bool,
) -> Tensor:
    """Write it as standardising over places; with running statistics it is batch norm in evaluation."""
    if not use_input_stats:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    made = standardised(input, tuple(range(2, input.ndim)), eps)
    return _affine(made, *(_by_channel(x, input.ndim) for x in (weight, bias)))


def _by_channel(x: Tensor | None, ndim: int) -> Tensor | None:
    return None if x is None else x.reshape(-1, *[1] * (ndim - 2))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def variance(
    input: Tensor,
    dim: int | tuple[int, ...] | bool | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: int | None = None,
) -> Tensor:
    """Write it as the mean square of what is centred."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    dims = tuple(range(input.ndim)) if dim is None else dim
    square = (input - input.mean(dims, keepdim=True)).square().sum(dims, keepdim=keepdim)
    count = math.prod(input.shape[k] for k in ((dims,) if isinstance(dims, int) else dims))
    return square / (count - (int(unbiased) if correction is None else correction))


def deviation(*args: Any, **kwargs: Any) -> Tensor:
    """Write the standard deviation as the root of the variance."""
    return variance(*args, **kwargs).sqrt()


def norm(
    input: Tensor,
    p: float | int | str | None = 2,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Write the norms of vectors for p = 1, 2 and ∞."""
    x = input if dtype is None else input.to(dtype)
    dims = tuple(range(x.ndim)) if dim is None else dim
    if p in (2, "fro", None):
        return x.square().sum(dims, keepdim=keepdim).sqrt()
    if p == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    if p == math.inf:
        return x.abs().amax(dims, keepdim=keepdim)
    raise NotImplementedError(f"no DeepLIFT rule for the norm with p = {p}")


def vector_norm(input: Tensor, ord: float | int = 2, *args: Any, **kwargs: Any) -> Tensor:
    """Write `torch.linalg.vector_norm` likewise."""
    return norm(input, ord, *args, **kwargs)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float | int = 1e-8) -> Tensor:
    """Write it as the inner product of what is normalised."""
    return (F.normalize(x1, dim=dim, eps=eps) * F.normalize(x2, dim=dim, eps=eps)).sum(dim)


def maximum(input: Tensor, other: Tensor) -> Tensor:
    """Write the larger of two as the largest along an axis."""
    kind = torch.result_type(input, other)
    return torch.stack(torch.broadcast_tensors(input.to(kind), other.to(kind))).amax(0)


def minimum(input: Tensor, other: Tensor) -> Tensor:
    """Write the smaller of two likewise."""
    return -maximum(-input, -other)


def smallest(input: Tensor, dim: int | tuple[int, ...] = (), keepdim: bool = False) -> Tensor:
    """Write `amin` as the negative of the largest negative."""
    return -(-input).amax(dim, keepdim)


def extreme(name: str, input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Tensor | None = None) -> Any:
    """Write `max` or `min`: of two tensors, of all elements, or along an axis, with their places."""
    second = dim if isinstance(dim, Tensor) else other
    if second is not None:
        return {"max": maximum, "min": minimum}[name](input, second)
    values = getattr(input, f"a{name}")
    if dim is None:
        return values()
    index = getattr(input, f"arg{name}")(dim, keepdim)
    return getattr(torch.return_types, name)((values(dim, keepdim), index))


def max_pool(
    num_axes: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,  # True is another function
) -> Tensor:
    """Write max pooling as the largest of each window."""
    kernel, pad, spread = (_each(x, num_axes) for x in (kernel_size, padding, dilation))
    step = kernel if stride is None or stride == [] else _each(stride, num_axes)
    tables = []
    for size, k, s, p, d in zip(input.shape[-num_axes:], kernel, step, pad, spread, strict=True):
        room = size + 2 * p - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= size + p:  # the last window would begin beyond the border
            count -= 1
        index = torch.arange(count)[:, None] * s - p + torch.arange(k) * d
        tables.append((index, (index >= 0) & (index < size)))
    return _largest_of_windows(input, tables)


def adaptive_max_pool(num_axes: int, input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    """Write adaptive max pooling as the largest of each of its windows."""
    tables = []
    for size, wanted in zip(input.shape[-num_axes:], _each(output_size, num_axes), strict=True):
        count = size if wanted is None else wanted
        start = torch.arange(count) * size // count
        stop = -(-(torch.arange(count) + 1) * size // count)
        index = start[:, None] + torch.arange(int((stop - start).max()))
        tables.append((index, index < stop[:, None]))
    return _largest_of_windows(input, tables)


def _each(value: Any, count: int) -> list[Any]:
    given = list(value) if isinstance(value, Sequence) else [value]
    return given * count if len(given) == 1 else given


def _largest_of_windows(x: Tensor, tables: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the largest of each window.

    Args:
        x: its last axes are pooled.
        tables: for each of these "window place" which elements a window holds, and whether they exist.
    """
    first = x.ndim - len(tables)
    for k, (index, exists) in enumerate(tables):
        axis = first + 2 * k
        inside = index.clamp(0, x.shape[axis] - 1).to(x.device)
        x = x.index_select(axis, inside.flatten()).unflatten(axis, inside.shape)
        if not bool(exists.all()):
            outside = ~exists.reshape(*exists.shape, *[1] * (x.ndim - axis - 2)).to(x.device)
            x = x.masked_fill(outside, -torch.inf)
    return x.amax(tuple(first + 1 + 2 * k for k in range(len(tables))))


def _spelt(function: Callable[..., Any], names: str, *owners: Any) -> dict[Any, Callable[..., Any]]:
    return {getattr(owner, name): function for name in names.split() for owner in owners if hasattr(owner, name)}


DECOMPOSED: dict[Any, Callable[..., Any]] = {
    **_spelt(log_softmax, "log_softmax", torch, Tensor),
    **_spelt(softmax, "softmax", torch, Tensor),
    **_spelt(cross_entropy, "cross_entropy", F),
    **_spelt(binary_cross_entropy, "binary_cross_entropy_with_logits", torch),
    **_spelt(attention, "scaled_dot_product_attention", F),
    **_spelt(product_and_sum, "addmm baddbmm", torch, Tensor),
    **_spelt(gated, "glu", torch._C._nn),  # pyright: ignore[reportAttributeAccessIssue]
    **_spelt(layer_norm, "layer_norm", torch),
    **_spelt(rms_norm, "rms_norm", torch),
    **_spelt(group_norm, "group_norm", torch),
    **_spelt(instance_norm, "instance_norm", torch),
    **_spelt(variance, "var", torch, Tensor),
    **_spelt(deviation, "std", torch, Tensor),
    **_spelt(norm, "norm", torch, Tensor),
    **_spelt(vector_norm, "vector_norm", torch.linalg),
    **_spelt(cosine_similarity, "cosine_similarity", torch),
    **_spelt(maximum, "maximum", torch, Tensor),
    **_spelt(minimum, "minimum", torch, Tensor),
    **_spelt(smallest, "amin", torch, Tensor),
}
for _name in ("max", "min"):
    DECOMPOSED |= _spelt(partial(extreme, _name), _name, torch, Tensor)
for _axes in (1, 2, 3):
    DECOMPOSED |= _spelt(partial(max_pool, _axes), f"max_pool{_axes}d", F, torch)
    DECOMPOSED |= _spelt(partial(adaptive_max_pool, _axes), f"adaptive_max_pool{_axes}d", F)
