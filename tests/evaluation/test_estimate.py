"""Means and their intervals, against closed forms."""

import math

import pytest
import torch

from dualview.evaluation._estimate import estimate, interval, resampled_means, resampling


def test_the_interval_of_a_mean_is_the_normal_one_for_many_values():
    """±1.96 σ/√n, to a tenth of its width: what 1,000 resamples leave of chance."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    found = estimate("m", values)
    half = 1.96 * float(values.std(correction=0)) / 20
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.mean - half, abs=0.2 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.2 * half)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    """95 % of 200 draws of 100 normal values: between 89 and 98 %, three binomial errors."""
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for seed in range(200):
        found = estimate("m", torch.randn(100, generator=generator), seed=seed)
        covered += found.low <= 0 <= found.high
    assert 0.89 <= covered / 200 <= 0.98


def test_values_that_are_not_defined_are_left_out_and_said():
    found = estimate("m", torch.tensor([1.0, math.nan, 3.0]), chance=0.5, notes=["few"])
    assert found.mean == 2 and found.num_samples == 2
    assert found.notes == ("few", "undefined for 1 of 3 test samples, which are left out")
    assert "note: few" in str(found) and "2 test samples" in str(found)


@pytest.mark.parametrize("values", [[], [1.0], [math.nan, 2.0]])
def test_one_value_has_no_interval(values):
    found = estimate("m", torch.tensor(values))
    assert math.isnan(found.low) and math.isnan(found.high)
    assert "no interval" in str(found)


def test_resampling_repeats_for_a_seed_and_draws_every_sample_once_on_average():
    counts = resampling(50, 4000, torch.Generator().manual_seed(0))
    assert (counts.sum(1) == 50).all()
    assert (counts.mean(0) - 1).abs().max() <= 4 * math.sqrt(0.98 / 4000)
    values = torch.arange(10.0).double()
    assert torch.equal(resampled_means(values, seed=3), resampled_means(values, seed=3))
    assert not torch.equal(resampled_means(values, seed=3), resampled_means(values, seed=4))
    assert interval(torch.arange(101.0)) == (pytest.approx(2.5), pytest.approx(97.5))
