"""The universal fixtures, asked of every feature method that claims the property.

Which method claims what stands in the three sets; a method that is in none of them says why on its card.
"""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
import dualview.features
from dualview.engine.removal import blurred
from tests.contracts import test_feature_methods as contracts

COARSE = {"GradCAM", "IIA"}  # maps of a site, spread over the input: no score of one number
BY_GRAPH = {"DeepLIFT", "LRP"}  # rules on operations: another graph of the same function may get other scores
BY_SLOPE = {"Gradient", "SmoothGrad"}  # sensitivities: not worth the change from a baseline

METHODS = contracts.METHODS | {
    "CrediblePath": dv.CrediblePath(0.0, tau=1, discard=False),  # it discards where f falls towards the input
    "DualEncoder": dv.DualEncoder(((1.0, 0.0), (0.0, 1.0)), 0.0),  # two outputs
    "ExpectedGradients": dv.ExpectedGradients(torch.zeros(1, 3), draws=400),
    "LRP": dv.LRP("epsilon"),  # these functions have no first layer
}
NAMES = dualview.features.__all__
torch.set_num_threads(1)


class Function(nn.Module):
    """A closed form as a network: its only logit is measured, for the output column 0 of two."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.tensor([1.5, -2.0, 0.5], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        value = self.function(x, self.weight)
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def attributed(name: str, function, inputs: Tensor) -> Tensor:
    found = METHODS[name].attribute(Function(function).eval(), inputs, targets=0)
    return found.values


INPUTS = torch.tensor([[1.0, 2.0, -0.5], [-0.3, 0.7, 1.1]], dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COARSE])
def test_a_feature_that_is_not_connected_gets_exactly_nothing(name: str):
    values = attributed(name, lambda x, w: (x[:, :2] * w[:2]).sum(1).relu() + 0.2 * x[:, 0], INPUTS)
    assert (values[:, 2] == 0).all() and (values[:, :2] != 0).any()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COARSE])
def test_a_linear_function_is_read_off(name: str):
    """LIN: w_i (x_i − x'_i) from the baseline 0 or the input smoothed, or the slope w_i."""
    values = attributed(name, lambda x, w: (x * w).sum(1), INPUTS)
    weight = torch.tensor([1.5, -2.0, 0.5], dtype=torch.float64)
    start = blurred(INPUTS, torch.full((2,), 2.0)) if name == "BlurIG" else 0.0
    expected = weight.expand(2, 3) if name in BY_SLOPE else weight * (INPUTS - start)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COARSE | BY_GRAPH])
def test_the_same_function_in_another_graph_gets_the_same_scores(name: str):
    """Implementation invariance: a product expanded, with tanh written as a quotient of exponentials."""

    def plain(x: Tensor, w: Tensor) -> Tensor:
        return torch.tanh((x * w).sum(1)) * (1 + x[:, 0])

    def other(x: Tensor, w: Tensor) -> Tensor:
        z = torch.stack([x[:, k] * w[k] for k in range(3)]).sum(0)
        up, down = torch.exp(z), torch.exp(-z)
        first = (up - down) / (up + down)
        return first + x[:, 0] * first

    torch.testing.assert_close(attributed(name, plain, INPUTS), attributed(name, other, INPUTS), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].kind == "share" and name != "LRP"])
def test_shares_add_up_to_the_change_from_the_baseline(name: str):
    """Completeness on a smooth function with products, to what the method says it misses."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        return torch.sigmoid((x * w).sum(1)) + 0.3 * x[:, 0] * x[:, 1] * x[:, 2]

    found = METHODS[name].attribute(Function(function).eval(), INPUTS, targets=0)
    torch.testing.assert_close(found.values.sum(1) - found.completeness_error, found.change, rtol=1e-12, atol=1e-14)
    assert (found.completeness_error.abs() <= 0.02 * found.change.abs()).all()


def test_the_sets_name_methods():
    assert COARSE | BY_GRAPH | BY_SLOPE <= set(dv.features.__all__)
