"""Occlusion against loops over players, closed forms, and dividends."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from tests.features.budget import counted


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3 * 5 * 7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.conv(x)).flatten(1))


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double().eval()


IMAGES = torch.randn(3, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def windowed(net: Net, size: int, stride: int, baseline: Tensor) -> Tensor:
    """The slow twin: one window after another, all channels; the mean over those that cover a pixel."""
    total, covered = torch.zeros_like(IMAGES), torch.zeros_like(IMAGES)
    with torch.no_grad():
        whole = net(IMAGES)[:, 1]
        for top in range(0, 5 - size + stride, stride):
            for left in range(0, 7 - size + stride, stride):
                window = (slice(None), slice(None), slice(top, top + size), slice(left, left + size))
                removed = IMAGES.clone()
                removed[window] = baseline.expand_as(IMAGES)[window]
                total[window] += (whole - net(removed)[:, 1])[:, None, None, None]
                covered[window] += 1
    return total / covered


@pytest.mark.parametrize("size, stride", [(2, None), (3, 1), (3, 2), (2, 2)])
def test_patches_are_removed_one_by_one(net, size: int, stride: int | None):
    baseline = torch.linspace(-1, 1, 7, dtype=torch.float64)
    method = dv.Occlusion(dv.Patches(size), baseline=baseline, stride=stride)
    found = method.attribute(net, IMAGES, targets=1, batch_size=4)
    torch.testing.assert_close(found.values, windowed(net, size, stride or size, baseline), rtol=0, atol=1e-13)


def test_each_number_of_a_player_holds_the_whole_effect(net):
    found = dv.Occlusion(dv.Patches(3)).attribute(net, IMAGES)
    effects = found.tables["players"]
    assert effects.shape == (3, 2 * 3) and found.players.count == 6
    assert torch.equal(found.values[:, 0, :3, :3], effects[:, :1, None].expand(3, 3, 3))


def test_effects_are_averaged_over_draws(net):
    pool = torch.randn(4, 2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = dv.Occlusion(dv.Patches(4), baseline=dv.Samples(pool)).attribute(net, IMAGES, targets=0)
    single = [dv.Occlusion(dv.Patches(4), baseline=one).attribute(net, IMAGES, targets=0).values for one in pool]
    torch.testing.assert_close(found.values, torch.stack(single).mean(0), rtol=0, atol=1e-13)


class Monomial(nn.Module):
    """c x_1² x_2 + x_3."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        value = self.weight[0] * x[:, 0] ** 2 * x[:, 1] + self.weight[1] * x[:, 2]
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def test_an_interaction_is_counted_for_each_of_its_players():
    """c x1² x2: occlusion gives all of it to both; shares would be 2/3 and 1/3, or halves."""
    x = torch.tensor([[2.0, 0.5, 7.0]], dtype=torch.float64)
    found = dv.Occlusion().attribute(Monomial(), x, targets=0)
    torch.testing.assert_close(found.values, torch.tensor([[6.0, 6.0, 7.0]], dtype=torch.float64), rtol=0, atol=1e-14)


class Words(nn.Module):
    """Token ids and a number beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(9, 4), nn.Linear(5, 2)

    def forward(self, ids: Tensor, age: Tensor) -> Tensor:
        return self.fc(torch.cat([self.embedding(ids).tanh().prod(1), age], dim=1))


def test_tokens_become_the_baselines_token():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Words().double().eval()
    inputs = {"ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "age": torch.tensor([[0.5], [2.0]], dtype=torch.float64)}
    found = dv.Occlusion(baseline={"ids": 8}).attribute(model, inputs, targets=1)
    with torch.no_grad():
        for place in range(3):
            removed = inputs["ids"].clone()
            removed[:, place] = 8
            expected = model(**inputs)[:, 1] - model(removed, inputs["age"])[:, 1]
            torch.testing.assert_close(found.values[:, place], expected, rtol=0, atol=1e-14)
    both = dv.Occlusion(baseline={"ids": 8, "age": 0.0}).attribute(model, inputs, targets=1)
    torch.testing.assert_close(both.values["ids"], found.values, rtol=0, atol=1e-14)
    with torch.no_grad():
        expected = model(**inputs)[:, 1] - model(inputs["ids"], torch.zeros(2, 1, dtype=torch.float64))[:, 1]
    torch.testing.assert_close(both.values["age"][:, 0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("stride, players", [(None, 3 * 4), (1, 4 * 6)])
def test_it_costs_a_forward_pass_for_each_player_and_draw(net, stride: int | None, players: int):
    with counted(net) as rows:
        dv.Occlusion(dv.Patches(2), baseline=dv.Noise(count=5), stride=stride).attribute(net, IMAGES)
    assert rows.forward == 3 * (players * 5 + 1) and rows.backward == 0


def test_what_it_refuses():
    with pytest.raises(ValueError, match="slides a window"):
        dv.Occlusion(dv.Pixels(), stride=2)
    with pytest.raises(ValueError, match=r"`stride` is 5; expected 1 to 4"):
        dv.Occlusion(dv.Patches(4), stride=5)
