"""Quadrature rules against the integrals of polynomials and smooth functions."""

import math

import pytest
import torch

from dualview.ops.quadrature import RULES, quadrature

EXACT_DEGREE = {"gauss-legendre": 2 * 6 - 1, "midpoint": 1, "trapezoid": 1, "left": 0, "right": 0}
ORDER = {"midpoint": 2, "trapezoid": 2, "left": 1, "right": 1}


@pytest.mark.parametrize("rule", RULES)
def test_polynomials_up_to_its_degree_and_no_further(rule: str):
    nodes, weights = quadrature(rule, 6)
    assert nodes.dtype == weights.dtype == torch.float64
    for degree in range(EXACT_DEGREE[rule] + 2):
        error = abs(float(weights @ nodes**degree) - 1 / (degree + 1))
        assert (error < 1e-15) == (degree <= EXACT_DEGREE[rule])


@pytest.mark.parametrize("rule", ORDER)
def test_twice_the_nodes_halve_the_error_as_often_as_its_order_says(rule: str):
    errors = [
        abs(float(weights @ nodes.exp()) - (math.e - 1)) for nodes, weights in (quadrature(rule, n) for n in (100, 200))
    ]
    # the trapezoid has one interval less than nodes, so that the ratio is (199 / 99)² and not 4
    assert errors[0] / errors[1] == pytest.approx(2 ** ORDER[rule], rel=0.03)


@pytest.mark.parametrize("rule", RULES)
def test_nodes_are_where_they_are_said_to_be(rule: str):
    nodes, weights = quadrature(rule, 4)
    ends = {"trapezoid": (0, 1), "left": (0, 0.75), "right": (0.25, 1), "midpoint": (0.125, 0.875)}
    if rule in ends:
        assert (float(nodes[0]), float(nodes[-1])) == ends[rule]
    assert (nodes.diff() > 0).all() and (weights > 0).all()
    torch.testing.assert_close(nodes + nodes.flip(0), torch.full_like(nodes, float(nodes[0] + nodes[-1])))


def test_what_it_refuses():
    with pytest.raises(ValueError, match="needs at least 2"):
        quadrature("trapezoid", 1)
    with pytest.raises(ValueError, match="needs at least 1"):
        quadrature("gauss-legendre", 0)
    with pytest.raises(ValueError, match="`rule` is 'simpson'; choose from 'gauss-legendre'"):
        getattr(quadrature, "__wrapped__", quadrature)("simpson", 3)  # past the check of annotations
