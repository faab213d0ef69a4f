"""Measured outputs against their closed forms, and their gradients against theirs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualview.engine.outputs import Output, contrast, directions, log_probability, logit, loss, margin

# Float64: a softmax, its logarithm and their gradient are a handful of operations on numbers below
# 1e2, so their rounding stays below 1e-13.
TOLERANCE = 1e-12


def logits_and_targets(seed: int, rows: int = 7, num_classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (rows,), generator=generator)


def one_hot(targets: Tensor, num_classes: int) -> Tensor:
    return torch.eye(num_classes, dtype=torch.float64)[targets]


def softmax_over_rivals(logits: Tensor, targets: Tensor) -> Tensor:
    """Slow twin: row by row, class by class."""
    result = torch.zeros_like(logits)
    for row, target in enumerate(targets.tolist()):
        rivals = [c for c in range(logits.shape[1]) if c != target]
        total = sum(math.exp(logits[row, c]) for c in rivals)
        for c in rivals:
            result[row, c] = math.exp(logits[row, c]) / total
    return result


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), num_classes=st.integers(2, 6), scale=st.sampled_from([0.1, 3.0, 20.0]))
def test_directions_equal_their_closed_forms(seed, num_classes, scale):
    z, y = logits_and_targets(seed, 4, num_classes, scale)
    hot, p = one_hot(y, num_classes), z.softmax(1)
    plus_minus = torch.zeros(4, num_classes, dtype=torch.float64)
    plus_minus[:, 1], plus_minus[:, 0] = 1, -1
    for output, expected in (
        (logit, hot),
        (contrast(1, 0), plus_minus),
        (margin, hot - softmax_over_rivals(z, y)),
        (log_probability, hot - p),
        (loss, p - hot),
    ):
        torch.testing.assert_close(directions(output, z, y), expected, rtol=0, atol=TOLERANCE, msg=output.name)


def test_values_equal_their_formulas():
    z, y = logits_and_targets(0)
    p = (z.exp() / z.exp().sum(1, keepdim=True))[range(7), y]
    for output, expected in (
        (logit, z[range(7), y]),
        (contrast(4, 2), z[:, 4] - z[:, 2]),
        (margin, (p / (1 - p)).log()),
        (log_probability, p.log()),
        (loss, -p.log()),
    ):
        torch.testing.assert_close(output(z, y), expected, rtol=0, atol=TOLERANCE, msg=output.name)


def test_what_is_linear_loses_nothing_by_linearisation():
    z, y = logits_and_targets(1)
    for output in (logit, contrast(0, 3)):
        assert output.linear
        torch.testing.assert_close((directions(output, z, y) * z).sum(1), output(z, y), rtol=0, atol=TOLERANCE)
    assert not any(output.linear for output in (margin, log_probability, loss))
    assert loss.lower_is_better and not logit.lower_is_better


def test_directions_of_the_users_own_function_agree_with_finite_differences():
    def entropy(logits: Tensor, targets: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=logits).entropy() * (1 + targets)

    z, y = logits_and_targets(2, scale=1.0)
    found = directions(Output("entropy", entropy), z, y)
    step = 1e-5  # central differences: step² times a third derivative of order one, plus eps / step
    for column in range(z.shape[1]):
        nudge = step * one_hot(torch.full((7,), column), z.shape[1])
        slope = (entropy(z + nudge, y) - entropy(z - nudge, y)) / (2 * step)
        torch.testing.assert_close(found[:, column], slope, rtol=0, atol=1e-8)


def test_the_margin_is_stable_where_the_probability_rounds_to_one():
    z = torch.tensor([[800.0, 0.0, 0.0]])
    y = torch.tensor([0])
    assert margin(z, y).item() == pytest.approx(800 - math.log(2), rel=1e-6)
    assert torch.equal(directions(margin, z, y), torch.tensor([[1.0, -0.5, -0.5]]))


def test_directions_need_no_gradient_mode_and_leave_it_and_the_logits_alone():
    z, y = logits_and_targets(3)
    expected = directions(loss, z, y)
    tracked = z.clone().requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(directions(loss, z.clone(), y.clone()), expected)
            assert torch.equal(directions(loss, tracked, y), expected)
            assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert tracked.grad is None
    assert not expected.requires_grad


def test_an_output_that_is_no_number_per_sample_or_has_no_gradient_is_refused():
    z, y = logits_and_targets(4)
    with pytest.raises(ValueError, match=r"one number per sample, shape \(7,\); it is \(7, 5\)"):
        directions(lambda logits, targets: logits, z, y)
    with pytest.raises(ValueError, match=r"it is \(\)"):
        directions(lambda logits, targets: logits.sum(), z, y)
    with pytest.raises(ValueError, match="does not depend on the logits"):
        directions(lambda logits, targets: logits.argmax(1).double(), z, y)
    weight = torch.ones(7, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend on the logits"):
        directions(lambda logits, targets: 2 * weight, z, y)
    z[[2, 5]] = 0
    with pytest.raises(ValueError, match=r"NaN or infinite gradient at test rows \[2, 5\]"):
        directions(lambda logits, targets: logits.square().sum(1).sqrt(), z, y)


def test_a_contrast_names_columns_that_exist_and_differ():
    z, y = logits_and_targets(5)
    with pytest.raises(ValueError, match=r"contrast\(2, 2\) is zero"):
        contrast(2, 2)
    for a, b in ((0, 5), (-1, 0)):
        with pytest.raises(ValueError, match=rf"contrast\({a}, {b}\): the network has output columns 0 to 4"):
            contrast(a, b)(z, y)
    assert contrast(0, 1).name == "contrast(0, 1)"


def test_copies_and_equal_contrasts_are_equal():
    assert copy.deepcopy(loss) == loss
    assert contrast(1, 2) == contrast(1, 2) != contrast(2, 1)
    assert Output("loss", F.cross_entropy) != loss
