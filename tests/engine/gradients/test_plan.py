"""What is asked of a plan: directions, selections, several inputs, lone samples, precision, and no trace left."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dualview.engine import outputs
from dualview.engine.gradients import plan_gradients
from dualview.engine.task import Task
from dualview.errors import NonFiniteError
from dualview.ops import gradients
from dualview.ops.layout import width_of
from tests.engine.gradients.one_by_one import assert_right, one_by_one

TARGETS = torch.tensor([2, 0, 1, 1, 2, 0, 0])


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(nn.Module):
    """Direct, factored, vmapped and unused parameters, and dropout, in one small network."""

    def __init__(self, num_outputs: int = 3):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 2, 3, padding=1), nn.BatchNorm1d(2)
        self.scale = nn.Parameter(torch.ones(2, 1))
        self.dropout, self.fc = nn.Dropout(), nn.Linear(12, num_outputs)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.dropout(self.norm(self.conv(x)).relu() * self.scale).flatten(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


COVERAGE = dict.fromkeys(("conv.weight", "conv.bias", "norm.weight", "norm.bias"), "direct") | {
    "scale": "vmap", "fc.weight": "factors", "fc.bias": "factors", "unused.weight": "zero", "unused.bias": "zero"
}  # fmt: skip
MEASURES = {
    "loss": F.cross_entropy,
    "output": lambda z, y: z[0, y[0]],
    "margin": lambda z, y: z[0, y[0]] - torch.cat([z[0, : y[0]], z[0, y[0] + 1 :]]).exp().sum().log(),
}


def expected(model: nn.Module, inputs, targets, names, measure=MEASURES["loss"]) -> torch.Tensor:
    truth = one_by_one(model, inputs, targets, measure)
    return torch.cat([truth[name] for name in names], dim=1)


def test_coverage_names_every_parameter(net):
    plan = assert_right(net, draw(7, 1, 6), {name: COVERAGE[name] for name, _ in net.named_parameters()})
    assert list(plan.coverage) == [name for name, _ in net.named_parameters()]


@pytest.mark.parametrize("of", MEASURES)
def test_what_is_differentiated(net, of):
    inputs = draw(7, 1, 6)
    plan = plan_gradients(Task(net), inputs, of=of)
    values, _, targets = plan.record(inputs, TARGETS)
    assert torch.equal(targets, TARGETS)
    names = [name for name, how in plan.coverage.items() if how != "zero"]
    truth = expected(net, inputs, TARGETS, names, MEASURES[of])
    torch.testing.assert_close(gradients.dense(plan.layout, values), truth, rtol=1e-10, atol=1e-12)


def test_the_tasks_own_loss_and_a_function_of_logits_and_targets(net):
    inputs, weights = draw(7, 1, 6), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    task = Task(net, loss=nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1, reduction="sum"))
    by_loss = plan_gradients(task, inputs, of="loss").record(inputs, TARGETS)[0]
    by_measure = plan_gradients(task, inputs, of=outputs.loss).record(inputs, TARGETS)[0]

    def written(logits, targets):
        return F.cross_entropy(logits, targets, weights, label_smoothing=0.1, reduction="none")

    by_function = plan_gradients(Task(net), inputs, of=written).record(inputs, TARGETS)[0]
    assert torch.equal(by_loss, by_measure)
    torch.testing.assert_close(by_loss, by_function, rtol=1e-12, atol=1e-14)


def test_targets_default_to_predictions_and_directions_may_be_given(net):
    inputs = draw(7, 1, 6)
    plan = plan_gradients(Task(net), inputs, of="output")
    values, raw, targets = plan.record(inputs)
    assert torch.equal(targets, raw.argmax(1))
    one_hot = F.one_hot(targets, 3).double()
    assert torch.equal(plan.record(inputs, directions=one_hot)[0], values)
    classes = [
        plan.record(inputs, directions=one_hot.new_zeros(7, 3).index_fill(1, torch.tensor(c), 1))[0] for c in range(3)
    ]
    logits = [gradients.dense(plan.layout, rows) for rows in classes]
    mixed = gradients.dense(plan.layout, plan.record(inputs, directions=torch.tensor([[1.0, -2, 3]]).repeat(7, 1))[0])
    torch.testing.assert_close(mixed, logits[0] - 2 * logits[1] + 3 * logits[2], rtol=1e-10, atol=1e-12)


def test_one_logit_stands_for_two_columns():
    torch.manual_seed(0)
    net, inputs, labels = Net(1).double(), draw(7, 1, 6), TARGETS.clamp(max=1)
    task = Task(net, loss=F.binary_cross_entropy_with_logits)
    plan = plan_gradients(task, inputs, of="loss")
    values, raw, predicted = plan.record(inputs, labels)
    assert raw.shape == (7, 1)
    names = [name for name, how in plan.coverage.items() if how != "zero"]
    truth = expected(net, inputs, labels, names, lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y.double()))
    torch.testing.assert_close(gradients.dense(plan.layout, values), truth, rtol=1e-10, atol=1e-12)
    assert torch.equal(plan.record(inputs)[2], (raw[:, 0] > 0).long())


def test_losses_of_regression_and_of_several_labels(net):
    inputs, labels = draw(7, 1, 6), draw(7, 3)
    for problem, loss in (
        ("regression", lambda z, y: 0.5 * (z - y).square().sum()),
        ("multi-label", lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum")),
    ):
        targets = labels if problem == "regression" else (labels > 0).double()
        plan = plan_gradients(Task(net, problem=problem), inputs, of="loss")
        names = [name for name, how in plan.coverage.items() if how != "zero"]
        found = gradients.dense(plan.layout, plan.record(inputs, targets)[0])
        torch.testing.assert_close(found, expected(net, inputs, targets, names, loss), rtol=1e-10, atol=1e-12)
        with pytest.raises(ValueError, match=f"the loss of a {problem} task needs targets="):
            plan.record(inputs)


def test_batches_and_lone_samples_change_nothing(net):
    inputs = draw(7, 1, 6)
    plan = plan_gradients(Task(net), inputs, of="loss")
    whole = plan.record(inputs, TARGETS)[0]
    for size in (1, 2, 3):
        blocks = [plan.record(*pair)[0] for pair in zip(inputs.split(size), TARGETS.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(blocks), whole, rtol=1e-12, atol=1e-14)
    from_one = plan_gradients(Task(net), inputs[:1], of="loss")
    assert (from_one.layout, from_one.coverage) == (plan.layout, plan.coverage)


class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv1d(2, 8, 4), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.fc(self.conv(x).squeeze()).tanh())


def test_a_squeeze_that_takes_the_axis_of_a_lone_sample():
    torch.manual_seed(0)
    names = [f"{layer}.{kind}" for layer in ("conv", "fc", "out") for kind in ("weight", "bias")]
    plan = assert_right(Squeezing(), draw(5, 2, 4), dict.fromkeys(names, "factors"))
    inputs, targets = draw(5, 2, 4), TARGETS[:5]
    lone = torch.cat([plan.record(inputs[row : row + 1], targets[row : row + 1])[0] for row in range(5)])
    torch.testing.assert_close(lone, plan.record(inputs, targets)[0], rtol=1e-12, atol=1e-14)


class TwoInputs(nn.Module):
    """Token ids with a mask, and a vector beside them."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.out = nn.Embedding(7, 5), nn.Linear(4, 5), nn.Linear(5, 6)

    def forward(self, tokens, mask=None, vector=None):
        pooled = (self.embed(tokens) * mask[..., None]).sum(1)
        return self.out((pooled + self.fc(vector)).tanh())


@pytest.mark.parametrize("as_dict", [True, False])
def test_several_inputs(as_dict):
    torch.manual_seed(0)
    tokens = torch.arange(15).reshape(5, 3) % 7
    inputs = {"tokens": tokens, "mask": tokens > 1, "vector": draw(5, 4)}
    how = {
        "embed.weight": "direct",
        "fc.weight": "factors",
        "fc.bias": "factors",
        "out.weight": "factors",
        "out.bias": "factors",
    }
    assert_right(TwoInputs(), inputs if as_dict else tuple(inputs.values()), how, rows=5)


def test_selection_by_names_and_modules(net):
    inputs = draw(7, 1, 6)
    net.conv.requires_grad_(False)

    def coverage(parameters=None):
        return {
            name: how
            for name, how in plan_gradients(Task(net), inputs, of="loss", parameters=parameters).coverage.items()
        }

    assert coverage()["conv.weight"] == "not selected: frozen"
    assert coverage()["fc.weight"] == "factors"
    assert [name for name, how in coverage("conv").items() if how != "not selected"] == ["conv.weight", "conv.bias"]
    assert coverage(["fc.bias", "scale"]) == dict.fromkeys(coverage(), "not selected") | {
        "fc.bias": "direct",
        "scale": "vmap",
    }
    with pytest.raises(ValueError, match=r"parameters='con' is neither .* Parameters of Net are: scale, conv\.weight"):
        coverage(["conv", "con"])
    with pytest.raises(ValueError, match=r"do not depend on any .* unused\.weight, unused\.bias"):
        coverage("unused")
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires gradients: name some"):
        coverage()
    with pytest.raises(ValueError, match=r"of='los'; expected"):
        plan_gradients(Task(net), inputs, of="los", parameters="fc")


def test_frozen_layers_that_are_named_are_recorded(net):
    inputs = draw(7, 1, 6)
    net.requires_grad_(False)
    plan = plan_gradients(Task(net), inputs, of="loss", parameters="conv")
    found = gradients.dense(plan.layout, plan.record(inputs, TARGETS)[0])
    truth = expected(net, inputs, TARGETS, ["conv.weight", "conv.bias"])
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("grown", [True, False])
def test_the_model_is_left_untouched(net, grown):
    net.train(grown)
    net.conv.weight.requires_grad_(False)
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    before, flags = copy.deepcopy(net.state_dict()), [one.requires_grad for one in net.parameters()]
    generator = torch.get_rng_state()
    inputs = draw(7, 1, 6)
    plan = plan_gradients(Task(net), inputs, of="loss", parameters="")
    with torch.inference_mode():
        plan.record(inputs.clone(), TARGETS)
    with pytest.raises(RuntimeError):
        plan.record(draw(7, 2, 6))
    assert all(torch.equal(after, before[name]) for name, after in net.state_dict().items())
    assert [one.requires_grad for one in net.parameters()] == flags
    assert [one.grad is None for one in net.parameters()] == [name != "fc.weight" for name, _ in net.named_parameters()]
    assert torch.equal(net.fc.weight.grad, torch.ones_like(net.fc.weight))
    assert all(module.training == grown for module in net.modules())
    hooks = [(m._forward_hooks, m._forward_pre_hooks, m._backward_hooks) for m in net.modules()]
    assert not any(hook for kinds in hooks for hook in kinds)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_other_precisions_come_back_in_float32(net, dtype, tolerance):
    inputs = draw(7, 1, 6)
    exact = plan_gradients(Task(net), inputs, of="loss").record(inputs, TARGETS)[0]
    plan = plan_gradients(Task(net.to(dtype)), inputs.to(dtype), of="loss")
    values, raw, _ = plan.record(inputs.to(dtype), TARGETS)
    assert values.dtype == raw.dtype == torch.float32
    assert values.shape[1] == width_of(plan.layout) == exact.shape[1]
    assert (values - exact).norm() <= tolerance * exact.norm()  # a few dozen roundings, of 6e-8 or 4e-3 each


def test_what_has_no_per_sample_gradients_is_refused(net):
    inputs = draw(7, 1, 6)
    with pytest.raises(ValueError, match="depend on the other samples of its batch"):
        batch_norm = nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False), nn.Flatten(), nn.Linear(6, 3)).double()
        plan_gradients(Task(batch_norm), inputs, of="loss")
    with pytest.raises(NonFiniteError, match=r"NaN or infinite for samples \[1\]"):
        plan_gradients(Task(net), inputs.index_fill(0, torch.tensor(1), torch.nan), of="loss")


def test_factors_of_another_length_are_refused():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(8, 30, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    plan = plan_gradients(Task(conv), draw(4, 8, 3), of="loss")
    assert plan.coverage == {"0.weight": "factors", "0.bias": "factors"}
    with pytest.raises(ValueError, match=r"'0\.weight' takes 108 numbers a sample .* took 54"):
        plan.record(draw(4, 8, 4))


def test_a_parameter_that_only_later_samples_use_is_not_dropped_in_silence():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Linear(6, 3), nn.Parameter(torch.ones(6, 3))

        def forward(self, x):
            big = x[:, 0] > 1
            return self.a(x) + torch.where(big[:, None], x @ self.w, 0.0) if big.any() else self.a(x)

    inputs = torch.zeros(8, 6)
    inputs[6:, 0] = 2
    plan = plan_gradients(Task(Branch()), inputs[:4], of="margin")
    assert plan.coverage["w"] == "zero"
    plan.record(inputs[:6])
    with pytest.raises(ValueError, match="the logits depend on 'w' for some of these samples"):
        plan.record(inputs[4:])
