"""Credible paths: which baselines count, and what is discarded on the way."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from tests.features.budget import counted
from tests.features.polynomials import Polynomial, points

X = points(4, 3)
PROBABLE = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)


@pytest.fixture
def hill() -> Polynomial:
    """f = 4 x₁ − 3 x₁² rises to 4/3 at x₁ = 2/3 and is 1 at x₁ = 1, and again at x₁ = 1/3."""
    return Polynomial({(0,): 4.0, (0, 0): -3.0, (1,): 1.0}, torch.zeros(3, dtype=torch.float64)).eval()


def test_one_admissible_baseline_makes_it_integrated_gradients(hill):
    x = X * 0.2 + torch.tensor([0.3, 2.0, 0.0])  # f rises all the way
    found = dv.CrediblePath(0.0, steps=4).attribute(hill, x, targets=0)
    expected = dv.IntegratedGradients(0.0, steps=4).attribute(hill, x, targets=0)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(found.change, expected.change, rtol=1e-13, atol=1e-14)
    assert (found.checks["admissible baselines"] == 1).all() and (found.checks["discarded change"] == 0).all()


def test_steps_above_the_output_are_discarded_and_said(hill):
    """Along x₁ from 0 to 1 those beyond 1/3, where f goes up by 1/3 and comes back: together nothing."""
    x = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    found = dv.CrediblePath(0.0, steps=3000, rule="midpoint").attribute(hill, x, targets=0)
    assert float(found.values[0, 0]) == pytest.approx(1, abs=2e-3)  # a node more or less at 1/3
    assert float(found.checks["discarded steps"][0]) == pytest.approx(2 / 3, abs=1e-3)
    low = torch.tensor([[1.2, 0.0, 0.0]], dtype=torch.float64)  # f = 0.48, first at x₁ = 0.1333
    found = dv.CrediblePath(0.0, steps=3000, rule="midpoint").attribute(hill, low, targets=0)
    torch.testing.assert_close(found.completeness_error, -found.checks["discarded change"], rtol=0, atol=1e-6)
    falling = dv.CrediblePath(0.0, discard=True, tau=1).attribute(hill, torch.tensor([[0.0, -1.0, 0.0]]).double(), 0)
    assert (falling.values == 0).all() and float(falling.checks["discarded change"][0]) == pytest.approx(-1)


def test_what_is_discarded_is_the_completeness_error_exactly(hill):
    x = torch.tensor([[1.5, 1.0, 0.0], [0.9, 0.2, 1.0]], dtype=torch.float64)
    baselines = dv.Samples(PROBABLE[[0, 2]] * 0.3)
    found = dv.CrediblePath(baselines, tau=1, steps=5).attribute(hill, x, targets=0)
    torch.testing.assert_close(found.completeness_error, -found.checks["discarded change"], rtol=0, atol=1e-14)
    assert (found.checks["discarded steps"] > 0.1).all()
    kept = dv.CrediblePath(baselines, tau=1, steps=5, discard=False).attribute(hill, x, targets=0)
    expected = dv.IntegratedGradients(baselines, steps=5).attribute(hill, x, targets=0)
    torch.testing.assert_close(kept.values, expected.values, rtol=1e-13, atol=1e-14)


def test_only_baselines_without_the_class_count():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    pool = points(12, 3, seed=8) * 2
    targets = torch.tensor([0, 1, 2, 0])
    found = dv.CrediblePath(dv.Samples(pool), tau=0.3, discard=False).attribute(model, X, targets)
    probabilities = model(pool).softmax(1).detach()
    for row, target in enumerate(targets):
        own = pool[probabilities[:, target] <= 0.3]
        assert 0 < len(own) < 12 and float(found.checks["admissible baselines"][row]) == pytest.approx(len(own) / 12)
        one = dv.IntegratedGradients(dv.Samples(own)).attribute(model, X[row : row + 1], targets[row : row + 1])
        torch.testing.assert_close(found.values[row], one.values[0], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(found.change[row], one.change[0], rtol=1e-11, atol=1e-13)
    least = float(probabilities[:, 2].min())
    with pytest.raises(ValueError, match="no baseline is admissible for sample 0: the class explained has a prob"):
        dv.CrediblePath(dv.Samples(pool), tau=least * 0.99).attribute(model, X, targets=2)


def test_a_network_that_prefers_nothing_is_at_chance(hill):
    class Flat(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - self.bias

    model = Flat(3, 7).double()
    found = dv.CrediblePath(0.0).attribute(model, X)
    assert (found.checks["admissible baselines"] == 1).all()


def test_scores_with_discarded_steps_still_lead_to_the_weights(hill):
    x = torch.tensor([[1.5, 1.0, 0.0]], dtype=torch.float64)

    def score() -> Tensor:
        return dv.CrediblePath(0.0, tau=1, steps=7).attribute(hill, x, 0, differentiable=True).values.square().sum()

    slope = torch.autograd.grad(score(), hill.scale)[0]
    moved = []
    for step in (1e-6, -1e-6):
        hill.scale.data += step
        moved.append(score().detach())
        hill.scale.data -= step
    torch.testing.assert_close(slope, (moved[0] - moved[1]) / 2e-6, rtol=1e-6, atol=1e-9)


def test_its_budget(hill):
    with counted(hill) as rows:
        dv.CrediblePath(dv.Noise(count=3), tau=1, steps=6).attribute(hill, X, targets=0)
    assert (rows.forward, rows.backward) == (4 * (1 + 3 * 7), 4 * 3 * 6)


def test_what_it_refuses(hill):
    with pytest.raises(ValueError, match="`tau` is 0"):
        dv.CrediblePath(tau=0)
    with pytest.raises(ValueError, match="`steps` is 0"):
        dv.CrediblePath(steps=0)
    with pytest.raises(ValueError, match="asks for a class's probability; a regression task has none"):
        dv.CrediblePath().attribute(dv.Task(hill, problem="regression"), X, targets=0)
