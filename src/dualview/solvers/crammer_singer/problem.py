"""A checked problem: features, labels and C, as every part of the solver reads them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualview.errors import NonFiniteError

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.int64]

BLOCK_ROWS = 1024
_REPORTED_ROWS = 10


@dataclass(frozen=True, eq=False)
class Problem:
    """Training rows with the labels that occur among them.

    Attributes:
        features: "train unit" as given (any strides; half precision upcast to float32), not copied.
        live: positions of the columns that are not all zero; the others cannot bear weight.
        largest: magnitude of the largest feature.
        classes: the labels that occur, ascending; "class" below means a position in here.
        targets: class of each row.
        num_classes: columns of the solution, occurring or not.
        C: weight of the sum of losses.
    """

    features: Floats
    live: Ints
    largest: float
    classes: Ints
    targets: Ints
    num_classes: int
    C: float

    def __len__(self) -> int:
        return len(self.targets)

    def fits(self, dtype: np.dtype[Any]) -> bool:
        """Say whether the solver's products stay far from where `dtype` over- or underflows."""
        limit = float(np.finfo(dtype).max) ** 0.8
        sq_norm = self.largest**2 * len(self.live) + 1 if self.largest < math.sqrt(limit) else math.inf
        return 1 / limit < self.C and max(1.0, len(self) * self.C) * sq_norm < limit

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Walk the rows in float64 with their live columns and the constant 1; a block lives until the next."""
        buffer = np.ones((BLOCK_ROWS, len(self.live) + 1))
        for rows in _slices(len(self)):
            block = buffer[: rows.stop - rows.start]
            block[:, :-1] = self.features[rows].take(self.live, axis=1)
            yield rows, block

    def canonical_order(self) -> Ints:
        """Order the rows by class and content, so that the order in which they were given does not matter.

        Rows of one class with equal content keep their given order: they are interchangeable.
        """
        keys = np.empty(len(self), np.uint64)
        for rows in _slices(len(self)):
            block = np.ascontiguousarray(self.features[rows].take(self.live, axis=1)) + 0.0  # no negative zero
            words = block.view(np.uint32).astype(np.uint64)
            odd = np.random.default_rng(0).integers(1, 2**63, words.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
            mixed = (words + np.uint64(0x9E3779B97F4A7C15)) * odd
            keys[rows] = (mixed ^ (mixed >> np.uint64(29))).sum(axis=1)
        return np.lexsort((keys, self.targets))

    def padded(self, order: Ints, dtype: np.dtype[Any]) -> Floats:
        """Copy the rows in this order: live columns, the constant 1, and zeros up to whole vectors of `dtype`."""
        width = len(self.live) + 1
        vector = 64 // dtype.itemsize
        matrix = np.zeros((len(self), -(-width // vector) * vector), dtype)
        for rows in _slices(len(self)):
            matrix[rows, : width - 1] = self.features[order[rows]].take(self.live, axis=1)
        matrix[:, width - 1] = 1
        return matrix


def pose(features: Any, labels: Any, *, C: float, num_classes: int | None) -> Problem:
    """Check the arguments of a solver and gather them in a problem.

    Args:
        features: floating-point tensor or array, "train unit".
        labels: integer tensor or array, "train", of 0 .. num_classes - 1.
        C: weight of the sum of losses, positive.
        num_classes: columns of the solution; None: largest label plus one.

    Raises:
        NonFiniteError: features are NaN or infinite.
        ValueError: anything else is not as described.
    """
    values = _floating(features)
    if not (math.isfinite(C) and C > 0):
        raise ValueError(f"C must be a positive, finite number; got {C}")
    targets = _integers(labels, len(values))
    largest = int(targets.max())
    num_classes = largest + 1 if num_classes is None else operator.index(num_classes)
    if targets.min() < 0 or largest >= num_classes:
        wrong = int(np.flatnonzero((targets < 0) | (targets >= num_classes))[0])
        raise ValueError(
            f"labels must lie in 0 .. num_classes - 1 = {num_classes - 1}; row {wrong} has label {targets[wrong]}"
        )
    classes, targets = np.unique(targets, return_inverse=True)
    if len(classes) == 1:
        raise ValueError(
            f"labels hold one class only ({classes[0]}); a margin between classes needs rows of at least two"
        )
    live, largest = _survey(values)
    problem = Problem(values, live, largest, classes, targets.astype(np.int64), num_classes, C)
    if not problem.fits(np.dtype(np.float64)):
        raise ValueError(
            f"C = {C} and features of magnitude up to {largest:.3g} overflow float64 when multiplied; rescale them"
        )
    return problem


def _floating(features: Any) -> Floats:
    if isinstance(features, Tensor):
        features = features.detach().cpu()
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        features = features.numpy(force=True)
    values = np.asarray(features)
    if values.dtype.name == "float16":
        values = values.astype(np.float32)
    if values.dtype.name not in ("float32", "float64"):
        raise ValueError(f"features must be floating-point numbers; got {values.dtype}")
    if values.ndim != 2:
        raise ValueError(f"features must have the axes (train, unit); got shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"features are empty: shape {values.shape} (train, unit)")
    return values


def _integers(labels: Any, num_rows: int) -> Ints:
    targets = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if targets.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, the class of each row; got {targets.dtype}")
    if targets.shape != (num_rows,):
        raise ValueError(f"labels must hold one class for each of the {num_rows} rows; got shape {targets.shape}")
    return targets.astype(np.int64)


def _survey(values: Floats) -> tuple[Ints, float]:
    """Find the columns that are not all zero and the largest magnitude, and refuse NaN and infinity."""
    lowest, highest = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    bad: list[int] = []
    for rows in _slices(len(values)):
        low, high = values[rows].min(axis=0), values[rows].max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            bad.extend((rows.start + np.flatnonzero(~np.isfinite(values[rows]).all(axis=1))).tolist())
        np.minimum(lowest, low, out=lowest)
        np.maximum(highest, high, out=highest)
    if bad:
        named = ", ".join(map(str, bad[:_REPORTED_ROWS])) + (", ..." if len(bad) > _REPORTED_ROWS else "")
        raise NonFiniteError(
            f"features must be finite; {len(bad)} of {len(values)} rows hold NaN or infinity: {named}. "
            "Look at what the model makes of these samples, or leave them out",
            tuple(bad[:_REPORTED_ROWS]),
        )
    return np.flatnonzero((lowest < 0) | (highest > 0)), float(max(-lowest.min(), highest.max()))


def _slices(num_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, num_rows))
