"""Calls that carry no relevance: questions about a tensor, comparisons, fresh constants of its shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_QUESTIONS = """
    size dim ndimension numel nelement stride storage_offset is_contiguous element_size get_device is_floating_point
    is_complex is_same_size __len__ __repr__ __format__ __hash__ _is_view retain_grad
"""
_PROPERTIES = """
    shape dtype device requires_grad ndim is_cuda is_leaf layout grad_fn names is_quantized is_sparse is_meta is_mkldnn
    is_mps is_nested is_cpu is_xpu _version nbytes itemsize _base output_nr
"""
_FRESH = """
    zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full
"""
_COMPARISONS = """
    eq ne gt ge lt le greater greater_equal less less_equal not_equal isnan isinf isfinite
    __eq__ __ne__ __gt__ __ge__ __lt__ __le__
"""


def _functions(names: str) -> set[Any]:
    return {getattr(owner, name) for name in names.split() for owner in (torch, Tensor) if hasattr(owner, name)}


FREE: frozenset[Any] = frozenset(
    _functions(_QUESTIONS + _FRESH + _COMPARISONS)
    | {getattr(Tensor, name).__get__ for name in _PROPERTIES.split() if hasattr(Tensor, name)}
    # Autograd sets it, while it holds a lock that asking for grad_fn would wait for.
    | {getattr(Tensor, "_backward_hooks").__set__}  # noqa: B009
)
"""Comparisons give masks, piecewise constant in the input: a gate `x * (x > 0)` has the gradient's relevance."""
