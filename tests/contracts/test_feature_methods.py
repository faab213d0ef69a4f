"""What every feature method promises, asked of each name in `dualview.features.__all__`.

A new method joins with one line in METHODS.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dualview as dv
import dualview.features
from dualview.features._method import FeatureMethod
from dualview.ops.priors import total_variation

BACKGROUND = 0.1 * torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bent(x: Tensor, alpha: Tensor) -> Tensor:
    return alpha**2 * x


METHODS: dict[str, FeatureMethod] = {
    "BlurIG": dv.BlurIG(sigma=2, steps=100),
    "Conductance": dv.Conductance(dv.Site("", "input")),
    "CrediblePath": dv.CrediblePath(dv.Noise(-0.1, 0.1, count=2), tau=1, discard=False),
    "DeepLIFT": dv.DeepLIFT(),
    "DualEncoder": dv.DualEncoder(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), 0.0),
    "ExpectedGradients": dv.ExpectedGradients(BACKGROUND, draws=200),
    "GradCAM": dv.GradCAM(),
    "Gradient": dv.Gradient(),
    "GuidedIG": dv.GuidedIG(steps=100, fraction=0.5),
    "IIA": dv.IIA(outer=3, inner=4),
    "InputXGradient": dv.InputXGradient(),
    "IntegratedGradients": dv.IntegratedGradients(steps=200),
    "LRP": dv.LRP("epsilon-plus-flat"),
    "Occlusion": dv.Occlusion(),
    "PathIntegral": dv.PathIntegral(bent, steps=100),
    "SAMP": dv.SAMP(share=0.2, eta=0.2, momentum=0.5),
    "SmoothGrad": dv.SmoothGrad(draws=5),
    "Taylor": dv.Taylor(steps=100),
}
HOLD_DATA = {"ExpectedGradients", "PathIntegral"}  # a tensor or function, which no text gives back
EVERY = pytest.mark.parametrize("name", dualview.features.__all__)

pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")


class Net(nn.Module):
    """A convolution, a residual written with +, a functional call, and a head."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.activation = activation
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.first(x)))
        x = self.activation(x + self.second(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Problem(NamedTuple):
    model: nn.Module
    inputs: Tensor


@pytest.fixture(scope="module")
def problem() -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
        return Problem(model.double().eval(), torch.randn(7, 3, 6, 5, dtype=torch.float64))


def test_every_method_is_asked():
    assert set(METHODS) == set(dualview.features.__all__)


@EVERY
def test_it_is_a_frozen_value(name: str):
    method = METHODS[name]
    kind = type(method)
    assert isinstance(method, FeatureMethod) and kind.__name__ == name
    assert kind.kind in ("share", "effect", "similarity")
    twin = copy.copy(method)
    assert twin == method and hash(twin) == hash(method) and len({twin, method}) == 1
    assert name in HOLD_DATA or eval(repr(method), {**vars(dv), name: kind}) == method
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, next(iter(vars(method)), "kind"), 0)


@EVERY
def test_values_are_shaped_like_the_inputs_and_say_what_they_are(name: str, problem):
    found = METHODS[name].attribute(problem.model, problem.inputs)
    assert torch.broadcast_shapes(found.values.shape, problem.inputs.shape) == problem.inputs.shape
    assert found.values.dtype == torch.float64
    assert found.values.flatten(1).abs().sum(1).min() > 0
    assert len(found) == 7 and found.kind == METHODS[name].kind and found.measured == "logit"
    predicted = problem.model(problem.inputs).argmax(1)
    assert torch.equal(found.targets, predicted) and torch.equal(found.predicted, predicted)
    assert found.method == repr(METHODS[name])


@EVERY
def test_shares_and_account_add_up(name: str, problem):
    if METHODS[name].kind != "share":
        pytest.skip(f"the scores of {name} are no shares")
    found = METHODS[name].attribute(problem.model, problem.inputs, targets=1)
    if found.account is None:  # a path from a reference: quadrature alone is missing, and it is said how much
        sums = found.values.flatten(1).sum(1)
        torch.testing.assert_close(sums - found.change, found.completeness_error, rtol=0, atol=1e-14)
        assert (found.completeness_error.abs() <= 0.02 * found.values.flatten(1).abs().sum(1)).all()
        return
    absorbed = sum((entry.amount for entry in found.account.absorbed), torch.zeros(7, dtype=torch.float64))
    size = found.account.seed.abs() + sum(entry.amount.abs() for entry in found.account.absorbed)
    logit = problem.model(problem.inputs)[:, 1].detach()
    assert ((found.account.seed - logit).abs() <= 1e-12 * size).all()
    assert ((found.values.flatten(1).sum(1) + absorbed - logit).abs() <= 1e-6 * size).all()


@EVERY
def test_several_outputs_give_a_leading_axis(name: str, problem):
    task = dv.Task(problem.model, output=(dv.logit, dv.contrast(2, 0)))
    both = METHODS[name].attribute(task, problem.inputs, targets=1, batch_size=4)
    assert both.outputs == ("logit", "contrast(2, 0)") and len(both) == 7
    for k, output in enumerate((dv.logit, dv.contrast(2, 0))):
        single = METHODS[name].attribute(dv.Task(problem.model, output=output), problem.inputs, targets=1)
        torch.testing.assert_close(both.values[k], single.values, rtol=1e-11, atol=1e-14)
        assert torch.equal(both.of_output(k).values, both.values[k]) and both.of_output(k).measured == single.measured
        assert torch.equal(both[[4, 1]].of_output(k).values, both.of_output(k)[[4, 1]].values)
        assert (both.of_output(k).account is None) == (single.account is None)


@EVERY
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batches_do_not_change_values(name: str, problem, batch_size: int):
    before = METHODS[name].attribute(problem.model, problem.inputs)
    after = METHODS[name].attribute(problem.model, problem.inputs, batch_size=batch_size)
    torch.testing.assert_close(after.values, before.values, rtol=1e-11, atol=1e-14)
    if before.account is not None:
        torch.testing.assert_close(after.account.seed, before.account.seed, rtol=1e-12, atol=0)
        assert len(after.account.absorbed) == len(before.account.absorbed)


@EVERY
def test_permuting_the_samples_permutes_the_values(name: str, problem):
    order = torch.tensor([6, 2, 0, 1, 5, 4, 3])
    before = METHODS[name].attribute(problem.model, problem.inputs)
    after = METHODS[name].attribute(problem.model, problem.inputs[order])
    torch.testing.assert_close(after.values, before.values[order], rtol=1e-11, atol=1e-14)
    assert torch.equal(before[order].values, before.values[order])
    assert torch.equal(before[order].targets, after.targets)


@EVERY
def test_targets_are_labels_one_each_or_one_for_all(name: str, problem):
    method, model, inputs = METHODS[name], problem.model, problem.inputs
    one = method.attribute(model, inputs, targets=2)
    assert torch.equal(method.attribute(model, inputs, targets=[2] * 7).values, one.values)
    task = dv.Task(model, classes={"cat": 0, "dog": 1, "owl": 2})
    assert torch.equal(method.attribute(task, inputs, targets=["owl"] * 7).values, one.values)
    mixed = method.attribute(model, inputs, targets=torch.tensor([0, 1, 2, 0, 1, 2, 2]), batch_size=2)
    torch.testing.assert_close(mixed.values[2:3], one.values[2:3], rtol=1e-11, atol=1e-14)
    assert torch.equal(mixed.targets, torch.tensor([0, 1, 2, 0, 1, 2, 2]))
    for wrong in (3, -1, [0, 1], 0.5):
        with pytest.raises(ValueError, match=r"label|targets"):
            method.attribute(model, inputs, targets=wrong)


@EVERY
def test_data_sets_and_loaders_serve_as_inputs(name: str, problem):
    before = METHODS[name].attribute(problem.model, problem.inputs)
    labelled = TensorDataset(problem.inputs, torch.zeros(7, dtype=torch.int64))
    for data in (labelled, DataLoader(labelled, batch_size=2, shuffle=True)):
        found = METHODS[name].attribute(problem.model, data)
        torch.testing.assert_close(found.values, before.values, rtol=1e-11, atol=1e-14)
        assert torch.equal(found[3].source.test_inputs([0])[0], problem.inputs[3])
    with pytest.raises(TypeError, match="hold no tensor"):
        METHODS[name].attribute(problem.model, "image.png")
    with pytest.raises(ValueError, match="no samples"):
        METHODS[name].attribute(problem.model, problem.inputs[:0])
    with pytest.raises(ValueError, match="batch_size"):
        METHODS[name].attribute(problem.model, problem.inputs, batch_size=0)


@EVERY
def test_single_precision_is_close_to_double(name: str, problem):
    """Activations round by 6e-8 of their size, a few hundred times over."""
    single = METHODS[name].attribute(copy.deepcopy(problem.model).float(), problem.inputs.float())
    double = METHODS[name].attribute(problem.model, problem.inputs)
    assert single.values.dtype == torch.float32
    apart = (single.values - double.values).flatten(1).abs().sum(1)
    assert (apart <= 1e-4 * double.values.flatten(1).abs().sum(1)).all()


@EVERY
@pytest.mark.parametrize("caller", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_model_inputs_and_random_state_are_left_untouched(name: str, problem, caller):
    model = copy.deepcopy(problem.model).train()
    model.fc.weight.grad = torch.full_like(model.fc.weight, 3.0)
    weights, inputs, random_state = copy.deepcopy(model.state_dict()), problem.inputs.clone(), torch.get_rng_state()
    with caller():
        found = METHODS[name].attribute(model, inputs)
    assert torch.equal(found.values, METHODS[name].attribute(problem.model, problem.inputs).values)
    assert torch.equal(inputs, problem.inputs) and inputs.grad is None and not found.values.requires_grad
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(not module._forward_pre_hooks and not module._backward_hooks for module in model.modules())
    assert (model.fc.weight.grad == 3).all() and model.first.weight.grad is None
    assert torch.equal(torch.get_rng_state(), random_state) and torch.is_grad_enabled()


@EVERY
def test_a_prior_on_scores_trains_the_weights(name: str, problem):
    """Its gradient is that of finite differences, along one direction in the space of all weights."""
    method = METHODS[name]
    if not method.keeps_graph:
        with pytest.raises(ValueError, match=f"{name} keeps no graph"):
            method.attribute(problem.model, problem.inputs, differentiable=True)
        return
    torch.manual_seed(2)
    model, inputs = Net(F.softplus).double().eval(), problem.inputs[:3].clone().requires_grad_()
    weights = list(model.parameters())
    directions = [torch.randn_like(weight) for weight in weights]

    def prior() -> Tensor:
        found = method.attribute(model, inputs, targets=1, differentiable=True)
        assert found.values.requires_grad
        return total_variation(found.values, axes=(-2, -1))

    gradients = torch.autograd.grad(prior(), weights, allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    moved = []
    for step in (1e-6, -1e-6):
        for weight, direction in zip(weights, directions, strict=True):
            weight.data += step * direction
        moved.append(prior().detach())
        for weight, direction in zip(weights, directions, strict=True):
            weight.data -= step * direction
    torch.testing.assert_close(slope, (moved[0] - moved[1]) / 2e-6, rtol=1e-5, atol=1e-8)
    assert slope.abs() > 1e-4 and inputs.grad is None
