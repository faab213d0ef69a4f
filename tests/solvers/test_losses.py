"""Losses against their definitions: projections by enumeration, derivatives by differences, conjugates by duality."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from dualview.solvers.losses import LOSSES, LabelLoss, entmax, named

BETWEEN_CLASSES = ["hinge", "smooth-hinge", "softmax", "entmax", "sparsemax"]
SMOOTH = BETWEEN_CLASSES[1:]


def draws(num_rows, num_columns, seed=0, scale=1.5):
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_rows, num_columns, generator=random, dtype=torch.float64)


def on_support(scores, support, order):
    """The stationary p of ⟨p, z⟩ - Ω(p) with this support: p^(order-1) = (order-1)(z - tau), found in closed form."""
    z = (order - 1) * scores[list(support)]
    size = len(z)
    if order == 2:
        inside = z - (z.sum() - 1) / size
    else:
        spread = 1 - size * z.var()
        if spread < 0:
            return None
        inside = z - (z.mean() - np.sqrt(spread / size))
    if (inside < 0).any():
        return None
    p = np.zeros(len(scores))
    p[list(support)] = inside ** (1 / (order - 1))
    return p


@pytest.mark.parametrize("num_classes", [2, 3, 4])
@pytest.mark.parametrize("order", [1.5, 2.0])
def test_entmax_by_trying_every_support(order, num_classes):
    scores = draws(60, num_classes)
    scores[0] = 0  # ties
    scores[1, 1:] = scores[1, 0] - 1e6
    for z, p in zip(scores.numpy(), entmax(scores, order).numpy(), strict=True):
        supports = [s for k in range(1, num_classes + 1) for s in itertools.combinations(range(num_classes), k)]
        tried = [q for q in (on_support(z, support, order) for support in supports) if q is not None]
        omega = [((q**order).sum() - 1) / (order * (order - 1)) for q in tried]
        best = tried[int(np.argmax([q @ z - value for q, value in zip(tried, omega, strict=True)]))]
        np.testing.assert_allclose(p, best, rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0])
def test_entmax_adds_up_and_ignores_a_shift(order):
    scores = draws(50, 7, scale=3.0)
    p = entmax(scores, order)
    np.testing.assert_allclose(p.sum(1), 1.0, rtol=0, atol=1e-14)
    np.testing.assert_allclose(entmax(scores + 1000, order), p, rtol=0, atol=1e-12)


def test_values_from_their_formulas():
    z, y = draws(40, 4), torch.arange(40) % 4
    own = z.gather(1, y[:, None]).squeeze(1)
    raised = z + 1 - torch.nn.functional.one_hot(y)
    np.testing.assert_allclose(named("hinge").value(z, y), raised.amax(1) - own, rtol=0, atol=1e-14)
    np.testing.assert_allclose(named("softmax").value(z, y), logsumexp(z.numpy(), 1) - own.numpy(), rtol=0, atol=1e-14)
    numbers = draws(40, 4, seed=1)
    np.testing.assert_allclose(named("squared").value(z, numbers), 0.5 * (z - numbers).square().sum(1), rtol=1e-13)
    tube = (z - numbers).abs().sub(0.3).clamp(min=0).sum(1)
    np.testing.assert_allclose(named("epsilon", epsilon=0.3).value(z, numbers), tube, rtol=0, atol=1e-13)


def test_labels_have_the_losses_of_one_sign():
    """hinge max(0, 1 - sz), softmax log(1 + exp(-sz)), sparsemax (1 - sz)²/4 where |z| < 1."""
    z, targets = draws(40, 3), (draws(40, 3, seed=1) > 0).double()
    sz = (2 * targets - 1) * z
    expected = {
        "hinge": (1 - sz).clamp(min=0),
        "softmax": torch.nn.functional.softplus(-sz),
        "sparsemax": torch.where(sz > 1, 0.0, torch.where(sz < -1, -sz, (1 - sz).square() / 4)),
    }
    for loss, values in expected.items():
        found = LabelLoss(named(loss)).value(z, targets)
        np.testing.assert_allclose(found, values.sum(1), rtol=0, atol=1e-13)


def member(loss, serves):
    """A loss with targets and logits for it."""
    if serves == "labels":
        return LabelLoss(named(loss)), draws(30, 3), (draws(30, 3, seed=1) > 0).double()
    if serves == "numbers":
        return named(loss, epsilon=0.3), draws(30, 3), draws(30, 3, seed=1)
    return named(loss), draws(30, 3), torch.arange(30) % 3


ALL = [(loss, serves) for loss in BETWEEN_CLASSES for serves in ("classes", "labels")]
ALL += [("squared", "numbers"), ("epsilon", "numbers")]


def test_every_loss_is_tested():
    assert {loss for loss, _ in ALL} == set(LOSSES)


@pytest.mark.parametrize(("loss", "serves"), ALL)
def test_residual_is_minus_the_derivative(loss, serves):
    given, z, targets = member(loss, serves)
    step = 1e-6
    for column in range(3):
        aside = torch.zeros(3, dtype=torch.float64)
        aside[column] = step
        slope = (given.value(z + aside, targets) - given.value(z - aside, targets)) / (2 * step)
        np.testing.assert_allclose(given.residual(z, targets)[:, column], -slope, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("loss", "serves"), [pair for pair in ALL if pair[0] in [*SMOOTH, "squared"]])
def test_curvature_is_minus_the_residuals_derivative(loss, serves):
    given, z, targets = member(loss, serves)
    residual = given.residual(z, targets)
    s = given.slopes(residual, targets)
    J = torch.diag_embed(s)
    if given.coupled:
        J = J - s[:, :, None] * s[:, None] / s.sum(1)[:, None, None]
    step = 1e-6
    for column in range(3):
        aside = torch.zeros(3, dtype=torch.float64)
        aside[column] = step
        slope = (given.residual(z + aside, targets) - given.residual(z - aside, targets)) / (2 * step)
        # No row of these draws is within a step of a kink; 1.5-entmax's curvature is steep beside its own.
        np.testing.assert_allclose(J[:, :, column], -slope, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("loss", "serves"), ALL)
def test_conjugate_bounds_the_loss_and_meets_it_at_the_residual(loss, serves):
    """L(z) ≥ -⟨u, z⟩ - h(u) for every feasible u, with equality at u(z)."""
    given, z, targets = member(loss, serves)
    value, residual = given.value(z, targets), given.residual(z, targets)
    met = -(residual * z).sum(1) - given.conjugate(residual, targets)
    np.testing.assert_allclose(value, met, rtol=0, atol=1e-13)
    assert (value >= -1e-15).all()
    for seed in range(20):
        other = given.residual(draws(30, 3, seed=seed + 2, scale=3.0), targets)
        assert (value >= -(other * z).sum(1) - given.conjugate(other, targets) - 1e-13).all()


@pytest.mark.parametrize(("loss", "serves"), [("hinge", "classes"), ("hinge", "labels"), ("epsilon", "numbers")])
def test_smoothing_adds_half_gamma_of_the_residuals_square_to_the_conjugate(loss, serves):
    given, z, targets = member(loss, serves)
    assert given.kinked and not given.slopes(given.residual(z, targets), targets).any()
    for gamma in (1.0, 0.1):
        smooth = given.smoothed(gamma)
        residual = smooth.residual(z, targets)
        added = smooth.conjugate(residual, targets) - given.conjugate(residual, targets)
        np.testing.assert_allclose(added, 0.5 * gamma * residual.square().sum(1), rtol=0, atol=1e-14)
        assert not smooth.kinked
        excess = given.value(z, targets) - smooth.value(z, targets)
        assert (excess >= -1e-14).all() and (excess <= 3 * gamma).all()


def test_smooth_hinge_of_the_published_form():
    """p = sparsemax((z + 1 - e_y)/gamma); no residual beyond a lead of 1 + gamma; its limit is the hinge."""
    z, y = draws(200, 3, scale=4.0), torch.arange(200) % 3
    own = torch.nn.functional.one_hot(y)
    for gamma in (1.0, 0.25, 1e-6):
        given = named("smooth-hinge", smoothing=gamma)
        residual = given.residual(z, y)
        np.testing.assert_allclose(residual, own - entmax((z + 1 - own) / gamma, 2.0), rtol=0, atol=1e-15)
        lead = z.gather(1, y[:, None]).squeeze(1) - z.masked_fill(own.bool(), -torch.inf).amax(1)
        assert ((residual != 0).any(1) == (lead < 1 + gamma)).all()
        excess = given.value(z, y) - named("hinge").value(z, y)
        assert (excess >= -1e-13).all() and (excess <= gamma / 3 + 1e-13).all()  # gamma/2·(1 - 1/K)


def test_targets_may_be_distributions():
    """The cross-entropy of soft labels, its negative gradient and its curvature; one-hot ones are classes."""
    z, targets = draws(40, 4, scale=3.0).requires_grad_(), draws(40, 4, seed=1).softmax(1)
    given = named("softmax")
    value = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    np.testing.assert_allclose(given.value(z, targets).detach(), value.detach(), rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    z = z.detach()
    np.testing.assert_allclose(given.residual(z, targets), -gradient, rtol=0, atol=1e-14)
    np.testing.assert_allclose(given.slopes(given.residual(z, targets), targets), z.softmax(1), rtol=0, atol=1e-14)
    y = torch.arange(40) % 4
    own = torch.nn.functional.one_hot(y).double()
    for loss in BETWEEN_CLASSES:
        given = named(loss)
        assert torch.equal(given.residual(z, own), given.residual(z, y).double())
        np.testing.assert_allclose(given.value(z, own), given.value(z, y), rtol=0, atol=1e-14)
