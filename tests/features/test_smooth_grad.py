"""SmoothGrad and its kin against a slow twin and closed forms."""

import pytest
import torch
from torch import nn

import dualview as dv
from tests.features.budget import counted, unchecked
from tests.features.polynomials import Polynomial, points, random_polynomial

CUBIC, X = random_polynomial(3, 4).eval(), points(5, 4)


def gradients(noise: float, draws: int, seed: int) -> torch.Tensor:
    """Return them "draw sample feature", one sample and draw at a time."""
    normal = torch.randn(draws, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = []
    for z in normal:
        for x in X:
            leaf = (x + noise * (x.max() - x.min()) * z).requires_grad_()
            found.append(torch.autograd.grad(CUBIC(leaf[None])[0, 0], leaf)[0])
    return torch.stack(found).reshape(draws, 5, 4)


@pytest.mark.parametrize(
    "statistic, expected",
    [
        ("mean", lambda g: g.mean(0)),
        ("square", lambda g: g.square().mean(0)),
        ("variance", lambda g: g.var(0, unbiased=False)),
    ],
)
def test_one_by_one(statistic: str, expected):
    found = dv.SmoothGrad(0.3, draws=7, seed=4, statistic=statistic).attribute(CUBIC, X, targets=0, batch_size=3)
    torch.testing.assert_close(found.values, expected(gradients(0.3, 7, 4)), rtol=1e-11, atol=1e-12)
    assert found.kind == "similarity"


def test_its_expectation_on_a_cubic():
    """∂(x³)/∂x = 3x², whose mean under noise is 3 (x² + σ²), variance 36 x² σ² + 18 σ⁴; over 40,000 draws."""
    model = Polynomial({(0, 0, 0): 1.0}, torch.zeros(2, dtype=torch.float64)).eval()
    x, sigma = torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.2
    mean, variance = 3 * (1 + sigma**2), 36 * sigma**2 + 18 * sigma**4
    settings = {"noise": sigma, "draws": 40_000}
    found = dv.SmoothGrad(**settings).attribute(model, x, targets=0).values[0]
    assert float(found[0]) == pytest.approx(mean, abs=4 * (variance / 40_000) ** 0.5) and found[1] == 0
    spread = dv.SmoothGrad(**settings, statistic="variance").attribute(model, x, targets=0).values[0, 0]
    assert float(spread) == pytest.approx(variance, rel=4 * (2 / 40_000) ** 0.5 * 1.5)  # a little more than normal


def test_a_linear_function_has_no_variance_at_all():
    model = nn.Linear(4, 2)
    assert (dv.SmoothGrad(statistic="variance").attribute(model, X.float()).values == 0).all()


def test_its_budget():
    with counted(CUBIC) as rows:
        dv.SmoothGrad(draws=6, statistic="variance").attribute(CUBIC, X, batch_size=4)
    assert (rows.forward, rows.backward) == (5 * (6 + 1), 5 * 6)


def test_what_it_refuses():
    for settings, message in (({"noise": 0}, "`noise` is 0"), ({"draws": 0}, "`draws` is 0")):
        with pytest.raises(ValueError, match=message):
            dv.SmoothGrad(**settings)
    with pytest.raises(ValueError, match="choose from 'mean', 'square' and 'variance'"):
        unchecked(dv.SmoothGrad, noise=0.1, draws=3, seed=0, statistic="median")
