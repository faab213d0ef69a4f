"""Operations in which constants stand beside what depends on the input: their share is booked."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dualview.engine.propagation.calls import Call, merged, table
from dualview.engine.propagation.constants import spread
from dualview.engine.propagation.shapes import homogeneous, rearrange, with_tensors
from dualview.engine.propagation.tape import is_tracked, tensors_of


def with_constants(call: Call) -> Any:
    """Run a call with its constant tensors made part of the graph."""
    return with_tensors(call, partial(lifted, call)).run()


def concatenate(call: Call) -> Tensor:
    """Join tensors; what a terminal rule writes onto a constant part is booked as well."""
    result = with_constants(call)
    if call.place.operation == "stack" and call.bind("tensors dim", dim=0)["dim"] in (0, -result.ndim):
        call.tape.moved(result, call.place)
    if all(call.tape.shadows.of(part) is not None for part in tensors_of((call.args, call.kwargs)) if is_tracked(part)):
        call.tape.shadows.cast(result, with_tensors(call, partial(shadow_of, call)).run())
    return result


def lifted(call: Call, value: Tensor) -> Tensor:
    """Return a constant as a part of the graph that books its relevance; anything else as it is."""
    return value if is_tracked(value) else call.tape.constant(_real(call, value), call.place)


def shadow_of(call: Call, value: Tensor) -> Tensor | None:
    """Return the shadow of a part of a join; a constant's books what is written there."""
    return call.tape.shadows.of(value) if is_tracked(value) else call.tape.lost_shadow(_real(call, value), call.place)


def _real(call: Call, constant: Tensor) -> Tensor:
    """Return whole numbers in the type that they get beside what depends on the input."""
    if constant.is_floating_point():
        return constant
    return constant.to(next(part.dtype for part in tensors_of((call.args, call.kwargs)) if is_tracked(part)))


def extreme(call: Call) -> Any:
    """Run `max` or `min`: of two tensors, or over elements."""
    two = len(call.args) > 1 and isinstance(call.args[1], Tensor) or isinstance(call.kwargs.get("other"), Tensor)
    return with_constants(call) if two else homogeneous(call)


def select(names: str, roles: str, call: Call) -> Tensor:
    """Run `where` or `masked_fill`.

    Args:
        names: of its arguments, in their order.
        roles: which of them is the condition, which stands where it holds, and which where it does not.
    """
    given = call.bind(names, input=None, other=None)
    condition, a, b = (given[role] for role in roles.split())
    tracked = [side for side in (a, b) if is_tracked(side)]
    if is_tracked(condition) or not tracked:
        raise call.refusal("its condition depends on the input other than by a comparison")
    a, b = (side if is_tracked(side) else spread(side, tracked[0], condition.shape) for side in (a, b))
    result = torch.where(condition, lifted(call, a), lifted(call, b))
    first, second = (shadow_of(call, side) for side in (a, b))
    if first is not None and second is not None:
        call.tape.shadows.cast(result, torch.where(condition, first, second))
    return result


def pad(call: Call) -> Tensor:
    """Pad; a value that is not 0 is a constant, and so is what a terminal rule writes outside."""
    given = call.bind("input pad mode value", mode="constant", value=None)
    if given["mode"] != "constant":
        return rearrange(call.as_call(F.pad, given["input"], given["pad"], given["mode"]))
    return _padded(call, given["input"], given["pad"], float(given["value"] or 0))


def constant_pad(call: Call) -> Tensor:
    """Pad, as `F.pad` does."""
    given = call.bind("input pad value", value=0)
    return _padded(call, given["input"], given["pad"], float(given["value"]))


def _padded(call: Call, x: Tensor, sizes: Any, value: float) -> Tensor:
    result = F.pad(x, sizes)
    if value:
        outside = F.pad(torch.zeros_like(x), sizes, value=value)
        result = result + call.tape.constant(outside, call.place)
    shadow = call.tape.shadows.of(x)
    if shadow is not None:
        border = F.pad(torch.zeros_like(shadow), sizes, value=1.0)
        lost = call.tape.lost_shadow(border, call.place)
        call.tape.shadows.cast(result, F.pad(shadow, sizes) + border * lost)
    return result


def overwrite(call: Call) -> Tensor:
    """Return what x becomes by `x[index] = value`; x is a copy, which the mode writes back."""
    x, index, value = call.args
    result = x if is_tracked(x) else call.tape.constant(x, call.place)
    result[index] = _into(call, x, result[index].shape, value)
    return result


def copy(call: Call) -> Tensor:
    """Return what `x.copy_(source)` writes."""
    x, source = call.args[:2]
    return _into(call, x, x.shape, source).clone()


def _into(call: Call, x: Tensor, shape: torch.Size, value: Any) -> Tensor:
    """Return a value as it is written into a part of x that has this shape."""
    if not x.is_floating_point():
        raise call.refusal("it writes what depends on the input into whole numbers, which carry no gradient")
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    excess = tuple(range(value.ndim - len(shape)))  # axes of length 1, which torch drops
    return lifted(call, value.squeeze(excess).expand(shape))


def fill(call: Call) -> Tensor:
    """Return what `x.fill_(value)` or `x.zero_()` writes: a constant."""
    given = call.bind("input value", value=0)
    if is_tracked(given["value"]):
        raise call.refusal("the value depends on the input: write x.copy_(value) instead")
    return call.tape.constant(torch.full_like(given["input"].detach(), float(given["value"])), call.place)


OPERATIONS = merged(
    table(concatenate, "cat concat concatenate stack hstack vstack dstack row_stack column_stack"),
    table(with_constants, "maximum minimum diff"),
    table(extreme, "max min"),
    table(partial(select, "condition input other", "condition input other"), "where", [torch]),
    table(partial(select, "input condition other", "condition input other"), "where", [Tensor]),
    table(partial(select, "input mask value", "mask value input"), "masked_fill"),
    table(pad, "pad", [F]),
    table(constant_pad, "constant_pad_nd", [torch]),
    table(overwrite, "__setitem__", [Tensor], in_place=True),
    table(copy, "copy_", [Tensor], in_place=True),
    table(fill, "fill_ zero_", [Tensor], in_place=True),
)
