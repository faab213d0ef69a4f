"""Agreement and infidelity of feature attributions, against cases that can be computed by hand."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.evaluation.faithfulness import agreement, infidelity

torch.set_num_threads(1)


def linear(*weights: float) -> nn.Module:
    model = nn.Linear(len(weights), 2, bias=True).double()
    model.weight.data = torch.tensor([weights, [0.0] * len(weights)], dtype=torch.float64)
    return model.eval()


def with_values(values: Tensor, model: nn.Module, inputs: Tensor, kind: str = "share") -> dv.FeatureAttribution:
    found = dv.InputXGradient().attribute(model, inputs, targets=0)
    return dataclasses.replace(found, values=values, kind=kind)


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_agreement_is_what_it_says(inputs: Tensor):
    model = linear(1, -2, 3, -4, 5, 0.5)
    one = with_values(torch.tensor([[4.0, -3, 2, -1, 0, 0]] * 4).double(), model, inputs)
    other = with_values(torch.tensor([[3.0, 4, -2, -1, 5, 0]] * 4).double(), model, inputs)
    rank = agreement(one, other).values[0]
    x, y = torch.tensor([6.0, 1, 5, 2, 3.5, 3.5]), torch.tensor([4.0, 5, 1, 2, 6, 3])
    assert float(rank) == pytest.approx(float(torch.corrcoef(torch.stack([x, y]))[0, 1]))
    dot = 12 - 12 - 4 + 1
    assert float(agreement(one, other, "cosine").values[0]) == pytest.approx(dot / (30 * 55) ** 0.5)
    assert float(agreement(one, other, "sign").values[0]) == pytest.approx(2 / 4)
    assert float(agreement(one, other, "top", k=3).values[0]) == pytest.approx(2 / 3)
    for by in ("spearman", "cosine", "sign", "top"):
        assert agreement(one, one, by).mean == pytest.approx(1)


def test_ties_at_the_last_place_count_as_on_average_over_their_orders(inputs: Tensor):
    model = linear(1, -2, 3, -4, 5, 0.5)
    tied = with_values(torch.tensor([[5.0, 1, 1, 1, 0, 0]] * 4).double(), model, inputs)
    other = with_values(torch.tensor([[0.0, 9, 0, 0, 8, 0]] * 4).double(), model, inputs)
    orders = [{0, last} for last in (1, 2, 3)]
    expected = sum(len(order & {1, 4}) for order in orders) / 3 / 2
    assert float(agreement(tied, other, "top", k=2).values[0]) == pytest.approx(expected)


def test_shares_of_a_linear_network_are_faithful(inputs: Tensor):
    model = linear(1, -2, 3, -4, 5, 0.5)
    exact = dv.IntegratedGradients(0.3).attribute(model, inputs, targets=0)
    assert infidelity(exact, model, inputs, baseline=0.3).values.max() < 1e-20
    zero = with_values(torch.zeros(4, 6).double(), model, inputs)
    assert torch.allclose(infidelity(zero, model, inputs, baseline=0.3).values, torch.ones(4).double())
    double = with_values(2 * exact.values, model, inputs)
    assert torch.allclose(infidelity(double, model, inputs, baseline=0.3).values, torch.ones(4).double())


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one * x[:, 0] * x[:, 1], x[:, 0]], dim=1)


def test_infidelity_is_the_mean_over_sets():
    """f = x0 x1 from 0: removing any set but the empty one takes all away; shares are halves."""
    x = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    found = dv.IntegratedGradients().attribute(Product().eval(), x, targets=0)
    draws = torch.rand(500, 2, generator=torch.Generator().manual_seed(7)) < 0.4
    misses = {(False, False): 0.0, (True, False): 3.0, (False, True): 3.0, (True, True): 0.0}
    rows = [tuple(row) for row in draws.tolist()]
    assert set(rows) == set(itertools.product((False, True), repeat=2))
    expected = sum(misses[row] ** 2 for row in rows) / sum((6.0 if any(row) else 0.0) ** 2 for row in rows)
    measured = infidelity(found, Product().eval(), x, draws=500, share=0.4, seed=7)
    assert float(measured.values[0]) == pytest.approx(expected, rel=1e-9)
    assert measured.higher_is_better is False and measured.chance == 1


def test_players_and_batches(inputs: Tensor):
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    mask = torch.tensor([0, 0, 1, 1, 2, 2])
    task = dv.Task(model, classes={"a": 0, "b": 1, "c": 2})
    scores = dv.Taylor(players=mask).attribute(task, inputs, targets=["b"] * 4)
    whole = infidelity(scores, task, inputs, players=mask)
    parts = infidelity(scores, task, inputs, players=mask, batch_size=1)
    torch.testing.assert_close(whole.values, parts.values)
    plain = dv.IntegratedGradients(steps=32).attribute(task, inputs, targets=["b"] * 4)
    torch.testing.assert_close(infidelity(plain, task, inputs, players=mask).values, whole.values, rtol=1e-6, atol=0)


def test_what_cannot_be_compared_is_refused(inputs: Tensor):
    model = linear(1, -2, 3, -4, 5, 0.5)
    one, other = (dv.Gradient().attribute(model, inputs, targets=t) for t in (0, 1))
    with pytest.raises(ValueError, match="other targets"):
        agreement(one, other)
    with pytest.raises(ValueError, match="choose from 'spearman'"):
        agreement(one, one, "taste")
    with pytest.raises(ValueError, match="`k` is 7"):
        agreement(one, one, "top", k=7)
    with pytest.raises(ValueError, match="needs shares or effects"):
        infidelity(one, model, inputs)
    with pytest.raises(ValueError, match="hold 3 samples"):
        infidelity(with_values(inputs, model, inputs), model, inputs[:3])
    both = dv.Gradient().attribute(dv.Task(model, output=(dv.logit, dv.margin)), inputs)
    with pytest.raises(ValueError, match="of_output"):
        agreement(both, both)
