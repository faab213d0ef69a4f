"""Metrics against their matrices, written densely from the definitions."""

import numpy as np
import pytest
import torch

from dualview.solvers import metrics


def rows(num_rows=2500, num_features=5, seed=0):
    """More rows than one block holds, with unequal columns."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(num_rows, num_features, generator=random, dtype=torch.float64)
    features = features @ torch.randn(num_features, num_features, generator=random, dtype=torch.float64) + 0.5
    return features, torch.randn(num_rows, 3, generator=random, dtype=torch.float64).softmax(1)


def dense(blocks, damping):
    """blockdiag(A_c + lambda·I, 1) of each class, and lambda."""
    absolute = damping * np.mean([np.trace(block) / len(block) for block in blocks])
    found = []
    for block in blocks:
        whole = np.eye(len(block) + 1)
        whole[:-1, :-1] = block + absolute * np.eye(len(block))
        found.append(whole)
    return np.stack(found), absolute


def members():
    features, probabilities = rows()
    f, p = features.numpy(), probabilities.numpy()
    second = f.T @ f / len(f)
    curved = [(f * (p[:, c] * (1 - p[:, c]))[:, None]).T @ f / len(f) for c in range(3)]
    return [
        (metrics.plain(), np.stack([np.eye(6)] * 3), 0.0),
        (metrics.whitened(features, 0.05), *dense([second] * 3, 0.05)),
        (metrics.curvature(features, probabilities, 0.2), *dense(curved, 0.2)),
    ]


@pytest.mark.parametrize("member", range(3))
def test_products_and_solutions_are_those_of_the_dense_matrices(member):
    metric, M, absolute = members()[member]
    assert metric.damping == pytest.approx(absolute, rel=1e-12)
    assert metric.by_class == (member == 2)
    weights = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    product = np.einsum("cij,tcj->tci", M, weights)
    np.testing.assert_allclose(metric.product(weights), product, rtol=0, atol=1e-12 * np.abs(product).max())
    np.testing.assert_allclose(metric.product(weights[1]), product[1], rtol=0, atol=1e-12 * np.abs(product).max())
    solution = np.stack([np.linalg.solve(M, test[:, :, None])[:, :, 0] for test in weights.numpy()])
    np.testing.assert_allclose(metric.solve(weights), solution, rtol=0, atol=1e-11 * np.abs(solution).max())
    np.testing.assert_allclose(metric.solve(weights[1]), solution[1], rtol=0, atol=1e-11 * np.abs(solution).max())


@pytest.mark.parametrize("member", range(3))
def test_a_matrix_is_added_to_every_class(member):
    metric, M, _ = members()[member]
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    added = root @ root.T
    expected = np.einsum("cij,cj->ci", M + added.numpy(), weights)
    np.testing.assert_allclose(metric.plus(added).product(weights), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("member", [0, 1])
def test_whitened_rows_have_the_metrics_kernel_as_their_products(member):
    metric, M, _ = members()[member]
    features = rows()[0][:50]
    white = metric.whiten(features)
    expected = features.numpy() @ np.linalg.inv(M[0][:-1, :-1]) @ features.numpy().T
    np.testing.assert_allclose(white @ white.T, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_some_classes_keep_their_matrices():
    metric, M, _ = members()[2]
    weights = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = np.einsum("cij,cj->ci", M[[0, 2]], weights)
    np.testing.assert_allclose(metric.of(torch.tensor([0, 2])).product(weights), expected, rtol=1e-12)
    shared = members()[1][0]
    assert shared.of(torch.tensor([0, 2])) is shared


def test_float32_features_are_summed_in_float64():
    features, probabilities = rows()
    features = features.float()
    exact, found = (metrics.curvature(given, probabilities.float(), 0.1) for given in (features.double(), features))
    assert found.factors.dtype == torch.float64
    np.testing.assert_array_equal(found.factors, exact.factors)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), float("inf")])
def test_dampings_that_cannot_make_it_definite_are_refused(damping):
    with pytest.raises(ValueError, match="damping"):
        metrics.whitened(rows()[0], damping)


def test_features_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="not all zero"):
        metrics.whitened(torch.zeros(10, 3), 0.1)
