"""What each kind of call does to differences: multipliers m with Σ m (x - x') = y - y', call by call.

| call | multipliers |
|---|---|
| linear | autograd's own |
| element by element, y = f(x) | (f(x) - f(x')) / (x - x'): the rescale rule |
| that, right after a linear operation | of its positive and negative contributions: reveal-cancel, if asked for |
| product B(u, v), linear in each | d B = B(du, mean of v and v') + B(mean of u and u', dv) |
| quotient u / v | the product of u and the rescaled 1 / v |
| maximum | the share of the straight line from x' to x on which an element is the largest |
| log Σ exp | exp and log rescaled |

What can be written in these stands in `decompositions`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dualview.engine.propagation import activations, fusion, shapes
from dualview.engine.propagation.account import Place
from dualview.engine.propagation.calls import Operation, merged, properties, table
from dualview.engine.propagation.multipliers import (
    Weighted,
    log_sum_exp_weights,
    reveal_cancel,
    shares_of_largest,
    slope,
)
from dualview.engine.propagation.tape import is_tracked, storage_of, tensors_of

OWNERS = (torch, Tensor, torch._C._nn)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(eq=False)
class Twin:
    """One call as the first pass left it.

    Attributes:
        place: where it stands.
        function: in the form that changes nothing in place.
        given: its arguments, of those that depend on the input the shape alone.
        kept: what its rule needs of its operands, in order.
    """

    place: Place
    function: Callable[..., Any]
    given: list[Any]
    kept: list[Tensor] = field(default_factory=list)

    def before_writing(self, target: Tensor) -> None:
        """Keep copies of what shares memory with a tensor that is about to change."""
        memory = storage_of(target)
        self.kept = [x.clone() if storage_of(x) == memory else x for x in self.kept]


@dataclass(eq=False)
class Half:
    """A call on one of the two passes.

    Attributes:
        twin: what the first pass left, or is to leave.
        function: what was called.
        args: its arguments; weights among them are detached.
        kwargs: its keyword arguments.
        is_first: whether this is the pass on the reference inputs.
        weighted: graph nodes made by linear operations with weights; None where that rule is not asked for.
        counts: non-linear calls of the second pass, by rule.
    """

    twin: Twin
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_first: bool
    weighted: dict[Any, Weighted] | None
    counts: Counter[str]

    @property
    def tracked(self) -> list[Tensor]:
        """The operands that depend on the input."""
        return [tensor for tensor in tensors_of((self.args, self.kwargs)) if is_tracked(tensor)]

    def run(self) -> Any:
        """Run the function as torch does."""
        return self.function(*self.args, **self.kwargs)

    def bind(self, names: str, **defaults: Any) -> dict[str, Any]:
        """Return the arguments by name, given the names of the positional ones."""
        return {**defaults, **dict(zip(names.split(), self.args, strict=False)), **self.kwargs}

    def alone(self) -> Tensor:
        """Return the only operand that depends on the input."""
        if len(self.tracked) != 1:
            raise self.refusal("several of its operands depend on the input")
        return self.tracked[0]

    def varied(self, *values: Tensor) -> Tensor:
        """Return what the call makes of other values for its operands that depend on the input, in their order."""
        given = iter(values)

        def put(operand: Tensor) -> Tensor:
            return next(given) if is_tracked(operand) else operand

        args, kwargs = tree_map_only(Tensor, put, (self.args, self.kwargs))
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]

    def refusal(self, reason: str) -> NotImplementedError:
        """Return the error for a call that no rule covers."""
        return NotImplementedError(f"no DeepLIFT rule for {self.twin.place}: {reason}")

    def result(
        self, rule: str, value: Tensor, operands: list[Tensor], stand_in: Callable[..., Tensor], *given: Tensor
    ) -> Tensor:
        """Return a value with the backward of a linear stand-in, made once the operands' references are known.

        Args:
            rule: under which the call is counted.
            value: of the call.
            operands: what the stand-in needs of the first pass.
            stand_in: the operands on the first pass → a value that depends linearly on what depends on
                the input; its numbers do not matter.
        """
        if self.is_first:
            self.twin.kept += [operand.detach() for operand in operands]
            return StandIn.apply(operands[0], [value])  # type: ignore[no-any-return]
        references = [self.twin.kept.pop(0) for _ in operands]
        self.counts[rule] += 1
        return StandIn.apply(stand_in(*references), [value])  # type: ignore[no-any-return]


class StandIn(torch.autograd.Function):
    """A value forward; backward goes through what stands in for it."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, value: list[Tensor]) -> Tensor:
        """Return the value, listed so that autograd takes it for new; what einsum makes is a view of something."""
        return value[0].clone() if value[0]._is_view() else value[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Hand the gradient to the stand-in."""
        return gradient, None


def linear(half: Half) -> Any:
    """Run a call that is linear in all of its operands at once."""
    return half.run()


def linear_in_one(half: Half) -> Any:
    """Run a call that is linear in each of its operands alone."""
    half.alone()
    return half.run()


def dropout(half: Half) -> Any:
    """Run dropout, which does nothing in evaluation mode."""
    given = half.bind("input p training", training=half.kwargs.get("train", False))
    if given["training"]:
        raise half.refusal("it draws random numbers; let training=self.training switch it off")
    return half.run()


def elementwise(half: Half) -> Tensor:
    """Run f(x), element by element, whatever else stands in the call."""
    x = half.alone()
    value = half.varied(x.detach())
    if value.shape != x.shape:  # it is spread by another operand
        x = x.expand(value.shape)
    operation = None if half.weighted is None else half.weighted.get(x.grad_fn)
    alone = sum(1 for _ in tensors_of((half.args, half.kwargs))) == 1
    between, now = partial(slope, half.varied, alike=alone, exact=half.twin.place.operation in EXACT), x.detach()
    if operation is None:
        return half.result("rescale", value, [x], lambda ref: between(now, ref, value) * x)
    return half.result("reveal-cancel", value, [x], lambda ref: reveal_cancel(between, now, ref, operation))


def product(half: Half) -> Tensor:
    """Run what is linear in each of two operands."""
    if len(half.tracked) == 1:
        return half.run()
    if len(half.tracked) > 2:
        raise half.refusal("more than two of its operands depend on the input")
    u, v = half.tracked
    return half.result(
        "product",
        half.varied(u.detach(), v.detach()),
        [u, v],
        lambda u_ref, v_ref: half.varied(u, (v.detach() + v_ref) / 2) + half.varied((u.detach() + u_ref) / 2, v),
    )


def divide(half: Half) -> Tensor:
    """Run u / v as u · (1 / v), whose second factor is rescaled: Δ(1 / v) = -Δv / (v v')."""
    if half.kwargs.get("rounding_mode") is not None:
        raise half.refusal("it rounds")
    if not is_tracked(half.bind("input other")["other"]):
        return half.run()
    if len(half.tracked) == 1:
        return elementwise(half)
    u, v = half.tracked

    def stand_in(u_ref: Tensor, v_ref: Tensor) -> Tensor:
        u_mean, v_now = (u.detach() + u_ref) / 2, v.detach()
        return u * (1 / v_now + 1 / v_ref) / 2 - u_mean / (v_now * v_ref) * v

    return half.result("product", half.varied(u.detach(), v.detach()), [u, v], stand_in)


def largest(half: Half) -> Tensor:
    """Run `amax`."""
    given = half.bind("input dim keepdim", dim=(), keepdim=False)
    x, dims, keepdim = half.alone(), given["dim"], given["keepdim"]
    dims = [k % x.ndim for k in ([dims] if isinstance(dims, int) else dims or range(x.ndim))]
    shape = [1 if k in dims else size for k, size in enumerate(x.shape) if keepdim or k not in dims]
    rows = x.movedim(dims, list(range(len(dims)))).flatten(0, len(dims) - 1)
    value = rows.detach().amax(0).reshape(shape)

    def stand_in(ref: Tensor) -> Tensor:
        return (shares_of_largest(rows.detach(), ref) * rows).sum(0).reshape(shape)

    return half.result("maximum", value, [rows], stand_in)


def log_sum_exp(half: Half) -> Tensor:
    """Run `logsumexp`."""
    given = half.bind("input dim keepdim", keepdim=False)
    x, dim, keepdim = half.alone(), given["dim"], given["keepdim"]
    return half.result(
        "rescale",
        torch.logsumexp(x.detach(), dim, keepdim),
        [x],
        lambda ref: (log_sum_exp_weights(x.detach(), ref, dim) * x).sum(dim, keepdim),
    )


def with_weights(half: Half, names: str = "input weight bias stride padding dilation groups") -> Tensor:
    """Run a linear layer or a convolution, and remember it for reveal-cancel; `names` are those of its arguments."""
    given = half.bind(names, bias=None)
    x, weight, bias = (given.pop(name) for name in ("input", "weight", "bias"))
    if is_tracked(weight):
        raise half.refusal("its weight depends on the input; write it as a matmul")
    result = half.run()
    if half.weighted is None or not is_tracked(x) or is_tracked(bias):
        return result
    if half.is_first:
        half.twin.kept.append(x.detach())
        return result

    def apply(difference: Tensor, weight: Tensor) -> Tensor:
        return half.function(difference, weight, None, **given)  # type: ignore[no-any-return]

    transposed = partial(fusion.rescale_transposed, groups=given.get("groups", 1))
    rescale = transposed if "output_padding" in names else fusion.rescale_rows
    half.weighted[result.grad_fn] = Weighted(x - half.twin.kept.pop(0), weight, apply, rescale)
    return result


def transposed_convolution(half: Half) -> Tensor:
    """Run a transposed convolution likewise."""
    return with_weights(half, "input weight bias stride padding output_padding groups dilation")


def batch_norm(half: Half) -> Tensor:
    """Run batch norm in evaluation, which is affine; reveal-cancel sees it as part of the operation before it."""
    given = half.bind("input weight bias running_mean running_var training momentum eps cudnn_enabled")
    x, mean, variance = half.alone(), given["running_mean"], given["running_var"]
    if given["training"] or mean is None or variance is None:
        raise half.refusal("it normalises by the statistics of this batch; only running statistics are constants")
    result = half.run()
    operation = None if half.weighted is None else half.weighted.get(x.grad_fn)
    if operation is not None and half.weighted is not None and (x.ndim == 2 or operation.weight.ndim > 2):
        scale, _ = fusion.normalisation(mean, variance, given["weight"], given["bias"], given["eps"], x.ndim)
        half.weighted[result.grad_fn] = operation.scaled(scale)
    return result


RULES = ("rescale", "reveal-cancel", "product", "maximum")
"""Names under which non-linear calls are counted."""

EXACT = frozenset("relu hardtanh relu6 clamp clip clamp_min clamp_max threshold abs absolute".split())
"""Functions that hand on x, −x or a constant: their differences are without rounding."""

NATIVE = (linear, linear_in_one, dropout)
"""Rules of calls that autograd runs as they are, in place as well."""

_ANSWERS = """
    argmax argmin argsort nonzero count_nonzero any all equal allclose result_type is_nonzero detach item tolist numpy
    __bool__ __float__ __int__ __index__ __array__ register_hook _nested_tensor_from_mask_left_aligned
"""
QUESTIONS = frozenset(
    [getattr(owner, name) for name in _ANSWERS.split() for owner in (torch, Tensor) if hasattr(owner, name)]
    + [Tensor.data.__get__]  # type: ignore[attr-defined]
)
"""Calls whose results are constants to autograd: where they differ between the passes, their use is refused.

Hooks are left to do as they like: what they change in gradients is missed by the sum."""

_JOINT = """
    add sub subtract __radd__ __rsub__ rsub neg negative cat concat concatenate stack hstack vstack dstack column_stack
    where masked_fill pad constant_pad_nd diff broadcast_tensors unflatten scatter scatter_add index_add index_copy
"""
_ALONE = """
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d
    upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler im2col col2im nll_loss_nd
"""
_NON_LINEAR = """
    relu leaky_relu prelu abs absolute exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal pow float_power
    __pow__ __rpow__ __rdiv__ __rtruediv__ sin cos tan asin acos sinh cosh asinh acosh atanh erfc log_sigmoid
"""

OPERATIONS = merged(
    table(linear, shapes.REARRANGING + _JOINT, OWNERS),
    table(linear, "unfold __getitem__", [Tensor]),
    table(linear, "__setitem__ copy_ fill_ zero_", [Tensor], in_place=True),
    properties(linear, "T mT"),
    table(linear_in_one, shapes.LINEAR + _ALONE, OWNERS),
    table(dropout, shapes.DROPOUT, OWNERS),
    table(elementwise, activations.NAMES + _NON_LINEAR, OWNERS),
    table(elementwise, "softsign", [F]),
    {Tensor.__ipow__: Operation("pow", torch.pow, (), elementwise, True)},
    table(product, "mul multiply __rmul__ matmul mm bmm mv dot inner outer einsum tensordot kron", OWNERS),
    table(divide, "div divide true_divide", OWNERS),
    table(largest, "amax", OWNERS),
    table(log_sum_exp, "logsumexp", OWNERS),
    table(with_weights, "linear conv1d conv2d conv3d", OWNERS),
    table(transposed_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d", OWNERS),
    table(batch_norm, "batch_norm", OWNERS),
)
