"""One torch call of the forward pass, and the table that finds its handler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dualview.engine.propagation.account import Place
from dualview.engine.propagation.tape import Tape, is_tracked, tensors_of

OWNERS = (torch, Tensor, F)


@dataclass(frozen=True, eq=False)
class Call:
    """A call in which something depends on the input.

    Attributes:
        place: where it stands.
        function: the torch function, in the form that changes nothing in place.
        spellings: every form of that function, as a user may name it.
        args: its arguments; weights among them are detached.
        kwargs: its keyword arguments.
        tape: the running pass.
    """

    place: Place
    function: Callable[..., Any]
    spellings: tuple[Callable, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tape: Tape

    def run(self) -> Any:
        """Run the function as torch does."""
        return self.function(*self.args, **self.kwargs)

    def bind(self, names: str, **defaults: Any) -> dict[str, Any]:
        """Return the arguments by name, given the names of the positional ones."""
        return {**defaults, **dict(zip(names.split(), self.args, strict=False)), **self.kwargs}

    def as_call(self, function: Callable[..., Any], *args: Any) -> Call:
        """Return another call that stands for this one."""
        return Call(self.place, function, self.spellings, args, {}, self.tape)

    def needs_one(self, what: str, tensor: Any) -> None:
        """Raise unless `tensor` alone depends on the input."""
        tracked = [t for t in tensors_of((self.args, self.kwargs)) if is_tracked(t)]
        if len(tracked) != 1 or tracked[0] is not tensor:
            raise self.refusal(f"its {what} may depend on the input, and nothing else")

    def refusal(self, reason: str) -> NotImplementedError:
        """Return the error for a call that no rule covers."""
        return NotImplementedError(f"no relevance rule for {self.place}: {reason}")


Handler = Callable[[Any], Any]
"""What runs instead of a call, e.g. given a `Call`."""


class Operation(NamedTuple):
    """What the mode does when it sees a function.

    Attributes:
        name: the function's name without a trailing underscore.
        function: the form that changes nothing in place.
        spellings: every form of it.
        handler: what runs instead.
        in_place: whether the form that was called writes into its first argument.
    """

    name: str
    function: Callable[..., Any]
    spellings: tuple[Callable, ...]
    handler: Handler
    in_place: bool


def table(
    handler: Handler, names: str, owners: Iterable[Any] = OWNERS, *, in_place: bool = False
) -> dict[Any, Operation]:
    """Return the operations of these names, in every spelling: function, method, in place or not.

    Args:
        handler: what runs instead.
        names: the functions' names.
        owners: where to look for them; names that this version of torch lacks are left out.
        in_place: whether these names write into their first argument as they stand.
    """
    found: dict[Any, Operation] = {}
    for name in names.split():
        found_in = [owner for owner in owners if callable(getattr(owner, name, None))]  # torch.double is no function
        spellings = tuple(
            getattr(owner, spelt) for owner in found_in for spelt in (name, name + "_") if hasattr(owner, spelt)
        )
        for owner in found_in:
            plain = getattr(owner, name)
            found[plain] = Operation(name, plain, spellings, handler, in_place)
            if hasattr(owner, name + "_"):
                found[getattr(owner, name + "_")] = Operation(name, plain, spellings, handler, True)
    return found


def properties(handler: Handler, names: str) -> dict[Any, Operation]:
    """Return the operations that stand behind these tensor properties."""
    getters = {name: getattr(Tensor, name).__get__ for name in names.split()}
    return {getter: Operation(name, getter, (getter,), handler, False) for name, getter in getters.items()}


def merged(*tables: Mapping[Any, Operation]) -> dict[Any, Operation]:
    """Join tables; an operation has one handler."""
    found: dict[Any, Operation] = {}
    for part in tables:
        twice = found.keys() & part.keys()
        if twice:
            raise KeyError(f"operations with two handlers: {twice}")
        found.update(part)
    return found
