"""Similarities of rows against their definitions, where they are easy and where rounding is."""

import torch

from dualview.ops.similarity import directions, inverse_roots, self_similarities, similarities


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_each_pair_one_by_one():
    left, right = draw(5, 7), draw(4, 7)
    expected = {
        "dot": lambda x, y: sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)),
        "cosine": lambda x, y: float(x @ y / (x @ x).sqrt() / (y @ y).sqrt()),
        "euclidean": lambda x, y: (
            1 / (1 + sum((a - b) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True)) ** 0.5)
        ),
    }
    for metric, pair in expected.items():
        whole = torch.tensor([[pair(x, y) for y in right] for x in left], dtype=torch.float64)
        torch.testing.assert_close(similarities(metric, left, right), whole, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            self_similarities(metric, left), similarities(metric, left, left).diagonal(), rtol=1e-12, atol=1e-13
        )


def test_near_duplicates_keep_their_distance():
    """From ‖x‖² + ‖y‖² − 2⟨x, y⟩ of these float32 rows of norm 30,000 nothing below 10 could be told."""
    rows = (1000 + draw(40, 900)).float()
    moved = rows.clone()
    moved[:, 3] += 0.5
    found = similarities("euclidean", rows, moved)
    assert (similarities("euclidean", rows, rows).diagonal() == 1).all()
    torch.testing.assert_close(found.diagonal(), torch.full((40,), 1 / 1.5), rtol=1e-3, atol=0)
    assert (found.argmax(1) == torch.arange(40)).all()


def test_directions_of_very_small_and_very_large_rows():
    """Their squares are 0 and infinite in float32."""
    rows = draw(6, 5).float()
    for factor in (1e-30, 1e30):
        torch.testing.assert_close(directions(rows * factor), directions(rows), rtol=1e-6, atol=0)
    torch.testing.assert_close(directions(rows).norm(dim=1), torch.ones(6), rtol=1e-6, atol=0)


def test_a_row_of_zeros_is_like_nothing():
    rows = torch.cat([draw(2, 3), torch.zeros(1, 3, dtype=torch.float64)])
    found = similarities("cosine", rows, rows)
    assert (found[2] == 0).all() and (found[:, 2] == 0).all() and self_similarities("cosine", rows)[2] == 0
    torch.testing.assert_close(found.diagonal()[:2], torch.ones(2, dtype=torch.float64), rtol=1e-14, atol=0)


def test_inverse_roots():
    factors = draw(8, 4, 6)
    matrices = factors @ factors.mT
    roots = inverse_roots(matrices, 1e-12)
    torch.testing.assert_close(roots, roots.mT, rtol=0, atol=1e-12)
    eye = torch.eye(4, dtype=torch.float64).expand(8, 4, 4)
    torch.testing.assert_close(roots @ matrices @ roots, eye, rtol=0, atol=1e-10)


def test_inverse_roots_of_singular_matrices_project():
    factors = draw(8, 4, 2)
    matrices = factors @ factors.mT
    projections = factors @ torch.linalg.pinv(factors)
    roots = inverse_roots(matrices, 1e-9)
    torch.testing.assert_close(roots @ matrices @ roots, projections, rtol=0, atol=1e-10)
    assert (inverse_roots(torch.zeros(1, 3, 3), 1e-9) == 0).all()
    kept = inverse_roots(torch.diag(torch.tensor([4.0, 0.03, 0.05])), 0.01).diagonal()
    torch.testing.assert_close(kept, torch.tensor([0.5, 0.0, 0.05**-0.5]), rtol=1e-6, atol=0)
