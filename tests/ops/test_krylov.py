"""Krylov solvers against dense linear algebra."""

import pytest
import torch
from torch import Tensor

from dualview.ops.krylov import arnoldi, conjugate_gradients, deflation, dominant, neumann

SIZE = 30


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix(values: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    basis, _ = torch.linalg.qr(draw(len(values), len(values)))
    return basis * values @ basis.T


def krylov(whole: Tensor, steps: int, dtype: torch.dtype = torch.float64):
    whole = whole.to(dtype)
    return arnoldi(
        lambda vectors: vectors @ whole,
        draw(len(whole), seed=2).to(dtype),
        steps=steps,
        generator=torch.Generator().manual_seed(0),
    )


def test_conjugate_gradients_solve_all_right_hand_sides_as_one_by_one():
    whole, right = matrix(torch.logspace(0, 2, SIZE).double()), draw(5, SIZE, seed=1)
    right[1], right[2] = 0, right[2] * 1e-200  # whose square is zero
    calls: list[int] = []

    def product(vectors: Tensor) -> Tensor:
        calls.append(len(vectors))
        return vectors @ whole

    found = conjugate_gradients(product, right, tolerance=1e-12, steps=200)
    exact = torch.linalg.solve(whole, right.T).T
    size = exact.abs().amax(1, keepdim=True).clamp(min=1e-300)
    assert ((found.vectors - exact) / size).norm(dim=1).max() < 1e-10  # residual times the condition number, 100
    assert (found.residuals <= 1e-12).all() and 0 < found.lowest < 100
    assert calls[0] == 4 and calls == sorted(calls, reverse=True)  # solved ones take no more products
    for one, together in zip(right, found.vectors, strict=True):
        alone = conjugate_gradients(lambda vectors: vectors @ whole, one[None], tolerance=1e-12, steps=200)
        torch.testing.assert_close(alone.vectors[0], together, rtol=1e-9, atol=0)


def test_conjugate_gradients_tell_of_negative_curvature_and_of_too_few_steps():
    values = torch.linspace(1, 5, SIZE).double()
    short = conjugate_gradients(lambda x: x @ matrix(values), draw(2, SIZE), tolerance=1e-12, steps=3)
    truth = (short.vectors @ matrix(values) - draw(2, SIZE)).norm(dim=1) / draw(2, SIZE).norm(dim=1)
    torch.testing.assert_close(short.residuals, truth, rtol=1e-10, atol=0)
    assert (truth > 1e-6).all()
    values[0] = -1
    assert conjugate_gradients(lambda x: x @ matrix(values), draw(2, SIZE), tolerance=1e-12, steps=99).lowest <= 0


def test_deflation_takes_known_eigenvalues_away():
    """With all but ten eigenvalues known, eleven different ones are left: as many steps."""
    values = torch.cat([torch.logspace(-1, 4, SIZE - 10), torch.linspace(0.01, 0.02, 10)]).double()
    whole = matrix(values)
    known, vectors = torch.linalg.eigh(whole)
    steps = {}
    for name, conditioner in (("plain", torch.clone), ("deflated", deflation(known[10:], vectors[:, 10:].T))):
        products: list[Tensor] = []

        def product(x: Tensor, products: list[Tensor] = products) -> Tensor:
            products.append(x)
            return x @ whole

        found = conjugate_gradients(product, draw(1, SIZE), tolerance=1e-10, steps=500, precondition=conditioner)
        torch.testing.assert_close(found.vectors.T, torch.linalg.solve(whole, draw(1, SIZE).T), rtol=1e-6, atol=1e-6)
        steps[name] = len(products)
    assert steps["deflated"] <= 13 < 40 < steps["plain"]


def test_the_neumann_series_is_its_closed_form():
    """Σ_{t ≤ T} (I − H/s)^t /s = H⁻¹ (I − (I − H/s)^(T+1))."""
    values = torch.linspace(0.5, 4, SIZE).double()
    whole, right = matrix(values), draw(3, SIZE)
    found = neumann(lambda x: x @ whole, right, scale=4.0, steps=20)
    expected = right @ matrix((1 - (1 - values / 4) ** 21) / values)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_a_full_krylov_basis_is_the_whole_matrix():
    values = torch.cat([torch.logspace(-4, 0, SIZE - 1), torch.tensor([-0.5])]).double()  # condition number 10⁴
    found = krylov(matrix(values), SIZE)
    eye = torch.eye(SIZE).double()
    torch.testing.assert_close(found.basis @ found.basis.T, eye, rtol=0, atol=1e-13)
    eigenvalues, vectors = dominant(found, SIZE)
    assert (eigenvalues.abs().diff() <= 0).all()
    torch.testing.assert_close(eigenvalues.sort().values, values.sort().values, rtol=0, atol=1e-14)
    solved = draw(4, SIZE) @ vectors.T / eigenvalues @ vectors
    exact = torch.linalg.solve(matrix(values), draw(4, SIZE).T).T
    assert (solved - exact).norm() < 1e-10 * exact.norm()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_an_invariant_subspace_is_continued(dtype: torch.dtype, rounding: float):
    """Each eigenvalue three times: a single start vector meets one direction of each."""
    values = torch.tensor([5.0, 3.0, 2.0, 0.0]).double().repeat_interleave(3)
    whole = matrix(values)
    found = krylov(whole, 12, dtype)
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(12, dtype=dtype), rtol=0, atol=rounding)
    eigenvalues, vectors = dominant(found, 9)
    torch.testing.assert_close(eigenvalues, values[:9], rtol=0, atol=10 * rounding)
    torch.testing.assert_close((vectors.T.double() * eigenvalues) @ vectors.double(), whole, rtol=0, atol=20 * rounding)


def test_few_steps_find_what_is_largest_in_size():
    values = torch.cat([torch.tensor([100.0, -60.0, 30.0]), torch.linspace(-1, 1, 200)]).double()
    eigenvalues, _ = dominant(krylov(matrix(values), 12), 3)
    torch.testing.assert_close(eigenvalues, values[:3], rtol=1e-8, atol=0)  # ratios of 30 to the 1, squared each step
