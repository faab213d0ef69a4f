"""Which module is running, and what passes the sites that someone wants to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dualview.engine.propagation.account import Place
from dualview.engine.propagation.audit import check_made_by_rules
from dualview.engine.propagation.tape import Tape, is_tracked, tensors_of
from dualview.engine.site import Site, module_at


class Passed(NamedTuple):
    """What passed a site.

    Attributes:
        values: the activation then; later in-place changes do not show.
        edge: where its modified gradient arrives.
        shadow_edge: where relevance written by terminal rules arrives; None where there is no shadow.
    """

    values: Tensor
    edge: GradientEdge
    shadow_edge: GradientEdge | None


class Running:
    """Follow which module of a model is running."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = [model]

    def place(self, operation: str) -> Place:
        """Return where an operation stands that runs now."""
        module = self._running[-1]
        return Place(operation, self._names[module], type(module).__name__)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Hang hooks on every module; they are always removed."""
        handles = []
        try:
            for module in self._names:
                handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _args: tuple[Any, ...]) -> None:
        self._running.append(module)

    def _leave(self, module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        self._running.pop()
        return output


class Whereabouts(Running):
    """Follow a model's modules during a forward pass, and what passes the sites that are wanted."""

    def __init__(self, model: nn.Module, sites: tuple[Site, ...], tape: Tape) -> None:
        super().__init__(model)
        self._tape = tape
        self._wanted: dict[tuple[nn.Module, str], set[int]] = {}
        self._counts: dict[tuple[nn.Module, str], int] = {}
        self._found: dict[tuple[nn.Module, str, int], Passed] = {}
        self._views: dict[tuple[nn.Module, str, int], tuple[Tensor, int]] = {}
        self._copies: list[tuple[Tensor, Tensor, int]] = []
        self._sites = {site: (module_at(model, site.module), site.side, site.call) for site in sites}
        for module, side, call in self._sites.values():
            self._wanted.setdefault((module, side), set()).add(call)

    def passed(self, site: Site) -> Passed:
        """Return what passed a site in the forward pass."""
        key = self._sites[site]
        if key in self._found:
            return self._found[key]
        calls = self._counts.get(key[:2], 0)
        times = f"called {calls} times" if calls else "not called"
        raise ValueError(f"site {tuple(site)}: module {site.module!r} was {times} in the forward pass")

    def settled(self) -> None:
        """Raise where a site's value was a view that was written to afterwards: its history was rewritten."""
        for site, (module, side, call) in self._sites.items():
            tensor, version = self._views.get((module, side, call), (None, 0))
            if tensor is not None and tensor._version != version:
                raise NotImplementedError(
                    f"site {tuple(site)} is a view that was changed in place later; read the module before or after it"
                )

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Hang hooks on every module; they are always removed."""
        with super().followed(), ExitStack() as hooks:
            for module, side in self._wanted:
                if side == "input":
                    hooks.callback(module.register_forward_pre_hook(self._see_input, with_kwargs=True).remove)
            yield

    def _leave(self, module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        made = [tensor for tensor in tensors_of(output) if is_tracked(tensor)]
        for tensor in made:
            check_made_by_rules(tensor, self._tape, f"inside module {self._names[module]!r} ({type(module).__name__})")
        if (module, "input") in self._wanted:
            output = self._give_back(output)
        if (module, "output") in self._wanted:
            self._note(module, "output", list(tensors_of(output)))
        return super()._leave(module, _args, output)

    def _see_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Hand the module a copy, so that only its own use of the input counts."""
        tensors = list(tensors_of((args, kwargs)))
        if len(tensors) != 1:
            raise _not_one(module, "input", len(tensors))
        copy = tensors[0].clone()
        self._note(module, "input", [copy])
        self._copies.append((tensors[0], copy, copy._version))

        def swap(value: Any) -> Any:
            return copy if value is tensors[0] else value

        return tuple(map(swap, args)), {name: swap(value) for name, value in kwargs.items()}

    def _give_back(self, output: Any) -> Any:
        """Write the copy back to where it came from if the module changed it, since others may look there."""
        original, copy, version = self._copies.pop()
        if copy._version == version:
            return output
        original.copy_(copy)
        return original if output is copy else output

    def _note(self, module: nn.Module, side: str, tensors: list[Tensor]) -> None:
        call = self._counts.get((module, side), 0)
        self._counts[module, side] = call + 1
        if call not in self._wanted[module, side]:
            return
        if len(tensors) != 1:
            raise _not_one(module, side, len(tensors))
        tensor, shadow = tensors[0], self._tape.shadows.of(tensors[0])
        if not is_tracked(tensor):
            raise ValueError(f"the {side} of a {type(module).__name__} to be read does not depend on the inputs")
        self._tape.noted[tensor.grad_fn] = Site(self._names[module], side, call)  # type: ignore[arg-type]
        shadow_edge = None if shadow is None else get_gradient_edge(shadow)
        with self._tape.in_sight(), torch._C.DisableTorchFunction():  # looking is no operation of the model
            values = tensor.detach().clone()
        self._found[module, side, call] = Passed(values, get_gradient_edge(tensor), shadow_edge)
        if tensor._is_view():
            self._views[module, side, call] = (tensor, tensor._version)


def _not_one(module: nn.Module, side: str, count: int) -> ValueError:
    return ValueError(f"the {side} of a {type(module).__name__} holds {count} tensors; a site needs one")
