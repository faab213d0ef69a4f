"""Integrals along paths of one's own."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from tests.features.budget import counted
from tests.features.polynomials import Polynomial, points, random_polynomial

CUBIC, X = random_polynomial(3, 4).eval(), points(5, 4)
PROD = Polynomial({(0, 1): 1.0}, torch.zeros(2, dtype=torch.float64)).eval()


def test_a_straight_path_is_integrated_gradients_by_the_midpoint_rule():
    found = dv.PathIntegral(lambda x, alpha: 0.5 + alpha * (x - 0.5), steps=9).attribute(CUBIC, X, targets=0)
    expected = dv.IntegratedGradients(0.5, steps=9, rule="midpoint").attribute(CUBIC, X, targets=0)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.change, expected.change, rtol=0, atol=1e-13)


def test_corners_give_all_credit_to_who_moves_last():
    def corner(x: Tensor, alpha: Tensor) -> Tensor:
        return torch.cat([(2 * alpha).clamp(max=1) * x[:, :1], (2 * alpha - 1).clamp(min=0) * x[:, 1:]], 1)

    x = points(4, 2)
    found = dv.PathIntegral(corner, steps=2).attribute(PROD, x, targets=0)
    assert (found.values[:, 0] == 0).all()
    torch.testing.assert_close(found.values[:, 1], x.prod(1), rtol=1e-15, atol=0)


def test_several_inputs_are_maps():
    class Times(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.stack([a[:, 0] * b[:, 0, 0], b[:, 0, 0]], 1)

    def late(x: dict[str, Tensor], alpha: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": alpha["a"] * x["a"], "b": alpha["b"] ** 2 * x["b"]}

    inputs = {"a": X[:, :1], "b": X[:, 1:2, None]}
    found = dv.PathIntegral(late, steps=400).attribute(Times(), inputs, targets=0).values
    product = (X[:, 0] * X[:, 1])[:, None]
    torch.testing.assert_close(found["a"], product / 3, rtol=1e-4, atol=0)  # the error is of order steps⁻²
    torch.testing.assert_close(found["b"][..., 0], product * 2 / 3, rtol=1e-4, atol=0)


def test_a_path_that_leaves_the_box_is_refused_unless_that_is_meant():
    def detour(x: Tensor, alpha: Tensor) -> Tensor:
        return alpha * x + (alpha * (1 - alpha)) * (x[:, :1] > X[2, 0] - 1e-9) * (x[:, :1] < X[2, 0] + 1e-9) * 3

    with pytest.raises(ValueError, match="`path` leaves the box between γ.0. and x for sample 2"):
        dv.PathIntegral(detour).attribute(CUBIC, X, targets=0, batch_size=2)
    found = dv.PathIntegral(detour, box=False, steps=400).attribute(CUBIC, X, targets=0)
    assert (found.completeness_error.abs() < 1e-3 * found.change.abs().max()).all()


def test_rounding_is_no_way_out_of_the_box():
    images = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) / 3
    found = dv.PathIntegral(lambda x, a: 0.1 + a * (x - 0.1), steps=7).attribute(nn.Linear(4, 2), images)
    assert (found.completeness_error.abs() < 1e-5).all()


def test_its_budget():
    with counted(CUBIC) as rows:
        dv.PathIntegral(lambda x, alpha: alpha * x, steps=6).attribute(CUBIC, X, targets=0)
    assert (rows.forward, rows.backward) == (5 * (6 + 2), 5 * 6)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="does not end at x for sample 1"):
        dv.PathIntegral(lambda x, a: a * torch.where(x == X[1], x + 1e-9, x)).attribute(CUBIC, X, targets=0)
    with pytest.raises(ValueError, match="must return what it is given, shaped alike"):
        dv.PathIntegral(lambda x, a: (a * x)[:, :2]).attribute(CUBIC, X, targets=0)
    with pytest.raises(ValueError, match="`steps` is 0"):
        dv.PathIntegral(lambda x, a: a * x, steps=0)
