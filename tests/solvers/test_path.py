"""A path of solutions, each from where the last one ended, against single solutions."""

import numpy as np
import pytest
import torch

from dualview.solvers import crammer_singer, path


def blobs(num_rows=200, num_units=6, num_classes=4, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    features = 1.5 * random.normal(size=(num_classes, num_units))[labels] + random.normal(size=(num_rows, num_units))
    return features.astype(np.float32), labels


ORDERS = {
    "rising": [1e-4, 1e-3, 1e-2, 0.1, 1.0],
    "falling": [1.0, 0.1, 1e-2, 1e-3, 1e-4],
    "repeated": [0.01, 0.01, 1.0, 1.0, 0.01],
    "jumps": [1e-8, 100.0, 1e-8, 0.3],
    "not representable": [0.1, 0.3, 0.7, 0.1],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("low_memory", [False, True])
def test_path_equals_single_solutions(order, low_memory, assert_certified):
    features, labels = blobs()
    for solution, C in zip(path(features, labels, ORDERS[order], low_memory=low_memory), ORDERS[order], strict=True):
        assert solution.C == C and solution.status == "converged"
        assert_certified(solution, features, labels, C)
        single = crammer_singer(features, labels, C=C)
        distance = torch.linalg.vector_norm(solution.weights - single.weights)
        assert distance <= solution.distance + single.distance


def test_path_carries_the_weights_of_rows(assert_certified):
    features, labels = blobs()
    factors = 10.0 ** np.random.default_rng(1).uniform(-2, 2, len(labels))
    factors[::7] = 0
    for solution, C in zip(
        path(features, labels, ORDERS["rising"], sample_weight=factors), ORDERS["rising"], strict=True
    ):
        assert_certified(solution, features, labels, C * factors)
        single = crammer_singer(features, labels, C=C, sample_weight=factors)
        distance = torch.linalg.vector_norm(solution.weights - single.weights)
        assert distance <= solution.distance + single.distance


def test_same_bits_again():
    features, labels = blobs()
    first, again = (list(path(features, labels, ORDERS["rising"])) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.weights, other.weights) and one.epochs == other.epochs
        assert torch.equal(one.coefficients.to_dense(), other.coefficients.to_dense())


def test_values_are_asked_for_one_by_one_and_may_depend_on_solutions():
    features, labels = blobs()
    seen, asked = [], []

    def values():
        C = 1e-4
        while len(seen) < 4:
            asked.append(C)
            yield C
            C *= 10 if seen[-1].bound > 20 else 3

    found = path(features, labels, values())
    assert asked == []
    for solution in found:
        seen.append(solution)
        assert len(asked) == len(seen) and asked[-1] == solution.C
    assert len(seen) == 4


def test_warm_starts_save_passes():
    features, labels = blobs(num_rows=600, num_units=10, seed=3)
    # Both ends in one regime: small costs, where each pass counts the same.
    values = [1e-3, 1.2e-3, 1.4e-3, 1.6e-3, 1.6e-3]
    warm = [solution.epochs for solution in path(features, labels, values, gap=1e-7)]
    cold = [crammer_singer(features, labels, C=C, gap=1e-7).epochs for C in values]
    assert warm[0] == cold[0] and sum(warm[1:]) < sum(cold[1:])
    assert warm[-1] <= 3  # the same problem again


def test_a_wrong_value_is_refused_where_it_stands():
    features, labels = blobs()
    found = path(features, labels, [0.1, -1.0, 0.2])
    assert next(found).C == 0.1
    with pytest.raises(ValueError, match="C must be a positive, finite number; got -1.0"):
        next(found)


def test_no_values_no_solutions():
    assert list(path(*blobs(), [])) == []
