"""DeepLIFT with the rescale rule against Captum 0.9's DeepLift, on networks of modules used once each."""

import warnings

import pytest
import torch
from captum.attr import DeepLift
from torch import Tensor, nn

import dualview as dv

ROUNDING = {"rtol": 1e-8, "atol": 1e-10}
"""float64; where |Δx| is between 1e-10 and 6e-6, ours has f' for Captum's noisy quotient."""


def of_captum(model: nn.Module, x: Tensor, baseline: Tensor, target: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it sets hooks
        return DeepLift(model).attribute(x, baseline, target=target).detach()


def perceptron(activation: type[nn.Module]) -> nn.Sequential:
    layers = (nn.Linear(6, 9), activation(), nn.Linear(9, 7), activation(), nn.Linear(7, 3))
    return nn.Sequential(*layers).double().eval()


def convolutional(activation: type[nn.Module]) -> nn.Sequential:
    layers = (nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), activation(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3))
    net = nn.Sequential(*layers, activation(), nn.Flatten(), nn.Linear(20, 3)).double().eval()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize(("make", "shape"), [(perceptron, (5, 6)), (convolutional, (5, 2, 8, 8))])
def test_the_same_scores(make, shape: tuple[int, ...], activation: type[nn.Module]):
    torch.manual_seed(0)
    model, x = make(activation), torch.randn(shape, dtype=torch.float64)
    for baseline in (torch.zeros_like(x), torch.randn_like(x)):
        ours = dv.DeepLIFT(baseline=baseline).attribute(model, x, targets=1).values
        torch.testing.assert_close(ours, of_captum(model, x, baseline, 1), **ROUNDING)


def test_written_as_a_function_captum_misses_the_change_that_ours_shares():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron(nn.ReLU)

        def forward(self, x: Tensor) -> Tensor:
            return self.net[4](self.net[2](self.net[0](x).relu()).relu())

    torch.manual_seed(0)
    model, x = Functional(), torch.randn(5, 6, dtype=torch.float64)
    baseline = torch.zeros_like(x)
    ours = dv.DeepLIFT().attribute(model, x, targets=1)
    torch.testing.assert_close(ours.values, of_captum(model.net, x, baseline, 1), **ROUNDING)
    missed = of_captum(model, x, baseline, 1).sum(1) - ours.change
    assert missed.abs().mean() > 0.05 * ours.change.abs().mean()
