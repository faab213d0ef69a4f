"""The linear system of a Newton step against a dense Hessian, by every road that leads to its solution."""

import numpy as np
import pytest
import torch

from dualview.solvers.crammer_singer import newton_system, simplex
from dualview.solvers.crammer_singer.newton_system import FreeRows, NewtonSystem

ARITHMETIC = [simplex.arithmetic(compiled=True), simplex.arithmetic(compiled=False)]


def system(num_rows, width, num_classes, seed=0, most=None, dtype=torch.float64):
    """Rows, the classes each is free over (two to `most`), weights over three powers of ten, and a gradient."""
    values = np.random.default_rng(seed)
    inside = np.zeros((num_rows, num_classes), bool)
    for row in inside:
        row[values.choice(num_classes, values.integers(2, (most or num_classes) + 1), replace=False)] = True
    rows, weights = values.normal(size=(num_rows, width)), 10.0 ** values.uniform(-2, 1, num_rows)
    gradient = values.normal(size=(num_classes, width))
    return torch.as_tensor(rows).to(dtype), torch.as_tensor(inside), torch.as_tensor(weights), torch.as_tensor(gradient)


def placed(rows):
    """The same rows, here and there in a matrix that holds others."""
    matrix = torch.full((3 * len(rows) + 1, rows.shape[1]), torch.nan, dtype=rows.dtype)
    index = 1 + 3 * torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    matrix[index] = rows
    return FreeRows(matrix, index)


def solved(newton, given):
    rows, *others = given
    return newton.solve(placed(rows), *others)


def dense(rows, inside, weights):
    """I + Σ_i weight_i (diag(inside_i) - inside_i inside_iᵀ/|inside_i|) ⊗ phi_i phi_iᵀ."""
    rows, inside = rows.double().numpy(), inside.double().numpy()
    whole = np.eye(inside.shape[1] * rows.shape[1])
    for x, there, weight in zip(rows, inside, weights.numpy(), strict=True):
        whole += weight * np.kron(np.diag(there) - np.outer(there, there) / there.sum(), np.outer(x, x))
    return whole


@pytest.mark.parametrize("arithmetic", ARITHMETIC, ids=["compiled", "torch"])
@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_hessian_times_a_step(arithmetic, num_classes):
    rows, inside, weights, step = system(15, 4, num_classes)
    found = newton_system._Hessian(placed(rows), inside, weights, arithmetic).times(step)
    np.testing.assert_allclose(
        found.ravel(), dense(rows, inside, weights) @ step.numpy().ravel(), rtol=1e-11, atol=1e-11
    )


def test_directions_are_an_orthonormal_basis():
    _, inside, _, _ = system(40, 1, 6, seed=1)
    directions, owner = newton_system._helmert(inside, torch.float64)
    assert (directions[~inside[owner]] == 0).all()
    np.testing.assert_allclose(directions.sum(1), 0, atol=1e-15)
    for i, there in enumerate(inside):
        own = directions[owner == i]
        np.testing.assert_allclose(own @ own.T, np.eye(int(there.sum()) - 1), atol=1e-15)


@pytest.mark.parametrize("kind", ["_WholeInverse", "_PairInverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_inverses(kind, dtype):
    """Whatever the rows' precision: the factors are of float64."""
    rows, inside, weights, residual = system(12, 5, 4, seed=2, dtype=dtype)
    inverse = getattr(newton_system, kind)(newton_system._Hessian(placed(rows), inside, weights, ARITHMETIC[0]))
    expected = np.linalg.solve(dense(rows, inside, weights), residual.numpy().ravel())
    np.testing.assert_allclose(inverse.times(residual).ravel(), expected, rtol=1e-10, atol=1e-11)


def test_block_inverse_inverts_the_diagonal_blocks():
    rows, inside, weights, residual = system(30, 5, 4, seed=3)
    inverse = newton_system._BlockInverse(newton_system._Hessian(placed(rows), inside, weights, ARITHMETIC[0]))
    whole = dense(rows, inside, weights).reshape(4, 5, 4, 5)
    expected = [np.linalg.solve(whole[k, :, k], residual[k].numpy()) for k in range(4)]
    np.testing.assert_allclose(inverse.times(residual), expected, rtol=1e-5, atol=1e-6)  # preconditions, no more


def of_precision(found, given):
    """Relative error of a step in the norm of H, in which conjugate gradients are optimal."""
    rows, inside, weights, gradient = given
    whole = dense(rows, inside, weights)
    exact = np.linalg.solve(whole, -gradient.numpy().ravel())
    error = found.numpy().ravel() - exact
    return np.sqrt(error @ whole @ error / (exact @ whole @ exact))


# rows, width, classes: few pairs, many pairs
SIZES = {"_PairInverse": (4, 30, 3), "_WholeInverse": (200, 4, 3)}


@pytest.mark.parametrize("arithmetic", ARITHMETIC, ids=["compiled", "torch"])
@pytest.mark.parametrize("kind", SIZES)
def test_small_systems_are_solved_exactly(kind, arithmetic):
    given = system(*SIZES[kind], seed=4)
    newton = NewtonSystem(arithmetic)
    assert of_precision(solved(newton, given), given) <= 1e-9
    assert type(newton._kept).__name__ == kind


@pytest.mark.parametrize("kind", SIZES)
def test_an_earlier_inverse_serves_while_it_is_near(kind):
    """A few rows more or fewer: some steps of conjugate gradients, and no new factors."""
    rows, inside, weights, gradient = system(*SIZES[kind], seed=5)
    newton = NewtonSystem(ARITHMETIC[0])
    solved(newton, (rows, inside, weights, gradient))
    kept, given = newton._kept, (rows[1:], inside[1:], 1.1 * weights[1:], gradient.flip(0))
    assert of_precision(solved(newton, given), given) <= 0.05  # 2 % in another norm, which differs little here
    assert newton._kept is kept


def test_an_inverse_that_no_longer_serves_is_replaced():
    newton = NewtonSystem(ARITHMETIC[0])
    solved(newton, system(200, 4, 3, seed=6))
    kept, given = newton._kept, system(150, 4, 3, seed=7)
    given = given[0] * torch.tensor([1, 100.0, 0.01, 3]), *given[1:]
    assert of_precision(solved(newton, given), given) <= 0.05
    newton._kept = kept
    given = *given[:2], 1e6 * given[2], given[3]
    solved(newton, given)
    assert newton._kept is not kept and of_precision(solved(newton, given), given) <= 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_systems_take_steps_with_diagonal_blocks(dtype, monkeypatch):
    """The residual falls to 2 % in the preconditioner's norm, whose condition bounds the error in H's."""
    monkeypatch.setattr(newton_system, "_OVERHEAD", 0.0)  # a step then costs next to nothing
    monkeypatch.setattr(newton_system, "_STREAMED", 0.0)
    newton = NewtonSystem(ARITHMETIC[0])
    given = system(300, 6, 5, seed=8, most=3, dtype=dtype)
    step = solved(newton, given)
    kept = newton._kept
    assert isinstance(kept, newton_system._BlockInverse)
    assert 1 < newton._expected < newton_system._MOST_STEPS
    rows, inside, weights, gradient = given
    residual = torch.as_tensor(-dense(rows, inside, weights) @ step.numpy().ravel()).view_as(step) - gradient

    def norm(vector):
        return float((vector * kept.times(vector)).sum().sqrt())

    assert norm(residual) <= 0.03 * norm(gradient)
    assert of_precision(step, given) <= 0.2


def test_without_free_rows_the_step_is_the_gradient():
    gradient = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0).double()
    assert torch.equal(solved(NewtonSystem(ARITHMETIC[0]), (*none, gradient)), -gradient)


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_equal_rows_of_large_weight_still_have_a_factor(size):
    """The identity drowns in rounding where |phi|²·weight is above 1e16; the step must stay a descent."""
    rows, inside, weights, gradient = system(40, 6, 3, seed=9)
    rows = size * rows[:3].repeat(14, 1)[:40]
    for arithmetic in ARITHMETIC:
        step = solved(NewtonSystem(arithmetic), (rows, inside, 1e6 * weights, gradient))
        assert float((step * gradient).sum()) < 0
