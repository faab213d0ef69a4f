"""Activation functions hand relevance on; f(0) is booked; the limit stands at 0."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.propagation import activations
from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")

FUNCTIONS = {
    "gelu": F.gelu,
    "gelu tanh": nn.GELU("tanh"),
    "silu": F.silu,
    "silu in place": nn.SiLU(inplace=True),
    "mish": nn.Mish(),
    "elu": nn.ELU(1.3),
    "elu in place": nn.ELU(inplace=True),
    "selu": nn.SELU(),
    "celu": nn.CELU(0.7),
    "tanh": torch.tanh,
    "tanh_": torch.tanh_,
    "sigmoid": torch.sigmoid,
    "softplus": nn.Softplus(2),
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "hardswish": nn.Hardswish(inplace=True),
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": nn.Hardtanh(-1, 2),
    "relu6": nn.ReLU6(inplace=True),
    "clamp": lambda x: x.clamp(-0.5, 1),
    "clamp above 0": lambda x: torch.clamp(x, min=0.25),
    "clamp by a tensor": lambda x: torch.clamp(x, min=torch.linspace(-1, 1, 7).to(x)),
    "clip": lambda x: x.clip(max=0.5),
    "clamp_min": lambda x: x.clamp_min(-1).clamp_max(2),
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": nn.Threshold(0.5, 0.0),
    "erf": torch.erf,
    "arctan": lambda x: x.atan() + torch.arctan(x),
}


class Made(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_unit_keeps_its_relevance_but_for_the_constant_part(name: str):
    model = Made(FUNCTIONS[name])
    x = torch.tensor([[-9.0, -2.0, -0.3, 0.2, 0.7, 3.0, 8.0], [1e-9, -1e-7, 1e-5, 1e-3, -1e-3, 0.04, 50.0]]).double()
    m = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    found = trace(model, x, composite("epsilon")).propagate(gradient=m)
    at_zero = model(torch.zeros_like(x))
    expected = m * (model(x.clone()) - at_zero)
    # Where f(0) ≠ 0 the difference itself is rounded; 1e-15 is that rounding, times |m|.
    torch.testing.assert_close(found.relevance, expected, rtol=1e-12, atol=3e-15)
    torch.testing.assert_close(
        sum((e.amount for e in found.account.absorbed), torch.zeros(())),
        (m * at_zero).sum(1) if bool(at_zero.any()) else torch.zeros(()),
    )


@pytest.mark.parametrize("function", [F.gelu, torch.tanh, torch.sigmoid, F.softplus])
def test_the_slope_at_zero_is_the_derivative(function):
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(function(x), x)
    around = torch.tensor([0.0, 1e-12, 1e-7, 5e-6, 7e-6], dtype=torch.float64)
    slope = activations.slope(function, around, function(around), function(around.new_zeros(())))
    # (f(x) − f(0)) / x = f'(0) + x f''(0) / 2 + O(x²); |f''| ≤ 1 here, and rounding is 1e-16 / 6e-6.
    torch.testing.assert_close(slope, derivative.expand(5) + around * _half_second(function), rtol=0, atol=1e-10)


def _half_second(function) -> float:
    return {F.gelu: 0.3989422804014327, F.softplus: 0.125}.get(function, 0.0)


def test_bounds_that_widen_the_input_keep_the_slope_at_zero():
    low = torch.tensor([-1.0, -2.0, 1.0]).double()
    model = nn.Sequential(nn.Linear(2, 1, bias=False).double(), Made(lambda x: torch.clamp(x, min=low)))
    model[0].weight.data = torch.tensor([[1.0, -1.0]]).double()
    x, m = torch.ones(1, 2).double(), torch.tensor([[1.0, 2.0, 4.0]]).double()
    found = trace(model, x, composite("epsilon", epsilon=0.0)).propagate(gradient=m)
    # The unit stands at 0, where f' is 1, 1 and 0: the gradient 1 + 2 reaches both terms of 1 − 1.
    assert found.relevance.tolist() == [[3.0, -3.0]]
    assert sum(float(entry.total) for entry in found.account.absorbed if entry.kind == "constant") == 4.0


@pytest.mark.parametrize(
    "function", [nn.ReLU6(), nn.Hardtanh(-6, 6), lambda x: x.clamp(max=6)], ids=["relu6", "hardtanh", "clamp"]
)
def test_saturation_books_nothing(function):
    """The gradient of a saturated unit is 0; its relevance, m · 6, passes all the same."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), Made(function)).double()
    model[0].weight.data = torch.tensor([[4.0, 8.0], [1.0, 1.0]]).double()
    found = trace(model, torch.ones(1, 2).double(), composite("epsilon", epsilon=0.0)).propagate(
        gradient=torch.tensor([[1.0, 1.0]]).double()
    )
    # Unit 0 stands at 12, cut to 6 = 2 + 4; unit 1 at 2 = 1 + 1.
    torch.testing.assert_close(found.relevance, torch.tensor([[3.0, 5.0]]).double(), rtol=1e-14, atol=0)
    assert found.account.absorbed == ()


def test_float32_small_inputs_lose_no_digits():
    x = torch.tensor([[1e-6, -3e-5, 1e-4, 4e-3, 6e-3]])
    found = trace(Made(torch.sigmoid), x, composite("epsilon")).propagate(gradient=torch.ones_like(x)).relevance
    exact = torch.sigmoid(x.double()) - 0.5
    torch.testing.assert_close(found.double(), exact, rtol=3e-5, atol=0)  # eps^(2/3)


def test_two_inputs_are_refused():
    with pytest.raises(NotImplementedError, match="'clamp' in the model .*first argument may depend"):
        trace(Made(lambda x: torch.clamp(x, max=x.flip(1))), torch.randn(2, 3), composite("epsilon"))
