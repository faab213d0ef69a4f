"""The blur path against a slow twin with scipy's filter."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

import dualview as dv
from tests.features.budget import counted


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 2)).double()


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def smoothed(sigma: float) -> torch.Tensor:
    images = [gaussian_filter(image[0].numpy(), sigma, mode="nearest", truncate=4.0) for image in IMAGES]
    return torch.from_numpy(np.stack(images))[:, None]


def test_step_by_step(net):
    steps, sigma = 5, 3.0
    expected = torch.zeros_like(IMAGES)
    for k in range(steps):
        before, after = smoothed(sigma * (1 - k / steps)), smoothed(sigma * (1 - (k + 1) / steps))
        leaf = ((before + after) / 2).requires_grad_()
        expected += torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)[0] * (after - before)
    found = dv.BlurIG(sigma, steps=steps).attribute(net, IMAGES, targets=1)
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)
    change = (net(IMAGES) - net(smoothed(sigma)))[:, 1].detach()
    torch.testing.assert_close(found.change, change, rtol=1e-10, atol=1e-12)
    assert found.baseline == "Blur(sigma=3.0)"


def test_twice_the_steps_miss_a_quarter(net):
    errors = [dv.BlurIG(2, steps=n).attribute(net, IMAGES, targets=1).completeness_error.abs() for n in (100, 200)]
    ratio = errors[0].sum() / errors[1].sum()
    assert float(ratio) == pytest.approx(4, rel=0.1)


@pytest.mark.filterwarnings("ignore:the scores miss")  # rounding alone, of a change that is rounding
def test_a_constant_image_has_nothing_to_lose(net):
    found = dv.BlurIG(2).attribute(net, torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64))
    assert found.values.abs().max() < 1e-14


def test_its_budget(net):
    with counted(net) as rows:
        dv.BlurIG(2, steps=6).attribute(net, IMAGES, targets=1)
    assert (rows.forward, rows.backward) == (2 * (6 + 2), 2 * 6)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`sigma` is 0"):
        dv.BlurIG(0)
    with pytest.raises(ValueError, match="`steps` is 0"):
        dv.BlurIG(steps=0)
