"""One line for an error: ours as it is, and one of the user's own code with its place and type."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import dualview

_OURS = Path(dualview.__file__).resolve().parent
_PYTHONS = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
_INSTALLED = {"site-packages", "dist-packages"}


def line_of(error: BaseException) -> str:
    """Return what is printed of an error of use."""
    place = place_of(error)
    if place is None:
        return str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{place}: {type(error).__name__}" + (f": {message}" if message else "")


def place_of(error: BaseException) -> str | None:
    """Return file and line in the user's own code where an error arose; None where it arose in this library.

    What other libraries raise belongs to the one that called them: the deepest frame that is the user's or ours.
    """
    if isinstance(error, SyntaxError) and error.filename is not None and _is_users(error.filename):
        return _written(error.filename, error.lineno)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_ours(frame.filename):
            return None
        if _is_users(frame.filename):
            return _written(frame.filename, frame.lineno)
    return None


def _is_ours(file: str) -> bool:
    return Path(file).resolve().is_relative_to(_OURS)


def _is_users(file: str) -> bool:
    path = Path(file).resolve()
    if file.startswith("<") or _INSTALLED & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (_OURS, *_PYTHONS))


def _written(file: str, line: int | None) -> str:
    path = Path(file).resolve()
    here = Path.cwd().resolve()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}, line {line}"
