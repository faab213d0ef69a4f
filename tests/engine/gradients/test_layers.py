"""Gradients from what a layer saw and made: every kind of layer against one backward pass a sample."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from dualview.engine.gradients import plan_gradients
from dualview.engine.task import Task
from dualview.ops import gradients
from tests.engine.gradients.one_by_one import assert_right, one_by_one


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Headed(nn.Module):
    """A layer, and a smooth head that makes its gradient differ at every position."""

    def __init__(self, layer: nn.Module, made: torch.Size | None = None, inputs: torch.Tensor | None = None):
        super().__init__()
        self.layer = layer
        shape = made or layer.double()(inputs).shape[1:]
        self.register_buffer("head", draw(shape.numel(), 3) / shape.numel() ** 0.5)

    def forward(self, x):
        return self.layer(x).tanh().flatten(1) @ self.head


def names(layer: nn.Module, how: str) -> dict[str, str]:
    return {f"layer.{name}": how for name, _ in layer.named_parameters()}


@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_vectors_is_held_by_factors(bias):
    layer, inputs = nn.Linear(7, 6, bias=bias), draw(5, 7)
    plan = assert_right(Headed(layer, inputs=inputs), inputs, names(layer, "factors"))
    assert plan.layout == (("layer.weight", 13, 1, 7, 6, bias),)


def test_linear_that_is_no_longer_than_its_factors_is_built():
    layer, inputs = nn.Linear(3, 1), draw(5, 3)
    plan = assert_right(Headed(layer, inputs=inputs), inputs, names(layer, "direct"))
    assert [part.width for part in plan.layout] == [3, 1]


def test_linear_on_tokens_takes_any_number_of_them():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Mean(), nn.Linear(5, 3)).double()
    how = {"0.weight": "direct", "0.bias": "direct", "3.weight": "factors", "3.bias": "factors"}
    plan = assert_right(model, draw(4, 6, 4), how)
    values = torch.cat([plan.record(draw(4, length, 4))[0] for length in (1, 9)])
    assert values.shape == (8, 25 + 8)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


CONVOLUTIONS = {
    "plain": {},
    "padded": {"padding": 1},
    "same": {"padding": "same", "dilation": 2},
    "same, even kernel": {"padding": "same", "kernel_size": 2},
    "valid": {"padding": "valid"},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4, "stride": 2, "bias": False},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": 2, "padding_mode": "reflect", "stride": 2},
    "replicate": {"padding": "same", "padding_mode": "replicate"},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch, about its own copy
def test_convolutions(kind, options):
    dims = (nn.Conv1d, nn.Conv2d, nn.Conv3d).index(kind) + 1
    layer, inputs = kind(4, 4, **{"kernel_size": 3} | options), draw(3, 4, *(7, 6, 5)[:dims])
    assert_right(Headed(layer, inputs=inputs), inputs, names(layer, "direct"))


def test_uneven_convolution():
    layer, inputs = nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), draw(3, 2, 7, 6)
    assert_right(Headed(layer, inputs=inputs), inputs, names(layer, "direct"))


def test_convolution_of_few_positions_is_held_by_factors():
    layer, inputs = nn.Conv2d(8, 30, 3, bias=True), draw(4, 8, 4, 3)  # 2 positions: 4 (72 + 30) < 72 · 30
    plan = assert_right(Headed(layer, inputs=inputs), inputs, names(layer, "factors"))
    assert plan.layout == (("layer.weight", 2 * 102, 2, 72, 30, True),)


def test_blocks_of_a_convolution_change_nothing(monkeypatch):
    monkeypatch.setattr("dualview.engine.gradients.layers.PATCH_NUMBERS", 1)
    layer, inputs = nn.Conv2d(2, 3, 3), draw(3, 2, 5, 5)
    assert_right(Headed(layer, inputs=inputs), inputs, names(layer, "direct"))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"sparse": True}], ids=str)
def test_embedding(options):
    layer, tokens = nn.Embedding(6, 4, **options), torch.tensor([[0, 2, 2, 5], [1, 1, 1, 1], [2, 3, 2, 0]])
    plan = assert_right(Headed(layer, torch.Size([4, 4])), tokens, names(layer, "direct"))
    padded = plan.record(tokens)[0].reshape(3, 6, 4)[:, 2]
    assert bool(padded.any()) != ("padding_idx" in options)


def test_embedding_of_one_token_a_sample():
    layer = nn.Embedding(6, 4)
    assert_right(Headed(layer, torch.Size([4])), torch.tensor([0, 3, 3, 5]), names(layer, "direct"))


NORMS = [
    (nn.BatchNorm1d(4), (4,)),
    (nn.BatchNorm1d(4), (4, 6)),
    (nn.BatchNorm2d(4), (4, 3, 2)),
    (nn.BatchNorm3d(4), (4, 3, 2, 2)),
    (nn.LayerNorm(4), (4,)),
    (nn.LayerNorm(4, bias=False), (3, 5, 4)),
    (nn.LayerNorm((5, 4)), (3, 5, 4)),
    (nn.GroupNorm(2, 4), (4,)),
    (nn.GroupNorm(2, 4, eps=0.1), (4, 3, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), NORMS, ids=str)
def test_norms(layer, shape):
    inputs = draw(4, *shape) * 3 + 1
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        layer.running_mean, layer.running_var = draw(4), draw(4).exp()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert_right(Headed(layer.eval(), inputs=inputs), inputs, names(layer, "direct"))


class Twice(nn.Module):
    """One layer called twice in a pass, on vectors, and another that shares its weight with nobody."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(9, 9)
        self.out = nn.Linear(9, 3, bias=False)

    def forward(self, x):
        return self.out(self.again(self.again(x).tanh()).tanh())


def test_calls_of_one_layer_add_up_as_factors():
    plan = assert_right(
        Twice(), draw(4, 9), {"again.weight": "factors", "again.bias": "factors", "out.weight": "factors"}
    )
    assert [part.rank for part in plan.layout] == [2, 1]


def test_calls_of_one_convolution_add_up():
    conv = nn.Conv1d(2, 2, 3, padding=1)
    assert_right(
        Headed(nn.Sequential(conv, nn.Tanh(), conv), torch.Size([2, 5])),
        draw(3, 2, 5),
        names(nn.Sequential(conv), "direct"),
    )


class InPlace(nn.Module):
    """In-place operations on the input, on what layers made, and on what other layers saw before."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x.mul_(2)).relu_()
        x = self.second(x).mul_(0.5).add_(x)
        return self.third(x)[:, [2, 0, 1]].div_(3)


def test_in_place_operations_on_inputs_and_outputs():
    inputs = draw(5, 8)
    before = inputs.clone()
    layers = ("first", "second", "third")
    model = InPlace()
    plan = plan_gradients(Task(model.double()), inputs, of="loss")
    assert plan.coverage == {f"{name}.{kind}": "factors" for name in layers for kind in ("weight", "bias")}
    values, _, targets = plan.record(inputs)
    assert torch.equal(inputs, before)
    expected = torch.cat(list(one_by_one(model, before.clone(), targets).values()), dim=1)
    torch.testing.assert_close(gradients.dense(plan.layout, values), expected, rtol=1e-9, atol=1e-11)


def test_in_place_activation_of_a_layer_class():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))
    assert_right(
        model, draw(4, 1, 4, 4), {"0.weight": "direct", "0.bias": "direct", "3.weight": "factors", "3.bias": "factors"}
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.out(x + self.block(x.relu()))


def test_residual():
    assert_right(
        Residual(), draw(5, 6), {f"{n}.{p}": "factors" for n in ("first", "block", "out") for p in ("weight", "bias")}
    )


def test_hooks_of_the_user_that_change_what_goes_in_and_comes_out():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].register_forward_pre_hook(lambda _layer, args: (2 * args[0],))
    model[0].register_forward_hook(lambda _layer, _args, out: out**2)
    assert_right(model, draw(4, 6), {f"{n}.{p}": "factors" for n in (0, 2) for p in ("weight", "bias")})


def test_a_parametrized_weight_goes_by_vmap_and_its_layers_bias_stays():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3))
    weights = {f"0.parametrizations.weight.original{k}": "vmap" for k in (0, 1)}
    assert_right(model, draw(4, 6), {"0.bias": "direct", **weights, "2.weight": "factors", "2.bias": "factors"})
