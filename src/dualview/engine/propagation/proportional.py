"""The backward pass of a proportional rule on one linear operation, as an autograd function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dualview.engine.propagation.account import Ledger
from dualview.engine.propagation.linear_ops import LinearOp
from dualview.engine.propagation.rules import Proportional, Term


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
    """Return the inputs' modified gradient m_i = R_i / x_i for the outputs' m_j = R_j / y_j."""
    biases = op.bias
    y = op.z if biases is None else op.z + biases
    ledger.see_flow(gradient * y)
    terms = [term for term in rule.terms(op.z if rule.bias == "exclude" else y) if _carries(term, gradient)]
    if not terms:
        return torch.zeros_like(op.x)
    signed = None
    if any(term.positive or term.negative for term in terms):
        signed = op.signed(
            positive=any(bool(term.positive) for term in terms), negative=any(bool(term.negative) for term in terms)
        )
    sums = (op.z, *((None, None) if signed is None else (signed.positive, signed.negative)))
    parts = None if biases is None or rule.bias == "exclude" else (biases, biases.clamp(min=0), biases.clamp(max=0))
    coefficients: list[Tensor | None] = [None, None, None]
    shared: Tensor | None = None
    for term in terms:
        factors = (term.plain, term.positive, term.negative)
        bias = None if parts is None else _mixed(factors, parts)
        s = _coefficients(rule, term, _mixed(factors, sums), bias, y, gradient, op, ledger)
        if bias is not None and rule.bias == "share":
            shared = s * bias if shared is None else shared + s * bias
        elif bias is not None:
            ledger.book(op.place, "bias", s * bias)
        coefficients = [_added(old, factor, s) for old, factor in zip(coefficients, factors, strict=True)]
    plain, positive, negative = coefficients
    found = None if plain is None else op.pull_back(plain)
    if signed is not None:
        by_sign = op.pull_back_signed(signed, positive, negative)
        found = by_sign if found is None else found + by_sign
    assert found is not None  # every term has a coefficient
    return found if shared is None else found + _spread_bias(op, shared, ledger)


def _carries(term: Term, gradient: Tensor) -> bool:
    """Tell whether a term has any relevance to share: below a ReLU, the one for negative outputs has none."""
    return bool(term.weight) and (term.where is None or bool((gradient * term.where).any()))


def _coefficients(
    rule: Proportional,
    term: Term,
    sums: Tensor,
    bias: Tensor | None,
    y: Tensor,
    gradient: Tensor,
    op: LinearOp,
    ledger: Ledger,
) -> Tensor:
    """Return s_j = ω R_j / (denominator + ε), 0 at zero denominators; book ε's part and theirs."""
    weights = gradient * term.weight if term.where is None else gradient * term.weight * term.where
    denominators = sums if bias is None else sums + bias
    if term.where is not None:
        denominators = torch.where(term.where, denominators, 0)
    epsilon = stabiliser(denominators, rule.epsilon)
    zero = denominators == 0
    some_zero = bool(zero.any())
    ratio = y / (denominators + epsilon)
    if some_zero:
        # With ε = 0 and y itself in the denominator the ratio is 1, also in the limit y → 0.
        plain = not (term.positive or term.negative) and (bias is not None or op.bias is None)
        ratio = torch.where(zero, float(plain and rule.epsilon == 0), ratio)
        ledger.book(op.place, "zero denominator", torch.where(zero, weights * y, 0))
    s = weights * ratio
    if rule.epsilon:
        ledger.book(op.place, "epsilon", s * epsilon)
    return s


def stabiliser(denominators: Tensor, epsilon: float | int) -> Tensor:
    """Return ε times the largest denominator of each sample (first axis), with each denominator's sign."""
    axes = tuple(range(1, denominators.ndim))
    largest = denominators.abs().amax(axes, keepdim=True) if axes else denominators.abs()
    return torch.copysign(epsilon * largest, denominators)


def _spread_bias(op: LinearOp, shared: Tensor, ledger: Ledger) -> Tensor:
    """Return the m_i of the biases' parts, spread equally over non-zero inputs; book them where there are none."""
    num = op.num_nonzero()
    ledger.book(op.place, "bias", torch.where(num == 0, shared, 0))
    each = torch.where(num == 0, 0, shared / num.clamp(min=1))
    x = op.x
    return torch.where(x == 0, 0, op.pull_back_with(torch.ones_like(op.weight), each) / torch.where(x == 0, 1, x))


def _mixed(factors: tuple[float | int, ...], values: tuple[Tensor | None, ...]) -> Tensor:
    """Return the sum of factor × value over the factors that are not zero."""
    found = None
    for factor, value in zip(factors, values, strict=True):
        if factor and value is not None:
            found = _added(found, factor, value.detach())
    assert found is not None  # a term has a coefficient
    return found


def _added(total: Tensor | None, factor: float | int, value: Tensor) -> Tensor | None:
    if not factor:
        return total
    scaled = value if factor == 1 else factor * value
    return scaled if total is None else total + scaled
