"""Sums and products written with operators: `x + f(x)`, `x / 255`, `x - mean`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualview.engine.propagation.calls import Call, merged, table
from dualview.engine.propagation.constants import spread
from dualview.engine.propagation.tape import is_tracked


def add(call: Call) -> Tensor:
    """Add or subtract: two branches share relevance as they contribute; a constant's share is booked."""
    a, b, options = _operands(call)
    if is_tracked(a) and is_tracked(b):
        result = call.function(a, b, **options)
        _watch_branches(call, result, a, b, options.get("alpha", 1))
        return result
    if is_tracked(a):
        result = call.function(a, call.tape.constant(spread(b, a), call.place), **options)
        return hand_on_shadow(call, a, result)
    result = call.function(call.tape.constant(spread(a, b), call.place), b, **options)
    return hand_on_shadow(call, b, result, factor=options.get("alpha", 1))


def reversed_subtract(call: Call) -> Tensor:
    """Run `constant - x`."""
    x, constant = call.args
    return hand_on_shadow(call, x, call.tape.constant(spread(constant, x), call.place) - x)


def negate(call: Call) -> Tensor:
    """Run `-x`."""
    return hand_on_shadow(call, call.bind("input")["input"], call.run())


def multiply(call: Call) -> Tensor:
    """Multiply by a constant."""
    a, b, _ = _operands(call)
    if is_tracked(a) and is_tracked(b):
        raise call.refusal("both factors depend on the input")
    x, constant = (a, b) if is_tracked(a) else (b, a)
    return hand_on_shadow(call, x, call.run(), factor=constant)


def divide(call: Call) -> Tensor:
    """Divide by a constant."""
    a, b, options = _operands(call)
    if is_tracked(b):
        raise call.refusal("its divisor depends on the input")
    if options.get("rounding_mode") is not None:
        raise call.refusal("it rounds")
    result = call.run()
    return hand_on_shadow(call, a, result, factor=_as(result, b).reciprocal())


def hand_on_shadow(call: Call, x: Tensor, result: Tensor, factor: Any = 1) -> Tensor:
    """Return factor · x + constant with the shadow of x; where the factor is 0, what is written there is booked."""
    shadow = call.tape.shadows.of(x)
    if shadow is not None:
        seen = _as(result, factor) != 0
        if not bool(seen.all()):
            shadow = torch.where(seen, shadow, call.tape.lost_shadow(result.detach(), call.place))
        call.tape.shadows.cast(result, shadow)
    return result


def _as(result: Tensor, constant: Any) -> Tensor:
    return torch.as_tensor(constant, dtype=result.dtype, device=result.device)


def _operands(call: Call) -> tuple[Any, Any, dict[str, Any]]:
    given = call.bind("input other")
    return given.pop("input"), given.pop("other"), given


def _watch_branches(call: Call, result: Tensor, a: Tensor, b: Tensor, alpha: float | int) -> None:
    """Note during backward how far the branches cancel; made now, since in-place changes may follow."""
    apart = torch.add(a.detach().abs(), b.detach().abs(), alpha=abs(alpha))
    together = result.detach().abs()
    place, ledger = call.place, call.tape.ledger

    def look(gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None:
            m = gradients[0].abs()
            ledger.see_branches(place, m * apart, m * together)

    node: Any = result.grad_fn
    node.register_prehook(look)


OPERATIONS = merged(
    table(add, "add sub subtract __radd__"),
    table(reversed_subtract, "__rsub__", [Tensor]),
    table(negate, "neg negative"),
    table(multiply, "mul multiply __rmul__"),
    table(divide, "div divide true_divide"),
)
