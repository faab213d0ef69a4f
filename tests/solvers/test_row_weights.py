"""Weights of rows and of classes against the problems that they stand for."""

import re

import numpy as np
import pytest
import torch

from dualview.solvers import crammer_singer


def blobs(num_rows=120, num_units=5, num_classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    return random.normal(size=(num_classes, num_units))[labels] + random.normal(size=(num_rows, num_units)), labels


def assert_same_weights(one, other):
    assert one.status == other.status == "converged"
    assert torch.linalg.vector_norm(one.weights - other.weights) <= one.distance + other.distance


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_a_whole_weight_is_that_many_equal_rows(C, assert_certified):
    features, labels = blobs()
    factors = np.random.default_rng(1).integers(0, 5, len(labels))
    weighted = crammer_singer(features, labels, C=C, sample_weight=factors, gap=1e-9)
    repeated = crammer_singer(features.repeat(factors, axis=0), labels.repeat(factors), C=C, gap=1e-9)
    assert_certified(weighted, features, labels, C * factors)
    assert_same_weights(weighted, repeated)
    assert weighted.primal == pytest.approx(repeated.primal, rel=3e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32])
def test_weights_of_any_type(dtype):
    features, labels = blobs()
    weights = torch.arange(120) % 4
    given = crammer_singer(
        features, labels, C=0.1, sample_weight=weights.to(dtype).requires_grad_(dtype.is_floating_point)
    )
    assert torch.equal(given.weights, crammer_singer(features, labels, C=0.1, sample_weight=weights.numpy()).weights)


@pytest.mark.parametrize("C", [1e-3, 10.0])
def test_a_row_of_weight_zero_is_absent_to_the_bit(C):
    features, labels = blobs()
    features[::4] *= 1e9  # which would matter
    features[0] = 3
    factors = np.ones(len(labels))
    factors[::4] = 0
    kept = factors > 0
    weighted = crammer_singer(features, labels, C=C, sample_weight=factors)
    without = crammer_singer(features[kept], labels[kept], C=C)
    assert torch.equal(weighted.weights, without.weights)
    alpha = weighted.coefficients.to_dense().numpy()
    np.testing.assert_array_equal(alpha[kept], without.coefficients.to_dense())
    assert not alpha[~kept].any() and weighted.coefficients.shape == (120, 3)


@pytest.mark.parametrize("given", [{"sample_weight": 1.0 * (np.arange(120) % 3 != 1)}, {"class_weight": [1, 0, 1]}])
def test_a_class_without_weight_vanishes(given, assert_certified):
    features, labels = blobs()
    solution = crammer_singer(features, labels, C=0.1, **given)
    kept = labels != 1
    assert_certified(solution, features, labels, 0.1 * kept)
    assert not solution.weights[1].any() and not solution.coefficients.to_dense()[:, 1].any()
    assert_same_weights(solution, crammer_singer(features[kept], labels[kept], C=0.1))


@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_weights_of_classes_are_weights_of_their_rows(C, assert_certified):
    features, labels = blobs()
    labels = np.where(np.arange(120) < 100, 0, labels)
    by_class = np.array([0.3, 2.0, 5.0])
    counts = np.bincount(labels)
    cases = {
        "sequence": (by_class, by_class[labels]),
        "tensor": (torch.tensor(by_class), by_class[labels]),
        "mapping": ({1: 2.0, np.int64(2): 5.0}, np.array([1, 2.0, 5.0])[labels]),
        "balanced": ("balanced", (120 / (3 * counts))[labels]),
    }
    for given, factors in cases.values():
        one = crammer_singer(features, labels, C=C, class_weight=given)
        other = crammer_singer(features, labels, C=C, sample_weight=factors)
        assert torch.equal(one.weights, other.weights)
        assert_certified(one, features, labels, C * factors)


def test_both_kinds_of_weight_multiply_and_balance_goes_by_weight(assert_certified):
    features, labels = blobs()
    factors = np.random.default_rng(2).uniform(0, 3, 120)
    masses = np.bincount(labels, factors)
    one = crammer_singer(features, labels, C=0.2, sample_weight=factors, class_weight="balanced", num_classes=5)
    assert_certified(one, features, labels, 0.2 * factors * (factors.sum() / (3 * masses))[labels])
    # Each class bears the same cost in all.
    assert one.coefficients.shape == (120, 5) and not one.weights[3:].any()


@pytest.mark.parametrize("C", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("decades", [1, 4])
def test_bounds_hold_per_row(C, decades, assert_certified):
    """Exactly, with a C_i over many powers of ten; the certificate is checked with them."""
    features, labels = blobs(seed=3)
    factors = 10.0 ** np.random.default_rng(3).uniform(-decades, decades, 120)
    solution = crammer_singer(features, labels, C=C, sample_weight=factors)
    assert_certified(solution, features, labels, C * factors)
    assert solution.status == "converged"
    own = solution.coefficients.to_dense().numpy()[np.arange(120), labels]
    assert solution.bound == (own >= C * factors).sum() and solution.free == ((own > 0) & (own < C * factors)).sum()


def test_a_scale_of_all_weights_is_a_scale_of_C():
    features, labels = blobs(seed=4)
    one = crammer_singer(features, labels, C=0.08)
    other = crammer_singer(features, labels, C=0.01, sample_weight=np.full(120, 8.0))
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample_weight": np.ones(5)}, "sample_weight must hold one weight for each row: 120; got shape (5,)"),
        ({"sample_weight": np.ones((120, 1))}, "sample_weight must hold one weight for each row: 120; got shape"),
        ({"sample_weight": -np.eye(120)[7]}, "sample_weight must be finite and not negative; row 7 has -1.0"),
        ({"sample_weight": np.where(np.arange(120) == 3, np.nan, 1)}, "row 3 has nan"),
        ({"sample_weight": np.full(120, np.inf)}, "row 0 has inf"),
        ({"sample_weight": np.zeros(120)}, "labels hold no class among the rows of weights above zero"),
        ({"sample_weight": 1.0 * (np.arange(120) % 3 == 2)}, "hold one class only (2) among the rows of weights above"),
        ({"class_weight": [1, 2]}, "class_weight must hold one weight for each class: 3; got shape (2,)"),
        ({"class_weight": [1, -2, 1]}, "class_weight must be finite and not negative; class 1 has -2.0"),
        ({"class_weight": "equal"}, "class_weight must be 'balanced', one weight a class, or a mapping; got 'equal'"),
        ({"class_weight": {7: 1.0}}, "class_weight names class 7; labels lie in 0 .. 2"),
        ({"class_weight": {1: -1.0}}, "class_weight must be finite and not negative; class 1 has -1.0"),
    ],
)
def test_wrong_weights_are_refused(wrong, message):
    features, labels = blobs()
    with pytest.raises(ValueError, match=re.escape(message)):
        crammer_singer(features, labels, C=1.0, **wrong)
