"""Order among scores, against sorting and against scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dualview.ops.ranking import correlation, kendall_tau, ranks, spearman, top_k


def slow_top_k(row: list[float], k: int) -> tuple[list[float], list[int]]:
    """Sort by falling score, then by position."""
    order = sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]
    return [row[j] for j in order], order


@st.composite
def tied_scores(draw, max_rows: int = 4, max_entries: int = 12) -> list[list[float]]:
    """Rows with many equal scores, both zeros among them."""
    entries = draw(st.integers(1, max_entries))
    score = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 1.5])
    return draw(st.lists(st.lists(score, min_size=entries, max_size=entries), min_size=1, max_size=max_rows))


@given(tied_scores(), st.data())
def test_top_k_equals_sorting_with_ties_by_position(scores, data):
    k = data.draw(st.integers(0, len(scores[0])))
    values, positions = top_k(torch.tensor(scores), k)
    for row, found_values, found_positions in zip(scores, values.tolist(), positions.tolist(), strict=True):
        assert (found_values, found_positions) == slow_top_k(row, k)


@given(tied_scores(), st.data())
def test_top_k_does_not_depend_on_how_entries_are_cut_into_blocks(scores, data):
    """The best of the whole are the best of each block's best, blocks in their order."""
    scores = torch.tensor(scores)
    entries = scores.shape[1]
    k, cut = data.draw(st.integers(1, entries)), data.draw(st.integers(0, entries))
    kept_values, kept_positions = [], []
    for start, stop in ((0, cut), (cut, entries)):
        values, positions = top_k(scores[:, start:stop], min(k, stop - start))
        kept_values.append(values)
        kept_positions.append(positions + start)
    values, chosen = top_k(torch.cat(kept_values, 1), k)
    expected_values, expected_positions = top_k(scores, k)
    assert torch.equal(values, expected_values)
    assert torch.equal(torch.cat(kept_positions, 1).gather(1, chosen), expected_positions)


@given(st.integers(0, 2**31), st.integers(0, 300))
def test_top_k_equals_sorting_on_long_rows(seed, k):
    """Long enough for every one of torch's selection algorithms; rounding makes ties."""
    scores = torch.randn(3, 300, generator=torch.Generator().manual_seed(seed)).mul(8).round() / 8
    values, positions = top_k(scores, k)
    for row, found_values, found_positions in zip(scores, values, positions, strict=True):
        assert (found_values.tolist(), found_positions.tolist()) == slow_top_k(row.tolist(), k)


def test_top_k_of_equal_scores_are_the_first():
    values, positions = top_k(torch.ones(2, 5000), 3)
    assert positions.tolist() == [[0, 1, 2]] * 2 and values.tolist() == [[1.0] * 3] * 2


@given(
    st.integers(2, 8).flatmap(
        lambda n: st.lists(
            st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=n, max_size=n), min_size=1, max_size=5
        )
    )
)
def test_kendall_tau_equals_scipys_with_ties(pairs):
    first, second = torch.tensor(pairs, dtype=torch.float64).unbind(2)
    found = kendall_tau(first, second)
    for a, b, tau in zip(first, second, found.tolist(), strict=True):
        if len(a.unique()) == 1 or len(b.unique()) == 1:
            assert np.isnan(tau)
        else:  # a ratio of whole numbers and one square root
            assert tau == pytest.approx(stats.kendalltau(a.numpy(), b.numpy()).statistic, abs=1e-14)


@pytest.mark.parametrize("block_pairs", [1, 30, 75, 10**6])
def test_kendall_tau_does_not_depend_on_its_blocks(block_pairs):
    first, second = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kendall_tau(first, second, block_pairs=block_pairs), kendall_tau(first, second))
    assert torch.equal(kendall_tau(first, first), torch.ones(7))
    assert torch.equal(kendall_tau(first, -first), -torch.ones(7))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_rank_correlations_are_scipys(tied, dtype):
    random = np.random.default_rng(0)
    first, second = (
        (random.integers(-2, 3, (30, 12)) if tied else random.normal(size=(30, 12))).astype(dtype) for _ in "ab"
    )
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(spearman(torch.tensor(first), torch.tensor(second)), expected, atol=1e-12)
    np.testing.assert_array_equal(ranks(torch.tensor(first)), stats.rankdata(first, axis=1))
    expected = [stats.pearsonr(a.astype(float), b.astype(float)).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(correlation(torch.tensor(first), torch.tensor(second)), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_of_zeros_of_both_signs_extremes_and_single_entries(dtype):
    row = torch.tensor([[-0.0, 0.0, 1e-38, -1e-38, 3e38, -3e38, 0.0]], dtype=dtype)
    assert ranks(row).tolist() == [[4, 4, 6, 2, 7, 1, 4]]
    assert ranks(torch.zeros(2, 1, dtype=dtype)).tolist() == [[1], [1]]


def test_a_constant_vector_has_no_correlation():
    first = torch.tensor([[0.1] * 7, [1, 2, 3, 4, 5, 6, 7]])
    second = torch.arange(14.0).reshape(2, 7)
    assert spearman(first, second).isnan().tolist() == [True, False]
    assert correlation(first, second).isnan().tolist() == [True, False]
