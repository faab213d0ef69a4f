"""Checking the numbers that a method is given."""

from __future__ import annotations

import math
from numbers import Real
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
