"""How settings are written, and which function shows which type: `plotting` registers here, results only look."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

_SHOWN: dict[type, Callable[..., Any]] = {}


def brief(value: Any) -> str:
    """Write a dataclass as Python would, but only the fields that differ from their defaults."""
    fields = [field for field in dataclasses.fields(value) if field.init]
    own = {field.name: getattr(value, field.name) for field in fields}
    missing = dataclasses.MISSING
    needed = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    usual = type(value)(**{name: own[name] for name in needed})  # as its own __post_init__ writes them
    shown = [name for name in own if name in needed or own[name] != getattr(usual, name)]
    return f"{type(value).__name__}({', '.join(f'{name}={own[name]!r}' for name in shown)})"


def shows(*types: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the way to show these types."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for kind in types:
            _SHOWN[kind] = function
        return function

    return register


def shower(result: Any) -> Callable[..., Any]:
    """Return the function that shows this result.

    Raises:
        TypeError: nothing shows its type.
    """
    for kind in type(result).__mro__:
        if kind in _SHOWN:
            return _SHOWN[kind]
    known = ", ".join(sorted(kind.__name__ for kind in _SHOWN))
    raise TypeError(f"nothing draws a {type(result).__name__}; known are {known}")


def png(result: Any) -> bytes | None:
    """Draw a result for a notebook; None where nothing draws its type, as `dualview.plot` was not imported."""
    try:
        draw = shower(result)
    except TypeError:
        return None
    buffer = io.BytesIO()
    draw(result).savefig(buffer, format="png")
    return buffer.getvalue()
