"""Attribution priors: closed forms, derivatives, and what they do in a training loop."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

import dualview as dv
from dualview.ops.priors import gini, graph_penalty, total_variation

torch.set_num_threads(1)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_total_variation_by_hand():
    map_ = torch.tensor([[[1.0, 3.0], [2.0, -1.0]], [[0.0, 0.0], [0.0, 5.0]]])
    assert float(total_variation(map_, (-2, -1))) == ((1 + 4 + 2 + 3) + (5 + 5)) / 2
    assert float(total_variation(map_, (-1,))) == ((2 + 3) + 5) / 2
    for axes in ((0,), (-3, -1), ()):
        with pytest.raises(ValueError, match="expected axes of a sample"):
            total_variation(map_, axes)


def test_the_graph_penalty_is_the_laplacians_quadratic_form():
    values, weights = drawn(7, 2, 2), drawn(4, 4).abs()
    weights = weights + weights.T
    mean = values.flatten(1).abs().mean(0)
    laplacian = weights.sum(1).diag() - weights
    torch.testing.assert_close(graph_penalty(values, weights), mean @ laplacian @ mean, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match=r"shape \(3, 3\); expected \(4, 4\)"):
        graph_penalty(values, torch.ones(3, 3))


def test_gini_by_pairs():
    values = drawn(6, 5)
    mean = values.abs().mean(0)
    pairs = (mean[:, None] - mean).abs().sum() / (2 * 5 * mean.sum())
    torch.testing.assert_close(gini(values), pairs, rtol=1e-13, atol=0)
    one_hot = torch.zeros(3, 8)
    one_hot[:, 2] = torch.tensor([1.0, -4.0, 2.0])
    assert float(gini(one_hot)) == pytest.approx(1 - 1 / 8, rel=1e-6)
    assert float(gini(torch.full((3, 8), -2.0))) == pytest.approx(0, abs=1e-7)
    assert gini(torch.zeros(3, 8)).isnan()


def test_derivatives():
    values = drawn(4, 3, 3).requires_grad_()
    weights = drawn(9, 9).abs()
    assert gradcheck(lambda v: total_variation(v, (-2, -1)), values)
    assert gradcheck(lambda v: graph_penalty(v, weights + weights.T), values)
    assert gradcheck(gini, values)


def trained(strength: float) -> tuple[float, float]:
    """Train on series that tell their level at every step; return accuracy and TV, of the scores' size, on new ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    levels = torch.randn(400, 1, generator=generator) + 3 * (labels[:, None] - 0.5)
    series = levels + 0.2 * torch.randn(400, 12, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(12, 16), nn.Softplus(), nn.Linear(16, 2))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    train, test = slice(0, 200), slice(200, 400)
    for step in range(60):
        loss = nn.functional.cross_entropy(model(series[train]), labels[train])
        if strength:
            method = dv.ExpectedGradients(series[train], draws=1, seed=step, shared=False)
            found = method.attribute(model, series[train], labels[train], differentiable=True)
            loss = loss + strength * total_variation(found.values, (-1,))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = dv.ExpectedGradients(series[train], draws=50).attribute(model, series[test], labels[test])
    accuracy = float((model(series[test]).argmax(1) == labels[test]).float().mean())
    return accuracy, float(total_variation(found.values, (-1,)) / found.values.abs().sum(1).mean())


@pytest.mark.filterwarnings("ignore:the scores miss")  # one draw a sample is an estimate
def test_training_with_a_prior_lowers_it_at_equal_accuracy():
    (plain, rough), (with_prior, smooth) = trained(0), trained(0.2)
    assert smooth < 0.7 * rough and with_prior >= plain - 0.01
