"""Sharing an output's relevance over a denominator: what every rule does, and what it keeps back."""

from __future__ import annotations

import torch
from torch import Tensor

from dualview.engine.propagation.account import Kind, Ledger, Place
from dualview.engine.propagation.linear_ops import LinearOp


class Kept:
    """What one operation absorbs in one pass, netted over the terms of its rule before it is booked."""

    def __init__(self, place: Place, ledger: Ledger) -> None:
        self._place, self._ledger = place, ledger
        self._amounts: dict[Kind, Tensor] = {}

    def add(self, kind: Kind, amounts: Tensor) -> None:
        """Take in amounts, element by element of the output."""
        amount = self._ledger.per_sample(amounts, self._place)
        self._amounts[kind] = self._amounts[kind] + amount if kind in self._amounts else amount

    def book(self) -> None:
        """Write it all into the books."""
        for kind, amount in self._amounts.items():
            self._ledger.enter(self._place, kind, amount)


def coefficients(
    denominators: Tensor,
    relevance: Tensor,
    epsilon: float | int,
    kept: Kept,
    *,
    by_sample: bool,
    at_zero: Tensor | None = None,
) -> Tensor:
    """Return s_j = R_j / (d_j + ε_j), where ε_j has the sign of d_j and is relative to the largest |d|.

    Where d_j = 0 there is nothing to share among: s_j is 0, and R_j is kept as lost.

    Args:
        denominators: d.
        relevance: R.
        epsilon: |ε| in units of the largest |d| of the same sample.
        kept: takes what ε and zero denominators absorb.
        by_sample: whether the first axis is known to be the sample. If not, ε is in units of |d_j| itself:
            what other samples hold must change nothing.
        at_zero: the limit of s_j where R_j vanishes along with d_j; nothing is lost then.
    """
    some_zero = int(denominators.count_nonzero()) < denominators.numel()
    zero = denominators == 0 if some_zero else None
    if epsilon:
        signed = torch.copysign(epsilon * _largest(denominators, by_sample), denominators)
        s = denominators + signed
        torch.div(relevance, s, out=s)
    else:
        s = relevance / denominators
    if zero is not None:
        s = s.masked_fill(zero, 0.0)
        if at_zero is not None:
            s = torch.where(zero, at_zero, s)
        else:
            kept.add("zero denominator", relevance * zero)
    if epsilon:
        kept.add("epsilon", signed.mul_(s))
    return s


def _largest(values: Tensor, by_sample: bool) -> Tensor:
    """Return the largest |v| of each sample, to broadcast with v; where samples are not known apart, |v| itself."""
    if values.ndim < 2 or not by_sample:
        return values.abs()
    rows = values.flatten(1)
    found = torch.maximum(rows.amax(1), -rows.amin(1))  # a norm is ten times slower
    return found.reshape(-1, *[1] * (values.ndim - 1))


def spread_bias(op: LinearOp, shared: Tensor, inputs: Tensor, kept: Kept) -> Tensor:
    """Spread each output's amount equally over its inputs that `inputs` marks; keep it where there are none."""
    num = op.apply(inputs.to(op.z.dtype), torch.ones_like(op.weight))
    kept.add("bias", torch.where(num == 0, shared, 0))
    each = torch.where(num == 0, 0, shared / num.clamp(min=1))
    return op.pull_back(each, torch.ones_like(op.weight)) * inputs
