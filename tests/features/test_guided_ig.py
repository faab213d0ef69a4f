"""Guided integrated gradients against a slow twin of the paper's algorithm."""

import math

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.engine.path import Stand
from tests.features.budget import counted
from tests.features.walks import X, gradient, small_net

pytestmark = pytest.mark.filterwarnings("ignore:the scores miss")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_net()


def path_of(net: nn.Module, x: Tensor, steps: int, fraction: float) -> list[Tensor]:
    """Algorithm 1 of Kapishnikov et al. 2021, feature by feature in Python."""
    point, whole, path = torch.zeros_like(x), float(x.abs().sum()), [torch.zeros_like(x)]
    for step in range(1, steps + 1):
        slopes = gradient(net, point).abs()
        due = float((x - point).abs().sum()) - whole * (1 - step / steps)
        while due > 1e-12:
            free = [k for k in range(len(x)) if point[k] != x[k]]
            free.sort(key=lambda k: float(slopes[k]))
            chosen = free[: math.ceil(fraction * len(free))]
            reach = float(sum((x[k] - point[k]).abs() for k in chosen))
            part = min(1.0, due / reach)
            for k in chosen:
                point[k] = x[k] if part == 1 else point[k] + part * (x[k] - point[k])
            due -= part * reach
        path.append(point.clone())
    return path


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1.0])
def test_feature_by_feature(net, fraction: float):
    found = dv.GuidedIG(steps=7, fraction=fraction).attribute(net, X, targets=1)
    expected = torch.zeros_like(X)
    for row, x in enumerate(X):
        path = path_of(net, x, 7, fraction)
        for before, after in zip(path, path[1:], strict=False):  # the trapezoid rule on each piece
            expected[row] += (gradient(net, before) + gradient(net, after)) / 2 * (after - before)
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-11)


def test_the_distance_falls_by_the_same_amount_each_step():
    move, generator = dv.GuidedIG(steps=5)._move, torch.Generator().manual_seed(0)
    points_, length = torch.zeros_like(X), X.abs().sum(1)
    for step in range(5):
        slopes = torch.randn(X.shape, generator=generator, dtype=torch.float64)
        points_ = move(Stand(step, points_, X, slopes, length))
        torch.testing.assert_close((X - points_).abs().sum(1), length * (4 - step) / 5, rtol=1e-12, atol=1e-13)
    assert torch.equal(points_, X)


def test_all_features_at_once_are_integrated_gradients(net):
    """fraction=1 moves every feature by the same part: the straight line, by the trapezoid rule."""
    found = dv.GuidedIG(steps=6, fraction=1).attribute(net, X, targets=1)
    expected = dv.IntegratedGradients(steps=7, rule="trapezoid").attribute(net, X, targets=1)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-10, atol=1e-12)


def test_what_gradients_are_equal_moves_together():
    """Neighbours at a constant baseline have the same gradient up to rounding, which must not choose."""
    slopes = torch.full((1, 10), 0.3, dtype=torch.float64) * (1 + 1e-15 * torch.arange(10))
    start = torch.zeros(1, 10, dtype=torch.float64)
    moved = dv.GuidedIG(steps=4)._move(Stand(0, start, X[:1], slopes, X[:1].abs().sum(1)))
    torch.testing.assert_close(moved, X[:1] / 4, rtol=1e-13, atol=0)


def test_a_gradient_that_is_no_number_does_not_hang():
    slopes = torch.full((1, 10), torch.nan, dtype=torch.float64)
    start = torch.zeros(1, 10, dtype=torch.float64)
    moved = dv.GuidedIG(steps=4)._move(Stand(0, start, X[:1], slopes, X[:1].abs().sum(1)))
    torch.testing.assert_close((X[:1] - moved).abs().sum(), X[:1].abs().sum() * 3 / 4)


def test_more_steps_miss_less(net):
    errors = [dv.GuidedIG(steps=n).attribute(net, X, targets=1).completeness_error.abs().sum() for n in (20, 200)]
    assert errors[1] < errors[0] / 10


def test_its_budget(net):
    with counted(net) as rows:
        dv.GuidedIG(dv.Noise(count=2), steps=6).attribute(net, X, targets=1)
    assert (rows.forward, rows.backward) == (4 * (2 * 7 + 1), 4 * 2 * 7)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`fraction` is 0"):
        dv.GuidedIG(fraction=0)
    with pytest.raises(ValueError, match="`steps` is 0"):
        dv.GuidedIG(steps=0)
