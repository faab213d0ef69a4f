"""The one way to point inside a model: a module, its input or its output, and which of its calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from torch import Tensor, nn


class Site(NamedTuple):
    """A place inside a model.

    Attributes:
        module: the module's name as in `model.named_modules()`; the empty name is the model itself.
        side: whether its input or its output is meant.
        call: which of the module's calls during one forward pass, counted from 0.
    """

    module: str
    side: Literal["input", "output"]
    call: int = 0


class Watched:
    """What passed a site during the forward passes inside `watch`: one tensor a call."""

    def __init__(self) -> None:
        self.calls: list[Tensor] = []

    def take(self, site: Site) -> Tensor:
        """Return the tensor that passed the site in the last forward pass, and forget the pass."""
        calls, self.calls = self.calls, []
        if not calls:
            raise ValueError(f"module {site.module!r} was not called during the forward pass")
        if site.call >= len(calls):
            raise ValueError(f"module {site.module!r} was called {len(calls)} times; call {site.call} does not exist")
        return calls[site.call]


@contextmanager
def watch(model: nn.Module, site: Site) -> Iterator[Watched]:
    """Collect what passes `site` while the context is open; the hook is always removed."""
    module = module_at(model, site.module)
    watched = Watched()

    def see_input(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        watched.calls.append(_only_tensor([*args, *kwargs.values()], site).clone())  # in-place ops may follow

    def see_output(_module: nn.Module, _args: tuple, output: object) -> None:
        watched.calls.append(_only_tensor([output], site).clone())

    if site.side == "input":
        handle = module.register_forward_pre_hook(see_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(see_output)
    try:
        yield watched
    finally:
        handle.remove()


def module_at(model: nn.Module, name: str) -> nn.Module:
    """Return the module of this name; where there is none, the error lists the linear layers."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"readout={name!r} is not a module of {type(model).__name__}. {describe_linears(model)}"
        ) from None


def describe_linears(model: nn.Module) -> str:
    """Return one sentence that names the model's linear layers with their widths."""
    linears = [
        f"{name!r} ({module.in_features} → {module.out_features})"
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear)
    ]
    return f"Linear layers are: {', '.join(linears)}." if linears else "It has no linear layer (torch.nn.Linear)."


def _only_tensor(values: list, site: Site) -> Tensor:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) != 1:
        raise ValueError(f"the {site.side} of module {site.module!r} holds {len(tensors)} tensors; a site needs one")
    return tensors[0]
