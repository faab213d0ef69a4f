"""Salient manipulation paths against a slow twin and closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.engine.path import Stand
from tests.features.budget import counted, unchecked
from tests.features.polynomials import Polynomial
from tests.features.walks import X, gradient, small_net

PROD = Polynomial({(0, 1): 1.0, (1,): 0.1}, torch.zeros(2, dtype=torch.float64)).eval()
pytestmark = pytest.mark.filterwarnings("ignore:the scores miss")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_net()


def one_by_one(net: nn.Module, start: Tensor, end: Tensor, sign: int, method: dv.SAMP) -> Tensor:
    """Accumulate along the greedy path of one sample, feature by feature."""
    point, total = start.clone(), torch.zeros_like(start)
    length, mean, slopes = float((end - start).abs().sum()), gradient(net, start), gradient(net, start)
    while not torch.equal(point, end):
        free = [k for k in range(10) if point[k] != end[k]]
        free.sort(key=lambda k: -sign * float(mean[k] * (end[k] - point[k])))
        chosen = free[: math.ceil(method.share * 10)]
        reach = float(sum((end[k] - point[k]).abs() for k in chosen))
        part = 1.0 if method.eta is None else min(1.0, method.eta * length / reach)
        following = point.clone()
        for k in chosen:
            following[k] = end[k] if part == 1 else point[k] + part * (end[k] - point[k])
        after = gradient(net, following)
        total += (slopes + after) / 2 * (following - point)
        mean, slopes, point = method.momentum * mean + (1 - method.momentum) * after, after, following
    return sign * total


@pytest.mark.parametrize("settings", [{"share": 0.1}, {"share": 0.3}, {"share": 0.3, "eta": 0.07, "momentum": 0.5}])
def test_feature_by_feature(net, settings):
    method = dv.SAMP(**settings, complete=False)
    both = [torch.stack([one_by_one(net, 0 * x, x, 1, method) for x in X])]
    both.append(torch.stack([one_by_one(net, x, 0 * x, -1, method) for x in X]))
    for direction, expected in zip(("insertion", "deletion", "both"), (*both, sum(both) / 2), strict=True):
        found = dv.SAMP(**settings, direction=direction, complete=False).attribute(net, X, targets=1)
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-11)


def test_the_order_decides_about_a_product():
    """At 0 only feature 2 has a slope and moves first, so that feature 1, which moves last, gets the product."""
    x = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    insertion = dv.SAMP(share=0.5, direction="insertion").attribute(PROD, x, targets=0).values
    torch.testing.assert_close(insertion, torch.tensor([[6.0, 0.3]], dtype=torch.float64))
    # backwards 2 has the larger slope times way (6.3 against 6) and gives up everything first
    deletion = dv.SAMP(share=0.5, direction="deletion").attribute(PROD, x, targets=0).values
    torch.testing.assert_close(deletion, torch.tensor([[0.0, 6.3]], dtype=torch.float64), rtol=1e-14, atol=1e-14)
    both = dv.SAMP(share=0.5).attribute(PROD, x, targets=0).values
    torch.testing.assert_close(both, (insertion + deletion) / 2)


@pytest.mark.parametrize("settings", [{}, {"eta": 0.05}, {"eta": 0.05, "momentum": 0.5}, {"complete": False}])
def test_a_linear_function_is_the_same_on_every_path(settings):
    model = Polynomial({(k,): float(k - 4) for k in range(10)}, torch.zeros(10, dtype=torch.float64)).eval()
    found = dv.SAMP(0.3, share=0.2, **settings).attribute(model, X, targets=0)
    torch.testing.assert_close(found.values, (X - 0.3) * (torch.arange(10).double() - 4), rtol=1e-12, atol=1e-13)
    assert found.checks["missed by gradients"].max() < 1e-12


def test_what_gradients_miss_is_shared_or_said(net):
    complete = dv.SAMP(share=0.5).attribute(net, X, targets=1)
    plain = dv.SAMP(share=0.5, complete=False).attribute(net, X, targets=1)
    assert complete.completeness_error.abs().max() < 1e-14 < 1e-3 < plain.completeness_error.abs().max()
    assert torch.equal(complete.checks["missed by gradients"], plain.checks["missed by gradients"])
    assert (plain.completeness_error.abs() <= plain.checks["missed by gradients"] + 1e-14).all()


def test_small_steps_miss_less(net):
    coarse, fine = (
        dv.SAMP(share=0.3, eta=eta, complete=False).attribute(net, X, targets=1).completeness_error.abs().sum()
        for eta in (0.1, 0.005)
    )
    assert fine < coarse / 10


def test_a_step_is_no_longer_than_eta():
    method = dv.SAMP(share=0.3, eta=0.02)
    start, length = torch.zeros_like(X), X.abs().sum(1)
    moved = method._move(Stand(0, start, X, torch.ones_like(X), length))
    torch.testing.assert_close(moved.abs().sum(1), 0.02 * length, rtol=1e-12, atol=0)
    assert ((moved != 0).sum(1) == 3).all()


@pytest.mark.parametrize("direction, ways", [("insertion", 1), ("both", 2)])
def test_its_budget(net, direction: str, ways: int):
    with counted(net) as rows:
        dv.SAMP(share=0.3, direction=direction).attribute(net, X, targets=1)
    assert (rows.forward, rows.backward) == (4 * (ways * (4 + 1) + 1), 4 * ways * (4 + 1))
    with counted(net) as rows:
        dv.SAMP(share=0.3, eta=0.1, direction=direction).attribute(net, X, targets=1)
    assert 4 * ways * 11 <= rows.backward <= 4 * ways * (4 + 10 + 1)


def test_what_it_refuses():
    for settings, message in (
        ({"share": 0}, "`share` is 0"),
        ({"eta": 2}, "`eta` is 2"),
        ({"momentum": 1}, "`momentum` is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dv.SAMP(**settings)
    fields = {"baseline": 0.0, "share": 0.1, "direction": "up", "eta": None, "momentum": 0, "complete": True}
    with pytest.raises(ValueError, match="choose from 'insertion', 'deletion' and 'both'"):
        unchecked(dv.SAMP, **fields)
