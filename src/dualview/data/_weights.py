"""Weights of samples and of classes, in the form in which a frozen method holds them: tuples of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any


def sample_weights(given: Any) -> tuple[float, ...] | None:
    """Return one weight per training sample.

    Args:
        given: a sequence, array or tensor "train", or None.

    Raises:
        ValueError: a weight is no number, negative or not finite.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        raise ValueError(
            "`sample_weight` must hold one weight for each training sample, in their order; it is a mapping"
        )
    return tuple(
        _weight("sample_weight", value, f"sample {place}")
        for place, value in enumerate(_listed("sample_weight", given))
    )


def class_weights(given: Any) -> str | tuple[float, ...] | tuple[tuple[int, float], ...] | None:
    """Return the weights of classes: "balanced", one for each output column, or (column, weight) pairs by column.

    Args:
        given: "balanced", a sequence "cls", a mapping from some output columns to their weights, its pairs, or None.

    Raises:
        ValueError: anything else.
    """
    if given is None or isinstance(given, str):
        if given not in (None, "balanced"):
            raise ValueError(
                '`class_weight` must be "balanced", a weight for each output column, or a mapping from columns to '
                f"weights; it is {given!r}"
            )
        return given
    entries = list(given.items()) if isinstance(given, Mapping) else _listed("class_weight", given)
    if not entries:
        return None
    if not any(isinstance(entry, (tuple, list)) for entry in entries):
        return tuple(_weight("class_weight", value, f"class {column}") for column, value in enumerate(entries))
    pairs: dict[int, float] = {}
    for entry in entries:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise ValueError(
                f"`class_weight` must hold weights, or pairs of a column and its weight; it holds {entry!r}"
            )
        column, value = entry
        if isinstance(column, bool) or not isinstance(column, Integral) or column < 0:
            raise ValueError(f"`class_weight` maps output columns, 0, 1, ..., to weights; it names {column!r}")
        if column in pairs:
            raise ValueError(f"`class_weight` gives class {column} two weights")
        pairs[int(column)] = _weight("class_weight", value, f"class {column}")
    return tuple(sorted(pairs.items()))


def _listed(name: str, given: Any) -> list[Any]:
    listed = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(listed, Iterable):
        raise ValueError(f"`{name}` must hold several weights; it is the one number {listed!r}")
    return list(listed)


def _weight(name: str, value: Any, of: str) -> float:
    value = value.item() if hasattr(value, "item") else value  # of numpy or torch
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and float(value) >= 0):
        raise ValueError(f"`{name}` must hold finite numbers of at least 0; that of {of} is {value!r}")
    return float(value)
