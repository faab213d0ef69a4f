"""Each proportional rule equals a slow twin written from its paper, in matrix form via the Jacobian."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.rules import AlphaBeta, Epsilon, Gamma, Proportional, ZPlus
from dualview.engine.propagation.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")

RULES = {
    "epsilon": Epsilon,
    "gamma": Gamma,
    "z+": ZPlus,
    "alpha-beta": AlphaBeta,
}


class Functional(nn.Module):
    """A linear operation on a weight, followed by what makes its output rows."""

    def __init__(self, function, *weight_shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(weight_shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def addmm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(weight[0, :3], x, weight[1:, :3], beta=0.5, alpha=-2)


LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear along the last axis": (lambda: nn.Linear(3, 2), (2, 3)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 6)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 4, 2, groups=2, dilation=2), (4, 4, 4)),
    "conv2d circular": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 3, 4)),
    "conv2d same": (lambda: nn.Conv2d(2, 2, (1, 3), padding="same"), (2, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, stride=(1, 2, 1), padding=(0, 1, 0)), (1, 2, 3, 3)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), (2, 3)),
    "transposed 2d in groups": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, padding=1), (4, 2, 2)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(1, 2, 2, dilation=2), (1, 2, 2, 2)),
    "batch norm": (lambda: shifted(nn.BatchNorm2d(3)), (3, 2, 2)),
    "matmul": (lambda: Functional(lambda x, w: x @ w, 4, 3), (4,)),
    "matmul from the left": (lambda: Functional(lambda x, w: w @ x, 3, 4), (4, 2)),
    "addmm": (lambda: Functional(addmm, 5, 4), (4,)),
    "bmm": (lambda: Functional(lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)), 3, 2), (2, 3)),
    "einsum": (lambda: Functional(lambda x, w: torch.einsum("nij,jk->nki", x, w), 3, 4), (2, 3)),
    "dot by keyword": (lambda: Functional(lambda x, w: F.linear(input=x, weight=w, bias=w[:, 0]), 3, 4), (4,)),
}


def shifted(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm.eval()


def example(name: str, seed: int, *, signed: bool = True) -> tuple[nn.Module, Tensor]:
    """Return a layer in float64 that ends in rows, and inputs of which a third are zero."""
    torch.manual_seed(seed)
    layer, shape = LAYERS[name]
    x = torch.randn(2, *shape).double()
    x[torch.rand(x.shape) < 0.3] = 0
    return nn.Sequential(layer(), nn.Flatten()).double().eval(), x if signed else x.abs()


def matrix(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights "output input" and the bias "output" of an affine model at one sample's shape."""
    weight = torch.autograd.functional.jacobian(lambda sample: model(sample[None])[0], x)
    return weight.reshape(-1, x.numel()), model(torch.zeros_like(x)[None])[0].detach()


def twin(rule: Proportional, weight: Tensor, bias: Tensor, x: Tensor, relevance: Tensor) -> Tensor:
    """Share the relevance of one sample, output by output and input by input."""
    z = weight * x
    above, below = z.clamp(min=0), z.clamp(max=0)
    sees = weight != 0
    kept = bias if rule.bias != "exclude" else torch.zeros_like(bias)
    if isinstance(rule, Epsilon):
        terms = [(1.0, z, kept)]
    elif isinstance(rule, Gamma):
        positive = (z.sum(1) if rule.bias == "exclude" else z.sum(1) + bias) >= 0
        favoured = torch.where(positive[:, None], above, below)
        kept_favoured = torch.where(positive, kept.clamp(min=0), kept.clamp(max=0))
        terms = [(1.0, z + rule.gamma * favoured, kept + rule.gamma * kept_favoured)]
    else:
        alpha, beta = (1.0, 0.0) if isinstance(rule, ZPlus) else (rule.alpha, rule.beta)
        terms = [(alpha, above, kept.clamp(min=0)), (-beta, below, kept.clamp(max=0))]
    found = torch.zeros_like(x)
    for share, contributions, bias_part in terms:
        denominators = contributions.sum(1) + bias_part
        size = float(denominators.abs().max())
        for j in range(len(denominators)):
            d = float(denominators[j])
            if d == 0:
                continue
            scale = share * float(relevance[j]) / (d + math.copysign(rule.epsilon * size, d))
            seen = (sees[j] & (x != 0)).nonzero().flatten().tolist()
            for i in seen:
                spread = float(bias_part[j]) / len(seen) if rule.bias == "share" else 0.0
                found[i] += (float(contributions[j, i]) + spread) * scale
    return found


@pytest.mark.parametrize("bias", ["absorb", "exclude", "share"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_rule_equals_its_twin(layer: str, name: str, bias: str):
    for seed, signed in ((0, True), (1, False)):
        model, x = example(layer, seed, signed=signed)
        rule = RULES[name](bias=bias, epsilon=1e-3)
        passed = trace(model, x, composite({"*": rule}))
        relevance = torch.randn(passed.logits.shape, dtype=torch.float64)
        found = passed.propagate(relevance=relevance).relevance
        expected = torch.stack(
            [
                twin(rule, *matrix(model, sample), sample.flatten(), row).reshape(sample.shape)
                for sample, row in zip(x, relevance, strict=True)
            ]
        )
        # Sums of at most some hundred terms: 1e-12 of the largest leaves room for rounding alone.
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("layer", LAYERS)
def test_without_epsilon_and_with_the_bias_absorbed_the_rule_is_the_gradient(layer: str):
    model, x = example(layer, 2)
    passed = trace(model, x, composite("epsilon", epsilon=0.0))
    seed = torch.randn(passed.logits.shape, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf), leaf, seed)
    found = passed.propagate(gradient=seed).relevance
    assert torch.allclose(found, gradient * x, rtol=0, atol=1e-14 * float(gradient.abs().max()))


def test_alpha_of_one_is_z_plus():
    model, x = example("conv2d in groups", 3)
    found = []
    for rule in (ZPlus(), AlphaBeta(alpha=1, beta=0)):
        passed = trace(model, x, composite({"*": rule}))
        found.append(passed.propagate(gradient=torch.ones_like(passed.logits)).relevance)
    assert torch.equal(*found)


def test_an_output_that_cancels_to_zero_still_has_its_gradient():
    layer = nn.Linear(2, 1, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, -1.0]]).double()
    passed = trace(layer, torch.ones(1, 2).double(), composite("epsilon", epsilon=0.0))
    found = passed.propagate(gradient=torch.ones(1, 1).double())
    assert found.relevance.tolist() == [[1.0, -1.0]]


def test_a_zero_denominator_keeps_the_relevance_and_says_so():
    layer = nn.Linear(2, 1).double()
    passed = trace(layer, torch.zeros(3, 2).double(), composite("epsilon", bias="exclude"))
    found = passed.propagate(relevance=torch.ones(3, 1).double())
    assert found.relevance.abs().sum() == 0
    (entry,) = found.account.absorbed
    assert (entry.kind, entry.place.operation) == ("zero denominator", "linear")
    assert entry.amount.tolist() == pytest.approx([1, 1, 1], rel=1e-15)


def test_alpha_beta_wants_a_difference_of_one():
    with pytest.raises(ValueError, match="alpha − beta must be 1"):
        AlphaBeta(alpha=2, beta=2)
    with pytest.raises(ValueError, match="`gamma` must be at least 0"):
        Gamma(gamma=-1)
    with pytest.raises(ValueError, match="`bias` must be"):
        Epsilon(bias="none")
    with pytest.raises(ValueError, match="`epsilon` must be a number of at least 0"):
        ZPlus(epsilon=-1e-3)
