"""DeepLIFT's two passes: the model on reference inputs, then on the inputs, each call beside its twin.

Every call hands on differences by multipliers m with Σ m (x − x') = y − y' (Shrikumar, Greenside and
Kundaje 2017), so that their products along the graph share f(x) − f(x') among the inputs. Linear calls
are left to autograd; a non-linear call gets the backward of a linear stand-in, made of what its
operands were on both passes (`difference_rules`). No axis is taken for the batch on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dualview.engine.propagation.account import Place
from dualview.engine.propagation.calls import Operation
from dualview.engine.propagation.decompositions import DECOMPOSED
from dualview.engine.propagation.difference_rules import NATIVE, OPERATIONS, QUESTIONS, Half, Twin
from dualview.engine.propagation.free import FREE
from dualview.engine.propagation.mode import name_of, without_weights
from dualview.engine.propagation.tape import is_tracked, tensors_of
from dualview.engine.propagation.whereabouts import Running

Parts = dict[Any, Tensor]

_UNSEEN = {f"has_torch_function{ending}": lambda *_: False for ending in ("", "_unary", "_variadic")}


@dataclass(frozen=True, eq=False)
class Differences:
    """What a pair of passes found.

    Attributes:
        contributions: m (x − x') of every part of the inputs, shaped like it.
        values: the measured output on the inputs.
        reference_values: the same on the reference inputs.
        calls: how many non-linear calls each rule handled.
    """

    contributions: Parts
    values: Float[Tensor, " row"]
    reference_values: Float[Tensor, " row"]
    calls: dict[str, int]


def differences(
    model: nn.Module,
    outputs: Callable[[Parts], Tensor],
    measure: Callable[[Tensor, Tensor], Tensor],
    inputs: Parts,
    references: Parts,
    *,
    signed: bool = False,
) -> Differences:
    """Share f(x) − f(x') among the parts of x: a forward pass on x', then a forward and a backward pass on x.

    Args:
        model: what runs; it says where a refused call stands.
        outputs: parts of the inputs → what the model makes of them.
        measure: (what it made of x, without a graph; what it made of x or of x') → measured output "row".
        inputs: x, float tensors "row ...".
        references: x', shaped alike.
        signed: take the reveal-cancel rule where it applies.

    Raises:
        NotImplementedError: a call has no rule, or the passes differ in what they call; it is named.
        ArithmeticError: the contributions miss f(x) − f(x') by more than rounding explains.
    """
    passes = _Passes(model, signed)
    first, second = _Mode(passes, is_first=True), _Mode(passes, is_first=False)
    leaves, starts = (
        {place: part.detach().clone().requires_grad_() for place, part in parts.items()}
        for parts in (inputs, references)
    )
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"), passes.running.followed():
        given, given_first = ({place: part.clone() for place, part in parts.items()} for parts in (leaves, starts))
        with first.running():
            at_reference = outputs(given_first)
        with second.running():
            at_input = outputs(given)
        second.check_finished()
        made = at_input.detach()
        with first.running():
            reference_values = measure(made, at_reference)
        with second.running():
            values = measure(made, at_input)
        second.check_finished()
    rows = len(next(iter(inputs.values())))
    if values.shape != (rows,):
        raise ValueError(f"`output` must give one number per sample, shape ({rows},); it gave {tuple(values.shape)}")
    if not values.requires_grad:
        raise ValueError("the measured output does not depend on the inputs by differentiable operations")
    seed = torch.ones_like(values)
    found = torch.autograd.grad(values, list(leaves.values()), seed, materialize_grads=True)
    contributions = {
        place: multipliers * (inputs[place] - references[place])
        for place, multipliers in zip(leaves, found, strict=True)
    }
    _check_complete(contributions, values.detach(), reference_values.detach())
    return Differences(contributions, values.detach(), reference_values.detach(), dict(passes.counts))


class _Passes:
    """What both passes share.

    Attributes:
        signed: whether sums of positive and negative contributions are kept apart (reveal-cancel).
        twins: what the first pass left at each call, for the second.
        weighted: graph nodes made by linear operations with weights, with what reveal-cancel needs of these.
        counts: non-linear calls of the second pass, by rule.
        running: which module is running.
        state: names of the model's own tensors by their ids: they must not be written to.
    """

    def __init__(self, model: nn.Module, signed: bool) -> None:
        self.signed = signed
        self.twins: list[Twin] = []
        self.weighted: dict[Any, Any] = {}
        self.counts = Counter[str]()
        self.running = Running(model)
        self.state = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}


class _Mode(TorchFunctionMode):
    """Run one of the passes: the first leaves a twin at each call, the second meets them in the same order."""

    def __init__(self, passes: _Passes, *, is_first: bool) -> None:
        super().__init__()
        self._passes, self._is_first, self._num_met = passes, is_first, 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """See every call made inside; the first pass keeps nothing for a way back, which nobody will go."""
        hooks = saved_tensors_hooks(lambda _: None, _never)
        if not self._is_first:
            hooks = disable_saved_tensors_hooks("DeepLIFT cannot pass checkpointing, or other hooks on saved tensors")
        with hooks, self:
            yield

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one call."""
        return self._run(func, args, kwargs or {})

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in FREE or func in QUESTIONS or not torch.is_grad_enabled():
            return func(*args, **kwargs)  # a constant, which must be the same on both passes where it is used
        if not any(map(is_tracked, tensors_of((args, kwargs)))):
            return func(*without_weights(args), **without_weights(kwargs))
        operation = OPERATIONS.get(func)
        if operation is None:
            with self:  # its parts are calls of their own
                return self._in_parts(func)(*args, **kwargs)
        if kwargs.get("out") is not None:
            raise self._refusal(func, "it writes to out=; use its result instead")
        args, kwargs = without_weights(args), without_weights(kwargs)
        twin = self._met(operation, args, kwargs)
        if operation.in_place:
            made = self._write(func, operation, twin, args, kwargs)
        else:
            made = operation.handler(self._half(twin, operation.function, args, kwargs))
        for tensor in tensors_of(made):
            if is_tracked(tensor) and tensor.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"DeepLIFT needs float32 or float64; {twin.place} makes {tensor.dtype}")
        return made

    def check_finished(self) -> None:
        """Raise where the first pass made more calls."""
        if self._num_met < len(self._passes.twins):
            raise _unlike(self._passes.twins[self._num_met].place, "the end of the model")

    def _in_parts(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function written in simpler ones: by us, or by torch where it is Python."""
        if func in DECOMPOSED:
            return DECOMPOSED[func]
        if isinstance(func, FunctionType) and func.__module__ == "torch.nn.functional":
            seen = {**func.__globals__, **_UNSEEN}  # else its first line would ask this mode again
            opened = FunctionType(func.__code__, seen, func.__name__, func.__defaults__, func.__closure__)
            opened.__kwdefaults__ = func.__kwdefaults__
            return opened
        raise self._refusal(func, "nothing is known of it")

    def _refusal(self, func: Callable[..., Any], reason: str) -> NotImplementedError:
        return NotImplementedError(f"no DeepLIFT rule for {self._passes.running.place(name_of(func))}: {reason}")

    def _half(self, twin: Twin, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Half:
        return Half(
            twin,
            function,
            args,
            kwargs,
            is_first=self._is_first,
            weighted=self._passes.weighted if self._passes.signed else None,
            counts=self._passes.counts,
        )

    def _met(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Twin:
        """Return the twin of this call: a new one on the first pass, and the next one on the second."""
        place = self._passes.running.place(operation.name)
        given = tree_leaves((args, kwargs))
        if operation.in_place and not is_tracked(given[0]):
            given = given[1:]  # a buffer to be filled, whose content may be anything yet
        mine = Twin(place, operation.function, [tuple(x.shape) if is_tracked(x) else x for x in given])
        twins = self._passes.twins
        if self._is_first:
            twins.append(mine)
        elif self._num_met == len(twins):
            raise _unlike("the end of the model", place)
        twin = twins[self._num_met]
        self._num_met += 1
        if not self._is_first:
            _check_alike(twin, mine)
        return twin

    def _write(
        self, func: Callable[..., Any], operation: Operation, twin: Twin, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a call that changes its first argument; aliases see it too."""
        target = args[0]
        owner = target if target._base is None else target._base
        if id(owner) in self._passes.state:
            raise self._refusal(func, f"it writes what depends on the input to {self._passes.state[id(owner)]!r}")
        if operation.handler in NATIVE:
            self._before_writing(target)
            return operation.handler(self._half(twin, func, args, kwargs))
        made = operation.handler(self._half(twin, operation.function, args, kwargs))
        self._before_writing(target)
        return target.copy_(made)

    def _before_writing(self, target: Tensor) -> None:
        for twin in self._passes.twins:
            twin.before_writing(target)


def _check_alike(twin: Twin, mine: Twin) -> None:
    """Refuse a call unlike the one that the first pass made at this point."""
    if (twin.function, len(twin.given)) != (mine.function, len(mine.given)):
        raise _unlike(twin.place, mine.place)
    for theirs, ours in zip(twin.given, mine.given, strict=True):
        if not _same(theirs, ours):
            raise NotImplementedError(
                f"no DeepLIFT rule for {mine.place}: one of its operands is {_shown(theirs)} on the baseline and "
                f"{_shown(ours)} on the input, by nothing that differences could follow (a mask from a comparison, an "
                "index, detach(), a random draw). Write x * (x > 0) or where(x > 0, x, 0) as relu(x), for example"
            )


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and (np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b))
    if a is b or a.layout != torch.strided:
        return a is b
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    same_memory = (a.data_ptr(), a.stride()) == (b.data_ptr(), b.stride())
    return same_memory or bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN


def _shown(value: Any) -> str:
    return f"<values of shape {tuple(value.shape)}>" if isinstance(value, Tensor) else repr(value)


def _unlike(on_baseline: Place | str, on_input: Place | str) -> NotImplementedError:
    return NotImplementedError(
        f"the model calls {on_baseline} on the baseline, and {on_input} on the input at that point: its control flow "
        "depends on the input, which DeepLIFT cannot follow. Give a baseline that takes the same way"
    )


def _check_complete(contributions: Parts, values: Tensor, reference_values: Tensor) -> None:
    """Raise where contributions do not add up to f(x) − f(x').

    Each call is complete to rounding, and roundings add up over calls and cancelling parts: tolerated is
    the third root of the unit in the last place (6e-6 in double, 5e-3 in single precision) of all that
    is added. What a call out of sight loses (a custom autograd.Function, a scripted block) is as a rule
    of the size of the contributions themselves. NaN is for the caller to find.
    """
    parts = [part.flatten(1) for part in contributions.values()]
    error = sum(part.sum(1) for part in parts) - (values - reference_values)
    scale = sum(part.abs().sum(1) for part in parts) + values.abs() + reference_values.abs()
    bad = error.abs() > torch.finfo(values.dtype).eps ** (1 / 3) * scale
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        advice = "" if values.dtype == torch.float64 else " Rounding may be the cause: try model.double()."
        gap = float(values[row] - reference_values[row])
        raise ArithmeticError(
            f"the contributions of row {row} of a batch should add up to f(x) − f(baseline) = {gap:.6g}; they miss it "
            f"by {float(error[row]):.3g}. Something ran out of sight (a custom autograd.Function, a scripted or "
            f"compiled block): run plain Python instead. Or samples depend on each other: use batch_size=1.{advice}"
        )


def _never(_: None) -> Tensor:
    raise AssertionError("no backward pass goes through the reference")
