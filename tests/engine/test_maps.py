"""Maps of a site and how they lie over the input."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.maps import as_maps, last_maps, over_input
from dualview.engine.measured import Measured
from dualview.engine.site import Site
from dualview.engine.task import Task
from dualview.evaluation.tasks.recipes import small_cnn, small_residual


class Reused(nn.Module):
    """Defined in one order, called in another, one convolution twice; the rest is functional."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.shared = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(F.relu(self.shared(self.last(x)))).mean((2, 3))


class Residual(nn.Module):
    """x + f(x), the sum written in the forward."""

    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*inside)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inside(x))


class Dense(nn.Module):
    """Each layer sees all maps before it and adds its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Conv2d(k, 2, 3, padding=1)) for k in (3, 5)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Squeeze(nn.Module):
    """Channels scaled by what 1×1 convolutions, called last, make of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Flat(nn.Module):
    """Residuals and all in one forward, with or without a module behind the last sum."""

    def __init__(self, *, module: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.relu, self.fc = nn.BatchNorm2d(3), nn.ReLU(), nn.Linear(3, 2)
        self.end = self.relu if module else F.relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        return self.fc(self.end(x + self.second(x)).mean((2, 3)))


class Frozen(nn.Module):
    """The graph to the input is cut behind the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).detach()).mean((2, 3))


def net(*body: nn.Module) -> nn.Module:
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True), *body, *head)
    model(torch.zeros(1, 3, 6, 6))
    return model.eval()


def conv() -> nn.Module:
    return nn.Conv2d(3, 3, 3, padding=1)


NETS = {
    "plain": (lambda: net(conv(), nn.ReLU(), nn.MaxPool2d(2)), Site("2", "output")),
    "recipe of a plain network": (lambda: small_cnn((3, 12, 12), 2), Site("3", "output")),
    "recipe of a residual network": (lambda: small_residual((3, 16, 16), 2), Site("5", "output")),
    "x + f(x)": (lambda: net(Residual(conv()), Residual(conv(), nn.BatchNorm2d(3))), Site("3", "output")),
    "concatenation": (lambda: net(Dense(), nn.ReLU()), Site("2", "output")),
    "squeeze and excitation": (lambda: net(conv(), Squeeze()), Site("2", "output")),
    "the same in a residual": (lambda: net(Residual(conv(), Squeeze()), nn.ReLU()), Site("2", "output")),
    "the same before a convolution": (lambda: net(Residual(conv(), Squeeze()), conv()), Site("3", "output")),
    "one forward, a module behind": (lambda: Flat(module=True), Site("relu", "output", 1)),
    "one forward, nothing behind": (lambda: Flat(module=False), Site("relu", "output")),
    "cut off": (Frozen, Site("second", "output")),
}  # fmt: skip


def measured(model: nn.Module, *inputs: Tensor) -> Measured:
    return Measured(Task(model), inputs if len(inputs) > 1 else inputs[0], None, size=4)


def test_the_last_convolution_is_that_which_is_called_last():
    model = Reused()
    assert last_maps(measured(model, torch.zeros(3, 2, 5, 4))) == Site("shared", "output", 1)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", NETS)
def test_everything_passes_the_maps(name: str):
    """With them held fixed another input has the same output; the last convolution of a branch does not do that."""
    make, expected = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
    size = 16 if "residual network" in name else 12
    x, other = torch.randn(2, 1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = measured(model, x)
    site = last_maps(given)
    assert site == expected

    def moved(site: Site) -> bool:
        held = given.activations([site], given.samples, {})
        return not torch.equal(given.outputs(given.samples, {**held, "": other}), given.raw)

    assert not moved(site)
    branches = {"recipe of a residual network": "5.skip.0", "x + f(x)": "3.inside.0", "concatenation": "2.layers.1.1"}
    if name in branches:
        assert moved(Site(branches[name], "output"))


class Images(nn.Module):
    """Images and a row of numbers beside them, which no map can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        return self.fc(torch.cat([self.conv(x).mean((2, 3)), row], 1))


def test_inputs_that_maps_do_not_lie_over_may_go_round_them():
    assert last_maps(measured(Images(), torch.zeros(2, 3, 5, 5), torch.zeros(2, 2))) == Site("conv", "output")


class Skipping(nn.Module):
    """The input itself goes round its only convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv(x)).mean((2, 3))


def test_where_something_goes_round_all_maps_the_site_is_asked_for():
    with pytest.raises(ValueError, match="goes round its last convolution, 'conv', and round each other.*give `site`"):
        last_maps(measured(Skipping(), torch.zeros(2, 3, 5, 5)))


@pytest.mark.parametrize("body", [nn.Linear(3, 2), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())])
def test_without_a_convolution_that_makes_maps_the_site_is_asked_for(body: nn.Module):
    """One place, where the convolution is as large as the image, is no map."""
    inputs = torch.zeros(2, 3) if isinstance(body, nn.Linear) else torch.zeros(2, 1, 3, 3)
    with pytest.raises(ValueError, match="Sequential calls no convolution module that makes maps .*: give `site`"):
        last_maps(measured(nn.Sequential(body), inputs))


def test_tokens_become_a_grid_row_by_row():
    grid = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([torch.full((2, 1, 3), 9.0), grid.flatten(2).transpose(1, 2)], dim=1)  # a class token first
    assert torch.equal(as_maps(tokens, (2, 4)), grid)
    assert as_maps(grid, None) is grid
    with pytest.raises(ValueError, match=r"tokens=\(3, 4\) need \(test, 12 or more, channel\)"):
        as_maps(tokens, (3, 4))
    for wrong in ((), (0, 4), (-1, 2)):
        with pytest.raises(ValueError, match="`tokens` is .*; expected the grid they make up"):
            as_maps(tokens, wrong)
    with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \(test, channel, height, width\)"):
        as_maps(torch.zeros(2, 3), None)


def tents(values: Tensor, size: int) -> Tensor:
    """Linear interpolation between the middles of equal cells, flat beyond the outer ones."""
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * values.shape[-1] / size - 0.5).clamp(
        0, values.shape[-1] - 1
    )
    low = place.floor().long().clamp(max=max(values.shape[-1] - 2, 0))
    high = (low + 1).clamp(max=values.shape[-1] - 1)
    share = place - low
    return values[..., low] * (1 - share) + values[..., high] * share


def test_maps_are_interpolated_between_the_middles_of_their_cells():
    maps = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(2, 4, 7, 5, dtype=torch.float64)
    (found,) = over_input(measured(nn.Identity(), image), maps).values()
    expected = tents(tents(maps, 5).transpose(1, 2), 7).transpose(1, 2)
    torch.testing.assert_close(found, expected[:, None], rtol=0, atol=1e-14)
    for series in (torch.zeros(2, 3, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.float64)):
        (found,) = over_input(measured(nn.Identity(), series), maps[:, 0]).values()
        assert found.shape == (2, *[1] * (series.ndim - 2), 8)
        torch.testing.assert_close(found.reshape(2, 8), tents(maps[:, 0], 8), rtol=0, atol=1e-14)


def test_a_map_lies_over_the_only_input_that_fits():
    image, row = torch.zeros(2, 3, 4, 4), torch.zeros(2, 6)
    maps = torch.ones(2, 2, 2)
    assert list(over_input(measured(nn.Identity(), row, image), maps)) == ["1"]
    with pytest.raises(ValueError, match="lies over 2 of the inputs"):
        over_input(measured(nn.Identity(), image, image), maps)
    with pytest.raises(ValueError, match=r"has 1 axes of space, which lies over 0 of the inputs.*tokens="):
        over_input(measured(nn.Identity(), image), torch.ones(2, 5))
