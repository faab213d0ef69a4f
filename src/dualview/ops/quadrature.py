"""Quadrature on [0, 1]: nodes and weights by which an integral becomes a sum."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Rule = Literal["gauss-legendre", "midpoint", "trapezoid", "left", "right"]
RULES: tuple[str, ...] = get_args(Rule)


def quadrature(rule: Rule, steps: int) -> tuple[Float[Tensor, " node"], Float[Tensor, " node"]]:
    """Return nodes α_k and weights w_k, float64, with ∫₀¹ g(α) dα ≈ Σ_k w_k g(α_k) and Σ_k w_k = 1.

    Gauss-Legendre with n nodes is exact for polynomials of degree 2n − 1. Midpoint and trapezoid have
    an error of order n⁻² on smooth functions, left and right of order n⁻¹; all have order n⁻¹ where g jumps.

    Args:
        rule: "gauss-legendre", "midpoint", "trapezoid", "left" or "right".
        steps: nodes; of the trapezoid they are the ends of `steps` − 1 intervals.

    Raises:
        ValueError: an unknown rule, or fewer nodes than it needs.
    """
    least = 2 if rule == "trapezoid" else 1
    if rule not in RULES:
        raise ValueError(f"`rule` is {rule!r}; choose from {', '.join(map(repr, RULES))}")
    if steps < least:
        raise ValueError(f"`steps` is {steps}; the rule {rule!r} needs at least {least}")
    if rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    if rule == "trapezoid":
        weights = torch.full((steps,), 1 / (steps - 1), dtype=torch.float64)
        weights[[0, -1]] /= 2
        return torch.linspace(0, 1, steps, dtype=torch.float64), weights
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    nodes = (torch.arange(steps, dtype=torch.float64) + offset) / steps
    return nodes, torch.full((steps,), 1 / steps, dtype=torch.float64)
