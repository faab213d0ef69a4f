"""What the numbers must be: their precision, their device, their size; and what is said when they are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.propagation.account import warn_of
from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.trace import trace
from dualview.errors import DualViewWarning, NonFiniteError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype):
    with pytest.raises(TypeError, match=r"relevance needs float32 or float64; inputs is (b?)float16: .*\.float\(\)"):
        trace(nn.Linear(3, 2).to(dtype), torch.ones(1, 3, dtype=dtype), composite("epsilon"))
    with pytest.raises(TypeError, match=r"operation 'to' in the model .* has b?float16"):
        trace(Casting(dtype), torch.ones(1, 3), composite("epsilon"))


class Casting(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).float()


def test_autocast_does_not_reach_inside():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        passed = trace(model, x, composite("epsilon"))
    assert torch.equal(passed.logits, model(x).detach())


def test_a_model_on_meta_is_refused():
    with pytest.raises(ValueError, match="weight is on the meta device .*load the weights first"):
        trace(nn.Linear(3, 2, device="meta"), torch.ones(1, 3), composite("epsilon"))


def test_a_change_of_what_backward_needs_is_refused():
    class Trained(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(x)
            y += 1
            return y

    passed = trace(Trained(), torch.ones(1, 3), composite("epsilon"))
    with pytest.raises(NotImplementedError, match="Write y = y \\+ 1"):
        passed.propagate(gradient=torch.ones(1, 3))


def test_integer_inputs_alone_are_refused():
    with pytest.raises(TypeError, match="at least one floating-point input"):
        trace(nn.Embedding(3, 2), torch.tensor([0, 1]), composite("epsilon"))


# ── when something is wrong with the numbers ─────────────────────────────────────────────────────


def test_overflow_names_the_operation():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data.fill_(1e25)
    model[1].weight.data.fill_(1e-3)
    passed = trace(model, torch.full((1, 2), 1e-20), composite("epsilon"))
    with pytest.raises(NonFiniteError, match=r"NaN or infinite at operation 'linear' in module '0' \(Linear\)"):
        passed.propagate(gradient=torch.full((1, 1), 1e20))
    passed = trace(nn.Linear(2, 1), torch.full((1, 2), torch.inf), composite("epsilon"))
    with pytest.raises(NonFiniteError, match="the seed, where the activation is so already"):
        passed.propagate(gradient=torch.ones(1, 1))


def test_the_weights_must_be_those_of_the_trace():
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    for layer in (model[0].weight, model[3].bias):
        for rule in ("epsilon", "epsilon-plus", "epsilon-plus-flat"):
            passed = trace(model, torch.ones(1, 1, 3), composite(rule, bias="absorb"))
            with torch.no_grad():
                layer.mul_(-1)
            with pytest.raises(
                ValueError, match=r"the weights of operation '\w+' in module .* changed after the trace"
            ):
                passed.propagate(gradient=torch.ones(1, 1))


def test_relevance_that_grows_out_of_all_proportion_is_warned_of():
    """Excluding a bias that nearly cancels z leaves a small output with the relevance of a large one."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0, -1.0]]).double()
    model[0].bias.data.fill_(1.0)
    model[1].weight.data.fill_(1.0)
    x = torch.tensor([[1.0, 1.0 - 1e-4]]).double()
    passed = trace(model, x, composite("epsilon", bias="exclude", epsilon=0.0))
    account = passed.propagate(gradient=torch.ones(1, 1).double()).account
    assert account.growth is not None and account.growth.ratio == pytest.approx(
        (2 - 1e-4) / 1e-4, rel=1e-3
    )  # as float32 has 1e-4
    with pytest.warns(DualViewWarning, match=r"grew 2e\+04-fold up to operation 'input'"):
        warn_of({"": account}, stacklevel=1)


def test_cancelling_branches_show():
    class Cancels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 10 * x - 9 * x

    found = trace(Cancels(), torch.ones(2, 3), composite("epsilon")).propagate(gradient=torch.ones(2, 3))
    (branches,) = found.account.branches
    assert branches.place.operation == "sub"
    assert branches.ratio == pytest.approx(19)


class HalfInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = torch.relu(self.a(x))
        return self.b(y.float())


@pytest.mark.parametrize("rule", ["epsilon", "z-plus", "epsilon-plus-flat"])
def test_autocast_inside_the_model_is_refused(rule: str):
    with pytest.raises(TypeError, match=r"operation 'linear' in module 'a' \(Linear\) runs under autocast"):
        trace(HalfInside(), torch.randn(2, 3), composite(rule))


def test_relevance_that_grows_is_no_imbalance():
    """Rounding is in units of the largest relevance on the way, at the inputs too."""
    torch.manual_seed(0)
    layers = nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    model, x = nn.Sequential(*layers), torch.randn(6000, 9)
    found = trace(model, x, composite("epsilon-plus")).propagate(gradient=torch.ones(6000, 3))
    sizes, worst = found.relevance.abs().sum(1).topk(20)
    assert sizes[0] > 1e3 * found.account.seed[worst[0]].abs()
    for k in worst.tolist():
        trace(model, x[k : k + 1], composite("epsilon-plus")).propagate(gradient=torch.ones(1, 3))
