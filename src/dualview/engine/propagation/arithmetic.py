"""Sums and products written with operators: `x + f(x)`, `x / 255`, `x - mean`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualview.engine.propagation.calls import Call, merged, table
from dualview.engine.propagation.tape import is_tracked


def add(call: Call) -> Tensor:
    """Add or subtract: two branches share relevance as they contribute; a constant's share is booked."""
    a, b, options = _operands(call)
    if is_tracked(a) and is_tracked(b):
        result = call.function(a, b, **options)
        _watch_branches(call, result, a, b, options.get("alpha", 1))
        return result
    x, constant = (a, b) if is_tracked(a) else (b, a)
    spread = _spread(constant, x)
    parts = (x, call.tape.constant(spread, call.place))
    result = call.function(*(parts if is_tracked(a) else parts[::-1]), **options)
    call.tape.shadows.cast(result, call.tape.shadows.of(x))
    return result


def reversed_subtract(call: Call) -> Tensor:
    """Run `constant - x`."""
    x, constant = call.args
    result = call.tape.constant(_spread(constant, x), call.place) - x
    call.tape.shadows.cast(result, call.tape.shadows.of(x))
    return result


def multiply(call: Call) -> Tensor:
    """Multiply by a constant."""
    a, b, _ = _operands(call)
    if is_tracked(a) and is_tracked(b):
        raise call.refusal("both factors depend on the input")
    result = call.run()
    call.tape.shadows.cast(result, call.tape.shadows.of(a if is_tracked(a) else b))
    return result


def divide(call: Call) -> Tensor:
    """Divide by a constant."""
    a, b, options = _operands(call)
    if is_tracked(b):
        raise call.refusal("its divisor depends on the input")
    if options.get("rounding_mode") is not None:
        raise call.refusal("it rounds")
    result = call.run()
    call.tape.shadows.cast(result, call.tape.shadows.of(a))
    return result


def _operands(call: Call) -> tuple[Any, Any, dict[str, Any]]:
    given = call.bind("input other")
    return given.pop("input"), given.pop("other"), given


def _spread(constant: Any, x: Tensor) -> Tensor:
    """Return the constant in the sum's shape, so that its share is known sample by sample."""
    dtype = torch.result_type(x, constant)
    constant = torch.as_tensor(constant, dtype=dtype, device=x.device)
    return constant.expand(torch.broadcast_shapes(constant.shape, x.shape))


def _watch_branches(call: Call, result: Tensor, a: Tensor, b: Tensor, alpha: float | int) -> None:
    """Note during backward how far the branches cancel; made now, since in-place changes may follow."""
    apart, together = (a.detach().abs() + (alpha * b.detach()).abs()), result.detach().abs()
    place, ledger = call.place, call.tape.ledger
    together = together.clone()

    def look(gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None:
            m = gradients[0].abs()
            ledger.see_branches(place, m * apart, m * together)

    node: Any = result.grad_fn
    node.register_prehook(look)


OPERATIONS = merged(
    table(add, "add sub subtract __radd__"),
    table(reversed_subtract, "__rsub__", [Tensor]),
    table(multiply, "mul multiply __rmul__"),
    table(divide, "div divide true_divide"),
)
