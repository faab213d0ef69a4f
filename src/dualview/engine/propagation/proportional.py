"""The backward pass of a proportional rule on one linear operation, as an autograd function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualview.engine.propagation.account import Ledger
from dualview.engine.propagation.linear_ops import LinearOp
from dualview.engine.propagation.rules import Proportional, Term
from dualview.engine.propagation.sharing import Kept, coefficients, spread_bias


class ProportionalRule(torch.autograd.Function):
    """z + b forward; backward m_i = R_i / x_i, from m_j = R_j / y_j, by the rule."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, op: LinearOp, rule: Proportional, ledger: Ledger) -> Tensor:
        """Return the operation's output."""
        ctx.op, ctx.rule, ctx.ledger = op, rule, ledger
        return op.output()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Share the relevance, and book what is not handed on."""
        return share_out(ctx.rule, ctx.op, gradient, ctx.ledger), None, None, None


def share_out(rule: Proportional, op: LinearOp, gradient: Tensor, ledger: Ledger) -> Tensor:
    """Return the inputs' modified gradient m_i = R_i / x_i for the outputs' m_j = R_j / y_j.

    A rule's contributions are p z + q z⁺ + r z⁻ = (p + q) z⁺ + (p + r) z⁻, so that coefficients s_j of
    its terms join into one for z⁺ and one for z⁻; where these are equal, into one for z.
    """
    op.check_unchanged()
    biases = op.bias
    y = op.z if biases is None else op.z + biases
    relevance = gradient * y
    ledger.see_flow(op.place, relevance)
    kept = Kept(op.place, ledger)
    with_bias = biases is not None and rule.bias != "exclude"
    plain: Tensor | None = None
    signed: list[Tensor | None] = [None, None]
    shared: Tensor | None = None
    for term in rule.terms(y if with_bias else op.z):
        if not term.weight:
            continue
        denominators = _mixed(term, op.z, op)
        part = _mixed_bias(term, biases) if with_bias else None
        is_output = _is_plain(term) and (with_bias or biases is None)
        s = coefficients(
            denominators if part is None else denominators + part,
            relevance if term.weight == 1 else relevance * term.weight,
            rule.epsilon,
            kept,
            by_sample=op.by_sample,
            at_zero=gradient * term.weight if is_output and not rule.epsilon else None,
        )
        if part is not None and rule.bias == "share":
            shared = _added(shared, s * part)
        elif part is not None:
            kept.add("bias", s * part)
        if _is_plain(term):
            plain = _added(plain, s * term.plain)
        else:
            for k, factor in enumerate((term.positive, term.negative)):
                if term.plain or isinstance(factor, Tensor) or factor:
                    share = term.plain + factor
                    signed[k] = _added(signed[k], s if isinstance(share, (int, float)) and share == 1 else s * share)
    found = None if plain is None else op.pull_back(plain)
    if any(coefficient is not None for coefficient in signed):
        found = _added(found, op.pull_back_signed(*signed))
    if shared is not None:
        x = op.x
        spread = spread_bias(op, shared, x != 0, kept)
        found = _added(found, torch.where(x == 0, 0, spread / torch.where(x == 0, 1, x)))
    kept.book()
    return torch.zeros_like(op.x) if found is None else found


def _is_plain(term: Term) -> bool:
    return not any(isinstance(factor, Tensor) or factor for factor in (term.positive, term.negative))


def _mixed(term: Term, z: Tensor, op: LinearOp) -> Tensor:
    """Return Σ_i c_ij for each output j.

    Where z itself takes part, z⁻ = z − z⁺ is as exact as z; alone it is summed, since its zeros count.
    """
    if _is_plain(term):
        return z * term.plain if term.plain != 1 else z
    if term.plain:
        return (term.plain + term.negative) * z + (term.positive - term.negative) * op.signed(True)
    parts = [(op.signed(sign), factor) for sign, factor in ((True, term.positive), (False, term.negative))]
    found = [sums * factor for sums, factor in parts if isinstance(factor, Tensor) or factor]
    return found[0] if len(found) == 1 else found[0] + found[1]


def _mixed_bias(term: Term, bias: Tensor | None) -> Tensor | None:
    """Return the bias as one more contribution."""
    if bias is None:
        return None
    return term.plain * bias + term.positive * bias.clamp(min=0) + term.negative * bias.clamp(max=0)


def _added(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total + value
