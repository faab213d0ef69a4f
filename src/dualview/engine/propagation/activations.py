"""Activation functions: the unit hands its relevance on, m_in = m_out (f(x) − f(0)) / x.

A constant part f(0), as in the sigmoid, is booked. At x = 0 stands the limit, the derivative.
Saturated units (relu6, hardtanh, clamp) hand on all they get, and nothing is booked: their gradient
is 0, but relevance asks what a value contributes, and a saturated unit contributes f(x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dualview.engine.propagation.account import Ledger, Place
from dualview.engine.propagation.calls import Call, table


class Activation(torch.autograd.Function):
    """f(x) forward; backward passes relevance on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], place: Place, ledger: Ledger) -> Tensor:
        """Return f(x)."""
        values, constant = function(x), function(x.new_zeros(()))
        ctx.slope, ctx.place, ctx.ledger = slope(function, x, values, constant), place, ledger
        ctx.constant = constant if bool(constant.any()) else None
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return m_in and book the constant part."""
        if ctx.constant is not None:
            ctx.ledger.book(ctx.place, "constant", gradient * ctx.constant)
        return gradient * ctx.slope, None, None, None


def slope(function: Callable[[Tensor], Tensor], x: Tensor, values: Tensor, constant: Tensor) -> Tensor:
    """Return (f(x) − f(0)) / x, and its limit at 0.

    Where f(0) is not 0, the difference cancels for small x; there f'(x / 2) replaces it, whose error
    x² f''' / 24 is as large as the rounding at |x| = (unit in the last place)^(1/3).

    Args:
        function: f, element by element.
        x: where.
        values: f(x).
        constant: f(0), of no axes unless f differs from element to element.
    """
    if not constant.ndim and not constant:
        return (values / x).nan_to_num_(float(_derivative(function, constant)), torch.inf, -torch.inf)  # 0 / 0
    small = x.abs() <= torch.where(constant == 0, 0.0, torch.finfo(x.dtype).eps ** (1 / 3))
    return torch.where(
        small, _derivative(function, x.expand_as(values) / 2), (values - constant) / torch.where(small, 1, x)
    )


def _derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def pass_on(call: Call) -> Tensor:
    """Run an activation function."""
    x = call.args[0] if call.args else call.kwargs.get("input")
    call.needs_one("first argument", x)
    rest = call.args[1:]
    options = {key: value for key, value in call.kwargs.items() if key not in ("input", "inplace")}
    return Activation.apply(x, lambda t: call.function(t, *rest, **options), call.place, call.tape.ledger)  # type: ignore[no-any-return]


NAMES = """
    gelu silu mish elu selu celu tanh sigmoid softplus softsign logsigmoid tanhshrink hardswish hardsigmoid hardtanh
    relu6 clamp clip clamp_min clamp_max hardshrink softshrink threshold erf atan arctan
"""

OPERATIONS = table(pass_on, NAMES)
