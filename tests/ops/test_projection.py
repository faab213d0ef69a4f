"""Random projections: unbiased to their known error, the same P in any form of the rows and any blocks."""

import pytest
import torch
from torch import Tensor

from dualview.ops import projection
from dualview.ops.layout import Layout, dense_width_of, factors, plain, width_of
from dualview.ops.projection import noise, project, projected_layout

KINDS = ("rademacher", "gaussian", "sparse", "khatri-rao", "two-sided")
LAYOUT = (factors("conv", 3, 4, 5, bias=True), plain("norm", 7), factors("fc", 1, 6, 3, bias=False))


def rows_of(layout: Layout, number: int, *, dtype=torch.float64) -> Tensor:
    return torch.randn(number, width_of(layout), generator=torch.Generator().manual_seed(0), dtype=dtype)


def dense_parts(layout: Layout, rows: Tensor, *, bias_last: bool = True) -> list[Tensor]:
    """Return each part's numbers, summed over k one pair at a time; or biases behind the weights of their output."""
    found = []
    for part, values in zip(layout, rows.split([part.width for part in layout], 1), strict=True):
        if not part.rank:
            found.append(values)
            continue
        inputs, outputs = values[:, : part.rank * part.inputs], values[:, part.rank * part.inputs :]
        pairs = list(zip(inputs.split(part.inputs, 1), outputs.split(part.outputs, 1), strict=True))
        weights, bias = sum(d[:, :, None] * a[:, None, :] for a, d in pairs), sum(d for _, d in pairs)
        if not part.bias:
            found.append(weights.flatten(1))
        elif bias_last:
            found.append(torch.cat([weights.flatten(1), bias], 1))
        else:
            found.append(torch.cat([weights, bias[:, :, None]], 2).flatten(1))
    return found


def dense_of(layout: Layout, rows: Tensor) -> Tensor:
    return torch.cat(dense_parts(layout, rows), 1)


def matrix(size: int, *, width: int, kind: str, seed: int = 0) -> Tensor:
    """Return P for plain numbers, "column projected"."""
    return project((plain("all", size),), torch.eye(size, dtype=torch.float64), width=width, kind=kind, seed=seed)


def kernels(layout: Layout, kind: str, *, width: int, num_seeds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the dense rows, their products, and the products after each of some projections."""
    rows = rows_of(layout, 6)
    dense = dense_of(layout, rows)
    found = [project(layout, rows, width=width, kind=kind, seed=seed) for seed in range(num_seeds)]
    return dense, dense @ dense.T, torch.stack([projected @ projected.T for projected in found])


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_unbiased(kind: str):
    """The mean over 200 seeds is within 4.5 of its standard errors: one of 21 products fails by chance in 1e4 runs."""
    _, exact, found = kernels(LAYOUT, kind, width=15, num_seeds=200)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() <= 4.5 * error).all()
    assert (error <= 0.3 * exact.diag().max()).all()


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sparse"])
@pytest.mark.parametrize("width", [12, 48])
def test_the_error_is_what_noise_says(kind: str, width: int):
    """Of 400 seeds the variance, summed over products, is known to some 10% (Gaussian products: √(2/400) each)."""
    dense, exact, found = kernels((plain("all", 50),), kind, width=width, num_seeds=400)
    norms = exact.diag().sqrt()
    variance = noise(exact, norms, norms, width=width, kind=kind).square()
    if kind != "gaussian":  # signs cannot err in x_j y_j, and neither can entries that all have the same square
        variance -= 2 * dense.square() @ dense.square().T / width
    if kind == "sparse":  # quarters of unequal size would differ
        assert width % projection.NONZEROS == 0
    assert float((found - exact).square().mean(0).sum() / variance.sum()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("kind", ["khatri-rao", "two-sided"])
def test_kinds_that_project_factors_stay_below_the_noise_stated_for_them(kind: str):
    _, exact, found = kernels(LAYOUT, kind, width=48, num_seeds=100)
    norms = exact.diag().sqrt()
    stated = noise(exact, norms, norms, width=48, kind=kind).square()
    assert float((found - exact).square().mean(0).sum()) < float(stated.sum())


# ── one P in all forms ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("columns", [2048, 5, 1])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sparse"])
def test_factors_are_projected_as_their_dense_gradient(monkeypatch, kind: str, columns: int):
    """Pieces of P that hold several outputs, less than one, and one number: whatever they are, P is the same."""
    rows = rows_of(LAYOUT, 8)
    written_out = tuple(plain(part.name, part.dense_width) for part in LAYOUT)
    expected = project(written_out, dense_of(LAYOUT, rows), width=11, kind=kind, seed=3)
    monkeypatch.setattr(projection, "COLUMNS", columns)
    assert torch.allclose(project(LAYOUT, rows, width=11, kind=kind, seed=3), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_do_not_matter(monkeypatch, kind: str):
    rows = rows_of(LAYOUT, 23)
    whole = project(LAYOUT, rows, width=13, kind=kind, seed=1)
    pieces = [project(LAYOUT, piece, width=13, kind=kind, seed=1) for piece in rows.split(4)]
    monkeypatch.setattr(projection, "ROWS", 3)
    for other in (torch.cat(pieces), project(LAYOUT, rows, width=13, kind=kind, seed=1)):
        assert torch.allclose(other, whole, rtol=0, atol=1e-12)
    single = project(LAYOUT, rows.float(), width=13, kind=kind, seed=1)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_numbers_than_the_width_stay_as_they_are(kind: str):
    rows = rows_of(LAYOUT, 5)
    size = dense_width_of(LAYOUT)
    assert size == 25 + 7 + 18
    kept = project(LAYOUT, rows, width=size, kind=kind, seed=0)
    assert torch.equal(kept, torch.cat(dense_parts(LAYOUT, rows, bias_last=kind != "two-sided"), 1))
    assert torch.allclose(kept @ kept.T, dense_of(LAYOUT, rows) @ dense_of(LAYOUT, rows).T, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [9, 30, 49, 50, 70])
def test_the_layout_afterwards(kind: str, width: int):
    after = projected_layout(LAYOUT, width=width, kind=kind)
    assert all(part.rank == 0 for part in after)
    assert width_of(after) == project(LAYOUT, rows_of(LAYOUT, 2), width=width, kind=kind, seed=0).shape[1]
    assert width_of(after) <= min(width, 50)


# ── P itself ─────────────────────────────────────────────────────────────────────────────────────


def test_stored_rows_will_meet_the_same_signs():
    """Rows are stored and compared later, so P may never change; written down from the first version."""
    signs, normal, few = (matrix(9, width=8, kind=kind, seed=5)[8] for kind in ("rademacher", "gaussian", "sparse"))
    assert signs.sign().tolist() == [1, -1, -1, -1, 1, 1, 1, 1]
    assert normal[:3].tolist() == pytest.approx([-0.3582983, 0.1014602, 0.0310495], rel=1e-5)
    assert few.tolist() == [0, 0.5, -0.5, 0, 0, 0.5, -0.5, 0]


def test_signs_are_balanced_and_independent():
    """200,000 signs: mean, and correlation between neighbours, within 4.5 / √200,000 of 0."""
    size, width = 2000, 100
    signs = matrix(size, width=width, kind="rademacher") * width**0.5
    assert torch.allclose(signs.abs(), torch.ones(1, dtype=torch.float64), atol=1e-6)
    bound = 4.5 / (size * width) ** 0.5
    other_seed = matrix(size, width=width, kind="rademacher", seed=1) * width**0.5
    second_part = project(
        (plain("a", size), plain("b", size)), torch.eye(2 * size).double(), width=width, kind="rademacher", seed=0
    )[size:]
    assert signs.mean().abs() < bound
    for other in (signs.roll(1, 0), signs.roll(1, 1), other_seed, second_part * width**0.5):
        assert (signs * other).mean().abs() < bound


def test_the_seed_is_all_of_a_large_number():
    seeds = (1, 2**32, 2**32 + 1, 2**64 + 1)
    made = [matrix(20, width=10, kind="rademacher", seed=seed) for seed in seeds]
    assert all(not torch.equal(made[i], made[j]) for i in range(4) for j in range(i))


def test_normal_numbers_are_normal():
    """Kolmogorov's distance of 200,000 numbers is below 1.95 / √200,000 in 999 of 1,000 cases."""
    numbers = (matrix(2000, width=101, kind="gaussian") * 101**0.5).flatten()
    assert len(numbers) == 202_000
    expected = torch.special.ndtr(numbers.sort().values)
    steps = torch.arange(len(numbers) + 1) / len(numbers)
    distance = max((steps[1:] - expected).abs().max(), (steps[:-1] - expected).abs().max())
    assert distance < 1.95 / len(numbers) ** 0.5
    pairs = numbers.reshape(2000, 101)
    assert (pairs[:, :50] * pairs[:, 51:]).mean().abs() < 4.5 / 100_000**0.5  # cosine and sine of one angle


@pytest.mark.parametrize(("width", "nonzeros"), [(32, 4), (34, 4), (3, 3)])
def test_a_sparse_column_has_one_entry_in_each_quarter(width: int, nonzeros: int):
    columns = matrix(4000, width=width, kind="sparse")
    edges = [width * j // nonzeros for j in range(nonzeros + 1)]
    for start, stop in zip(edges, edges[1:], strict=False):
        quarter = columns[:, start:stop]
        assert ((quarter != 0).sum(1) == 1).all()
        assert torch.allclose(quarter.abs().sum(1), torch.tensor(nonzeros**-0.5).double())
        counts = (quarter != 0).sum(0)
        expected = 4000 / (stop - start)
        assert (counts - expected).abs().max() <= 4.5 * expected**0.5
        assert quarter.sign().sum().abs() < 4.5 * 4000**0.5


# ── factors ──────────────────────────────────────────────────────────────────────────────────────


def from_factors(inputs: int, outputs: int, *, bias: bool, width: int, kind: str) -> Tensor:
    """Return P from the rank-one rows e_o ⊗ e_i: "output input projected", the bias's constant as the last input."""
    e_o, e_i = torch.eye(outputs).double(), torch.eye(inputs + bias).double()[:, :inputs]
    rows = torch.cat([e_i.repeat(outputs, 1), e_o.repeat_interleave(inputs + bias, 0)], 1)
    layout = (factors("fc", 1, inputs, outputs, bias=bias),)
    columns = project(layout, rows, width=width, kind=kind, seed=2).reshape(outputs, inputs + bias, -1)
    if bias:
        columns[:, :-1] -= columns[:, -1:]  # behind each e_i stands a constant 1
    return columns


@pytest.mark.parametrize("kind", ["khatri-rao", "two-sided"])
@pytest.mark.parametrize("bias", [True, False])
def test_projected_factors_are_p_times_the_dense_gradient(kind: str, bias: bool):
    """P, written out from rows of rank one, acts on the dense sums of rank three; and it is u_o ∘ w_i, or U ⊗ W."""
    columns = from_factors(9, 8, bias=bias, width=12, kind=kind)
    layout = (factors("fc", 3, 9, 8, bias=bias),)
    rows = rows_of(layout, 4)
    (dense,) = dense_parts(layout, rows, bias_last=False)
    expected = dense @ columns.flatten(0, 1)
    assert torch.allclose(project(layout, rows, width=12, kind=kind, seed=2), expected, rtol=0, atol=1e-5)

    signs = columns * 12**0.5
    assert torch.allclose(signs.abs(), torch.ones(1).double(), atol=1e-5)
    if kind == "two-sided":
        # k_out = √(4 · 12) = 6 of 8 outputs, k_in = 12 / 6 = 2: P[o, i, (m, n)] = U[o, m] W[i, n]
        signs = signs.unflatten(2, (6, 2)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    else:
        signs = signs.permute(2, 0, 1)
    rank_one = signs[..., :, :1] * signs[..., :1, :] * signs[..., :1, :1]
    assert torch.allclose(signs, rank_one, atol=1e-5)


def test_a_two_sided_width_is_shared_by_the_roots_of_the_sizes():
    """Parts of 10, 400 and 10,000 numbers, roots 3.16, 20 and 100."""
    layout = (factors("fc", 1, 100, 100, bias=False), plain("norm", 10), factors("head", 1, 39, 10, bias=True))
    sizes = [part.width for part in projected_layout(layout, width=410, kind="two-sided")]
    assert sizes[1] == 10  # 10.5 would be its share
    assert sizes[2] == 10 * 6  # 400 · 20 / 120 = 66: all 10 outputs, 6 of 40 inputs
    assert sizes[0] == 37 * 9  # 340 are left: 36 = √(4 · 340) outputs, 9 inputs, and then 37 outputs


def test_a_two_sided_width_without_a_number_for_each_part_is_refused():
    with pytest.raises(ValueError, match="width=2 must be at least 3"):
        project(LAYOUT, rows_of(LAYOUT, 2), width=2, kind="two-sided", seed=0)
