"""A checked problem: features, labels and C, as every part of the solver reads them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualview.errors import NonFiniteError

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.int64]

BLOCK_ROWS = 1024
_REPORTED_ROWS = 10


@runtime_checkable
class Blocks(Protocol):
    """Coefficients "row cls", block by block: an array is one."""

    def __getitem__(self, rows: Any, /) -> Floats:
        """Return these rows, dense."""
        ...


@dataclass(frozen=True, eq=False)
class Problem:
    """Training rows with the labels that occur among them; "row" below is one whose loss counts.

    Attributes:
        features: "train unit" as given (any strides; half precision upcast to float32), not copied.
        rows: positions in `features` of the rows whose loss has a weight above zero.
        live: positions of the columns that are not all zero; the others cannot bear weight.
        largest: magnitude of the largest feature.
        classes: the labels that occur, ascending; "class" below means a position in here.
        targets: class of each row.
        weights: of each row's loss, as a factor of C.
        num_classes: columns of the solution, occurring or not.
        C: weight of the sum of losses.
    """

    features: Floats
    rows: Ints
    live: Ints
    largest: float
    classes: Ints
    targets: Ints
    weights: NDArray[np.float64]
    num_classes: int
    C: float

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def costs(self) -> NDArray[np.float64]:
        """C_i, the weight of each row's loss; made anew in each use."""
        return self.weights * self.C

    def at(self, C: float) -> Problem:
        """Return the problem with another C.

        Raises:
            ValueError: C is not a positive, finite number, or overflows float64.
        """
        if not (math.isfinite(C) and C > 0):
            raise ValueError(f"C must be a positive, finite number; got {C}")
        scaled = replace(self, C=float(C))
        if not scaled.fits(np.dtype(np.float64)):
            if scaled.costs.min() < 1e-240:
                raise ValueError(
                    f"C = {C} times the smallest weight is {scaled.costs.min():.3g}, too small for float64's products; "
                    "use larger ones, or zero for rows without a part"
                )
            raise ValueError(
                f"C = {C} and features of magnitude up to {self.largest:.3g} overflow float64 when multiplied; rescale "
                "them"
            )
        return scaled

    def fits(self, dtype: np.dtype[Any]) -> bool:
        """Say whether the solver's products stay far from where `dtype` over- or underflows."""
        limit = float(np.finfo(dtype).max) ** 0.8
        sq_norm = self.largest**2 * len(self.live) + 1 if self.largest < math.sqrt(limit) else math.inf
        return 1 / limit < self.costs.min() and max(1.0, float(self.costs.sum())) * sq_norm < limit

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Walk the rows in float64 with their live columns and the constant 1; a block lives until the next."""
        buffer = np.ones((BLOCK_ROWS, len(self.live) + 1))
        for rows in slices(len(self)):
            block = buffer[: rows.stop - rows.start]
            block[:, :-1] = self.features[self.rows[rows]].take(self.live, axis=1)
            yield rows, block

    def canonical_order(self) -> Ints:
        """Order the rows by class and content, so that the order in which they were given does not matter.

        Rows of one class with equal content keep their given order: they are interchangeable.
        """
        keys = np.empty(len(self), np.uint64)
        for rows in slices(len(self)):
            given = self.features[self.rows[rows]].take(self.live, axis=1)
            block = np.ascontiguousarray(given) + 0.0  # no negative zero
            words = block.view(np.uint32).astype(np.uint64)
            odd = np.random.default_rng(0).integers(1, 2**63, words.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
            mixed = (words + np.uint64(0x9E3779B97F4A7C15)) * odd
            keys[rows] = (mixed ^ (mixed >> np.uint64(29))).sum(axis=1)
        return np.lexsort((keys, self.costs, self.targets))


def pose(
    features: Any,
    labels: Any,
    *,
    C: float,
    num_classes: int | None = None,
    sample_weight: Any = None,
    class_weight: Any = None,
) -> Problem:
    """Check the arguments of a solver and gather them in a problem.

    Args:
        features: floating-point tensor or array, "train unit".
        labels: integer tensor or array, "train", of 0 .. num_classes - 1.
        C: weight of the sum of losses, positive.
        num_classes: columns of the solution; None: largest label plus one.
        sample_weight: factor of each row's loss, "train", not negative; None: 1.
        class_weight: factor of the losses of each class, "cls", not negative, or a mapping from some labels
            to theirs, or "balanced": rows / (classes × rows of the class), by weight; None: 1.

    Raises:
        NonFiniteError: features are NaN or infinite.
        ValueError: anything else is not as described.
    """
    values = _floating(features)
    targets = _integers(labels, len(values))
    largest = int(targets.max())
    num_classes = largest + 1 if num_classes is None else operator.index(num_classes)
    if targets.min() < 0 or largest >= num_classes:
        wrong = int(np.flatnonzero((targets < 0) | (targets >= num_classes))[0])
        raise ValueError(
            f"labels must lie in 0 .. num_classes - 1 = {num_classes - 1}; row {wrong} has label {targets[wrong]}"
        )
    weights = row_weights(targets, num_classes, sample_weight, class_weight)
    rows = np.flatnonzero(weights)
    classes, targets = np.unique(targets[rows], return_inverse=True)
    if len(classes) < 2:
        held = f"hold one class only ({classes[0]})" if len(classes) else "hold no class"
        counted = "" if len(rows) == len(values) else " among the rows of weights above zero"
        raise ValueError(f"labels {held}{counted}; a margin between classes needs rows of at least two")
    live, largest = _survey(values)
    targets = targets.astype(np.int64)
    return Problem(values, rows, live, largest, classes, targets, weights[rows], num_classes, C=1.0).at(C)


def row_weights(targets: Ints, num_classes: int, sample_weight: Any, class_weight: Any) -> NDArray[np.float64]:
    """Return the factor of C for each row; see `pose`."""
    weights = np.ones(len(targets))
    if sample_weight is not None:
        weights = _factors("sample_weight", sample_weight, len(targets), "row")
    if class_weight is None:
        return weights
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight must be 'balanced', one weight a class, or a mapping; got {class_weight!r}")
        masses = np.bincount(targets, weights, num_classes)
        present = masses > 0
        by_class = np.divide(masses.sum(), masses * present.sum(), where=present, out=np.zeros(num_classes))
    elif isinstance(class_weight, Mapping):
        named = cast("Mapping[int, float]", class_weight)
        unknown = [label for label in named if label not in range(num_classes)]
        if unknown:
            raise ValueError(f"class_weight names class {unknown[0]!r}; labels lie in 0 .. {num_classes - 1}")
        by_class = _factors("class_weight", [named.get(m, 1.0) for m in range(num_classes)], num_classes, "class")
    else:
        by_class = _factors("class_weight", class_weight, num_classes, "class")
    return weights * by_class[targets]


def _factors(name: str, given: Any, number: int, of: str) -> NDArray[np.float64]:
    values = np.asarray(given.detach().cpu().double() if isinstance(given, Tensor) else given, np.float64)
    if values.shape != (number,):
        raise ValueError(f"{name} must hold one weight for each {of}: {number}; got shape {values.shape}")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        wrong = int(np.flatnonzero(~(np.isfinite(values) & (values >= 0)))[0])
        raise ValueError(f"{name} must be finite and not negative; {of} {wrong} has {values[wrong]}")
    return values


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
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
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
    for rows in slices(len(values)):
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


def slices(num_rows: int) -> Iterator[slice]:
    """Cut so many rows into blocks."""
    for start in range(0, num_rows, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, num_rows))
