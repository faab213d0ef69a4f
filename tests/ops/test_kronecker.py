"""Factored curvature against the matrices it stands for, built and inverted; everything in float64."""

import pytest
import torch
from torch import Tensor

from dualview.ops import kronecker
from dualview.ops.kronecker import (
    Basis,
    Terms,
    dense_scores,
    eigenvectors,
    own_scores,
    pair_scores,
    second_moment,
    solve,
    squares,
    terms,
    token_squares,
    turn_factors,
)

NOTHING = torch.empty(0, 0, dtype=torch.float64)
IDENTITY = Basis(NOTHING, NOTHING)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(outs: int, ins: int) -> Basis:
    return Basis(*(torch.linalg.qr(draw(size, size, seed=size))[0] for size in (outs, ins)))


def with_ones(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max()))


def test_second_moments_count_the_bias_as_an_input_of_1():
    vectors = draw(4, 3, 5)
    flat = with_ones(vectors).reshape(-1, 6)
    close(second_moment(vectors, bias=True), flat.T @ flat)
    close(second_moment(vectors), (flat.T @ flat)[:5, :5])


def test_eigenvalues_fall_and_are_not_negative():
    half = draw(6, 2)
    values, vectors = eigenvectors(half @ half.T)
    assert (values.diff() <= 0).all() and (values >= 0).all() and (values[2:] < 1e-12).all()
    close(vectors * values @ vectors.T, half @ half.T)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", [1, 3, 60])
@pytest.mark.parametrize("turned", [False, True])
def test_squares_are_of_whole_gradients_in_the_eigenbasis(positions: int, bias: bool, turned: bool):
    """3 positions are fewer than it takes to turn the product instead of its factors, 60 are more."""
    inputs, deltas = draw(7, positions, 5), [draw(7, positions, 4, seed=seed) for seed in (1, 2)]
    base = basis(4, 5 + bias) if turned else IDENTITY
    left, right = base if turned else (torch.eye(4).double(), torch.eye(5 + bias).double())
    a = with_ones(inputs) if bias else inputs
    expected = sum((left.T @ (delta.mT @ a) @ right).square().sum(0) for delta in deltas)
    close(squares(base, inputs, deltas, bias=bias), expected)


def test_squares_of_tokens_are_of_one_hot_inputs():
    tokens = torch.tensor([[0, 2, 2, 1], [5, 5, 5, 0]])
    deltas, left = [draw(2, 4, 3, seed=seed) for seed in (1, 2)], basis(3, 1).outputs
    one_hot = torch.nn.functional.one_hot(tokens, 6).double()
    expected = squares(Basis(left, torch.eye(6).double()), one_hot, deltas, bias=False)
    close(token_squares(left, tokens, deltas, 6), expected)


@pytest.mark.parametrize("base", [basis(3, 4), IDENTITY])
def test_solving_is_multiplying_by_the_inverse_of_the_whole_matrix(base: Basis):
    eigenvalues, gradients = draw(3, 4).square(), draw(5, 3, 4, seed=1)
    left, right = base if base is not IDENTITY else (torch.eye(3).double(), torch.eye(4).double())
    rotation = torch.kron(left.contiguous(), right.contiguous())
    whole = rotation @ torch.diag(eigenvalues.flatten() + 0.1) @ rotation.T
    expected = torch.linalg.solve(whole, gradients.flatten(1).T).T.reshape(5, 3, 4)
    close(solve(base, 1 / (eigenvalues + 0.1), gradients), expected)


@pytest.mark.parametrize(("outs", "ins"), [(4, 7), (7, 4)])
@pytest.mark.parametrize("rank", [1, 3])
def test_products_of_factors_are_those_of_gradients(monkeypatch, outs: int, ins: int, rank: int):
    monkeypatch.setattr(kronecker, "BLOCK", 2)
    monkeypatch.setattr(kronecker, "NUMBERS", 3 * outs * ins)
    inverse = draw(outs, ins).square() + 0.1
    left, right = ((draw(rows, rank, ins, seed=rows), draw(rows, rank, outs, seed=2 * rows)) for rows in (5, 8))
    dense = [delta.mT @ a for a, delta in (left, right)]
    expected = torch.einsum("ljk,jk,rjk->lr", dense[0], inverse, dense[1])
    close(dense_scores(inverse, left, right), expected)
    close(own_scores(inverse, left), torch.einsum("ljk,jk,ljk->l", dense[0], inverse, dense[0]))
    if rank == 1:
        close(pair_scores(inverse, Terms(inverse[:0], inverse[:0]), left, right), expected)
        u, v = draw(2, outs), draw(2, ins)
        expected = torch.einsum("ljk,jk,rjk->lr", dense[0], u.T @ v, dense[1])
        close(pair_scores(inverse, Terms(u, v), left, right), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_factors_turn_as_their_product_does(bias: bool):
    inputs, deltas, base = draw(6, 2, 5), draw(6, 2, 4, seed=1), basis(4, 5 + bias)
    a, delta = turn_factors(base, inputs, deltas, bias=bias)
    whole = deltas.mT @ (with_ones(inputs) if bias else inputs)
    close(delta.mT @ a, base.outputs.T @ whole @ base.inputs)


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 1e-3])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_terms_keep_the_error_of_scores(tolerance: float, shape: tuple[int, int]):
    """Of gradients with independent coordinates of the variances that the curvature has: Λ = s aᵀ.

    Over 400 × 400 pairs the root mean square is known to a tenth.
    """
    sides = [10.0 ** -torch.linspace(0, 4, size, dtype=torch.float64) for size in shape]
    eigenvalues = torch.outer(*sides)
    inverse = 1 / (eigenvalues + 0.1 * eigenvalues.mean())
    found = terms(inverse, eigenvalues, tolerance)
    assert 0 < len(found.outputs) == len(found.inputs) < 15
    left, right = (
        tuple(
            draw(400, 1, size, seed=seed + size) * side.sqrt()
            for size, side in zip(shape[::-1], sides[::-1], strict=True)
        )
        for seed in (0, 1)
    )
    exact = pair_scores(inverse, Terms(found.outputs[:0], found.inputs[:0]), left, right)
    error = (pair_scores(inverse, found, left, right) - exact).norm() / exact.norm()
    assert error <= 1.1 * tolerance
    fewer = Terms(found.outputs[:-1], found.inputs[:-1])
    assert (pair_scores(inverse, fewer, left, right) - exact).norm() / exact.norm() > 0.9 * tolerance


def test_no_terms_where_they_save_nothing():
    eigenvalues = draw(20, 30).square()
    for tolerance in (0.0, 1e-6):
        found = terms(1 / (eigenvalues + 0.01), eigenvalues, tolerance)
        assert found.outputs.shape == (0, 20) and found.inputs.shape == (0, 30)
