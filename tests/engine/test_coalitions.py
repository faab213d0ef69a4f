"""f of coalitions, against inputs that are put together by hand."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.engine.coalitions import coalition_game, coalition_values
from dualview.engine.measured import Measured
from dualview.engine.players import as_players
from dualview.engine.removal import Reference
from dualview.engine.task import Task
from dualview.games.exact import coalition_values as game_values
from dualview.games.exact import coalitions, dividends, shapley


class Cubic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value = x[:, 0] ** 2 * x[:, 1] + 0.5 * x[:, 2] * x[:, 3] - x[:, 0]
        return torch.stack([value, -value], dim=1)


@pytest.fixture
def measured() -> Measured:
    inputs = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.3, -0.7, 2.0, 1.0]], dtype=torch.float64)
    return Measured(Task(Cubic()), inputs, [0, 1], size=3)


def test_each_coalition_is_its_own_input(measured):
    """Over three draws: their mean."""
    drawn = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    players = as_players(torch.tensor([0, 0, 1, -1]), measured.parts)
    found = coalition_values(measured, Reference({"": drawn}), players, coalitions(2))
    sign = (1, -1)
    for sample, x in enumerate(measured.inputs):
        for row, (first, second) in enumerate(coalitions(2).tolist()):
            keep = torch.tensor([first, first, second, True])
            rows = torch.where(keep, x, drawn[0])
            expected = sign[sample] * Cubic()(rows)[:, 0].mean()
            torch.testing.assert_close(found[sample, row], expected, rtol=0, atol=1e-14)


def test_a_sample_is_a_game(measured):
    reference = dv.Constant(0.0).reference(measured)
    players = as_players(None, measured.parts)
    values = game_values(coalition_game(measured, reference, players, sample=1), batch=5)
    torch.testing.assert_close(values, coalition_values(measured, reference, players, coalitions(4))[1], rtol=0, atol=0)
    x = measured.inputs[1]
    first, both, pair = x[0], -(x[0] ** 2) * x[1], -0.5 * x[2] * x[3]  # column 1 is minus the cubic
    expected = torch.zeros(16, dtype=torch.float64)
    expected[0b0001], expected[0b0011], expected[0b1100] = first, both, pair
    torch.testing.assert_close(dividends(values), expected, rtol=0, atol=1e-15)
    shares = torch.stack([first + both / 2, both / 2, pair / 2, pair / 2])
    torch.testing.assert_close(shapley(values), shares, rtol=0, atol=1e-15)
