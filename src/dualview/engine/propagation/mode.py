"""The function mode that puts a rule behind every torch call of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from dualview.engine.propagation import activations, arithmetic, joins, shapes, weighted
from dualview.engine.propagation.account import Place
from dualview.engine.propagation.audit import check_made_by_rules
from dualview.engine.propagation.calls import Call, Operation, merged
from dualview.engine.propagation.free import FREE
from dualview.engine.propagation.tape import Tape, is_tracked, nodes_of, tensors_of
from dualview.engine.propagation.whereabouts import Whereabouts

OPERATIONS = merged(
    activations.OPERATIONS, arithmetic.OPERATIONS, joins.OPERATIONS, shapes.OPERATIONS, weighted.OPERATIONS
)


class RelevanceMode(TorchFunctionMode):
    """Run every torch call on what depends on the input by its rule; refuse calls without one.

    Args:
        tape: what the pass leaves.
        whereabouts: knows which module is running.
        state: ids of the model's own parameters and buffers, which must not be written to.
    """

    def __init__(self, tape: Tape, whereabouts: Whereabouts, state: dict[int, str]) -> None:
        super().__init__()
        self._tape, self._whereabouts, self._state = tape, whereabouts, state

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one call."""
        with self._tape.in_sight():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in FREE:
            return func(*args, **kwargs)
        if func is Tensor.register_hook and is_tracked(args[0]):
            return _hooked(*args, **kwargs)
        tensors = list(tensors_of((args, kwargs)))
        tracked = [tensor for tensor in tensors if is_tracked(tensor)]
        self._check_constants(func, tensors)
        if not tracked:
            if not any(tensor.requires_grad for tensor in tensors):
                return func(*args, **kwargs)
            with torch.no_grad():  # weights alone: what comes out is a constant
                return func(*args, **kwargs)
        operation = OPERATIONS.get(func)
        place = self._whereabouts.place(operation.name if operation else name_of(func))
        if operation is None:
            raise NotImplementedError(f"no relevance rule for {place}{_hint(place.operation)}")
        self._check(operation, place, tracked, kwargs)
        before = nodes_of(tracked)
        in_place = operation.in_place or bool(kwargs.get("inplace"))
        if in_place:
            result = self._write(operation, place, args, kwargs)
        else:
            call = self._call(operation, place, args, kwargs)
            result = operation.handler(call)
        self._tape.made(place, result, before)
        self._tape.follow_samples(tracked, result, place)
        for made in tensors_of(result):
            _check_precision(made, place)
        return result

    def _check_constants(self, func: Callable[..., Any], tensors: list[Tensor]) -> None:
        """Refuse what came by its values, but not by operations, from what depends on the input."""
        if any(is_functorch_wrapped_tensor(tensor) for tensor in tensors):
            place = self._whereabouts.place(name_of(func))
            raise NotImplementedError(f"no relevance rule for {place} under a transform of torch.func: write it out")
        if any(not is_tracked(tensor) and self._tape.depends_on_input(tensor) for tensor in tensors):
            place = self._whereabouts.place(name_of(func))
            raise NotImplementedError(
                f"no relevance rule for {place}: an argument holds values that depend on the input, but "
                "was cut off from it (nn.Parameter(x), a round trip through another library?)"
            )

    def _call(self, operation: Operation, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        args, kwargs = (without_weights(value) for value in (args, kwargs))
        return Call(place, operation.function, operation.spellings, args, kwargs, self._tape)

    def _check(self, operation: Operation, place: Place, tracked: list[Tensor], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            raise NotImplementedError(
                f"no relevance rule for {place}: it runs without gradient, in a torch.no_grad() block or in the "
                "forward of a custom autograd.Function"
            )
        if torch.is_autocast_enabled(tracked[0].device.type):
            raise TypeError(
                f"{place} runs under autocast; relevance needs float32 or float64: switch it off for this call"
            )
        if kwargs.get("out") is not None:
            raise NotImplementedError(f"no relevance rule for {place} with out=: use its result instead")
        for tensor in tracked:
            check_made_by_rules(tensor, self._tape, f"before {place}")
            _check_precision(tensor, place)

    def _write(self, operation: Operation, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the call on a copy of its first argument, and write the result there: aliases see it too."""
        target, kwargs = args[0], {key: value for key, value in kwargs.items() if key != "inplace"}
        owner = target if target._base is None else target._base
        if id(owner) in self._state:
            raise NotImplementedError(f"{place} writes what depends on the input into {self._state[id(owner)]!r}")
        self._tape.before_writing(target)
        before = target.clone()
        shadows = self._tape.shadows
        shadows.cast(before, shadows.of(target) if is_tracked(target) else None)
        result = operation.handler(self._call(operation, place, (before, *args[1:]), kwargs))
        if result.shape != target.shape:
            shapes_ = f"{tuple(target.shape)} to {tuple(result.shape)}"
            raise NotImplementedError(f"no relevance rule for {place}: it changes a shape in place, {shapes_}")
        if target._base is not None and not is_tracked(target) and is_tracked(result):
            # What stands beside the part that is written is a constant.
            base = target._base
            base.copy_(self._tape.constant(base.detach().clone(), place))
            _ = target.grad_fn  # asked for, autograd makes the view's history anew
        target.copy_(result)
        shadows.cast(target, shadows.of(result))
        return target


class OutOfSight(TorchDispatchMode):
    """Notice kernels that read what depends on the input outside any call that the function mode saw.

    Scripted functions, compiled blocks and extensions call torch's kernels directly. Where their result
    stays in the autograd graph the audit names them better; where they cut it off, only this tells.
    What other threads run, nobody sees.

    Attributes:
        noticed: the first such kernel and where it ran; None if there was none.
    """

    def __init__(self, tape: Tape, whereabouts: Whereabouts) -> None:
        super().__init__()
        self._tape, self._whereabouts = tape, whereabouts
        self.noticed: Place | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one kernel."""
        with torch._C.DisableTorchFunction():  # looking is no operation of the model; nor is the kernel, once more
            if self.noticed is None and not self._tape.is_in_sight:
                if any(map(self._tape.depends_on_input, tensors_of((args, kwargs or {})))):
                    self.noticed = self._whereabouts.place(str(func))
            return func(*args, **(kwargs or {}))

    def check(self) -> None:
        """Raise if there was one."""
        if self.noticed is not None:
            raise NotImplementedError(
                f"no relevance rule for {self.noticed}: it ran out of sight (a scripted or compiled block, or an "
                "extension): run plain Python instead"
            )


def without_weights(value: Any) -> Any:
    """Detach leaves that ask for gradients, in nested arguments: they are constants here."""
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad and value.grad_fn is None else value
    if isinstance(value, (tuple, list)):
        return type(value)(without_weights(part) for part in value)
    if isinstance(value, dict):
        return {key: without_weights(part) for key, part in value.items()}
    return value


def name_of(func: Callable[..., Any]) -> str:
    """Return what a user would call a torch function, or the property behind a getter."""
    name = getattr(func, "__name__", repr(func))
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", name) if name in ("__get__", "__set__") else name


def _hooked(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Register a hook that may look at what passes backwards, but not put something else in its place."""

    def look(gradient: Tensor) -> None:
        if hook(gradient) is not None:
            raise NotImplementedError(
                "a tensor hook (register_hook) returns another gradient, and would change relevance as it changes "
                "gradients: remove it for this call"
            )

    return tensor.register_hook(look)


def _check_precision(tensor: Tensor, place: Place) -> None:
    if is_tracked(tensor) and tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"relevance needs float32 or float64; {place} has {str(tensor.dtype).removeprefix('torch.')}: "
            "convert model and inputs with .float()"
        )


def _hint(operation: str) -> str:
    if operation in ("detach", "data", "numpy", "item", "tolist", "__array__", "__float__", "__int__", "__bool__"):
        return (
            ": it cuts the value off from the input, so that relevance would end here. If a forward hook does it only "
            "to look, remove the hook for this call"
        )
    return ": known are linear operations, pooling, rearranging, sums, products with constants and activation functions"
