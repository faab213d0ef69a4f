"""The way down to the input for terminal rules: what is cut off gets nothing, and memory layout does not matter."""

import pytest
import torch
from torch import Tensor, nn

from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.terminal import Flat, WSquare, ZBox
from dualview.engine.propagation.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")

MASK = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, -2.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).double()
KEPT = MASK != 0
TWICE = torch.where(KEPT, 2.0, 0.0).double()
RULES = {"flat": Flat(), "w2": WSquare(bias="absorb"), "z-box": ZBox(low=-9.0, high=9.0)}


class First(nn.Module):
    """A convolution, without a bias, on what a function makes of the input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(2, 3, 2, bias=False)
        self.conv.weight.data = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.function(x)).flatten(1)


class Dense(nn.Module):
    """A dense layer on what a function makes of the input."""

    def __init__(self, function, width: int) -> None:
        super().__init__()
        self.function, self.fc = function, nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(x))


def scaled_in_place(x: Tensor) -> Tensor:
    x.mul_(TWICE)
    return x


SPELLINGS = {
    "x * c": lambda x: x * TWICE,
    "c * x": lambda x: TWICE * x,
    "in place": scaled_in_place,
    "boolean": lambda x: 2 * (x * KEPT),
    "x / c": lambda x: x / torch.where(KEPT, 0.5, torch.inf),
    "where": lambda x: torch.where(KEPT, x * 2, 0),
    "where of the input as it comes": lambda x: 2 * torch.where(KEPT, x, 0.0),
    "where, the method": lambda x: (x * 2).where(KEPT, torch.tensor(0.0).double()),
    "masked_fill": lambda x: 2 * x.masked_fill(~KEPT, 0.0),
    "minus": lambda x: -(x * -TWICE),
    "0 - x": lambda x: 0 - x * -TWICE,
    "cat": lambda x: torch.cat([x[:, :1] * TWICE, x[:, 1:] * TWICE], 1),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SPELLINGS)
def test_inputs_times_zero_get_nothing_however_it_is_written(name: str, rule: str):
    x = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    seed = torch.randn(2, 18, generator=torch.Generator().manual_seed(2)).double()
    composite_ = composite({"conv": RULES[rule]}, epsilon=0.0)
    # The convolution on the same values, all of them inputs: its rule gives relevance to zeros as well.
    written = trace(First(lambda y: y).double(), x * TWICE, composite_).propagate(gradient=seed).relevance
    assert bool((written != 0).all())
    found = trace(First(SPELLINGS[name]).double(), x, composite_).propagate(gradient=seed)
    torch.testing.assert_close(found.relevance, written * KEPT, rtol=1e-12, atol=1e-13)
    booked = sum(entry.amount for entry in found.account.absorbed if entry.kind == "constant")
    torch.testing.assert_close(booked, (written * ~KEPT).sum((1, 2, 3)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "function", [lambda x: x * 0, lambda x: torch.add(torch.ones_like(x), x, alpha=0), lambda x: x / torch.inf]
)
def test_an_input_without_any_effect_gets_nothing(function):
    x = torch.ones(1, 2, 3, 4).double()
    found = trace(First(lambda x: function(x) + 1).double(), x, composite({"conv": Flat()}, epsilon=0.0)).propagate(
        gradient=torch.ones(1, 18).double()
    )
    assert not found.relevance.any()
    (entry,) = (entry for entry in found.account.absorbed if entry.kind == "constant")
    torch.testing.assert_close(entry.amount, found.account.seed, rtol=1e-7, atol=0)  # Flat's ε is 1e-8


def test_relevance_written_onto_whole_numbers_is_booked():
    model, x = Dense(lambda x: torch.cat([x, torch.tensor([[1, 0]])], 1), 5).double(), torch.zeros(1, 3).double()
    passed = trace(model, x, composite({"fc": Flat(epsilon=0.0)}))
    found = passed.propagate(relevance=torch.tensor([[5.0]]).double())
    torch.testing.assert_close(found.relevance, torch.ones(1, 3).double(), rtol=1e-14, atol=0)
    assert sum(entry.total for entry in found.account.absorbed if entry.kind == "constant") == 2.0


def written_to_a_part(x: Tensor) -> Tensor:
    """The last two columns, changed in place: dense in memory before, strided after."""
    part = x.clone()[..., 2:]
    part.mul_(2)
    return part.mul(1).view(2, -1)


ONES = torch.ones(4, 4)
LAYOUTS = {
    "expand, normalise, view": (lambda x: ((x.expand(-1, 3, -1, -1) - 0.5) / 0.2).view(2, -1), 3 * ONES),
    "spread by a constant, view": (lambda x: (x * torch.ones(1, 3, 1, 1)).view(2, -1), 3 * ONES),
    "slice, scale, view": (lambda x: (x[..., :3] * 2).view(2, -1), ONES * (torch.arange(4) < 3)),
    "where, view": (lambda x: torch.where(torch.ones(3, 1, 1) > 0, x, 0.0).view(2, -1), 3 * ONES),
    "cat, view": (lambda x: torch.cat([x.mT, x], 3).mul(2).view(2, -1), 2 * ONES),
    "transpose, scale, transpose, view": (lambda x: (x.mT * 2).mT.view(2, -1), ONES),
    "in place on a part": (written_to_a_part, ONES * (torch.arange(4) >= 2)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_view_that_the_model_may_take_does_not_fail(name: str):
    function, copies = LAYOUTS[name]
    model, x = Dense(function, int(copies.sum())).double(), torch.rand(2, 1, 4, 4).double()
    passed = trace(model, x, composite({"fc": Flat(epsilon=0.0)}))
    found = passed.propagate(relevance=torch.ones_like(passed.logits)).relevance
    # One unit spread evenly over the layer's inputs: each pixel gets it as often as it is copied.
    expected = (copies.double() / copies.sum()).expand_as(x)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
