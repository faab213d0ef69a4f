"""The readout is found where there is one, and the error says what was found instead."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.readout import with_readout
from dualview.engine.site import Site
from dualview.engine.task import Task
from dualview.errors import NonFiniteError

IMAGES = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def found(model: nn.Module, inputs=ROWS, readout: Site | str | None = None) -> Site:
    resolved = with_readout(Task(model, readout=readout), inputs)
    assert resolved.model is model
    return resolved.readout


def refused(model: nn.Module, *parts: str, inputs=ROWS, readout: Site | str | None = None) -> None:
    """Expect an error with these words in this order."""
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        with_readout(Task(model, readout=readout), inputs)


class Made(nn.Module):
    """A network from layers and a forward function."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self._forward(self, x)


# ── found ────────────────────────────────────────────────────────────────────────────────────────


class Residual(nn.Module):
    """Functional operations, a sum over a skip, a block used twice, and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(6, 6))
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.conv(x))
        for _ in range(2):
            x = x + F.relu(self.block(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize(
    ("model", "inputs", "name"),
    [
        (nn.Linear(5, 3), ROWS, ""),
        (nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), ROWS, "2"),
        (nn.Sequential(nn.Linear(5, 3), nn.Identity(), nn.Flatten(), nn.Dropout(0.5)), ROWS, "0"),
        (nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (6, 1, 1))), ROWS, "0"),
        (nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), ROWS, "0"),
        (nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3)), ROWS, "1"),
        (Residual(), IMAGES, "fc"),
    ],
    ids=["alone", "mlp", "reshaped", "unflattened", "one logit", "same width", "residual"],
)
def test_the_one_linear_that_makes_the_output_is_found(model, inputs, name):
    assert found(model, inputs) == Site(name, "input", 0)
    assert found(model, inputs, readout=name) == Site(name, "input", 0)
    assert found(model, inputs, readout=Site(name, "input")) == Site(name, "input", 0)


def test_it_is_found_in_nested_modules_and_beside_layers_used_twice():
    body = nn.Linear(5, 5)
    head = nn.ModuleDict({"fc": nn.Linear(5, 3)})
    model = Made(lambda m, x: {"logits": m.head["fc"](m.body(m.body(x)))}, body=body, head=head)
    assert found(model) == Site("head.fc", "input")


def test_it_is_found_where_its_weights_are_tied_to_another_layers():
    embedding = nn.Embedding(3, 5)
    head = nn.Linear(5, 3, bias=False)
    head.weight = embedding.weight
    model = Made(lambda m, x: m.head(m.embedding(x).mean(1)), embedding=embedding, head=head)
    assert found(model, torch.tensor([[0, 1], [2, 2], [1, 1], [0, 0]])) == Site("head", "input")


def test_the_first_of_two_heads_is_the_one_that_is_returned_first():
    model = Made(lambda m, x: (m.main(x), m.other(x)), main=nn.Linear(5, 3), other=nn.Linear(5, 3))
    assert found(model) == Site("main", "input")


def test_a_layer_with_two_names_answers_to_both():
    layer = nn.Linear(5, 3)
    model = Made(lambda m, x: m.second(x), first=layer, second=layer)
    assert found(model) == Site("first", "input")
    assert found(model, readout="second") == Site("second", "input")


def test_operations_in_place_after_a_layer_do_not_hide_what_it_made():
    model = Made(lambda m, x: m.fc(F.relu_(m.body(x))).clone(), body=nn.Linear(5, 3), fc=nn.Linear(3, 3))
    assert found(model) == Site("fc", "input")
    refused(Made(lambda m, x: m.fc(x).sub_(1), fc=nn.Linear(5, 3)), "no Linear layer makes the model's output")


def test_dropout_and_batch_statistics_do_not_disturb_and_the_mode_returns():
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.9), nn.Linear(5, 3), nn.Dropout(0.9)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert found(model) == Site("2", "input")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


# ── refused ──────────────────────────────────────────────────────────────────────────────────────


def twin_heads() -> nn.Module:
    """Two heads of one output, as weight tying by assignment makes them."""
    model = Made(lambda m, x: {"logits": m.b(x), "aux": m.a(x)}, a=nn.Linear(5, 3), b=nn.Linear(5, 3))
    model.a.weight, model.a.bias = model.b.weight, model.b.bias
    return model


def test_two_layers_that_make_the_output_are_listed_and_one_can_be_named():
    refused(twin_heads(), "the readout of Made was not found: 'a' and 'b' all make the model's output", "readout=")
    assert found(twin_heads(), readout="b") == Site("b", "input")


@pytest.mark.parametrize(
    "follow", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid(), nn.LayerNorm(3)], ids=lambda layer: type(layer).__name__
)
def test_something_after_the_last_layer_is_refused(follow):
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), follow)
    layers = ("'0' (5 → 4)", "'1' (4 → 3)")
    refused(model, "was not found: no Linear layer makes", "softmax", "wrap the model", *layers)
    refused(model, "readout='1' does not make the model's output", "Wrap the model", *layers, readout="1")


@pytest.mark.parametrize("readout", [None, "score"])
def test_a_layer_that_runs_at_every_token_is_named_with_the_way_out(readout):
    network = Made(lambda self, x: self.score(self.body(x))[:, -1], body=nn.Linear(3, 4), score=nn.Linear(4, 2))
    tokens = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(2))
    words = ("'score'", "every position", "picks the position first", "Linear layers are", "'body'")
    refused(network, *words, inputs=tokens, readout=readout)
    sums = Made(lambda self, x: self.score(x).sum(1), score=nn.Linear(3, 2))
    refused(sums, "wrap the model so that it returns", inputs=tokens)  # no position is picked


def test_a_position_is_picked_only_where_it_is_so_for_every_sample():
    def first_of_one(self, x):
        made = self.score(x)
        return torch.cat([made[:1, 0], made[1:].sum(1)])

    tokens = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(2))
    network = Made(first_of_one, score=nn.Linear(3, 2))
    refused(network, "no Linear layer makes the model's output", inputs=tokens)
    refused(network, "readout='score' does not make the model's output", inputs=tokens, readout="score")


def test_a_sum_of_heads_is_refused():
    model = Made(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(5, 3), b=nn.Linear(5, 3))
    refused(model, "no Linear layer makes", "a sum of heads", "'a' (5 → 3)", "'b' (5 → 3)")


def test_no_linear_layer_is_refused():
    refused(nn.Sequential(nn.ReLU()), "no Linear layer makes", "It has no linear layer (torch.nn.Linear).")
    hidden = Made(lambda m, x: m.body(x).square(), body=nn.Linear(5, 3))
    refused(hidden, "no Linear layer makes", "Linear layers are: 'body' (5 → 3).")


def test_a_convolution_as_head_is_named():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 3, 1), nn.Flatten())
    refused(model, "'2', a Conv2d, makes the model's output", "nn.Linear with its weights", inputs=IMAGES)
    refused(model, "readout='2' is a Conv2d, not a Linear", "has no linear layer", inputs=IMAGES, readout="2")


def test_a_layer_called_twice_is_refused():
    model = Made(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(5, 5))
    refused(model, "'fc' makes the model's output, but is called 2 times", "'fc' (5 → 5)")
    refused(model, "readout='fc' is called 2 times in one forward pass", "'fc' (5 → 5)", readout="fc")


def test_a_wrong_name_is_refused_with_the_right_ones():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    layers = "Linear layers are: '0' (5 → 4), '2' (4 → 3)."
    refused(model, "readout='fc' is not a module of Sequential.", layers, readout="fc")
    refused(model, "readout='fc' is not a module of Sequential.", layers, readout=Site("fc", "input"))
    refused(model, "readout='1' is a ReLU, not a Linear.", layers, readout="1")
    refused(model, "readout='0' does not make the model's output", layers, readout="0")


def test_a_layer_that_is_not_called_is_refused():
    model = Made(lambda m, x: m.fc(x), fc=nn.Linear(5, 3), spare=nn.Linear(5, 3))
    refused(model, "readout='spare' is called 0 times", readout="spare")


def test_outputs_that_are_not_finite_name_the_sample():
    inputs: Tensor = ROWS.clone()
    inputs[[1, 3], 2] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite for sample 1 of the 4") as caught:
        with_readout(Task(nn.Linear(5, 3)), inputs)
    assert caught.value.index == (1, 3)
