"""Conductance against closed forms and against its definition with Jacobians of the layer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from tests.features.budget import counted


class Cut(nn.Module):
    """h = (x_1, x_1 x_2), f = h_1² h_2: every path crosses `cut`."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.cut(torch.stack([x[:, 0], x[:, 0] * x[:, 1]], dim=1))
        value = h[:, 0] ** 2 * h[:, 1]
        return torch.stack([value, -value], dim=1)


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.second(torch.tanh(self.first(x)))))


class Around(nn.Module):
    """A residual that goes round the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.relu_() + self.layer(x)  # in place, too


X = torch.tensor([[0.7, -1.2, 0.4], [1.5, 0.3, -0.8]], dtype=torch.float64)


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double().eval()


def test_it_follows_the_image_of_the_path():
    """f = x1³ x2: half of it each; straight from h(0) to h(x) it would be two thirds and a third."""
    x = torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    errors = []
    for steps in (51, 101):
        found = dv.Conductance("cut", steps=steps).attribute(Cut(), x, targets=0)
        errors.append(found.values - torch.tensor([[2.0, 2.0]], dtype=torch.float64))
        torch.testing.assert_close(found.completeness_error, errors[-1].sum(1), rtol=0, atol=1e-13)
    first, second = torch.cat(errors).unbind(1)
    assert abs(float(first[1])) < 1e-3 and abs(float(first[0] / first[1]) - 4) < 1e-3  # of order steps⁻²
    assert second.abs().max() < 1e-14  # its sum telescopes
    straight = dv.IntegratedGradients(site="cut").attribute(Cut(), x, targets=0)
    torch.testing.assert_close(straight.values, torch.tensor([[8 / 3, 4 / 3]], dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.site == dv.Site("cut", "output") and found.kind == "share"


def definition(model: Smooth, baseline: Tensor) -> Tensor:
    """Σ_i (x_i − x'_i) ∫ ∂f/∂h_j · ∂h_j/∂x_i dα, by 40 Gauss-Legendre nodes: exact to rounding here."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    rows = []
    for x in X:
        total = torch.zeros(4, dtype=torch.float64)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            point = baseline + node * (x - baseline)
            layer = lambda p: model.second(torch.tanh(model.first(p)))  # noqa: E731
            jacobian = torch.autograd.functional.jacobian(layer, point)
            slopes = torch.autograd.functional.jacobian(lambda h: model.fc(F.gelu(h))[1], layer(point).detach())
            total += weight * slopes * (jacobian @ (x - baseline))
        rows.append(total)
    return torch.stack(rows)


def test_it_is_the_definitions_double_sum():
    model = made(Smooth)
    baseline = torch.tensor([0.2, 0.0, -0.5], dtype=torch.float64)
    expected = definition(model, baseline)
    found = dv.Conductance("second", baseline=baseline, steps=1000).attribute(model, X, targets=1)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-6)  # steps⁻²
    assert found.completeness_error.abs().max() < 1e-6
    with torch.no_grad():
        change = model(X)[:, 1] - model(baseline[None])[:, 1]
    torch.testing.assert_close(found.change, change, rtol=0, atol=1e-14)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 200])
def test_lines_of_several_draws_are_not_joined(batch_size: int):
    """Passes end amid lines, and one line's end is followed by the start of the next."""
    model = made(Smooth)
    pool = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    method = dv.Conductance("first", baseline=dv.Samples(pool), steps=7)
    found = method.attribute(model, X, targets=0, batch_size=batch_size)
    single = [dv.Conductance("first", baseline=one, steps=7).attribute(model, X, targets=0).values for one in pool]
    torch.testing.assert_close(found.values, torch.stack(single).mean(0), rtol=0, atol=1e-14)


def test_what_goes_round_the_site_is_missing_and_said():
    model = made(Around)
    x = X.abs()
    with pytest.warns(dv.errors.DualViewWarning, match="the scores miss"):
        found = dv.Conductance("layer").attribute(model, x, targets=1)
    torch.testing.assert_close(found.completeness_error, -x[:, 1], rtol=0, atol=1e-14)


def test_its_budget():
    model = made(Smooth)
    with counted(model) as rows:
        dv.Conductance("second", baseline=dv.Noise(count=3), steps=11).attribute(model, X)
    assert rows.backward == 2 * 3 * 11
    assert rows.forward == 2 * 3 * 11 + 2 + 3  # f(x), and f of each reference, which the samples share


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"'secnd' is not a module of Smooth\. Near names: 'second'"):
        dv.Conductance("secnd").attribute(made(Smooth), X)
    with pytest.raises(ValueError, match="at least 2"):
        dv.Conductance("second", steps=1)
