"""Scores over runs, against scipy's t-test, closed forms and noise of known size."""

import math
from statistics import NormalDist

import pytest
import torch
from scipy import stats

from dualview.errors import NonFiniteError
from dualview.evaluation.significance import significance, student_p


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_both_numbers_by_hand():
    """Scores 1, 2, 3 over three runs: mean 2, sd 1, z 2, t 2√3; for two degrees p = 1 − t/√(2 + t²)."""
    found = significance([torch.tensor([[x]]) for x in (1.0, 2.0, 3.0)])
    assert found.num_runs == 3
    assert (found.mean.item(), found.sd.item(), found.signal_to_noise.item()) == (2, 1, 2)
    assert found.noise_p.item() == pytest.approx(2 * (1 - NormalDist().cdf(2)), rel=1e-13)
    assert found.t_p.item() == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-15)


@pytest.mark.parametrize("num_runs", [2, 3, 4, 5, 10])
def test_the_t_test_is_scipys(num_runs: int):
    runs = 0.7 + normal(num_runs, 6, 8)
    found = significance(list(runs))
    expected = stats.ttest_1samp(runs.numpy(), 0.0, axis=0)
    torch.testing.assert_close(found.t_p, torch.from_numpy(expected.pvalue), rtol=1e-9, atol=2e-15)
    t = found.signal_to_noise * math.sqrt(num_runs)
    torch.testing.assert_close(t, torch.from_numpy(expected.statistic), rtol=1e-12, atol=0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 99])
def test_students_distribution(degrees: int):
    t = torch.tensor([0.0, 0.01, -0.3, 1.0, -2.5, 7.0, 40.0, 1e6, math.inf, -math.inf]).double()
    expected = torch.from_numpy(2 * stats.t.sf(t.abs().numpy(), degrees))
    torch.testing.assert_close(student_p(t, degrees), expected, rtol=0, atol=1e-14)


def test_scores_that_no_seed_changes_are_certain_and_zeros_are_not():
    """What ridge regression gives: the same scores for every seed. Sums of 0.1 are not exact."""
    scores = torch.tensor([[0.1, -3.0, 0.0]]).double()
    found = significance([scores] * 10)
    assert torch.equal(found.mean, scores) and torch.equal(found.sd, torch.zeros(1, 3).double())
    assert found.noise_p.tolist() == found.t_p.tolist() == [[0, 0, 1]]
    assert found.signal_to_noise.tolist() == [[math.inf, -math.inf, 0]]
    shares = found.share_significant()
    assert shares.mean == pytest.approx(2 / 3)
    assert shares.notes == ("3 of 3 pairs have the same score in all runs: p is 0, or 1 if that is 0",)


def test_checkpoints_of_a_run_are_averaged_first():
    runs = normal(4, 3, 2, 5)  # run, checkpoint, test, train
    found = significance([list(run) for run in runs])
    expected = significance(list(runs.mean(1)))
    torch.testing.assert_close(found.t_p, expected.t_p, rtol=1e-12, atol=1e-15)
    assert found.num_runs == 4


def test_noise_of_known_size_gives_the_p_that_theory_says():
    """Scores 0.5 with noise of sd 0.25 over many runs: z = 2 to 4 standard errors, sqrt((1 + z²/2)/T)."""
    found = significance(list(0.5 + 0.25 * normal(4000, 1, 3)))
    assert (found.signal_to_noise - 2).abs().max() <= 4 * math.sqrt(3 / 4000)
    middle = 2 * (1 - NormalDist().cdf(2))
    slope = 2 * NormalDist().pdf(2)
    assert (found.noise_p - middle).abs().max() <= 1.3 * slope * 4 * math.sqrt(3 / 4000)


def test_what_pure_noise_gives():
    """Of ten runs of noise the t-test calls 5 % significant, the signal-to-noise p 1.6 in 10,000, its mean .79."""
    found = significance(list(normal(10, 100, 400)))
    significant, above = found.share_significant(), found.share_above_noise()
    assert significant.chance == 0.05
    assert abs(significant.mean - 0.05) <= 4 * math.sqrt(0.05 * 0.95 / 40_000)
    assert above.chance == pytest.approx(1.6e-4, abs=0.05e-4)
    assert abs(above.mean - above.chance) <= 4 * math.sqrt(above.chance / 40_000)
    assert float(found.noise_p.mean()) == pytest.approx(0.79, abs=0.005)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="`runs` must hold two or more, to have a spread; it holds 1"):
        significance([normal(2, 3)])
    with pytest.raises(ValueError, match=r"one shape \(test, train\); they are \[\(2, 3\), \(2, 4\)\]"):
        significance([normal(2, 3), normal(2, 4)])
    with pytest.raises(ValueError, match=r"`runs\[1\]` holds no checkpoint"):
        significance([normal(2, 3), []])
    with pytest.raises(NonFiniteError, match=r"`runs\[1\]\[0\]` are NaN or infinite in 1 of 2 rows"):
        significance([[normal(2, 3)], [normal(2, 3).index_fill(0, torch.tensor([1]), math.nan)]])
