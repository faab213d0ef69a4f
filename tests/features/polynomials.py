"""Polynomials as networks, whose Taylor effects are known without differentiating."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import torch
from torch import Tensor, nn

Kappa = tuple[int, ...]


class Polynomial(nn.Module):
    """f(x) = Σ_κ c_κ Π_{i ∈ κ} (x_i − b_i), as the first of two logits; κ are multisets of variables."""

    def __init__(self, terms: dict[Kappa, float], baseline: Tensor) -> None:
        super().__init__()
        self.terms, self.baseline = terms, baseline
        self.scale = nn.Parameter(torch.ones((), dtype=baseline.dtype))

    def forward(self, x: Tensor) -> Tensor:
        moved = (x - self.baseline) * self.scale
        value = torch.zeros_like(x[:, 0])
        for kappa, coefficient in self.terms.items():
            term = torch.full_like(value, coefficient)
            for variable in kappa:
                term = term * moved[:, variable]
            value = value + term
        return torch.stack([value, torch.zeros_like(value)], dim=1)

    def effects(self, x: Tensor) -> dict[Kappa, Tensor]:
        """Return I(κ) "row" of every κ but the empty one."""
        moved = x - self.baseline
        return {k: c * moved[:, list(k)].prod(1) for k, c in self.terms.items() if k}

    def allotted(self, x: Tensor, weight) -> Tensor:
        """Return Σ_κ weight(i, κ, how often i is in κ) I(κ) "row variable"."""
        found = torch.zeros_like(x)
        for kappa, amount in self.effects(x).items():
            counts = Counter(kappa)
            for i in range(x.shape[1]):
                found[:, i] += weight(i, kappa, counts[i]) * amount
        return found


def random_polynomial(order: int, variables: int, seed: int = 0) -> Polynomial:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    kappas = [k for o in range(order + 1) for k in itertools.combinations_with_replacement(range(variables), o)]
    return Polynomial({k: float(draw()) / math.sqrt(max(1, len(k))) for k in kappas}, draw(variables))


def points(rows: int, variables: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, variables, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
