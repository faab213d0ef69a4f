"""What the mode lets pass: weights on their own, questions, comparisons, and operations in any spelling."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.mode import OPERATIONS, name_of
from dualview.engine.propagation.rules import ZPlus
from dualview.engine.propagation.trace import trace


class Made(nn.Module):
    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def standardised(model: Made, x: Tensor) -> Tensor:
    """Operations on weights alone are constants, whatever they are."""
    weight = (model.weight - model.weight.mean(1, keepdim=True)) / model.weight.std(1, keepdim=True).exp()
    return F.linear(x, torch.softmax(weight, 1) * weight.detach().sign())


def asking(model: Made, x: Tensor) -> Tensor:
    """Questions and comparisons give no relevance and take none."""
    assert x.shape == torch.Size([2, 3])
    assert x.is_contiguous()
    assert len(x) == x.size(0) == 2
    assert not torch.isnan(x).any()
    assert "Tensor" in f"{type(x)}"
    if (x > 100).all():
        return x
    positions = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    return (x + 0 * torch.zeros_like(x)) @ model.weight + x.new_zeros(3) + 0 * positions


def in_words(model: Made, x: Tensor) -> Tensor:
    return torch.mul(torch.sub(torch.add(x, x), x), 2.0).div(2).matmul(model.weight)


@pytest.mark.parametrize("function", [standardised, asking, in_words])
def test_relevance_is_gradient_times_input(function):
    model, x = Made(function, 3, 3).double(), torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf)
    found = trace(model, x, composite("epsilon", epsilon=0.0)).propagate(gradient=torch.ones(2, 3).double())
    torch.testing.assert_close(found.relevance, gradient * x, rtol=1e-13, atol=1e-15)


@pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")
def test_parametrised_weights_are_constants():
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(3, 2)).double()
    plain = nn.Linear(3, 2).double()
    plain.weight.data, plain.bias.data = layer.weight.detach().clone(), layer.bias.detach().clone()
    x = torch.randn(2, 3).double()
    found = [
        trace(model, x, composite(ZPlus())).propagate(relevance=torch.ones(2, 2).double()) for model in (layer, plain)
    ]
    torch.testing.assert_close(found[0].relevance, found[1].relevance)


def test_a_frozen_model_and_a_trained_one_agree():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)), torch.randn(2, 3)
    found = []
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        found.append(trace(model, x, composite("epsilon-plus")).propagate(gradient=torch.ones(2, 1)).relevance)
    assert torch.equal(*found)


def test_factors_that_both_depend_on_the_input_are_refused_as_weights_too():
    for function in (
        F.linear,
        torch.matmul,
        lambda a, b: torch.addmm(a, a, b),
        lambda a, b: F.conv1d(a[None], b[None]),
    ):
        with pytest.raises(NotImplementedError, match="depend"):
            trace(Made(lambda _, x, f=function: f(x, x)), torch.ones(3, 3), composite("epsilon"))


def test_a_change_of_shape_in_place_is_refused():
    with pytest.raises(NotImplementedError, match=r"'squeeze' .*changes a shape in place, \(2, 1, 3\) to \(2, 3\)"):
        trace(Made(lambda _, x: x[:, None].squeeze_(1)), torch.ones(2, 3), composite("epsilon"))


def test_integers_and_masks_pass_untouched():
    def pick(_: Made, x: Tensor) -> Tensor:
        index = torch.tensor([2, 0])
        index += 0
        return x[:, index] * torch.tensor([True, False])

    found = trace(Made(pick), torch.ones(2, 3), composite("epsilon")).propagate(gradient=torch.ones(2, 2))
    assert found.relevance.tolist() == [[0, 0, 1]] * 2


def test_names_are_those_a_user_knows():
    assert name_of(torch.Tensor.data.__get__) == "data"
    assert name_of(F.relu) == "relu"
    assert {torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu_} <= OPERATIONS.keys()
    assert not OPERATIONS[torch.relu].in_place
    assert OPERATIONS[Tensor.relu_].in_place


class IntoBuffer(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.write, self.fc, self.out = write, nn.Linear(6, 6), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        buffer = torch.ones(len(x), 8, dtype=x.dtype)
        self.write(buffer, self.fc(x))
        return self.out(torch.relu(buffer))


@pytest.mark.parametrize(
    "write",
    [
        lambda buffer, y: buffer[:, :6].add_(y),
        lambda buffer, y: buffer[:, :6].copy_(y),
        lambda buffer, y: buffer.narrow(1, 1, 6).mul_(2).add_(y),
        lambda buffer, y: buffer.__setitem__((slice(None), slice(6)), y),
    ],
    ids=["add_", "copy_", "mul_, add_", "="],
)
def test_writing_into_a_part_of_a_buffer_books_the_rest(write):
    torch.manual_seed(0)
    model, x = IntoBuffer(write).double(), torch.randn(3, 6).double()
    passed = trace(model, x, composite("epsilon", epsilon=0.0))
    found = passed.propagate(gradient=torch.ones_like(passed.logits))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).sum(), leaf)
    torch.testing.assert_close(found.relevance, gradient * x, rtol=1e-12, atol=1e-15)
    assert any(entry.kind == "constant" and entry.size > 0.01 for entry in found.account.absorbed)


class TimeFirst(nn.Module):
    """A recurrent-style layout, "time sample unit", with as many steps as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.transpose(0, 1)))).sum(0)


def test_where_the_first_axis_is_not_the_sample_amounts_are_known_in_total_and_samples_stay_apart():
    torch.manual_seed(0)
    model, x = TimeFirst().double(), torch.randn(4, 4, 3).double() * torch.tensor([1, 10, 100, 1000]).view(4, 1, 1)
    rules = composite("epsilon", epsilon=0.1)
    passed = trace(model, x, rules)
    found = passed.propagate(gradient=torch.ones_like(passed.logits))
    assert all(entry.amount.ndim == 0 for entry in found.account.absorbed)
    assert {entry.kind for entry in found.account.absorbed} == {"bias", "epsilon"}
    for k in range(4):
        alone = trace(model, x[k : k + 1], rules).propagate(gradient=torch.ones(1, 2).double())
        torch.testing.assert_close(found.relevance[k : k + 1], alone.relevance, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the compiler's own imports
def test_a_compiled_module_runs_as_what_it_was_made_from():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    plain, compiled = (trace(net, x, composite("gamma")) for net in (model, torch.compile(model)))
    found = [one.propagate(gradient=torch.ones(2, 2)).relevance for one in (plain, compiled)]
    assert torch.equal(*found)


class Layout(nn.Module):
    """Linear operations after which the first axis is not the sample, or only by chance."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.fc, self.out = name, nn.Linear(4, 4), nn.Linear(4, 2)
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc(x))
        if self.name == "from the left":
            h = (self.weight @ h.T).T
        elif self.name == "einsum":
            h = torch.einsum("nf,fg->gn", h, self.weight).T
        elif self.name == "tensordot":
            h = torch.tensordot(h, self.weight, dims=1)
        elif self.name == "stack":
            h = self.out(torch.stack([h, torch.tanh(h)]))
            return h.mean(0)
        return self.out(torch.relu(h))


@pytest.mark.parametrize("name", ["from the left", "einsum", "tensordot", "stack"])
@pytest.mark.parametrize("rule", ["epsilon", "gamma", "z-plus"])
@pytest.mark.parametrize("rows", [2, 4])
def test_samples_beside_each_other_change_nothing_in_any_layout(name: str, rule: str, rows: int):
    torch.manual_seed(0)
    model = Layout(name).double()
    x = torch.randn(rows, 4).double() * torch.logspace(0, 3, rows).double()[:, None]
    rules = composite(rule, epsilon=0.1)
    together = trace(model, x, rules).propagate(gradient=torch.ones(rows, 2).double()).relevance
    for k in range(rows):
        alone = trace(model, x[k : k + 1], rules).propagate(gradient=torch.ones(1, 2).double()).relevance
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-9, atol=1e-12)
