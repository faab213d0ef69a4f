"""Gradients against a polynomial's derivative."""

import torch

import dualview as dv
from tests.features.budget import counted
from tests.features.polynomials import points, random_polynomial

CUBIC, X = random_polynomial(3, 4).eval(), points(5, 4)


def derivative() -> torch.Tensor:
    """Σ_κ κ_i c_κ Π (x − b)^κ / (x_i − b_i)."""
    return CUBIC.allotted(X, lambda i, kappa, count: count) / (X - CUBIC.baseline)


def test_it_is_the_derivative():
    found = dv.Gradient().attribute(CUBIC, X, targets=0)
    torch.testing.assert_close(found.values, derivative(), rtol=1e-11, atol=1e-12)
    assert found.kind == "similarity" and found.change is None and found.baseline is None
    size = dv.Gradient(absolute=True).attribute(CUBIC, X, targets=0).values
    assert torch.equal(size, found.values.abs())


def test_its_budget():
    with counted(CUBIC) as rows:
        dv.Gradient().attribute(CUBIC, X, batch_size=2)
    assert (rows.forward, rows.backward) == (2 * 5, 5)
