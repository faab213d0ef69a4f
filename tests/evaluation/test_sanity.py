"""Dependence on model, test sample and seed, against hand-made lists, closed forms and all orders."""

import itertools
import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from dualview.evaluation.sanity import (
    agreement,
    hoyer,
    model_randomisation,
    sparsity,
    stability,
    static_share,
    top_k_cardinality,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def orders(n: int) -> Tensor:
    return torch.tensor(list(itertools.permutations(range(n)))).double()


# Lists of two: {0, 1}, {0, 1}, {0, 3}, {2, 3}
LISTS = torch.tensor([[9.0, 8, 1, 2, 0], [8.0, 9, 0, 1, 2], [9.0, 0, 1, 8, 2], [0.0, 1, 9, 8, 2]])


# ── top-k cardinality ────────────────────────────────────────────────────────────────────────────


def test_top_k_cardinality_by_hand():
    found = top_k_cardinality(LISTS, 2)
    assert found.mean == pytest.approx(4 / 5, abs=1e-15)  # four samples are named, five could be
    # sample 0 is in three lists, 1 and 3 in two, 2 in one: each list gets its part, × 4 tests / 5
    assert found.values.tolist() == pytest.approx([4 / 5 * x for x in (5 / 6, 5 / 6, 5 / 6, 3 / 2)], abs=1e-15)
    # only the last list names what no other does: D loses 0 0 0 1, so the jackknife error is sqrt(3 · 3/16)
    half = 1.959964 * 0.75 / 5
    assert (found.low, found.high) == pytest.approx((0.8 - half, 0.8 + half), abs=1e-6)
    assert found.chance == pytest.approx(5 * (1 - 0.6**4) / 5)


def test_top_k_cardinality_at_best_and_at_worst():
    assert top_k_cardinality(torch.eye(6), 1).mean == 1
    assert top_k_cardinality(LISTS[:1].expand(4, 5), 2).mean == pytest.approx(2 / 5, abs=1e-15)
    alone = top_k_cardinality(LISTS[:1], 2)
    assert alone.mean == 1 and math.isnan(alone.low) and math.isnan(alone.high)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_cardinality_of_ties_is_its_mean_over_all_orders_of_each_row(k: int):
    rows = [[1.0, 1, 1, 1], [2.0, 1, 1, 0], [1.0, 3, 1, 1]]
    lists = [[sorted(o, key=lambda i: -row[i])[:k] for o in itertools.permutations(range(4))] for row in rows]
    sizes = [len(set().union(*chosen)) for chosen in itertools.product(*lists)]
    found = top_k_cardinality(torch.tensor(rows), k)
    assert found.mean == pytest.approx(sum(sizes) / len(sizes) / min(4, 3 * k), abs=1e-14)
    # Σ of the parts; and what is lost without a test sample, against leaving it out
    without = [top_k_cardinality(torch.tensor(rows[:t] + rows[t + 1 :]), k).mean * min(4, 2 * k) for t in range(3)]
    error = math.sqrt(2 / 3 * sum((d - sum(without) / 3) ** 2 for d in without)) / min(4, 3 * k)
    assert found.high - found.mean == pytest.approx(1.959964 * error, abs=1e-6)
    if k == 1:
        chance = [len(set(picks)) for picks in itertools.product(range(4), repeat=3)]
        assert found.chance == pytest.approx(sum(chance) / len(chance) / 3)


def test_top_k_cardinality_of_random_scores_and_its_interval():
    """Over 200 draws: the mean within four standard errors of chance; the interval, which errs on the wide side
    (Efron and Stein 1981), covers it in 90 % or more."""
    found = [top_k_cardinality(normal(20, 60, seed=seed), 4) for seed in range(200)]
    means = torch.tensor([f.mean for f in found])
    assert abs(float(means.mean()) - found[0].chance) <= 4 * float(means.std()) / math.sqrt(200)
    assert sum(f.low <= f.chance <= f.high for f in found) >= 180


# ── static share ─────────────────────────────────────────────────────────────────────────────────


def test_static_share_by_hand():
    found = static_share(LISTS, 2)
    third = 1 / 3
    pairs = {(0, 1): 1.0, (0, 2): third, (1, 2): third, (2, 3): third}
    rows = [sum(v for pair, v in pairs.items() if t in pair) / 3 for t in range(4)]
    assert found.values.tolist() == pytest.approx(rows, abs=1e-15)
    assert found.mean == pytest.approx(2 / 6) and found.higher_is_better is False
    # two of five twice: 3/10 none, 6/10 one, 1/10 two in common
    assert found.chance == pytest.approx(6 / 10 / 3 + 1 / 10)
    assert static_share(LISTS[:1].expand(3, 5), 2).mean == 1
    assert static_share(torch.eye(4), 1).mean == 0


def test_static_share_of_random_scores_is_at_chance_and_so_is_its_mean_over_all_orders():
    means = torch.tensor([static_share(normal(6, 20, seed=seed), 5).mean for seed in range(150)])
    chance = static_share(normal(6, 20), 5).chance
    assert abs(float(means.mean()) - chance) <= 4 * float(means.std()) / math.sqrt(150)
    everyone = static_share(orders(4), 2)  # 24 rows; a row meets each other one, but not itself
    assert everyone.mean == pytest.approx((24 * everyone.chance - 1) / 23, abs=1e-12)


def test_the_interval_of_static_share_covers_chance_about_as_often_as_it_says():
    """Of 200 draws of 40 test samples at least 88 % (95 % less four binomial errors): a bootstrap of the rows'
    means would be half as wide and cover 62 %."""
    found = [static_share(_clustered(seed), 1) for seed in range(200)]
    truth = 0.5**2 + 2 * 0.25**2  # two lists are alike if both samples are of one kind
    covered = sum(f.low <= truth <= f.high for f in found)
    assert covered >= 176


def _clustered(seed: int) -> Tensor:
    """Test samples of three kinds, half of them of the first; each kind has its own strongest sample."""
    kinds = torch.randint(4, (40,), generator=torch.Generator().manual_seed(seed)).clamp(min=1) - 1
    return torch.eye(3).double()[kinds]


def test_one_test_sample_has_no_pairs():
    found = static_share(LISTS[:1], 2)
    assert math.isnan(found.mean) and math.isnan(found.low)
    assert found.notes == ("one test sample makes no pair",)


# ── rank correlations ────────────────────────────────────────────────────────────────────────────


def test_model_randomisation_is_spearmans_correlation_of_each_row():
    trained, randomised = normal(5, 30), normal(5, 30, seed=1).round(decimals=1)  # tied
    found = model_randomisation(trained, randomised)
    expected = [spearmanr(a, b).statistic for a, b in zip(trained.numpy(), randomised.numpy(), strict=True)]
    assert found.values.tolist() == pytest.approx(expected, abs=1e-14)
    assert found.higher_is_better is False and found.chance == 0
    assert model_randomisation(trained, trained.exp()).values.tolist() == pytest.approx([1.0] * 5, abs=1e-15)
    assert model_randomisation(trained, -trained).values.tolist() == pytest.approx([-1.0] * 5, abs=1e-15)
    over_orders = model_randomisation(torch.arange(5.0).expand(120, 5), orders(5))
    assert over_orders.mean == pytest.approx(0, abs=1e-15)


def test_constant_rows_are_at_chance_and_said_for_each_matrix():
    trained = normal(3, 4)
    randomised = trained.clone()
    randomised[1] = 0.1
    found = model_randomisation(trained, randomised)
    assert found.values.tolist() == pytest.approx([1, 0, 1], abs=1e-15)
    assert found.notes == ("1 of 3 test samples have constant scores in randomised, which order nothing",)


def test_matrices_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must all be of one shape .*'randomised': \(3, 5\)"):
        model_randomisation(normal(3, 4), normal(3, 5))
    with pytest.raises(ValueError, match="`runs` must hold two or more to compare; it holds 1"):
        stability([normal(3, 4)])
    with pytest.raises(ValueError, match="`results` must hold two methods or more to compare; it holds 1"):
        agreement({"a": normal(3, 4)})


def test_stability_averages_over_pairs_of_runs():
    runs = [normal(6, 20, seed=seed) for seed in range(3)]
    found = stability(runs)
    pairs = [model_randomisation(runs[a], runs[b]).values for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(found.values, sum(pairs) / 3, rtol=0, atol=1e-15)
    assert found.resampled == "test samples and 3 runs" and found.chance == 0 and found.low < found.mean < found.high
    two = stability(runs[:2])
    torch.testing.assert_close(two.values, pairs[0], rtol=0, atol=1e-15)
    assert two.resampled == "test samples" and "two make one pair" in two.notes[0]
    same = stability([runs[0]] * 3)
    assert (same.mean, same.low, same.high) == pytest.approx((1, 1, 1), abs=1e-14)


def test_the_interval_of_stability_speaks_of_the_runs_too():
    """One run of four is noise. Its three pairs of six have no correlation, and the interval reaches to resamples
    with it twice or not at all, far beyond what the test samples vary, whose rows are all alike."""
    row = normal(1, 2000)
    runs = [row.expand(8, -1)] * 3 + [normal(1, 2000, seed=9).expand(8, -1)]
    found = stability(runs)
    assert found.mean == pytest.approx(0.5, abs=0.05)
    assert found.low < 0.1 and found.high == pytest.approx(1, abs=1e-12)


def test_agreement_of_methods():
    results = {"a": normal(4, 10), "b": normal(4, 10, seed=1), "c": -normal(4, 10)}
    found = agreement(results, k=3)
    assert found.names == ("a", "b", "c") and found.chance_of_overlap == 0.3
    for (i, a), (j, b) in itertools.product(enumerate(results.values()), repeat=2):
        expected = model_randomisation(a, b).values
        torch.testing.assert_close(found.spearman_per_test[i, j], expected, rtol=0, atol=1e-15)
        lists = [[set(row.topk(3).indices.tolist()) for row in scores] for scores in (a, b)]
        shared = [len(x & y) / 3 for x, y in zip(*lists, strict=True)]
        assert found.overlap_per_test[i, j].tolist() == pytest.approx(shared, abs=1e-15)
    assert torch.equal(found.spearman, found.spearman_per_test.mean(-1))
    assert torch.equal(found.overlap, found.overlap_per_test.mean(-1))
    between = found.between("a", "b")
    assert between.mean == pytest.approx(float(found.spearman[0, 1])) and between.metric == "agreement of a and b"
    assert agreement(results).overlap is None


def test_overlap_of_ties_is_at_chance_and_said():
    found = agreement({"flat": torch.zeros(2, 5), "b": normal(2, 5).float()}, k=2)
    assert found.overlap.flatten().tolist() == pytest.approx([0.4, 0.4, 0.4, 1.0], abs=1e-15)
    assert found.spearman.flatten().tolist() == pytest.approx([0, 0, 0, 1.0], abs=1e-15)
    assert found.notes == (
        "2 of 2 test samples have constant scores in flat, which order nothing",
        "flat: the k-th place is shared by equal scores for 2 of 2 rows: averaged over ties",
    )


# ── sparsity ─────────────────────────────────────────────────────────────────────────────────────


def test_sparsity_by_hand():
    rows = torch.tensor([[1.0, -1e-7, 0, 2e-6], [-4.0, 4, 4, -4], [0.0, 0, 0, 0], [0.0, 0, 3, 0]])
    found = sparsity(rows)
    assert found.values.tolist() == [0.5, 0, 1, 0.75]
    assert found.notes == ("1 of 4 test samples have no score but zero, and count as 1",)
    assert sparsity(rows, 1e-5).values.tolist() == [0.75, 0, 1, 0.75]
    assert found.higher_is_better is None and found.chance is None
    assert sparsity(torch.tensor([[0.0, 1e-40, 0]])).mean == pytest.approx(2 / 3)  # eps · 1e-40 is no float32


def test_hoyer_by_hand():
    rows = torch.tensor([[0.0, 0, -3, 0], [2.0, -2, 2, 2], [0.0, 0, 0, 0], [3.0, 4, 0, 0]])
    found = hoyer(rows)
    assert found.values.tolist() == pytest.approx([1, 0, 1, 2 - 7 / 5], abs=1e-15)
    assert found.notes == ("1 of 4 test samples have no score but zero, and count as 1",)
    with pytest.raises(ValueError, match="`scores` have one training sample"):
        hoyer(rows[:, :1])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_sparsity_does_not_know_the_unit(scale: float):
    """Squares of such float32 scores vanish or overflow; scaled by the largest they do not."""
    rows = normal(5, 20).float()
    rows[:, 3:] *= 1e-7
    assert torch.equal(sparsity(rows * scale).values, sparsity(rows).values)
    torch.testing.assert_close(hoyer(rows * scale).values, hoyer(rows).values, rtol=0, atol=1e-6)


def test_hoyer_of_gaussian_scores():
    """L1/L2 → sqrt(2n/π) for many normal scores, to 1/√n."""
    root = math.sqrt(10_000)
    expected = (root - root * math.sqrt(2 / math.pi)) / (root - 1)
    assert hoyer(normal(20, 10_000)).mean == pytest.approx(expected, abs=0.01)
