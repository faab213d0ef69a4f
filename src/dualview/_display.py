"""Which function shows which type: `plotting` registers here, results only look here."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

_SHOWN: dict[type, Callable[..., Any]] = {}


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
