"""Checking the numbers that a method is given."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def positive(value: Any, name: str, *, or_zero: bool = False) -> float:
    """Return a field as a float.

    Raises:
        ValueError: it is no finite number above zero, or no number that is not negative.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if 0 < number < math.inf or (or_zero and number == 0):
        return number
    expected = "zero or a positive number" if or_zero else "a positive number"
    raise ValueError(f"`{name}` must be {expected}; it is {value!r}")


def whole(value: Any, name: str, least: int) -> int:
    """Return a field as a whole number.

    Raises:
        ValueError: it is none, or smaller than `least`.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise ValueError(f"`{name}` must be a whole number, {least} or larger; it is {value!r}")
