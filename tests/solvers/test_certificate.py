"""Every solution carries a true certificate, of a good solution or of a bad one."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dualview.errors import GapWarning
from dualview.solvers import crammer_singer
from dualview.solvers.crammer_singer.certificate import certify, feasible, hinge_losses
from dualview.solvers.crammer_singer.problem import pose


def solve(features, labels, **options):
    """Solve, and check that there is a warning exactly where the gap was not reached."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = crammer_singer(features, labels, **options)
    reached = solution.gap <= options.get("gap", 1e-6)
    assert (solution.status == "converged") == reached
    assert [warning.category for warning in caught] == ([] if reached else [GapWarning])
    return solution


def separated(num_rows, num_units, num_classes, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    features = 2 * random.normal(size=(num_classes, num_units))[labels] + random.normal(size=(num_rows, num_units))
    return features.astype(np.float32), labels


def duplicated():
    features, labels = separated(60, 5, 3)
    return np.repeat(features, 3, axis=0), np.repeat(labels, 3)


def contradictory():
    """The same row under every label: no weights can do better than the zero ones."""
    return np.ones((6, 3), np.float32), np.arange(6) % 3


def with_a_zero_row_and_a_zero_column():
    features, labels = separated(50, 6, 3)
    features[4], features[:, 2] = 0, 0
    return features, labels


def with_an_empty_class():
    features, labels = separated(60, 5, 3)
    return features, labels + (labels > 0)  # 0, 2, 3


EDGES = {
    "two classes": separated(80, 5, 2),
    "a hundred classes": separated(500, 30, 100),
    "duplicates": duplicated(),
    "contradictions": contradictory(),
    "zero row and column": with_a_zero_row_and_a_zero_column(),
    "one row a class": separated(7, 4, 7),
    "empty class": with_an_empty_class(),
    "more units than rows": separated(20, 300, 4),
    "one unit": separated(40, 1, 3),
    "far from the origin": (separated(60, 5, 3)[0] + 1000, separated(60, 5, 3)[1]),
}


@pytest.mark.parametrize("C", [1e-9, 1e-5, 1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", EDGES)
def test_certified_at_the_edges(name, C, assert_certified):
    features, labels = EDGES[name]
    solution = solve(features, labels, C=C, max_epochs=2000)
    assert_certified(solution, features, labels, C)
    if C <= 1e-2 and name != "far from the origin":
        assert solution.status == "converged"


def test_classes_beyond_the_labels_stay_empty(assert_certified):
    features, labels = separated(40, 5, 3)
    few, many = solve(features, labels, C=0.1), solve(features, labels, C=0.1, num_classes=9)
    assert many.coefficients.shape == (40, 9) and few.coefficients.shape == (40, 3)
    np.testing.assert_array_equal(many.weights[:3], few.weights)
    assert_certified(many, features, labels, 0.1)


@st.composite
def problems(draw):
    """Small problems on a grid of values, so that ties, duplicates and zero rows are common."""
    num_rows, num_units = draw(st.integers(2, 12)), draw(st.integers(1, 5))
    labels = draw(st.lists(st.integers(0, 4), min_size=num_rows, max_size=num_rows))
    scale = 10.0 ** draw(st.integers(-3, 3))
    entries = st.integers(-3, 3)
    features = draw(st.lists(entries, min_size=num_rows * num_units, max_size=num_rows * num_units))
    C = draw(st.floats(-9, 6).map(lambda power: 10.0**power))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return scale * np.reshape(features, (num_rows, num_units)).astype(dtype), np.array(labels), C


@settings(max_examples=60)
@given(problems(), st.integers(0, 3))
def test_any_small_problem_is_certified(assert_certified, problem, seed):
    features, labels, C = problem
    assume(len(set(labels)) > 1)
    solution = solve(features.astype(features.dtype), labels, C=C, seed=seed, max_epochs=400)
    assert_certified(solution, features, labels, C)


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=20),
    st.floats(-9, 6).map(lambda power: 10.0**power),
    st.sampled_from([0.0, 1e-9, 1e-6]),
    st.sampled_from([np.float32, np.float64]),
)
@example([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0], [0.0, 1e-7, 0.0, 1.0]], 0.1, 1e-6, np.float32)
def test_coefficients_are_made_exactly_feasible(shares, C, cut, dtype):
    """Rounding errors of the size a solver leaves are removed, and nothing else is changed."""
    shares = np.array(shares)
    assume((shares.sum(1) > 1e-3).all())
    p = shares / shares.sum(1, keepdims=True)
    targets = np.arange(len(p)) % 4
    own = targets[:, None] == np.arange(4)
    rounded = (own - p).astype(dtype)
    alpha = feasible(rounded, targets, np.full(len(p), C), cut)
    assert (alpha[own] >= 0).all() and (alpha[own] <= C).all()
    assert (alpha[~own] <= 0).all() and (alpha[~own] >= -C).all()
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        assert (sum(alpha[:, m] for m in order) == 0).all()
    np.testing.assert_allclose(alpha / C, own - p, atol=4 * np.finfo(dtype).eps + 4 * cut + 2e-12)
    assert (np.abs(alpha[alpha != 0]) > cut * C * (1 - 1e-9)).all()


def test_a_bad_point_is_certified_as_bad():
    """At alpha = 0, P = C n and D = 0."""
    features, labels = separated(30, 4, 3)
    problem = pose(features, labels, C=0.25)
    nothing = certify(problem, np.zeros((30, 3)), 0.0)
    assert (nothing.primal, nothing.dual, nothing.gap) == (0.25 * 30, 0.0, 1.0)
    assert nothing.coefficients.values().numel() == 0 and not nothing.weights.any()


def test_losses_count_the_worst_rival():
    scores = np.array([[3.0, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 2.0, 5.0]])
    np.testing.assert_array_equal(hinge_losses(scores, np.array([0, 0, 1])), [0.0, 0.5, 4.0])
