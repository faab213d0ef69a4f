"""Gradients that only vmap or a loop over the samples can give, against one backward pass a sample."""

import pytest
import torch
from torch import nn

from dualview.engine.gradients import plan_gradients
from dualview.engine.task import Task
from dualview.ops import gradients
from tests.engine.gradients.one_by_one import assert_right, one_by_one

HEAD = {"head.weight": "factors", "head.bias": "factors"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Headed(nn.Module):
    """A layer, its first output where it has several, and a linear head on the mean over positions."""

    def __init__(self, layer: nn.Module, width: int):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, 6)

    def forward(self, *inputs):
        made = self.layer(*inputs)
        made = made[0] if isinstance(made, tuple) else made
        return self.head(made.tanh() if made.ndim == 2 else made.tanh().mean(1))


def covered(layer: nn.Module, how: str) -> dict[str, str]:
    return {f"layer.{name}": how for name, _ in layer.named_parameters()} | HEAD


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    layer = kind(4, 5, num_layers=2, batch_first=True, dropout=0.5)
    assert_right(Headed(layer, 5), draw(5, 6, 4), covered(layer, "loop"))


def test_lstm_in_float32_goes_by_vmap():
    layer, inputs, targets = nn.LSTM(4, 5, batch_first=True), draw(5, 6, 4).float(), torch.arange(5)
    model = Headed(layer, 5)
    plan = plan_gradients(Task(model), inputs, of="loss")
    assert plan.coverage == covered(layer, "vmap")
    found = gradients.dense(plan.layout, plan.record(inputs, targets)[0])
    expected = torch.cat(list(one_by_one(model, inputs, targets).values()), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)  # float32 sums over six steps, of size 1


class SelfAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_multi_head_attention():
    layer = SelfAttention(6)
    assert_right(Headed(layer, 6), draw(5, 4, 6), covered(layer, "vmap"))


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_layer_past_its_fast_path(norm_first):
    layer = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True, norm_first=norm_first)
    how = covered(layer, "direct") | {
        f"layer.self_attn.{name}": "vmap" for name, _ in layer.self_attn.named_parameters()
    }
    assert torch.backends.mha.get_fastpath_enabled()
    assert_right(Headed(layer, 6), draw(5, 4, 6), how)
    assert torch.backends.mha.get_fastpath_enabled()


def test_encoder_of_which_only_the_last_layer_is_recorded():
    """Nothing before it requires gradients, which is when attention takes its fast path."""
    layer = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True)
    model = Headed(layer, 6)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("layer.linear2", "head")))
    how = {name: "not selected: frozen" for name, _ in model.named_parameters()}
    assert_right(model, draw(5, 4, 6), how | {"layer.linear2.weight": "direct", "layer.linear2.bias": "direct"} | HEAD)


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_embedding_bag(mode):
    layer = nn.EmbeddingBag(7, 5, mode=mode)
    assert_right(Headed(layer, 5), torch.tensor([[0, 2, 2], [1, 1, 6], [2, 3, 0], [5, 5, 5]]), covered(layer, "vmap"))


@pytest.mark.parametrize(
    ("layer", "width", "inputs"),
    [
        (nn.ConvTranspose1d(4, 3, 3, stride=2), 9, draw(5, 4, 4)),
        (nn.InstanceNorm1d(4, affine=True), 6, draw(5, 4, 6)),
        (nn.PReLU(4), 6, draw(5, 4, 6)),
        (nn.Bilinear(3, 2, 5), 5, (draw(5, 3), draw(5, 2))),
    ],
    ids=str,
)
def test_other_layers(layer, width, inputs):
    assert_right(Headed(layer, width), inputs, covered(layer, "vmap"), rows=5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.decode = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens):
        return self.decode(self.mix(self.embed(tokens).mean(1)).tanh())


def test_a_weight_of_two_modules():
    how = {"embed.weight": "vmap", "mix.weight": "factors", "mix.bias": "factors"}
    plan = assert_right(Tied(), torch.tensor([[0, 2, 2], [1, 1, 6], [2, 3, 0], [5, 5, 5]]), how)
    named = plan_gradients(Task(plan.task.model), torch.tensor([[0, 2], [3, 6]]), of="loss", parameters="decode")
    assert named.coverage == dict.fromkeys(how, "not selected") | {"embed.weight": "vmap"}


class Functional(nn.Module):
    """A layer whose weight is used once more behind its back, and parameters that no layer owns."""

    def __init__(self):
        super().__init__()
        self.map, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(()))])

    def forward(self, x):
        return self.head((self.map(x) * self.scales[0]).tanh() @ self.map.weight * self.scales[1])


def test_functional_use_of_parameters():
    how = {"map.weight": "vmap", "map.bias": "direct", "scales.0": "vmap", "scales.1": "vmap"}
    assert_right(Functional(), draw(5, 6), how | HEAD)


class Routed(nn.Module):
    """Each sample goes to one of two experts, chosen by a test on its numbers."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(6, 5), nn.Linear(6, 5)])
        self.head = nn.Linear(5, 6)

    def forward(self, x):
        return self.head(torch.cat([self.experts[int(row.sum() > 0)](row[None]) for row in x]).tanh())


EXPERTS = [f"experts.{k}.{kind}" for k in (0, 1) for kind in ("weight", "bias")]


def test_control_flow_that_depends_on_the_data():
    inputs = draw(6, 6)
    assert 0 < (inputs[:4].sum(1) > 0).sum() < 4
    assert_right(Routed(), inputs, dict.fromkeys(EXPERTS, "loop") | HEAD)


def test_an_expert_that_the_probe_never_asked_is_not_dropped_silently():
    inputs = draw(6, 6).abs()
    plan = plan_gradients(Task(Routed().double()), inputs, of="loss")
    assert [plan.coverage[name] for name in EXPERTS] == ["zero", "zero", "loop", "loop"]
    assert plan.record(inputs)[0].shape == (6, 35 + 11)
    with pytest.raises(ValueError, match=r"the logits depend on 'experts\.0\.weight' for some of these"):
        plan.record(-inputs)
