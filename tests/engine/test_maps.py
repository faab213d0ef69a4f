"""Maps of a site and how they lie over the input."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.maps import as_maps, last_convolution, over_input
from dualview.engine.measured import Measured
from dualview.engine.site import Site
from dualview.engine.task import Task


class Reused(nn.Module):
    """Defined in one order, called in another, one convolution twice; the rest is functional."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.shared = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.relu(self.shared(self.last(x)))
        return (x + self.shared(x)).mean((2, 3))


def measured(model: nn.Module, *inputs: Tensor) -> Measured:
    return Measured(Task(model), inputs if len(inputs) > 1 else inputs[0], None, size=4)


def test_the_last_convolution_is_that_which_is_called_last():
    model = Reused()
    assert last_convolution(measured(model, torch.zeros(3, 2, 5, 4))) == Site("shared", "output", 1)
    assert not any(module._forward_hooks for module in model.modules())


def test_without_a_convolution_the_site_is_asked_for():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="Sequential calls no convolution module: give `site`"):
        last_convolution(measured(model, torch.zeros(2, 3)))


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
