"""Operations in which constants stand beside what depends on the input: their share is booked."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dualview.engine.propagation.calls import Call, merged, table
from dualview.engine.propagation.shapes import homogeneous, rearrange
from dualview.engine.propagation.tape import is_tracked, tensors_of


def concatenate(call: Call) -> Tensor:
    """Join tensors; what a terminal rule writes onto a constant part is booked as well."""
    result = lift(call).run()
    shadows = [shadow_of(call, part) for part in tensors_of((call.args, call.kwargs))]
    if None not in shadows:
        given = iter(shadows)
        args, kwargs = (_mapped(lambda _: next(given), value) for value in (call.args, call.kwargs))
        call.tape.shadows.cast(result, call.function(*args, **kwargs))
    return result


def lift(call: Call) -> Call:
    """Return the call with its constant tensors made part of the graph."""
    args, kwargs = (_mapped(lambda part: lifted(call, part), value) for value in (call.args, call.kwargs))
    return Call(call.place, call.function, call.spellings, args, kwargs, call.tape)


def lifted(call: Call, value: Tensor) -> Tensor:
    """Return a constant as a part of the graph that books its relevance; anything else as it is."""
    if is_tracked(value):
        return value
    return call.tape.constant(value if value.is_floating_point() else value.to(torch.get_default_dtype()), call.place)


def shadow_of(call: Call, value: Tensor) -> Tensor | None:
    """Return the shadow of a part of a join; a constant's books what is written there."""
    return call.tape.shadows.of(value) if is_tracked(value) else call.tape.lost_shadow(value, call.place)


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(function, part) for part in value)
    if isinstance(value, dict):
        return {key: _mapped(function, part) for key, part in value.items()}
    return value


def pick(call: Call) -> Tensor:
    """Take the larger, or the smaller, of two tensors, element by element."""
    return lift(call).run()


def extreme(call: Call) -> Any:
    """Run `max` or `min`: of two tensors, or over elements."""
    two = len(call.args) > 1 and isinstance(call.args[1], Tensor) or isinstance(call.kwargs.get("other"), Tensor)
    return pick(call) if two else homogeneous(call)


def where(call: Call) -> Tensor:
    """Run `torch.where(condition, a, b)`."""
    given = call.bind("condition input other")
    return _select(call, given["condition"], given.get("input"), given.get("other"))


def where_method(call: Call) -> Tensor:
    """Run `a.where(condition, b)`."""
    given = call.bind("input condition other")
    return _select(call, given["condition"], given["input"], given["other"])


def masked_fill(call: Call) -> Tensor:
    """Run `a.masked_fill(mask, value)`."""
    given = call.bind("input mask value")
    return _select(call, given["mask"], given["value"], given["input"])


def _select(call: Call, condition: Tensor, a: Any, b: Any) -> Tensor:
    tracked = [side for side in (a, b) if is_tracked(side)]
    if is_tracked(condition) or not tracked:
        raise call.refusal("its condition depends on the input other than by a comparison")
    a, b = torch.broadcast_tensors(*(_as_tensor(side, tracked[0]) for side in (a, b, condition)))[:2]
    result = torch.where(condition, lifted(call, a), lifted(call, b))
    first, second = (shadow_of(call, side) for side in (a, b))
    if first is not None and second is not None:
        call.tape.shadows.cast(result, torch.where(condition, first, second))
    return result


def _as_tensor(value: Any, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)


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
    result[index] = lifted(call, _as_tensor(value, x).expand(result[index].shape))
    return result


def copy(call: Call) -> Tensor:
    """Return what `x.copy_(source)` writes."""
    x, source = call.args[:2]
    return lifted(call, source).to(x.dtype).expand(x.shape).clone()


def fill(call: Call) -> Tensor:
    """Return what `x.fill_(value)` or `x.zero_()` writes: a constant."""
    given = call.bind("input value", value=0)
    if is_tracked(given["value"]):
        raise call.refusal("the value depends on the input: write x.copy_(value) instead")
    return call.tape.constant(torch.full_like(given["input"].detach(), float(given["value"])), call.place)


OPERATIONS = merged(
    table(concatenate, "cat concat concatenate stack hstack vstack dstack row_stack column_stack"),
    table(pick, "maximum minimum"),
    table(extreme, "max min"),
    table(where, "where", [torch]),
    table(where_method, "where", [Tensor]),
    table(masked_fill, "masked_fill"),
    table(pad, "pad", [F]),
    table(constant_pad, "constant_pad_nd", [torch]),
    table(overwrite, "__setitem__", [Tensor], in_place=True),
    table(copy, "copy_", [Tensor], in_place=True),
    table(fill, "fill_ zero_", [Tensor], in_place=True),
)
