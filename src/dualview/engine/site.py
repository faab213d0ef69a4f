"""The one way to point inside a model: a module, its input or its output, and which of its calls."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

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


def as_site(model: nn.Module, site: Site | str) -> Site:
    """Accept a place inside a model: a `Site`, or a module's name for the output of its first call.

    Raises:
        ValueError: there is no such module (the error lists near names), or calls are not counted from 0.
    """
    found = Site(site, "output") if isinstance(site, str) else site
    if not isinstance(found, Site) or found.side not in ("input", "output"):
        raise TypeError(f"`site` must be a module's name or a Site such as Site('layer4', 'output'); it is {site!r}")
    if found.call < 0:
        raise ValueError(f"`site` has call={found.call}; a module's calls are counted from 0")
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    if found.module not in names:
        near = difflib.get_close_matches(found.module, names, n=5, cutoff=0.4) or [name for name in names if name][:10]
        listed = ", ".join(map(repr, near)) or "none: the model has no submodules"
        raise ValueError(f"`site` {found.module!r} is not a module of {type(model).__name__}. Near names: {listed}")
    return found


@contextmanager
def intercepted(model: nn.Module, act: dict[Site, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Let the tensor at each site pass through a function, which may look at it or put another in its place.

    Raises:
        ValueError: a site was not reached in the one forward pass inside, or holds not exactly one tensor of
            floating-point numbers.
    """
    calls = dict.fromkeys(act, 0)

    def passed(site: Site, value: Any) -> Any:
        calls[site] += 1
        if calls[site] != site.call + 1:
            return value
        tensor = _only_tensor(_listed(value), site)
        if not tensor.is_floating_point():
            raise ValueError(
                f"the {site.side} of module {site.module!r} holds {tensor.dtype}; a site needs floating-point numbers: "
                "of an embedding take the output"
            )
        return _replaced(value, tensor, act[site])

    def at_input(site: Site) -> Callable[..., Any]:
        return lambda _module, args, kwargs: passed(site, (args, kwargs))

    def at_output(site: Site) -> Callable[..., Any]:
        return lambda _module, _args, output: passed(site, output)

    with ExitStack() as hooks:
        for site in act:
            module = model.get_submodule(site.module)
            if site.side == "input":
                hooks.callback(module.register_forward_pre_hook(at_input(site), with_kwargs=True).remove)
            else:
                hooks.callback(module.register_forward_hook(at_output(site)).remove)
        yield
    for site, count in calls.items():
        if count <= site.call:
            raise ValueError(f"module {site.module!r} was called {count} times; call {site.call} does not exist")


def _listed(value: Any) -> list:
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in _listed(part)]
    named = value if isinstance(value, dict) else _fields(value)
    return [leaf for part in named.values() for leaf in _listed(part)] if named else [value]


def _replaced(value: Any, tensor: Tensor, act: Callable[[Tensor], Tensor]) -> Any:
    """Return the value with this one tensor of it replaced, keeping its structure."""
    if value is tensor:
        return act(tensor)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_replaced(part, tensor, act) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(part, tensor, act) for part in value)
    if isinstance(value, dict):  # transformers' outputs are mappings that rebuild themselves from one
        return type(value)({key: _replaced(part, tensor, act) for key, part in value.items()})
    if _fields(value):
        return dataclasses.replace(value, **{key: _replaced(part, tensor, act) for key, part in _fields(value).items()})
    return value


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance; of anything else none."""
    return vars(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else {}


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
        raise ValueError(
            f"the {site.side} of module {site.module!r} holds {len(tensors)} tensors; a site needs one: take its other "
            "side, or a module inside or behind it"
        )
    return tensors[0]
