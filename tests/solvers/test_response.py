"""The response of a fit to its rows' weights is the derivative of refits, and its integral the fit itself."""

import sys

import numpy as np
import pytest
import torch

from dualview.solvers import dual, metrics, response
from dualview.solvers.losses import LabelLoss, named

METRICS = ["plain", "whitened", "curvature"]


def task(num_rows=40, num_features=4, num_classes=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % num_classes
    centres = torch.randn(num_classes, num_features, generator=random, dtype=torch.float64)
    features = centres[labels] + torch.randn(num_rows, num_features, generator=random, dtype=torch.float64)
    return features, labels, (features @ centres.T).softmax(1)


def metric_named(name, features, probabilities):
    return {
        "plain": metrics.plain(),
        "whitened": metrics.whitened(features, 0.1),
        "curvature": metrics.curvature(features, probabilities, 0.5),
    }[name]


def directions_of(tests, num_outputs, seed=5):
    """Directions e ⊗ [f, 1] with random e."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randn(len(tests), num_outputs, generator=random, dtype=torch.float64)
    return chosen[:, :, None] * torch.nn.functional.pad(tests, (0, 1), value=1.0)[:, None]


def effects(features, coefficients, solved):
    """Σ_c alpha_ic x_cᵀ phi_i, "test train"."""
    phi = torch.nn.functional.pad(features, (0, 1), value=1.0)
    return torch.einsum("ic,tcu,iu->ti", coefficients, solved, phi)


def by_refitting(features, targets, directions, rows, step, gap=1e-14, **options):
    """Central differences of the measured outputs of refits, "test row"."""
    columns = []
    for row in rows:
        ends = []
        for sign in (1, -1):
            weights = torch.ones(len(features), dtype=torch.float64)
            weights[row] += sign * step
            fit = dual(features, targets, sample_weight=weights, gap=gap, **options)
            ends.append((directions * fit.weights).sum((1, 2)))
        columns.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(columns, 1)


def fitted(features, targets, directions, loss, metric, gap=1e-14, **options):
    fit = dual(features, targets, loss=loss, metric=metric, gap=gap, **options)
    member = named(loss, smoothing=options.get("smoothing"), epsilon=options.get("epsilon", 0.1))
    if targets.is_floating_point() and loss not in ("squared", "epsilon"):
        member = LabelLoss(member)
    costs = torch.full((len(features),), options["C"], dtype=torch.float64)
    alpha = fit.coefficients.to_dense()
    return alpha, response(features, targets, alpha, directions, loss=member, costs=costs, metric=metric)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("loss", ["smooth-hinge", "softmax", "entmax", "sparsemax"])
def test_response_between_classes_is_the_derivative_of_refits(loss, name):
    features, labels, probabilities = task()
    metric, directions = metric_named(name, features, probabilities), directions_of(features[:3] + 0.3, 3)
    alpha, solved = fitted(features, labels, directions, loss, metric, C=0.3)
    expected = by_refitting(features, labels, directions, range(8), 1e-4, loss=loss, metric=metric, C=0.3)
    # Central differences err by step², and by what ends a kink of the piecewise losses' curvature leaves: none here.
    np.testing.assert_allclose(
        effects(features, alpha, solved)[:, :8], expected, rtol=0, atol=1e-5 * expected.abs().max()
    )


@pytest.mark.parametrize(("loss", "num_outputs"), [("squared", 2), ("softmax", 2), ("entmax", 2)])
def test_response_of_numbers_and_labels_is_the_derivative_of_refits(loss, num_outputs):
    features, labels, probabilities = task()
    targets = torch.stack([labels == 0, features[:, 1] > 0], 1).double()
    metric, directions = metrics.whitened(features, 0.1), directions_of(features[:3] + 0.3, num_outputs)
    alpha, solved = fitted(features, targets, directions, loss, metric, C=0.3)
    expected = by_refitting(features, targets, directions, range(8), 1e-4, loss=loss, metric=metric, C=0.3)
    np.testing.assert_allclose(
        effects(features, alpha, solved)[:, :8], expected, rtol=0, atol=1e-5 * expected.abs().max()
    )


@pytest.mark.parametrize(("name", "C"), [("plain", 0.3), ("whitened", 0.3), ("curvature", 0.02)])
def test_response_of_the_hinge_is_the_derivative_of_refits(name, C):
    """Rows at their bound act; free rows keep their margins tied and have no effect.

    C is small enough that rows are fewer than what they tie: else nothing could move. While the active set is the
    same, W is linear in one row's weight, so the step may be large.
    """
    features, labels, probabilities = task()
    metric, directions = metric_named(name, features, probabilities), directions_of(features[:3] + 0.3, 3)
    alpha, solved = fitted(features, labels, directions, "hinge", metric, gap=1e-11, C=C)
    found = effects(features, alpha, solved)
    own = alpha.gather(1, labels[:, None]).squeeze(1)
    free = ((alpha != 0).sum(1) > 1) & (own < C)
    assert 0 < free.sum() < 15
    rows = [*free.nonzero().flatten()[:2].tolist(), *(own == C).nonzero().flatten()[:6].tolist()]
    expected = by_refitting(features, labels, directions, rows, 1e-3, gap=1e-11, loss="hinge", metric=metric, C=C)
    np.testing.assert_allclose(found[:, rows], expected, rtol=0, atol=1e-4 * expected.abs().max())
    assert expected.abs().max() > 0.003


def test_response_of_the_tube_is_the_derivative_of_refits():
    features, _, _ = task()
    targets = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) + features[:, :1]
    metric, directions = metrics.plain(), directions_of(features[:3] + 0.3, 1)
    alpha, solved = fitted(features, targets, directions, "epsilon", metric, gap=1e-12, C=0.03, epsilon=0.2)
    expected = by_refitting(
        features, targets, directions, range(6), 1e-3, gap=1e-12, loss="epsilon", C=0.03, epsilon=0.2
    )
    np.testing.assert_allclose(
        effects(features, alpha, solved)[:, :6], expected, rtol=0, atol=1e-4 * expected.abs().max()
    )
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("loss", ["softmax", "entmax", "squared"])
def test_effects_along_the_path_add_up_to_the_output(loss):
    """With weights t for all rows W(0) = 0, so Σ_i ∫ dm/dw_i dt = m(1); t is a factor of C."""
    features, labels, _ = task()
    targets = torch.nn.functional.one_hot(labels).double() if loss == "squared" else labels
    directions = directions_of(features[:3] + 0.3, 3)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    total = torch.zeros(3, dtype=torch.float64)
    for s, weight in zip((nodes + 1) / 2, weights / 2, strict=True):  # t = s³
        alpha, solved = fitted(features, targets, directions, loss, metrics.plain(), C=0.1 * float(s) ** 3)
        total += weight * 3 * s**2 * effects(features, alpha, solved).sum(1) / s**3  # dm/dw_i at weight t is its 1/t
    expected = (directions * dual(features, targets, loss=loss, C=0.1, gap=1e-14).weights).sum((1, 2))
    # The path of entmax has kinks, where rows leave the support, so that a quadrature of 24 nodes errs by about 1e-4.
    tolerance = 3e-4 if loss == "entmax" else 1e-6
    np.testing.assert_allclose(total, expected, rtol=0, atol=tolerance * expected.abs().max())


@pytest.mark.parametrize("loss", ["softmax", "sparsemax", "squared"])
@pytest.mark.parametrize("name", METRICS)
def test_conjugate_gradients_agree_with_the_factorisation(loss, name, monkeypatch):
    features, labels, probabilities = task()
    metric, directions = metric_named(name, features, probabilities), directions_of(features, 3)
    targets = torch.nn.functional.one_hot(labels).double() if loss == "squared" else labels
    alpha, exact = fitted(features, targets, directions, loss, metric, C=0.3)
    monkeypatch.setattr(sys.modules["dualview.solvers.response"], "_DENSE", 0)
    options = {"loss": named(loss), "costs": torch.full((40,), 0.3, dtype=torch.float64), "metric": metric}
    found = response(features, targets, alpha, directions, **options)
    again = response(features, targets, alpha, directions, tolerance=1e-11, **options)
    np.testing.assert_allclose(again, exact, rtol=0, atol=1e-9 * exact.abs().max())
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * exact.abs().max())
