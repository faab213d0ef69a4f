"""Integrated gradients against closed forms, at the inputs and inside a network."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.errors import DualViewWarning
from dualview.features.input_x_gradient import InputXGradient
from tests.features.budget import counted
from tests.features.polynomials import Polynomial, points, random_polynomial

CUBIC, X = random_polynomial(3, 5).eval(), points(6, 5)
ZERO = torch.zeros(5, dtype=torch.float64)


def mlp(*, bias: bool = True, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(5, 9, bias=bias), activation(), nn.Linear(9, 9, bias=bias), activation()
        return nn.Sequential(*layers, nn.Linear(9, 3, bias=bias)).double()


def test_a_cubic_is_shared_exactly():
    found = dv.IntegratedGradients(CUBIC.baseline, steps=8).attribute(CUBIC, X, targets=0)
    expected = CUBIC.allotted(X, lambda i, kappa, count: count / len(kappa))
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.change, expected.sum(1), rtol=0, atol=1e-12)
    assert found.completeness_error.abs().max() < 1e-12 and found.baseline == "Constant(<tensor 5>)"


@pytest.mark.parametrize("rule", ["gauss-legendre", "midpoint", "left", "right"])
def test_one_node_does_for_a_linear_function(rule: str):
    model = Polynomial({(k,): float(k - 2) for k in range(5)}, ZERO).eval()
    found = dv.IntegratedGradients(dv.Constant(0.5), steps=1, rule=rule).attribute(model, X, targets=0)
    expected = (X - 0.5) * torch.arange(-2.0, 3.0, dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-14)


def test_a_product_is_halved():
    model = Polynomial({(0, 1): 1.0}, ZERO).eval()
    found = dv.IntegratedGradients(steps=1).attribute(model, X, targets=0).values
    expected = torch.zeros_like(X)
    expected[:, :2] = (X[:, 0] * X[:, 1] / 2)[:, None]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_without_biases_relus_make_it_gradient_times_input():
    model = mlp(bias=False)
    found = dv.IntegratedGradients(steps=3).attribute(model, X)
    torch.testing.assert_close(found.values, InputXGradient().attribute(model, X).values, rtol=1e-12, atol=1e-14)


def test_more_steps_miss_less_and_a_large_miss_is_said():
    model = mlp()
    errors = [
        float(dv.IntegratedGradients(steps=n, rule="midpoint").attribute(model, X).completeness_error.abs().sum())
        for n in (50, 500)
    ]
    assert errors[1] < errors[0] / 4
    with pytest.warns(DualViewWarning, match="the scores miss what they should add up to by"):
        dv.IntegratedGradients(steps=1, rule="left").attribute(model, X)


def test_at_a_site_the_path_is_straight_between_activations():
    """Where the rest is a polynomial of the activations, shares of it are known."""
    rest = random_polynomial(3, 4, seed=3)
    first = nn.Linear(5, 4).double()
    model = nn.Sequential(first, rest).eval()
    found = dv.IntegratedGradients(dv.Constant(0.0), site="0", steps=4).attribute(model, X, targets=0)
    start = first(torch.zeros_like(X)).detach()
    moved = Polynomial(rest.terms, rest.baseline)
    leaf = lambda h: torch.autograd.grad(moved(h.requires_grad_())[:, 0].sum(), h)[0]  # noqa: E731
    end = first(X).detach()
    nodes = torch.linspace(0, 1, 401, dtype=torch.float64)
    slow = sum(leaf(start + a * (end - start)) for a in (nodes[1:] + nodes[:-1]) / 2) / 400 * (end - start)
    torch.testing.assert_close(found.values, slow, rtol=0, atol=1e-4)  # the slow twin's own error, of order h²
    assert found.site == dv.Site("0", "output") and found.completeness_error.abs().max() < 1e-12
    with pytest.raises(ValueError, match="`site` 'fc' is not a module of Sequential. Near names: '0', '1'"):
        dv.IntegratedGradients(site="fc").attribute(model, X)


def test_at_a_site_scores_are_functions_of_the_layers_before():
    model = mlp(activation=nn.Softplus)
    method = dv.IntegratedGradients(site="1", steps=4)

    def penalty() -> Tensor:
        return method.attribute(model, X, targets=0, differentiable=True).values.square().sum()

    weight = model[0].weight
    slope = torch.autograd.grad(penalty(), weight)[0][2, 3]
    moved = []
    for step in (1e-6, -1e-6):
        weight.data[2, 3] += step
        moved.append(penalty().detach())
        weight.data[2, 3] -= step
    torch.testing.assert_close(slope, (moved[0] - moved[1]) / 2e-6, rtol=1e-6, atol=1e-9)


def test_the_completeness_error_has_its_gradient_too():
    model = mlp(activation=nn.Softplus)
    found = dv.IntegratedGradients(steps=20).attribute(model, X, targets=0, differentiable=True)
    gradients = torch.autograd.grad(found.completeness_error.sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or g.abs().max() < 1e-10 for g in gradients)  # the error is zero whatever the weights are


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        value = a[:, 0] * b[:, 0] + ids * a[:, 1]
        return torch.stack([value, -value], 1)


def test_a_part_that_no_baseline_names_stays_as_it_is():
    inputs = {"a": X[:, :2], "b": X[:, 2:], "ids": torch.arange(6)}
    both = dv.IntegratedGradients(steps=1).attribute(Two(), inputs, targets=0).values
    torch.testing.assert_close(both["a"][:, 0], X[:, 0] * X[:, 2] / 2)
    alone = dv.IntegratedGradients({"a": 0.0}, steps=1).attribute(Two(), inputs, targets=0)
    torch.testing.assert_close(alone.values[:, 0], X[:, 0] * X[:, 2])
    assert alone.completeness_error.abs().max() < 1e-14
    with pytest.raises(TypeError, match="`baseline` names 'ids', which holds whole numbers"):
        dv.IntegratedGradients({"ids": 0}).attribute(Two(), inputs, targets=0)


@pytest.mark.parametrize(
    "baseline, site, forward",
    [
        (0.0, None, 6 * (1 + 20) + 1),
        (dv.Blur(1), None, 6 * (1 + 20 + 1)),
        (dv.Noise(count=3), None, 6 * (1 + 3 * 20) + 3),
        (0.0, "2", 6 * (1 + 20) + 6 * 2 + 6),
    ],
)
def test_its_budget(baseline, site: str | None, forward: int):
    model = mlp(activation=nn.Softplus)
    with counted(model) as rows:
        dv.IntegratedGradients(baseline, steps=20, site=site).attribute(model, X, targets=0, batch_size=100)
    draws = 3 if isinstance(baseline, dv.Noise) else 1
    assert (rows.forward, rows.backward) == (forward, 6 * 20 * draws)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`steps` is 0"):
        dv.IntegratedGradients(steps=0)
    with pytest.raises(ValueError, match=r"`baseline` has shape \(4,\); expected a number, \(5,\)"):
        dv.IntegratedGradients(torch.zeros(4)).attribute(CUBIC, X, targets=0)
