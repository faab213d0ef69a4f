"""Recognising linear operations with weights, and putting the chosen rule in their place."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from dualview.engine.propagation import fusion
from dualview.engine.propagation.arithmetic import hand_on_shadow
from dualview.engine.propagation.calls import Call, merged, table
from dualview.engine.propagation.linear_ops import LinearOp
from dualview.engine.propagation.proportional import ProportionalRule
from dualview.engine.propagation.tape import is_tracked, tensors_of
from dualview.engine.propagation.terminal import Terminal, TerminalRule


def linear(call: Call) -> Tensor:
    """Run a dense layer."""
    given = call.bind("input weight bias", bias=None)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    call.needs_one("input", x)
    options: dict[str, Any] = {}
    if weight.ndim == 2:
        options = {"rescale": fusion.rescale_rows, "transpose": lambda s, weight, _shape: s @ weight}
    return _ruled(call, LinearOp(call.place, "linear", x, weight, bias, F.linear, **options, **_of(call, x)))


def convolution(call: Call) -> Tensor:
    """Run a convolution."""
    given = call.bind("input weight bias stride padding dilation groups", bias=None)
    options: dict[str, Any] = {"rescale": fusion.rescale_rows}
    if not isinstance(given.get("padding", 0), str):  # "same" may pad more on one side
        options["transpose"] = partial(_convolved_back, **{name: given[name] for name in _SLIDING if name in given})
    return _convolved(call, given, options)


_SLIDING = ("stride", "padding", "dilation", "groups")
_INPUT_GRADIENTS = {3: conv1d_input, 4: conv2d_input, 5: conv3d_input}


def _convolved_back(s: Tensor, weight: Tensor, shape: torch.Size, **sliding: Any) -> Tensor:
    if s.ndim != weight.ndim:  # one sample without a batch axis
        return _INPUT_GRADIENTS[weight.ndim]([1, *shape], weight, s[None], **sliding)[0]
    return _INPUT_GRADIENTS[weight.ndim](list(shape), weight, s, **sliding)


def transposed_convolution(call: Call) -> Tensor:
    """Run a transposed convolution."""
    given = call.bind("input weight bias stride padding output_padding groups dilation", bias=None)
    return _convolved(call, given, {"rescale": partial(fusion.rescale_transposed, groups=given.get("groups", 1))})


def _convolved(call: Call, given: dict[str, Any], options: dict[str, Any]) -> Tensor:
    x, weight, bias = (given.pop(name) for name in ("input", "weight", "bias"))
    call.needs_one("input", x)
    spread = None if bias is None else bias.reshape(-1, *[1] * (weight.ndim - 2))
    apply = partial(_applied, call.function, given)
    return _ruled(call, LinearOp(call.place, "convolution", x, weight, spread, apply, **options, **_of(call, x)))


def _applied(function: Any, options: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    return function(x, weight, None, **options)


def product(call: Call) -> Tensor:
    """Run a product of which one operand is constant: matmul, bmm, einsum and their like."""
    operands = list(tensors_of((call.args, call.kwargs)))
    tracked = [k for k, operand in enumerate(operands) if is_tracked(operand)]
    if len(tracked) > 1:
        raise call.refusal("both factors depend on the input")
    if len(operands) > 2 or any(tensors_of(call.kwargs)):
        raise call.refusal("it is known with two operands, given by position")
    if len(operands) == 1:  # an einsum that only rearranges and sums
        return call.run()
    x, weight = operands[tracked[0]], operands[1 - tracked[0]]
    apply = partial(_multiplied, call, tracked[0] == 0)
    options = _of(call, x)
    options["by_sample"] = options["by_sample"] and _keeps_first_axis(call, tracked[0])
    return _ruled(call, LinearOp(call.place, "linear", x, weight, None, apply, **options))


def _keeps_first_axis(call: Call, operand: int) -> bool:
    """Tell whether the first axis of a product is that of this operand."""
    if isinstance(call.args[0], str):  # einsum
        given, _, result = call.args[0].replace(" ", "").partition("->")
        return bool(result) and given.split(",")[operand][:1] == result[:1] != "."
    x = next(part for part in tensors_of(call.args) if is_tracked(part))
    return call.place.operation in ("matmul", "mm", "bmm") and (operand == 0 or x.ndim > 2)


def _multiplied(call: Call, x_first: bool, x: Tensor, weight: Tensor) -> Tensor:
    given = iter((x, weight) if x_first else (weight, x))
    return call.function(*(_filled(part, given) for part in call.args), **call.kwargs)


def _filled(part: Any, given: Any) -> Any:
    if isinstance(part, Tensor):
        return next(given)
    return [_filled(item, given) for item in part] if isinstance(part, (tuple, list)) and part else part


def product_and_sum(call: Call) -> Tensor:
    """Run `addmm` and its like: β c + α a b, whose c is a bias if it is constant."""
    given = call.bind("input a b", beta=1, alpha=1)
    names = {"mat1": "a", "batch1": "a", "mat2": "b", "batch2": "b"}
    given = {names.get(name, name): value for name, value in given.items()}
    c, a, b = given["input"], given["a"], given["b"]
    multiply = torch.bmm if a.ndim == 3 else torch.matmul
    if is_tracked(a) == is_tracked(b):
        raise call.refusal("one of its factors, and not both, may depend on the input")
    x, weight = (a, b) if is_tracked(a) else (b, a)
    alpha, beta = given["alpha"], given["beta"]
    apply = multiply if x is a else partial(_reversed, multiply)
    bias = None if is_tracked(c) else beta * c
    result = _ruled(call, LinearOp(call.place, "linear", x, alpha * weight, bias, apply, **_of(call, x)))
    return result + beta * c if is_tracked(c) else result


def _reversed(multiply: Any, x: Tensor, weight: Tensor) -> Tensor:
    return multiply(weight, x)


def batch_norm(call: Call) -> Tensor:
    """Run batch norm in evaluation: folded into the operation before it, or one of its own."""
    names = "input running_mean running_var weight bias training momentum eps"
    given = call.bind(names, weight=None, bias=None, training=False, eps=1e-5)
    x, mean, variance = given["input"], given["running_mean"], given["running_var"]
    call.needs_one("input", x)
    if given["training"] or mean is None or variance is None:
        raise call.refusal("it normalises by the statistics of this batch; only running statistics are constants")
    scale, shift = fusion.normalisation(mean, variance, given["weight"], given["bias"], given["eps"], x.ndim)
    folded = fusion.fold_into(x, scale, shift, call.tape.noted)
    if folded is not None:
        return _ruled(call, folded)
    op = LinearOp(call.place, "batch_norm", x, scale, shift, torch.mul, transpose=_scaled_back, **_of(call, x))
    return hand_on_shadow(call, x, _ruled(call, op), factor=scale)


def _scaled_back(s: Tensor, scale: Tensor, _shape: torch.Size) -> Tensor:
    return s * scale


def _of(call: Call, x: Tensor) -> dict[str, Any]:
    """Return what every linear operation on x shares."""
    tape = call.tape
    return {"spellings": call.spellings, "shadow": tape.shadows.of(x), "by_sample": tape.by_sample(x)}


def _ruled(call: Call, op: LinearOp) -> Tensor:
    """Return the operation's output, with the backward of the rule that the composite chooses for it."""
    tape = call.tape
    key, rule = tape.composite.choose(op.place, op.spellings, op.kind, is_first=op.shadow is not None)
    tape.used.add(key)
    tape.reads(op)
    if not isinstance(rule, Terminal):
        result: Tensor = ProportionalRule.apply(op.source, op, rule, tape.ledger)  # type: ignore[assignment]
        if not op.by_sample:
            tape.moved(result, op.place)
        return result
    if op.shadow is None:
        raise ValueError(
            f"{type(rule).__name__} was given to {op.place}, but it writes to the input: only rearranging and "
            "constants may lie below. Give it to the first layer"
        )
    return TerminalRule.apply(op.source, op.shadow, op, rule, tape.ledger)  # type: ignore[no-any-return]


OPERATIONS = merged(
    table(linear, "linear"),
    table(convolution, "conv1d conv2d conv3d"),
    table(transposed_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    table(product, "matmul mm bmm mv dot inner outer einsum tensordot kron __matmul__ __rmatmul__"),
    table(product_and_sum, "addmm baddbmm"),
    table(batch_norm, "batch_norm", [F]),
)
