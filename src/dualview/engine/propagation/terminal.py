"""Terminal rules: they write relevance to the input themselves, to zeros as well.

R_i = Σ_j c_ij / Σ_i c_ij · R_j with contributions that do not vanish with x_i: 1 for flat (Lapuschkin
et al. 2019), w_ij² for w², and x_i w_ij − l_i w⁺_ij − h_i w⁻_ij for the z-box of inputs between l and
h (Montavon et al. 2017). They stand only where nothing with parameters lies below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualview.engine.propagation.account import Ledger
from dualview.engine.propagation.linear_ops import LinearOp
from dualview.engine.propagation.rules import EPSILON, check_options
from dualview.engine.propagation.sharing import Kept, coefficients, spread_bias


@dataclass(frozen=True, kw_only=True)
class Terminal(ABC):
    """A rule that ends at the input.

    Args:
        bias: "exclude": it takes no part; "absorb": its part stands in the denominator and is
            booked; "share": that part is spread equally over all inputs, zeros too.
        epsilon: as for proportional rules.
    """

    bias: str = "exclude"
    epsilon: float | int = EPSILON

    def __post_init__(self) -> None:
        check_options(self.bias, self.epsilon)

    @abstractmethod
    def sums(self, op: LinearOp) -> Tensor:
        """Return Σ_i c_ij for each output j."""

    @abstractmethod
    def bias_part(self, biases: Tensor) -> Tensor:
        """Return the bias's contribution, where it takes part."""

    @abstractmethod
    def pull_back(self, op: LinearOp, coefficients: Tensor) -> Tensor:
        """Return Σ_j c_ij s_j for each input i."""


class Flat(Terminal):
    """Every input that an output sees gets the same; the bias takes no part."""

    def sums(self, op: LinearOp) -> Tensor:
        return op.apply(torch.ones_like(op.x), torch.ones_like(op.weight))

    def bias_part(self, biases: Tensor) -> Tensor:
        return torch.zeros_like(biases)

    def pull_back(self, op: LinearOp, coefficients: Tensor) -> Tensor:
        return op.pull_back(coefficients, torch.ones_like(op.weight))


class WSquare(Terminal):
    """In proportion to the squared weights."""

    def sums(self, op: LinearOp) -> Tensor:
        return op.apply(torch.ones_like(op.x), op.weight**2)

    def bias_part(self, biases: Tensor) -> Tensor:
        return biases**2

    def pull_back(self, op: LinearOp, coefficients: Tensor) -> Tensor:
        return op.pull_back(coefficients, op.weight**2)


@dataclass(frozen=True, kw_only=True, eq=False)
class ZBox(Terminal):
    """The z^B rule, for inputs between two bounds.

    Args:
        low: smallest value an input of that operation can take, a number or broadcastable to it.
        high: largest value, likewise.
    """

    low: float | int | Tensor
    high: float | int | Tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ZBox) or (self.bias, self.epsilon) != (other.bias, other.epsilon):
            return False
        pairs = ((self.low, other.low), (self.high, other.high))
        return all(torch.equal(*map(torch.as_tensor, pair)) for pair in pairs)

    def __hash__(self) -> int:
        return hash((self.bias, self.epsilon))

    def sums(self, op: LinearOp) -> Tensor:
        low, high = self._bounds(op)
        up, down = op.weight.clamp(min=0), op.weight.clamp(max=0)
        return op.z - op.apply(low, up) - op.apply(high, down)

    def bias_part(self, biases: Tensor) -> Tensor:
        return biases

    def pull_back(self, op: LinearOp, coefficients: Tensor) -> Tensor:
        low, high = self._bounds(op)
        up = op.pull_back(coefficients, op.weight.clamp(min=0))
        down = op.pull_back(coefficients, op.weight.clamp(max=0))
        return op.x * op.pull_back(coefficients) - low * up - high * down

    def _bounds(self, op: LinearOp) -> tuple[Tensor, Tensor]:
        x = op.x
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (self.low, self.high))
        low, high = low.expand(x.shape), high.expand(x.shape)
        outside = int(((x < low) | (x > high)).sum())
        if outside:
            raise ValueError(
                f"{outside} of {x.numel()} inputs of {op.place} lie outside `low` and `high` of ZBox: they go from "
                f"{float(x.min()):.4g} to {float(x.max()):.4g}; bounds apply after the model's own normalisation"
            )
        return low, high


class TerminalRule(torch.autograd.Function):
    """z + b forward; backward writes relevance onto the input's shadow."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, shadow: Tensor, op: LinearOp, rule: Terminal, ledger: Ledger) -> Tensor:
        """Return the operation's output."""
        ctx.op, ctx.rule, ctx.ledger = op, rule, ledger
        return op.output()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None, None]:
        """Write the relevance, and book what is not handed on."""
        return None, write(ctx.rule, ctx.op, gradient, ctx.ledger), None, None, None


def write(rule: Terminal, op: LinearOp, gradient: Tensor, ledger: Ledger) -> Tensor:
    """Return the inputs' relevance R_i for the outputs' m_j = R_j / y_j."""
    op.check_unchanged()
    biases = op.bias
    relevance = gradient * (op.z if biases is None else op.z + biases)
    ledger.see_flow(op.place, relevance)
    kept = Kept(op.place, ledger)
    sums = rule.sums(op)
    part = None if biases is None or rule.bias == "exclude" else rule.bias_part(biases)
    denominators = sums if part is None else sums + part
    s = coefficients(denominators, relevance, rule.epsilon, kept, by_sample=op.by_sample)
    found = rule.pull_back(op, s)
    if part is not None and rule.bias == "share":
        found = found + spread_bias(op, s * part, torch.ones_like(op.x, dtype=torch.bool), kept)
    elif part is not None:
        kept.add("bias", s * part)
    kept.book()
    return found
