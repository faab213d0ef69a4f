"""The numbers behind DeepLIFT's rules: quotients that do not cancel, shares of a maximum, signed sums."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dualview.engine.propagation.fusion import rescale_rows
from dualview.engine.propagation.multipliers import Weighted, log_sum_exp_weights, shares_of_largest, slope

EPS = torch.finfo(torch.float64).eps


@pytest.mark.parametrize("gap", [0.0, 1e-300, 1e-15, 1e-9, 1e-6, 1e-5, 1e-3, 1.0])
def test_the_slope_of_a_smooth_function_is_right_for_any_difference(gap: float):
    """Of exp the slope is known without cancellation; f''' = f: the error is at most the rounding over 6e-6."""
    x_ref = torch.linspace(-3, 2, 11, dtype=torch.float64)
    x = x_ref + gap
    gap_seen = x - x_ref
    exact = x_ref.exp() * torch.where(gap_seen == 0, 1, torch.expm1(gap_seen) / torch.where(gap_seen == 0, 1, gap_seen))
    torch.testing.assert_close(slope(torch.exp, x, x_ref), exact, rtol=2 * EPS ** (2 / 3), atol=0)


@pytest.mark.parametrize("f", [F.gelu, F.silu, torch.tanh, torch.sigmoid, F.softplus, F.elu, F.selu, F.hardswish])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_slope_times_difference_is_the_difference_of_values(f, dtype: torch.dtype):
    """To some roundings of f, on grids that straddle the kinks at 0 and ±3 by every size of difference."""
    centre = torch.tensor([-3.0, -0.7, 0.0, 1e-9, 0.4, 3.0], dtype=dtype)[:, None]
    gaps = torch.cat([sign * 10.0 ** -torch.arange(16, dtype=dtype) for sign in (1, -1)])
    x, x_ref = centre + 0.6 * gaps, centre - 0.4 * gaps
    missing = slope(f, x, x_ref) * (x - x_ref) - (f(x) - f(x_ref))
    rounding = torch.finfo(dtype).eps
    assert (missing.abs() <= 8 * rounding * (f(x).abs() + f(x_ref).abs() + 1)).all()


def test_the_slope_of_relu_is_exact_across_the_kink_and_its_derivative_where_nothing_differs():
    x, x_ref = torch.tensor([2e-3, 1.0, -1.0, 0.5, -0.5, 0.0]), torch.tensor([-1e-3, -1.0, -2.0, 0.5, -0.5, 0.0])
    expected = torch.tensor([2e-3 / 3e-3, 0.5, 0.0, 1.0, 0.0, 0.0])
    for exact in (False, True):
        torch.testing.assert_close(slope(F.relu, x, x_ref, exact=exact), expected, rtol=1e-6, atol=0)


def test_what_is_minus_infinite_on_both_sides_has_the_slope_of_the_limit():
    minus = torch.tensor([-torch.inf])
    assert slope(torch.exp, minus, minus).item() == 0


def test_where_nothing_differs_an_infinite_slope_counts_as_none():
    zero = torch.zeros(1)
    assert slope(torch.sqrt, zero, zero).item() == slope(torch.log, zero, zero).item() == 0
    assert slope(torch.sqrt, zero + 1e-20, zero).item() == pytest.approx(1e10)


def quadrature_of_largest(x: Tensor, x_ref: Tensor, steps: int) -> Tensor:
    """Return how often each is the largest at the middles of equal steps."""
    t = (torch.arange(steps, dtype=x.dtype) + 0.5) / steps
    line = x_ref[..., None] + t * (x - x_ref)[..., None]
    return F.one_hot(line.argmax(0), len(x)).double().mean(-2).movedim(-1, 0)


def test_shares_of_the_largest_are_measured_along_the_line():
    """A grid of n points misses each of the crossings, fewer than 6, by at most 1/n."""
    generator = torch.Generator().manual_seed(0)
    x, x_ref = torch.randn(2, 6, 500, dtype=torch.float64, generator=generator)
    shares = shares_of_largest(x, x_ref)
    assert (shares - quadrature_of_largest(x, x_ref, 4000)).abs().max() <= 6 / 4000
    assert ((shares > 0).sum(0) >= 3).any()  # some lines rise and fall again
    torch.testing.assert_close(shares.sum(0), torch.ones(500, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close((shares * (x - x_ref)).sum(0), x.amax(0) - x_ref.amax(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("x", "x_ref", "expected"),
    [
        ([2.0, 1.0], [0.0, 0.0], [1.0, 0.0]),  # tied at the start, and the steeper wins
        ([1.0, 1.0], [0.0, 0.0], [0.5, 0.5]),  # the same line twice
        ([3.0, 3.0, 0.0], [0.0, 0.0, 2.0], [0.3, 0.3, 0.4]),  # overtaken by two at 2 − 2t = 3t
        ([3.0, 0.0], [0.0, 1.0], [3 / 4, 1 / 4]),  # 3t = 1 − t
        ([1.0, -math.inf], [0.0, -math.inf], [1.0, 0.0]),  # padding takes no part
        ([0.0, -math.inf], [1.0, -math.inf], [1.0, 0.0]),
        (
            [4.0, 2.0, 0.0],
            [0.0, 1.5, 2.0],
            [4 / 7, 3 / 7 - 1 / 5, 1 / 5],
        ),  # 2 − 2t = 1.5 + t/2 at 1/5, which is 4t at 3/7
    ],
)
def test_shares_of_the_largest_where_they_are_known(x, x_ref, expected):
    lines, lines_ref, shares = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (x, x_ref, expected))
    torch.testing.assert_close(shares_of_largest(lines, lines_ref), shares, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-7, 1.0, 50.0, 2000.0])
def test_weights_of_log_sum_exp_are_complete_and_do_not_overflow(scale: float):
    generator = torch.Generator().manual_seed(1)
    x, x_ref = scale * torch.randn(2, 4, 5, dtype=torch.float64, generator=generator)
    x[0, 2] = x_ref[0, 2] = -torch.inf
    weights = log_sum_exp_weights(x, x_ref, 1)
    assert weights[0, 2] == 0 and (weights >= 0).all() and (weights.sum(1) <= 1 + 1e-9).all()
    gap = torch.where(x == x_ref, 0, x - x_ref)
    change = x.logsumexp(1) - x_ref.logsumexp(1)
    torch.testing.assert_close((weights * gap).sum(1), change, rtol=1e-12, atol=1e-15)


def test_signed_sums_count_each_contribution_on_its_side():
    difference = torch.tensor([[2.0, -1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 3.0, 5.0], [-2.0, -4.0, 6.0]])
    plus, minus = Weighted(difference, weight, F.linear, rescale_rows).signed()
    assert torch.equal(plus, torch.tensor([[2.0, 4.0]])) and torch.equal(minus, torch.tensor([[-3.0, -4.0]]))
    (of_plus,) = torch.autograd.grad(plus[0, 0], difference, retain_graph=True)
    assert torch.equal(of_plus, torch.tensor([[1.0, 0.0, 2.5]]))  # half of the weight where nothing differs
