"""Input times gradient against closed forms."""

import torch
from torch import nn

import dualview as dv
from tests.features.budget import counted
from tests.features.polynomials import Polynomial, points

X = points(5, 4)
ZERO = torch.zeros(4, dtype=torch.float64)


def test_each_term_counts_as_often_as_a_feature_is_in_it():
    model = Polynomial({(0,): 2.0, (0, 1): 3.0, (2, 2, 3): -1.0}, ZERO).eval()
    found = dv.InputXGradient().attribute(model, X, targets=0)
    torch.testing.assert_close(found.values, model.allotted(X, lambda i, kappa, count: count), rtol=1e-12, atol=1e-14)
    assert found.kind == "effect" and found.completeness_error is None


def test_without_biases_relus_make_it_complete():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 9, bias=False), nn.ReLU(), nn.Linear(9, 9, bias=False), nn.ReLU())
        model = model.append(nn.Linear(9, 3, bias=False)).double()
    found = dv.InputXGradient().attribute(model, X, targets=2)
    torch.testing.assert_close(found.values.sum(1), model(X)[:, 2].detach(), rtol=1e-12, atol=1e-14)


def test_its_budget():
    model = Polynomial({(0, 1): 1.0}, ZERO).eval()
    with counted(model) as rows:
        dv.InputXGradient().attribute(model, X)
    assert (rows.forward, rows.backward) == (2 * 5, 5)
