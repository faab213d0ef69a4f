"""Curvature of the softmax against autograd's Hessian and dense matrices, in float64."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from dualview.ops.curvature import Curvature, Form, curvature, damped, own_products, pair_products, row_space, solve

ROWS, UNITS, CLASSES, TESTS, DAMPING = 23, 5, 4, 6, 0.01
FORMS = pytest.mark.parametrize("form", get_args(Form))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Float64 rounding, grown by a condition below 1e3."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def problem(num_units: int = UNITS) -> tuple[Tensor, Tensor]:
    return draw(ROWS, num_units), draw(ROWS, CLASSES).softmax(1)


def in_blocks(features: Tensor, probabilities: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(features.split(size), probabilities.split(size), strict=True))


def hessian(features: Tensor, probabilities: Tensor) -> Tensor:
    """Write out (1/n) Σ_i (diag(p_i) - p_i p_iᵀ) ⊗ f_i f_iᵀ."""
    terms = [
        torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(f, f))
        for f, p in zip(features, probabilities, strict=True)
    ]
    return torch.stack(terms).mean(0)


def dense(form: Form, features: Tensor, probabilities: Tensor) -> Tensor:
    """Write out a form as a matrix over "cls·unit"."""
    whole, num_units = hessian(features, probabilities), features.shape[1]
    blocks = [whole[c * num_units :, c * num_units :][:num_units, :num_units] for c in range(CLASSES)]
    blocks = [CLASSES / (CLASSES - 1) * block for block in blocks]
    match form:
        case "full":
            return whole
        case "blocks":
            return torch.block_diag(*blocks)
        case "shared":
            return torch.block_diag(*[torch.stack(blocks).mean(0)] * CLASSES)
        case "kronecker":
            p = probabilities
            between = torch.stack([torch.diag(row) - torch.outer(row, row) for row in p]).mean(0)
            return torch.kron(between, features.T @ features / ROWS)


def dense_damped(form: Form, features: Tensor, probabilities: Tensor) -> Tensor:
    whole = dense(form, features, probabilities)
    if form != "kronecker":
        return whole + DAMPING * torch.eye(len(whole), dtype=torch.float64)
    between = torch.stack([torch.diag(row) - torch.outer(row, row) for row in probabilities]).mean(0)
    units = features.T @ features / ROWS
    pi = math.sqrt((units.trace() / UNITS) / (between.trace() / CLASSES))
    between = between + math.sqrt(DAMPING) / pi * torch.eye(CLASSES, dtype=torch.float64)
    return torch.kron(between, units + math.sqrt(DAMPING) * pi * torch.eye(UNITS, dtype=torch.float64))


def test_blocks_of_two_classes_are_the_full_form_on_what_classes_differ_in():
    features, tests = draw(ROWS, UNITS), draw(TESTS, UNITS)
    probabilities = draw(ROWS, 2).softmax(1)
    between = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    directions, alpha = between.expand(TESTS, 2), draw(ROWS)[:, None] * between
    found = {}
    for form in ("full", "blocks", "shared"):
        factors = damped(curvature(form, [(features, probabilities)]), DAMPING)
        found[form] = pair_products(solve(factors, tests, directions), features, alpha)
    assert_close(found["blocks"], found["full"])
    assert_close(found["shared"], found["full"])


def test_the_full_form_is_the_hessian_of_the_loss():
    features, targets, weights = draw(ROWS, UNITS), torch.arange(ROWS) % CLASSES, draw(CLASSES, UNITS)

    def loss(flat: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(features @ flat.view(CLASSES, UNITS).T, targets)

    expected = torch.autograd.functional.hessian(loss, weights.flatten())
    (found,) = curvature("full", [(features, (features @ weights.T).softmax(1))]).units
    assert_close(found, expected)


@FORMS
@pytest.mark.parametrize("block_size", [1, 7, ROWS])
def test_sums_are_the_dense_matrices_whatever_the_blocks(form: Form, block_size: int):
    found = curvature(form, in_blocks(*problem(), block_size))
    groups = torch.block_diag(*found.units) if form == "blocks" else found.units[0]
    whole = groups if form in ("full", "blocks") else torch.kron(found.classes, groups)
    expected = dense(form, *problem())
    assert_close(whole, expected)
    assert found.mean_diagonal == pytest.approx(float(expected.diagonal().mean()), rel=1e-12)


@FORMS
def test_products_are_those_of_the_dense_inverse(form: Form):
    features, probabilities = problem()
    factors = damped(curvature(form, in_blocks(features, probabilities, 7)), DAMPING)
    test, directions, residuals = draw(TESTS, UNITS), draw(TESTS, CLASSES), draw(ROWS, CLASSES)
    theirs = (residuals[:, :, None] * features[:, None]).flatten(1)
    mine = (directions[:, :, None] * test[:, None]).flatten(1)
    inverse = dense_damped(form, features, probabilities).inverse()
    found = pair_products(solve(factors, test, directions), features, residuals)
    assert_close(found, mine @ inverse @ theirs.T)
    others = draw(CLASSES, ROWS).T
    left = (others[:, :, None] * features[:, None]).flatten(1)
    own = own_products(factors, features, others, residuals)
    assert_close(own, (left @ inverse * theirs).sum(1))


@FORMS
def test_float32_rows_give_float64_sums_and_float32_products(form: Form):
    features, probabilities = problem()
    factors = damped(curvature(form, [(features.float(), probabilities)]), DAMPING)
    assert factors.units.dtype == torch.float64
    exact = damped(curvature(form, [(features, probabilities)]), DAMPING)
    test, directions, residuals = draw(TESTS, UNITS), draw(TESTS, CLASSES), draw(ROWS, CLASSES)
    found = pair_products(solve(factors, test.float(), directions.float()), features.float(), residuals.float())
    expected = pair_products(solve(exact, test, directions), features, residuals)
    assert found.dtype == torch.float32
    # rounding of 6e-8 grows by the condition of the damped matrix, below 1e3
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_probabilities_next_to_one_keep_their_curvature():
    """A residual of 1e-9 is lost in float32's p - p², not in p(1 - p)."""
    features, probabilities = torch.ones(1, 1), torch.tensor([[1e-9, 1 - 1e-9]], dtype=torch.float64)
    for form in ("full", "blocks", "shared"):
        diagonal = curvature(form, [(features, probabilities)]).units.diagonal(dim1=1, dim2=2)
        expected = torch.full_like(diagonal, 1e-9 if form == "full" else 2e-9)
        torch.testing.assert_close(diagonal, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("form", ["full", "blocks", "shared"])
def test_the_row_space_gives_the_products_of_all_units(form: Form):
    """Fewer rows than units, two of them equal: (F'F + lI)⁻¹ on the span of the rows, for test rows outside it."""
    features, probabilities = problem(60)
    features[1] = features[0]
    test, directions, residuals = draw(TESTS, 60), draw(TESTS, CLASSES), draw(ROWS, CLASSES)
    basis = row_space(features)
    assert basis.shape == (60, ROWS)
    found, expected = (
        pair_products(
            solve(damped(curvature(form, [(rows, probabilities)]), DAMPING), others, directions), rows, residuals
        )
        for rows, others in ((features @ basis, test @ basis), (features, test))
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def test_no_damping_of_a_singular_matrix_is_refused():
    with pytest.raises(ValueError, match="give a larger one"):
        damped(Curvature(-torch.eye(2, dtype=torch.float64)[None], torch.eye(2, dtype=torch.float64)), 0.5)
    with pytest.raises(ValueError, match="features that are finite"):
        damped(curvature("blocks", [(torch.full((2, 2), math.inf), torch.full((2, 2), 0.5).double())]), 1.0)
