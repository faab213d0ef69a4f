"""One pass of the model that keeps what planned layers saw and made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualview.engine.batches import Inputs, map_tensors
from dualview.engine.isolation import untouched


class Call(NamedTuple):
    """One call of a layer: what went in, what came out, and the version of that at the time."""

    inputs: Tensor
    outputs: Tensor
    version: int

    @property
    def overwritten(self) -> bool:
        """Whether an in-place operation has changed the output since."""
        return self.version != self.outputs._version


Calls = dict[str, list[Call]]
Deltas = dict[str, list[Tensor]]


@contextmanager
def differentiable(model: nn.Module, parameters: Collection[Tensor] = ()) -> Iterator[None]:
    """Run under autograd with respect to these parameters alone, in evaluation mode; put everything back after."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = {id(parameter) for parameter in parameters}
    fused = torch.backends.mha.get_fastpath_enabled()
    with untouched(model), torch.enable_grad():
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # it is taken without gradients, and goes past the layers
            for parameter, _ in required:
                parameter.requires_grad_(id(parameter) in chosen)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for parameter, requires_grad in required:
                parameter.requires_grad_(requires_grad)


@contextmanager
def tapped(model: nn.Module, layers: Mapping[str, bool]) -> Iterator[Calls]:
    """Collect the calls of these layers while the context is open, and make their outputs differentiable.

    Args:
        model: the user's model.
        layers: name of the module → whether to hand on a copy, because the output is overwritten afterwards.
    """
    calls: Calls = {name: [] for name in layers}

    def listen(name: str, copied: bool) -> Callable[..., Tensor]:
        def keep(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Tensor) -> Tensor:
            inputs: Tensor = (*args, *kwargs.values())[0]
            if torch.is_grad_enabled() and not outputs.requires_grad:
                outputs.requires_grad_()
            calls[name].append(Call(inputs, outputs, outputs._version))
            return outputs.clone() if copied else outputs

        return keep

    handles = [  # first of the hooks: what another one makes of the output comes after the layer
        model.get_submodule(name).register_forward_hook(listen(name, copied), with_kwargs=True, prepend=True)
        for name, copied in layers.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def deltas_of(
    logits: Float[Tensor, "row cls"],
    directions: Float[Tensor, "row cls"],
    calls: Calls,
    unused: Mapping[str, Tensor] | None = None,
) -> Deltas:
    """Return the gradient of each row's ⟨directions, logits⟩ with respect to the output of each call.

    Raises:
        ValueError: a parameter has a gradient that was taken for `unused`.
    """
    unused = unused or {}
    made = [call.outputs for layer in calls.values() for call in layer]
    if not (made or unused) or not logits.requires_grad:
        return {name: [torch.zeros_like(call.outputs) for call in layer] for name, layer in calls.items()}
    wanted = [*made, *unused.values()]
    found = iter(torch.autograd.grad(logits, wanted, directions, materialize_grads=True, allow_unused=True))
    deltas = {name: [next(found) for _ in layer] for name, layer in calls.items()}
    for name, gradient in zip(unused, found, strict=True):
        if bool(gradient.any()):
            raise ValueError(
                f"the logits depend on {name!r} for some of these samples, and did not for the first ones, by which "
                "the recording was planned: put such samples first, or leave it out with parameters="
            )
    return deltas


def fresh(inputs: Inputs) -> Inputs:
    """Return a copy: a model may overwrite what it is given, and autograd takes no inference tensors."""
    return map_tensors(torch.clone, inputs)


def upcast(tensor: Tensor) -> Tensor:
    """Return half precision as float32, and anything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
