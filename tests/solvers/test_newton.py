"""The proximal Newton method: the optimum of every small problem, and the same one as row by row."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from dualview.errors import GapWarning
from dualview.solvers import crammer_singer
from dualview.solvers.crammer_singer import regimes, simplex
from dualview.solvers.crammer_singer.certificate import certify
from dualview.solvers.crammer_singer.newton import ProximalNewton
from dualview.solvers.crammer_singer.problem import pose
from dualview.solvers.crammer_singer.rows import Rows
from dualview.solvers.crammer_singer.sequential import Patience, SequentialAscent

FLOAT64 = np.dtype(np.float64)
ENDLESS = Patience(99, dual=0.0, gap=1.0)


def blobs(num_rows, num_units, num_classes, seed=0, spread=1.0):
    """Overlapping classes, every class present."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    centres = random.normal(size=(num_classes, num_units))
    return centres[labels] + spread * random.normal(size=(num_rows, num_units)), labels


def certified(rows, ascent):
    return certify(rows.problem, rows.given(ascent.best), 0.0)


def bound(*certificates):
    """How far apart the weights of certified solutions may be."""
    return sum(math.sqrt(2 * max(c.primal - c.dual, 0.0)) for c in certificates)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_newton_and_single_rows_find_the_same_solution(num_classes, C, compiled):
    """From zero and from a short ascent. Few rows are free and features generic, so that alpha is unique too."""
    features, labels = blobs(90, 7, num_classes)
    rows = Rows(pose(features, labels, C=C), dtype=FLOAT64, seed=0)
    ascent = SequentialAscent(rows, dtype=FLOAT64)
    ascent.run(0.3, 1e3, ENDLESS)
    ends = []
    for start in (np.zeros((90, num_classes)), ascent.best.copy()):
        newton = ProximalNewton(rows, start=start.copy(), compiled=compiled)
        gap = 1e-9 if C < 100 else 1e-8  # rounding grows with the reach, and its effect with C
        assert newton.run(gap, 1e4) == "reached"
        ends.append(certified(rows, newton))
        assert ends[-1].gap == pytest.approx(newton.gap, rel=1e-3, abs=1e-9) and newton.gap <= gap
    assert ascent.run(1e-9 if C < 100 else 1e-6, 1e5, ENDLESS) == "reached"
    ends.append(certified(rows, ascent))
    for one, other in itertools.combinations(ends, 2):
        assert np.linalg.norm(one.weights - other.weights) <= bound(one, other)
    alphas = [end.coefficients.to_dense() for end in ends]
    assert (alphas[0] - alphas[1]).abs().max() <= 1e-2 * C
    if C < 100:
        assert (alphas[0] - alphas[2]).abs().max() <= 1e-2 * C


@pytest.mark.parametrize("compiled", [True, False])
def test_rows_of_float32_are_no_limit(compiled):
    """Scores near the margin are evaluated in float64."""
    features, labels = blobs(400, 12, 4, seed=1)
    rows = Rows(pose(features.astype(np.float32), labels, C=1.0), dtype=np.dtype(np.float32), seed=0)
    newton = ProximalNewton(rows, start=np.zeros((400, 4), np.float32), compiled=compiled)
    assert newton.run(1e-9, 1e4) == "reached" and certified(rows, newton).gap <= 1.1e-9


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_dual_does_not_fall_from_anchor_to_anchor(num_classes, monkeypatch):
    """Beyond what the method allows: a thousandth of the gap's terms, where an anchor counts as settled."""
    values = []
    advance = ProximalNewton._advance
    monkeypatch.setattr(ProximalNewton, "_advance", lambda *given: values.append(advance(*given)) or values[-1])
    features, labels = blobs(150, 6, num_classes, seed=2)
    rows = Rows(pose(features, labels, C=3.0), dtype=FLOAT64, seed=0)
    newton = ProximalNewton(rows, start=np.zeros((150, num_classes)))
    newton.run(1e-11, 1e4)
    assert len(values) > 4
    for before, after in itertools.pairwise(values):
        primal = before.dual / (1 - min(before.gap, 0.999))
        assert after.dual >= before.dual - 1e-3 * before.gap * abs(primal) - 1e-12 * abs(before.dual)


def test_passes_are_limited():
    features, labels = blobs(300, 8, 4, seed=3)
    rows = Rows(pose(features, labels, C=50.0), dtype=FLOAT64, seed=0)
    newton = ProximalNewton(rows, start=np.zeros((300, 4)))
    assert newton.run(1e-12, 10.0) == "limit"
    assert 10 <= newton.passes <= 15  # a step is two passes, an evaluation one
    assert newton.gap > 1e-12 and certified(rows, newton).gap == pytest.approx(newton.gap, rel=1e-9)


def patterns(num_classes):
    """Every non-empty set of classes."""
    return [s for size in range(1, num_classes + 1) for s in itertools.combinations(range(num_classes), size)]


def enumerated(features, labels, C, num_classes):
    """W, P and D of the best point that satisfies the conditions of optimality, among all active sets.

    With p_i positive on S_i alone: G_im = t_i for m in S_i and Σ p_i = C are as many linear equations as unknowns.
    """
    phi, n = np.c_[features, np.ones(len(features))], len(labels)
    gram, own = phi @ phi.T, np.eye(num_classes)[labels]
    best = None
    for sets in itertools.product(patterns(num_classes), repeat=n):
        place = [(i, m) for i, chosen in enumerate(sets) for m in chosen]
        size = len(place)
        system, goal = np.zeros((size + n, size + n)), np.zeros(size + n)
        for row, (i, m) in enumerate(place):  # Σ_j (C e_y - p_j)_m gram_ij + [m ≠ y_i] - t_i = 0
            goal[row] = C * gram[i] @ own[:, m] + (m != labels[i])
            for column, (j, k) in enumerate(place):
                system[row, column] = gram[i, j] * (k == m)
            system[row, size + i] = 1
            system[size + i, row] = 1
        goal[size:] = C
        if np.linalg.matrix_rank(system) < len(system):
            continue
        solution = np.linalg.solve(system, goal)
        p = np.zeros((n, num_classes))
        for value, (i, m) in zip(solution[:size], place, strict=True):
            p[i, m] = value
        weights = (C * own - p).T @ phi
        G = phi @ weights.T + 1 - own
        slack = 1e-9 * max(1.0, np.abs(G).max())
        if (p >= -1e-9 * C).all() and (G.max(1) <= solution[size:] + slack).all():
            half = 0.5 * (weights**2).sum()
            dual = (C * own - p)[own > 0].sum() - half
            if best is None or dual > best[2]:
                best = weights, half + C * (G.max(1) - G[own > 0]).sum(), dual
    return best


TINY = [(2, 2, 2), (4, 2, 3), (3, 3, 4)]


@pytest.mark.parametrize("C", [1e-3, 0.03, 0.3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize(("num_rows", "num_classes", "num_units"), TINY)
def test_optimum_by_enumeration_of_the_active_sets(num_rows, num_classes, num_units, C, assert_certified):
    features, labels = blobs(num_rows, num_units, num_classes, seed=num_rows)
    found = enumerated(features, labels, C, num_classes)
    assert found is not None
    weights, primal, dual = found
    assert primal == pytest.approx(dual, rel=1e-7)  # P takes C times the rounding of the weights
    gap = 1e-12 if C < 100 else 1e-11  # which rounding may keep it from, at the largest
    solution = crammer_singer(features, labels, C=C, gap=gap)
    assert_certified(solution, features, labels, C)
    assert solution.primal == pytest.approx(dual, rel=1e-10) and solution.dual == pytest.approx(dual, rel=1e-10)
    assert np.linalg.norm(solution.weights.numpy() - weights) <= 1.1 * math.sqrt(2 * gap) * np.linalg.norm(weights)


@pytest.mark.parametrize("C", [0.1, 5.0])
def test_regimes_agree(C, monkeypatch):
    """Each forced by moving the threshold between them."""
    features, labels = blobs(120, 6, 4, seed=5)
    solutions = {}
    for regime, threshold in (("sequential", math.inf), ("newton", 0.0)):
        monkeypatch.setattr(regimes, "_SMALL", threshold)
        solutions[regime] = crammer_singer(features, labels, C=C, gap=1e-9)
        assert solutions[regime].regime.endswith(regime) and solutions[regime].status == "converged"
        assert list(solutions[regime].regime_seconds) == solutions[regime].regime.split(", ")
    one, other = solutions.values()
    assert torch.linalg.vector_norm(one.weights - other.weights) <= one.distance + other.distance
    assert (one.coefficients.to_dense() - other.coefficients.to_dense()).abs().max() <= 1e-2 * C


@pytest.mark.parametrize("C", [1e-4, 0.1, 10.0])
def test_the_same_optimum_without_numba(C, monkeypatch, assert_certified):
    features, labels = blobs(150, 6, 3, seed=6)
    with_numba = crammer_singer(features, labels, C=C, gap=1e-8)
    monkeypatch.setattr(simplex, "has_numba", lambda: False)
    monkeypatch.setitem(__import__("sys").modules, "dualview.solvers.crammer_singer._loop", None)
    without = crammer_singer(features, labels, C=C, gap=1e-8)
    assert (without.status, without.regime) == ("converged", "newton")
    assert_certified(without, features, labels, C)
    assert torch.linalg.vector_norm(with_numba.weights - without.weights) <= with_numba.distance + without.distance


@pytest.mark.parametrize(("scale", "C"), [(1.0, 1e5), (100.0, 1e3), (1e4, 1.0)])
@pytest.mark.parametrize("num_rows", [2, 10])
def test_large_C_times_norm(num_rows, scale, C, assert_certified):
    """alpha is then far below C, and so small a part of it that neither a start nor a rounding may be made for C."""
    features, labels = blobs(num_rows, 4, 2, seed=1)
    features *= scale
    solution = crammer_singer(features, labels, C=C)
    assert_certified(solution, features, labels, C)
    assert solution.status == "converged"


def test_the_dual_may_grow_for_long_while_the_gap_stays_near_one():
    features = 100 * np.random.default_rng(0).normal(size=(10, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GapWarning)  # the last digits are out of float64's reach here
        solution = crammer_singer(features, np.arange(10) % 3, C=1e3)
    assert solution.gap < 1e-4 and solution.epochs < 5_000
