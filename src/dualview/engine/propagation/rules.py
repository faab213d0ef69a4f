"""Proportional rules: how an output's relevance is shared among what contributed to it.

A linear operation y_j = Σ_i z_ij + b_j has contributions z_ij = x_i w_ij. Their positive part is
z⁺_ij = max(z_ij, 0), so for signed inputs w⁺ where x > 0 and w⁻ where x < 0; z⁻_ij = min(z_ij, 0).
Every rule here is a sum of terms

    R_i = Σ_t Σ_j c^t_ij / (Σ_i c^t_ij + bias + ε) · ω^t R_j,    c^t = p_t z + q_t z⁺ + r_t z⁻.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

BIAS = ("absorb", "exclude", "share")
EPSILON = 1e-8


class Term(NamedTuple):
    """One term of a rule.

    Attributes:
        plain: p, the coefficient of z_ij.
        positive: q, the coefficient of z⁺_ij; one number, or one for each output j.
        negative: r, the coefficient of z⁻_ij, likewise.
        weight: ω, the share of R_j that this term hands on.
    """

    plain: float | int = 0.0
    positive: float | int | Tensor = 0.0
    negative: float | int | Tensor = 0.0
    weight: float | int = 1.0


def check_options(bias: str, epsilon: float | int) -> None:
    """Raise where an option of a rule has no meaning."""
    if bias not in BIAS:
        raise ValueError(f"`bias` must be 'absorb', 'exclude' or 'share'; it is {bias!r}")
    if not isinstance(epsilon, (int, float)) or not 0 <= epsilon < float("inf"):
        raise ValueError(f"`epsilon` must be a number of at least 0; it is {epsilon!r}")


@dataclass(frozen=True, kw_only=True)
class Proportional(ABC):
    """A rule that shares relevance in proportion to contributions.

    Args:
        bias: what becomes of the bias. "absorb": it stands in the denominator and keeps its part;
            "exclude": it does not, so relevance is lost only at zero denominators; "share": its
            part is spread equally over the operation's non-zero inputs. All are booked.
        epsilon: stabilises the denominator, in units of the largest denominator of that operation
            and sample, with the denominator's sign.
    """

    bias: str = "absorb"
    epsilon: float | int = EPSILON

    def __post_init__(self) -> None:
        check_options(self.bias, self.epsilon)

    @abstractmethod
    def terms(self, outputs: Tensor) -> tuple[Term, ...]:
        """Return the rule's terms for these outputs (the plain denominators, before ε)."""


@dataclass(frozen=True, kw_only=True)
class Epsilon(Proportional):
    """LRP-ε: c = z (Bach et al. 2015, eq. 58). With ε = 0 and the bias absorbed: gradient × input."""

    def terms(self, outputs: Tensor) -> tuple[Term, ...]:
        return (Term(plain=1.0),)


@dataclass(frozen=True, kw_only=True)
class Gamma(Proportional):
    """LRP-γ: c = z + γ z⁺ for positive outputs (Montavon et al. 2019), z + γ z⁻ for negative ones.

    The second half is the generalisation of Andéol et al. 2021: the favoured part has the output's
    own sign, so the denominator never crosses zero.
    """

    gamma: float | int = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma >= 0:
            raise ValueError(f"`gamma` must be at least 0; it is {self.gamma!r}")

    def terms(self, outputs: Tensor) -> tuple[Term, ...]:
        below = (outputs < 0).to(outputs.dtype) * self.gamma
        return (Term(plain=1.0, positive=self.gamma - below, negative=below),)


@dataclass(frozen=True, kw_only=True)
class ZPlus(Proportional):
    """z⁺: c = z⁺ (Montavon et al. 2017, signed inputs included)."""

    def terms(self, outputs: Tensor) -> tuple[Term, ...]:
        return (Term(positive=1.0),)


@dataclass(frozen=True, kw_only=True)
class AlphaBeta(Proportional):
    """LRP-αβ: α of R_j along z⁺ and −β along z⁻, α − β = 1 (Bach et al. 2015, eq. 60)."""

    alpha: float | int = 2.0
    beta: float | int = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-12:
            raise ValueError(f"alpha − beta must be 1 and beta ≥ 0; alpha={self.alpha!r}, beta={self.beta!r}")

    def terms(self, outputs: Tensor) -> tuple[Term, ...]:
        return (Term(positive=1.0, weight=self.alpha), Term(negative=1.0, weight=-self.beta))
