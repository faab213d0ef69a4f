"""Operations for which the modified gradient is right by itself: autograd's own backward does them.

Rearranging (reshape, index, repeat), sums and means, pooling, interpolation and everything that is
linear, or piecewise linear through 0, in its one argument satisfies f(x) = f'(x) x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dualview.engine.propagation.calls import Call, merged, properties, table
from dualview.engine.propagation.tape import is_tracked, tensors_of


def with_tensors(call: Call, function: Callable[[Tensor], Tensor | None]) -> Call:
    """Return the call with every tensor among its arguments replaced."""
    args, kwargs = tree_map_only(Tensor, function, (call.args, call.kwargs))
    return replace(call, args=args, kwargs=kwargs)


def rearrange(call: Call) -> Any:
    """Run a call that only moves, repeats or drops elements; the input's shadow moves with them."""
    result, x = call.run(), _first(call)
    if not is_tracked(x):
        return result
    if not any(is_tracked(made) for made in tensors_of(result)):
        raise call.refusal("its result carries no gradient, so that relevance would end here")
    shadow = call.tape.shadows.of(x)
    if shadow is not None:
        moved = with_tensors(call, lambda tensor: shadow if tensor is x else tensor).run()
        for made, its_shadow in zip(tensors_of(result), tensors_of(moved), strict=True):
            call.tape.shadows.cast(made, its_shadow)
    return result


def homogeneous(call: Call) -> Any:
    """Run a call that is piecewise linear through 0 in its first argument."""
    call.needs_one("first argument", _first(call))
    return call.run()


def as_strided(call: Call) -> Any:
    """Run `as_strided`, which may look at memory beside its argument if that is a view."""
    x = _first(call)
    if x.nbytes != x.untyped_storage().nbytes():
        raise call.refusal("it reads memory that is not its argument's own: write x.clone().as_strided(...)")
    return homogeneous(call)


def _first(call: Call) -> Any:
    return call.args[0] if call.args else call.kwargs.get("input")


def in_evaluation(call: Call) -> Any:
    """Run dropout, which does nothing in evaluation mode."""
    given = call.bind("input p training inplace", training=call.kwargs.get("train", False))
    if given["training"]:
        raise call.refusal("it draws random numbers; let training=self.training switch it off")
    return rearrange(call)


REARRANGING = """
    reshape view reshape_as view_as flatten unflatten ravel squeeze unsqueeze permute transpose swapaxes swapdims
    movedim moveaxis t adjoint expand expand_as broadcast_to repeat tile repeat_interleave contiguous clone
    narrow select chunk split tensor_split split_with_sizes hsplit vsplit dsplit unbind index_select gather take
    take_along_dim masked_select flip fliplr flipud roll rot90 diagonal atleast_1d atleast_2d atleast_3d
    to float double type type_as cpu cuda pixel_shuffle pixel_unshuffle channel_shuffle positive
"""
LINEAR = """
    sum mean nansum cumsum trace tril triu diag diag_embed fold
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    interpolate upsample upsample_nearest upsample_bilinear grid_sample
"""
PIECEWISE_LINEAR = """
    relu leaky_relu prelu abs absolute amax amin median kthvalue topk sort
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices
    adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d
"""
DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout"

OPERATIONS = merged(
    table(rearrange, REARRANGING),
    table(rearrange, "unfold __getitem__", [Tensor]),
    properties(rearrange, "T mT"),
    table(homogeneous, LINEAR),
    table(homogeneous, PIECEWISE_LINEAR),
    table(homogeneous, "unfold", [F]),  # pads with zeros, which a shadow must not lose
    table(as_strided, "as_strided"),
    table(in_evaluation, DROPOUT),
)
