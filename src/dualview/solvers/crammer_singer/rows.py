"""The rows of a problem as the solver's arithmetic reads them, in an order of its own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from dualview.solvers.crammer_singer.problem import Blocks, Floats, Ints, Problem, slices


class Rows:
    """Rows phi_i = [live columns of the features, 1], with their classes and costs.

    They stand in a random order that the content of the rows and the seed decide, not the order in which they
    were given. By default they are one copy, padded to whole vectors; `low_memory` gathers them from the
    features in each use instead.

    Args:
        problem: rows, targets and costs.
        dtype: precision of the copy.
        seed: decides the order.
        low_memory: make no copy.

    Attributes:
        problem: what they are the rows of.
        matrix: "row width" the copy, or the features as given.
        order: positions in `matrix` of the rows where it is no copy.
        live: columns of `matrix` that bear a row where it is no copy; else empty.
        targets: "row" class.
        costs: "row" C_i, float64.
        sq_norms: "row" |phi_i|², float64.
        width: entries of a row, the constant and the padding included.
        random: the generator, for further orders.
    """

    def __init__(self, problem: Problem, *, dtype: np.dtype[Any], seed: int, low_memory: bool = False) -> None:
        self.random = np.random.default_rng(seed)
        self._shuffled = problem.canonical_order()[self.random.permutation(len(problem))]
        self.problem = problem
        self.targets = problem.targets[self._shuffled]
        self.costs = problem.costs[self._shuffled]
        num_live = len(problem.live)
        if low_memory and num_live and problem.features.dtype == dtype:
            self.matrix, self.order, self.live = problem.features, problem.rows[self._shuffled], problem.live
            self.width = num_live + 1
        else:
            vector = 64 // dtype.itemsize
            self.width = -(-(num_live + 1) // vector) * vector
            self.order = self.live = np.zeros(0, np.int64)
            self.matrix = np.zeros((len(problem), self.width), dtype)
            for rows in slices(len(problem)):
                given = problem.rows[self._shuffled[rows]]
                self.matrix[rows, :num_live] = problem.features[given].take(problem.live, axis=1)
            self.matrix[:, num_live] = 1
        self.sq_norms = np.empty(len(problem))
        for rows in slices(len(problem)):
            block = self[rows]
            self.sq_norms[rows] = np.einsum("ij,ij->i", block, block, dtype=np.float64)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: slice | Ints) -> Floats:
        """Return these rows, "row width"; a view where it can be one."""
        if not len(self.live):
            return self.matrix[rows]
        given = self.matrix[self.order[rows]].take(self.live, axis=1)
        return np.concatenate([given, np.ones((len(given), 1), given.dtype)], axis=1)

    def at(self, C: float) -> Rows:
        """Return the same rows with another C; the copy is shared."""
        other = copy.copy(self)
        other.problem = self.problem.at(C)
        other.costs = other.problem.costs[self._shuffled]
        return other

    @property
    def num_classes(self) -> int:
        """How many classes occur."""
        return len(self.problem.classes)

    @property
    def scale(self) -> float:
        """Mean of C_i |phi_i|²: how far one row's coefficients reach; small problems are far below 1."""
        return float(self.costs @ self.sq_norms) / len(self)

    def given(self, ordered: Blocks) -> Blocks:
        """See an array over the rows in the problem's order."""
        inverse = np.empty_like(self._shuffled)
        inverse[self._shuffled] = np.arange(len(self))
        return _Reordered(ordered, inverse)


class _Reordered:
    """The same rows in another order, gathered when they are asked for."""

    def __init__(self, blocks: Blocks, order: Ints) -> None:
        self._blocks, self._order = blocks, order

    def __getitem__(self, rows: slice) -> Floats:
        return self._blocks[self._order[rows]]
