"""Kronecker-factored curvature of a linear map, corrected in its eigenbasis, and products with its inverse.

The gradient of a sample is G = Σ_p δ_p ⊗ a_p, "output input", over positions p; a bias is one more input, always 1.
With A = E Σ_p a_p a_pᵀ over samples and S = E δ δᵀ over samples and positions, and their eigenvectors Q_A and Q_S:

- K-FAC (Martens and Grosse 2015, arXiv 1503.05671; Grosse and Martens 2016, arXiv 1602.01407, for convolutions):
  H = S ⊗ A, which is Q_S ⊗ Q_A with the eigenvalues Λ_jk = s_j a_k;
- EK-FAC (George et al. 2018, arXiv 1806.03884): the same eigenvectors with Λ_jk = E (Q_Sᵀ G Q_A)_jk².

A basis without numbers stands for the identity.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 512
"""Rows on a side of one block of pairs: its temporaries stay in the processor's cache."""

NUMBERS = 2**24
"""Numbers in any other temporary, about."""


class Basis(NamedTuple):
    """Eigenvectors of both sides, in columns by falling eigenvalue.

    Attributes:
        outputs: Q_S, or nothing.
        inputs: Q_A, or nothing.
    """

    outputs: Float[Tensor, "out j"]
    inputs: Float[Tensor, "in k"]


# ── fitting ──────────────────────────────────────────────────────────────────────────────────────


def second_moment(vectors: Float[Tensor, "row position dim"], *, bias: bool = False) -> Float[Tensor, "d d"]:
    """Return Σ v vᵀ in float64; with a bias, of the vectors with a 1 behind them."""
    flat = vectors.reshape(-1, vectors.shape[2])
    total = (flat.T @ flat).double().cpu()
    if not bias:
        return total
    sums = flat.sum(0).double().cpu()
    count = sums.new_tensor([float(len(flat))])
    return torch.cat([torch.cat([total, sums[:, None]], dim=1), torch.cat([sums, count])[None]])


def eigenvectors(moment: Float[Tensor, "dim dim"]) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]:
    """Return eigenvalues, falling and not below 0, and the eigenvectors in columns."""
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(moment))  # pyright: ignore[reportUnknownMemberType]
    return values.flip(0).clamp(min=0), vectors.flip(1)


def squares(
    basis: Basis,
    inputs: Float[Tensor, "row position in"],
    deltas: list[Float[Tensor, "row position out"]],
    *,
    bias: bool,
) -> Float[Tensor, "j k"]:
    """Return Σ (Q_Sᵀ G Q_A)² over rows and directions, in float64."""
    positions, ins, outs = inputs.shape[1], inputs.shape[2] + bias, deltas[0].shape[2]
    if positions == 1:
        a = _turn(inputs[:, 0], basis.inputs, bias).square_()
        sizes = sum(_turn(delta[:, 0], basis.outputs).square_() for delta in deltas)
        assert isinstance(sizes, Tensor)
        return (sizes.T @ a).double().cpu()
    total = torch.zeros(outs, ins, dtype=torch.float64)
    of_gradient, of_factors = outs * ins * (outs + ins), positions * (outs**2 + ins**2)
    first = of_factors < of_gradient  # whether the factors are turned, and not their product
    if first:
        inputs, bias = _turn(inputs, basis.inputs, bias), False
        deltas = [_turn(delta, basis.outputs) for delta in deltas]
    for delta in deltas:
        gradient = gradients(inputs, delta, bias=bias)
        if not first:
            gradient = turn(basis, gradient)
        total += gradient.square_().sum(0).double().cpu()
    return total


def token_squares(
    outputs: Tensor,
    tokens: Int[Tensor, "row position"],
    deltas: list[Float[Tensor, "row position out"]],
    vocabulary: int,
) -> Float[Tensor, "j token"]:
    """Return Σ (Q_Sᵀ G)² over rows and directions, where a is one-hot, in float64; `outputs` is Q_S, or nothing."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    numbered = (rows * vocabulary + tokens).flatten()
    pairs, place = cast("tuple[Tensor, Tensor]", torch.unique(numbered, return_inverse=True))  # pyright: ignore[reportUnknownMemberType]
    total = torch.zeros(vocabulary, deltas[0].shape[2], dtype=torch.float64)
    for delta in deltas:
        turned = _turn(delta, outputs).flatten(0, 1)
        of_sample = turned.new_zeros(len(pairs), turned.shape[1]).index_add_(0, place, turned)
        total.index_add_(0, (pairs % vocabulary).cpu(), of_sample.square_().double().cpu())
    return total.T


def gradients(
    inputs: Float[Tensor, "row position in"], deltas: Float[Tensor, "row position out"], *, bias: bool
) -> Float[Tensor, "row out all_in"]:
    """Return G of each row."""
    weight = deltas.mT @ inputs
    return torch.cat([weight, deltas.sum(1)[:, :, None]], dim=2) if bias else weight


# ── turning and solving ──────────────────────────────────────────────────────────────────────────


def turn(basis: Basis, matrices: Float[Tensor, "row out in"]) -> Float[Tensor, "row j k"]:
    """Return Q_Sᵀ G Q_A."""
    turned = matrices @ basis.inputs if basis.inputs.numel() else matrices
    return basis.outputs.T @ turned if basis.outputs.numel() else turned


def turn_factors(
    basis: Basis, inputs: Float[Tensor, "row k in"], deltas: Float[Tensor, "row k out"], *, bias: bool
) -> tuple[Tensor, Tensor]:
    """Return Q_Aᵀ [a, 1] and Q_Sᵀ δ."""
    return _turn(inputs, basis.inputs, bias), _turn(deltas, basis.outputs)


def solve(
    basis: Basis, inverse: Float[Tensor, "j k"], matrices: Float[Tensor, "row out in"]
) -> Float[Tensor, "row out in"]:
    """Return (H + λ)⁻¹ G = Q_S (W ∘ Q_Sᵀ G Q_A) Q_Aᵀ, W the inverse of the damped eigenvalues."""
    return turn(Basis(basis.outputs.T, basis.inputs.T), turn(basis, matrices) * inverse)


def _turn(vectors: Tensor, basis: Tensor, bias: bool = False) -> Tensor:
    """Return [v, 1] Q, the 1 where there is a bias."""
    if not basis.numel():
        return torch.nn.functional.pad(vectors, (0, 1), value=1.0) if bias else vectors.clone()
    return vectors @ basis[:-1] + basis[-1] if bias else vectors @ basis


# ── pairs of gradients that are held by one pair of factors ──────────────────────────────────────


class Terms(NamedTuple):
    """W ≈ Σ_r u_r v_rᵀ; nothing where that does not halve the work with W itself.

    Attributes:
        outputs: the u_r.
        inputs: the v_r.
    """

    outputs: Float[Tensor, "r j"]
    inputs: Float[Tensor, "r k"]


def terms(inverse: Float[Tensor, "j k"], eigenvalues: Float[Tensor, "j k"], tolerance: float) -> Terms:
    """Return the fewest terms whose scores have a relative root-mean-square error within the tolerance.

    A score is Σ_jk W_jk x_jk, and x_jk, the product of two gradients in the eigenbasis, has variance Λ_jk² for
    gradients like those of the fit. With Λ_jk ≈ s_j a_k from the sums of its rows and columns the least error of
    R terms is the tail of the singular values of diag(s) W diag(a).

    Args:
        inverse: W.
        eigenvalues: Λ.
        tolerance: 0 asks for W itself.
    """
    outs, ins = inverse.shape
    nothing = Terms(inverse.new_empty(0, outs), inverse.new_empty(0, ins))
    if not tolerance:
        return nothing
    if outs > ins:
        inputs, outputs = terms(inverse.T, eigenvalues.T, tolerance)
        return Terms(outputs, inputs)
    scales = [eigenvalues.sum(axis) for axis in (1, 0)]
    s, a = (scale.clamp(min=float(scale.max()) * 1e-8) for scale in scales)
    weighed = s[:, None] * inverse * a
    energies, vectors = eigenvectors(weighed @ weighed.T)
    tails = energies.flip(0).cumsum(0)  # what is lost without the last one, the last two, …
    found = outs - int((tails <= tolerance**2 * tails[-1]).sum())
    if 2 * found * (outs + ins) > outs * ins:
        return nothing
    kept = vectors[:, :found].T
    return Terms(kept / s, (kept * s) @ inverse)


Pairs = tuple[Tensor, Tensor]  # a "row position k" and δ "row position j", both in the eigenbasis


def pair_scores(inverse: Float[Tensor, "j k"], found: Terms, left: Pairs, right: Pairs) -> Float[Tensor, "left right"]:
    """Return Σ_jk W_jk (δ_j δ'_j) (a_k a'_k) for gradients in the eigenbasis that have one pair of factors each."""
    (a, delta), (others_a, others_delta) = ((one[:, 0] for one in side) for side in (left, right))
    result = a.new_zeros(len(a), len(others_a))
    if not len(found.outputs) and len(inverse) > inverse.shape[1]:  # row by row of the shorter side
        inverse, a, delta, others_a, others_delta = inverse.T, delta, a, others_delta, others_a
    for start in range(0, len(others_a), BLOCK):
        columns = slice(start, start + BLOCK)
        for row in range(0, len(a), BLOCK):
            rows = slice(row, row + BLOCK)
            block, mine, theirs = result[rows, columns], others_a[columns].T, others_delta[columns].T
            if len(found.outputs):
                for u, v in zip(*found, strict=True):
                    block.addcmul_((a[rows] * v) @ mine, (delta[rows] * u) @ theirs)
            else:
                for j, weights in enumerate(inverse):
                    block.addcmul_((a[rows] * weights) @ mine, torch.outer(delta[rows, j], theirs[j]))
    return result


# ── pairs of gradients that are held by several ──────────────────────────────────────────────────


def dense_scores(inverse: Float[Tensor, "j k"], left: Pairs, right: Pairs) -> Float[Tensor, "left right"]:
    """Return the same for gradients with several pairs of factors, by building them."""
    size = max(1, NUMBERS // inverse.numel())
    result = left[0].new_zeros(len(left[0]), len(right[0]))
    for start in range(0, len(left[0]), size):
        rows = slice(start, start + size)
        solved = (gradients(left[0][rows], left[1][rows], bias=False) * inverse).flatten(1)
        for first in range(0, len(right[0]), size):
            columns = slice(first, first + size)
            others = gradients(right[0][columns], right[1][columns], bias=False).flatten(1)
            result[rows, columns] = solved @ others.T
    return result


def own_scores(inverse: Float[Tensor, "j k"], rows: Pairs) -> Float[Tensor, " row"]:
    """Return Σ_jk W_jk G_jk² of gradients in the eigenbasis that are held by factors."""
    a, delta = rows
    if a.shape[1] == 1:
        return ((delta[:, 0].square() @ inverse) * a[:, 0].square()).sum(1)
    size = max(1, NUMBERS // inverse.numel())
    blocks = zip(torch.split(a, size), torch.split(delta, size), strict=True)
    return torch.cat([(gradients(*one, bias=False).square() * inverse).sum((1, 2)) for one in blocks])
