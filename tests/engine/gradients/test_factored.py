"""Factors of whole batches, multiplied out, against one backward pass a sample; in float64."""

import pytest
import torch
from torch import Tensor, nn

from dualview.engine.gradients import factored as module
from dualview.engine.gradients import plan_gradients
from dualview.engine.gradients.factored import factored, factored_layers
from dualview.engine.task import Task
from tests.engine.gradients.one_by_one import one_by_one

ROWS = 6


class Twice(nn.Module):
    """Calls a layer on two inputs, and reads a sequence of tokens with padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.shared, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.out(self.shared(self.shared(self.embedding(tokens)).tanh()).mean(1))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "tokens":
        return Twice().double(), torch.randint(7, (ROWS, 5))
    if name == "volumes":
        volume = nn.Conv3d(1, 2, 2, stride=(1, 2, 1), padding=1, bias=False)
        return nn.Sequential(volume, nn.Flatten(), nn.LazyLinear(3)).double(), draw(ROWS, 1, 2, 3, 3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular"), nn.Tanh(), nn.BatchNorm2d(3),
        nn.Conv2d(3, 3, 2, groups=3), nn.Conv2d(3, 2, 1, dilation=2), nn.Flatten(), nn.Linear(2, 3),
    ).double(), draw(ROWS, 2, 4, 4)  # fmt: skip


LAYERS = {"tokens": {"embedding", "shared", "out"}, "volumes": {"0", "2"}, "pictures": {"0", "4", "6"}}


def multiplied(a: Tensor, delta: Tensor, shape: torch.Size) -> Tensor:
    if not a.is_floating_point():
        return (nn.functional.one_hot(a, shape[0]).double().mT @ delta).flatten(1)
    return (delta.mT @ a).flatten(1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("small", [False, True])
def test_factors_multiply_to_the_gradients_of_every_direction(monkeypatch, name: str, small: bool):
    model, inputs = network(name)
    model(inputs)  # a lazy layer takes its size
    if small:  # rows and directions in pieces
        monkeypatch.setattr(module, "PATCH_NUMBERS", 40)
        monkeypatch.setattr(module, "DIRECTIONS_AT_ONCE", 2)
    plan = plan_gradients(Task(model), inputs, of="loss")
    assert set(factored_layers(plan)) == LAYERS[name]
    directions, passes = list(draw(3, ROWS, 3)), []
    model.register_forward_hook(lambda *_: passes.append(1))
    found: dict[tuple[str, int], list] = {}
    rows_seen = dict.fromkeys(LAYERS[name], 0)
    for one in factored(plan, inputs, lambda raw: directions):
        rows_seen[one.layer] += len(one.inputs) * one.first
        start = 0 if one.first else 2
        for k, delta in enumerate(one.deltas):
            weight = model.get_submodule(one.layer).weight
            found.setdefault((one.layer, start + k), []).append(
                (multiplied(one.inputs, delta, weight.shape), delta.sum(1))
            )
    assert len(passes) == 1 and set(rows_seen.values()) == {ROWS}
    assert len(found) == 3 * len(LAYERS[name])
    for k, direction in enumerate(directions):
        picked = torch.arange(ROWS)
        truth = one_by_one(model, inputs, picked, lambda logits, row: (logits[0] * direction[row[0]]).sum())  # noqa: B023
        for layer in LAYERS[name]:
            weights, biases = (torch.cat(side) for side in zip(*found[layer, k], strict=True))
            torch.testing.assert_close(weights, truth[f"{layer}.weight"], rtol=1e-10, atol=1e-12)
            if f"{layer}.bias" in truth:
                torch.testing.assert_close(biases, truth[f"{layer}.bias"], rtol=1e-10, atol=1e-12)


def test_directions_are_chosen_by_the_outputs():
    model, inputs = network("tokens")
    plan, seen = plan_gradients(Task(model), inputs, of="loss"), []
    list(factored(plan, inputs, lambda raw: seen.append(raw) or [raw]))
    torch.testing.assert_close(seen[0], model(inputs).detach())
    assert all(not parameter.grad and parameter.requires_grad for parameter in model.parameters())


def test_a_batch_that_goes_another_way_is_refused():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, x):
            return self.out(self.first(self.first(x)) if x.max() > 5 else self.first(x))

    torch.manual_seed(0)
    model = Branching().double()
    plan = plan_gradients(Task(model), draw(4, 2), of="loss")
    with pytest.raises(ValueError, match="layer 'first' was called"):
        list(factored(plan, draw(4, 2) + 9, lambda raw: [raw]))
