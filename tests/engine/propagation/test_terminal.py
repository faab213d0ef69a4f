"""Terminal rules equal their twins, give relevance to zero inputs, and stand only at the input."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.propagation.composites import Composite, composite
from dualview.engine.propagation.rules import Epsilon
from dualview.engine.propagation.terminal import Flat, Terminal, WSquare, ZBox
from dualview.engine.propagation.trace import trace
from dualview.engine.site import Site

pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 6)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 4, 2, groups=2, dilation=2), (4, 4, 4)),
    "conv2d circular": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (1, 3, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, padding=(0, 1, 0)), (1, 2, 3, 3)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 2, 2)),
}
RULES = {
    "flat": Flat,
    "w2": WSquare,
    "z-box": lambda **options: ZBox(low=-0.5, high=3.0, **options),
    "z-box of tensors": lambda **options: ZBox(low=torch.tensor(-0.5), high=torch.tensor(3.0), **options),
}


def twin(rule: Terminal, weight: Tensor, bias: Tensor, x: Tensor, relevance: Tensor) -> Tensor:
    """Share the relevance of one sample, output by output and input by input."""
    if isinstance(rule, ZBox):
        low, high = float(rule.low), float(rule.high)
        contributions, part = weight * x - low * weight.clamp(min=0) - high * weight.clamp(max=0), bias
    elif isinstance(rule, WSquare):
        contributions, part = weight**2, bias**2
    else:
        contributions, part = (weight != 0).double(), torch.zeros_like(bias)
    part = part if rule.bias != "exclude" else torch.zeros_like(bias)
    denominators = contributions.sum(1) + part
    size = float(denominators.abs().max())
    found = torch.zeros_like(x)
    for j, d in enumerate(denominators.tolist()):
        scale = float(relevance[j]) / (d + math.copysign(rule.epsilon * size, d)) if d else 0.0
        seen = (weight[j] != 0).nonzero().flatten().tolist()
        for i in seen:
            spread = float(part[j]) / len(seen) if rule.bias == "share" else 0.0
            found[i] += (float(contributions[j, i]) + spread) * scale
    return found


@pytest.mark.parametrize("bias", ["absorb", "exclude", "share"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_rule_equals_its_twin(layer: str, name: str, bias: str):
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    model = nn.Sequential(make(), nn.Flatten()).double()
    x = torch.rand(2, *shape).double() * 3 - 0.5
    x[torch.rand(x.shape) < 0.5] = 0
    rule = RULES[name](bias=bias, epsilon=1e-3)
    passed = trace(model, x, composite({"0": rule}))
    relevance = torch.randn(passed.logits.shape, dtype=torch.float64)
    found = passed.propagate(relevance=relevance).relevance
    for sample, row, its in zip(x, relevance, found, strict=True):
        weight = torch.autograd.functional.jacobian(lambda s: model(s[None])[0], sample).reshape(-1, sample.numel())
        expected = twin(rule, weight, model(torch.zeros_like(sample)[None])[0].detach(), sample.flatten(), row)
        torch.testing.assert_close(its.flatten(), expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


class Prepared(nn.Module):
    """A first layer below which there is only rearranging and constants, and a skip around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, bias=False)
        self.fc = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.2) / torch.tensor([0.5, 2.0]).double().view(2, 1, 1)
        a, b = x.transpose(2, 3).chunk(2, 1)
        x = torch.cat([b, a], 1)[:, :, 1:]
        return self.fc(F.relu(self.conv(x)).sum((2, 3)))


def test_relevance_finds_its_way_to_zero_inputs_through_rearranging_and_constants():
    torch.manual_seed(0)
    model = Prepared().double()
    x = torch.zeros(2, 2, 5, 6).double()
    x[:, 0, 2, 2] = 1
    passed = trace(model, x, composite("epsilon-plus-flat", epsilon=0.0))
    m = torch.randn(passed.logits.shape, dtype=torch.float64)
    found = passed.propagate(gradient=m)
    # By hand: relevance of the convolution's outputs, spread evenly over each 2 × 3 × 3 window.
    y = (x - 0.2) / torch.tensor([0.5, 2.0]).double().view(2, 1, 1)
    y = y.transpose(2, 3).flip(1)[:, :, 1:]
    z = model.conv(y).relu()
    relevance = z * (m @ model.fc.weight)[:, :, None, None]
    windows = F.conv_transpose2d(relevance.sum(1, keepdim=True) / 18, torch.ones(1, 2, 3, 3).double())
    expected = F.pad(windows, (0, 0, 1, 0)).flip(1).transpose(2, 3)
    torch.testing.assert_close(found.relevance, expected.detach(), rtol=1e-10, atol=1e-14)
    assert (found.relevance[x == 0] != 0).sum() > 0.8 * x.numel()
    assert found.account.absorbed == ()


def test_relevance_written_onto_padding_and_constants_is_booked():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, torch.ones(len(x), 2).to(x)], 1)
            return self.fc(F.pad(torch.where(torch.arange(5) < 4, x, 9.0), (1, 2)))

    found = trace(Padded().double(), torch.ones(2, 3).double(), composite({"fc": Flat()}, epsilon=0.0)).propagate(
        relevance=torch.full((2, 1), 8.0).double()
    )
    torch.testing.assert_close(found.relevance, torch.ones(2, 3).double(), rtol=1e-6, atol=0)
    amounts = {entry.place.operation: entry.total for entry in found.account.absorbed if entry.kind == "constant"}
    assert {name: round(amount, 4) for name, amount in amounts.items()} == {"pad": 6.0, "where": 2.0, "cat": 2.0}


def test_relevance_by_both_ways_adds_up_also_at_a_site():
    """The input is seen by a flat layer and, beside it, by a skip."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + self.first(x))

    torch.manual_seed(0)
    model, x = Skip().double(), torch.tensor([[0.0, 1.0, 2.0]]).double()
    site = Site("first", "input")
    passed = trace(model, x, composite({"first": Flat(epsilon=0.0), "fc": Epsilon(epsilon=0.0)}), sites=[site])
    found = passed.propagate(gradient=torch.tensor([[1.0, 0.0]]).double())
    m = model.fc.weight[0]
    written = (m * model.first(x)).sum() / 3
    torch.testing.assert_close(found.relevance, (m * x + written).detach())
    torch.testing.assert_close(found.sites[site], written.detach().expand(1, 3))


@pytest.mark.parametrize("between", [nn.ReLU(), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.AvgPool1d(3, 1, 1)], ids=str)
def test_a_terminal_rule_above_anything_else_is_refused(between: nn.Module):
    model = nn.Sequential(between, nn.Linear(4, 2)).double()
    with pytest.raises(ValueError, match=r"Flat was given to operation 'linear' in module '1' \(Linear\)"):
        trace(model, torch.randn(2, 4).double(), composite({"1": Flat()}))


def test_inputs_outside_the_box_are_refused():
    passed = trace(nn.Linear(3, 2), torch.tensor([[0.0, 0.5, 2.0]]), composite({"": ZBox(low=0.0, high=1.0)}))
    with pytest.raises(ValueError, match="1 of 3 inputs of operation 'linear'.*outside `low` and `high`.* 0 to 2"):
        passed.propagate(gradient=torch.ones(1, 2))


def test_a_first_layer_rule_that_never_came_to_be_used_is_refused():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 2, 2), nn.Flatten())
    with pytest.raises(ValueError, match="no linear layer or convolution sees the input directly"):
        trace(model, torch.randn(1, 1, 4, 4), composite("epsilon-plus-flat"))


def test_a_terminal_rule_for_everything_is_refused():
    with pytest.raises(ValueError, match="writes to the input only"):
        composite(Flat())
    assert isinstance(composite("epsilon-plus-flat"), Composite)
