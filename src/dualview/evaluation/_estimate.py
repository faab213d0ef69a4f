"""A metric's value for each sample, their mean, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LEVEL = 0.95
NUM_RESAMPLES = 1000
_BUDGET = 2**24  # weights that are drawn at once


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a metric measured: one value per sample, their mean with a 95 % interval, and what a reader must know.

    Attributes:
        metric: its name.
        values: "sample", float64; NaN where the metric is not defined, which the mean leaves out and `notes` say.
        low: lower end of the interval of the mean; NaN where it cannot be told.
        high: upper end.
        higher_is_better: which way is good; None where neither is.
        over: what the values belong to, e.g. "test samples".
        resampled: what the interval resamples.
        chance: what random scores would have on average, where that is known in closed form.
        notes: what makes the figure less than it seems.
    """

    metric: str
    values: Float[Tensor, " sample"]
    low: float
    high: float
    higher_is_better: bool | None = True
    over: str = "test samples"
    resampled: str = "test samples"
    chance: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over the samples for which the metric is defined; NaN where there are none."""
        return float(self.values.nanmean())

    @property
    def num_samples(self) -> int:
        """How many samples the mean was taken over."""
        return int((~self.values.isnan()).sum())

    def __str__(self) -> str:
        noted = "".join(f"\n  note: {note}" for note in self.notes)
        interval = "no interval" if math.isnan(self.low) else f"{self.low:.3g} to {self.high:.3g}"
        return f"{self.metric}: {self.mean:.3g} ({interval}; {self.num_samples} {self.over}){noted}"


def estimate(
    metric: str,
    values: Float[Tensor, " sample"],
    *,
    higher_is_better: bool | None = True,
    over: str = "test samples",
    chance: float | None = None,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Estimate:
    """Sum up per-sample values: their mean, and its interval by a bootstrap over the samples.

    Args:
        metric: its name.
        values: one per sample; NaN where the metric is not defined.
        higher_is_better: see `Estimate`.
        over: what the samples are.
        chance: see `Estimate`.
        notes: see `Estimate`; samples without a value are added to them.
        seed: of the resampling.
    """
    values = values.detach().cpu().double()
    defined = values[~values.isnan()]
    notes = list(notes)
    if len(defined) < len(values):
        notes.append(f"undefined for {len(values) - len(defined)} of {len(values)} {over}, which are left out")
    low, high = interval(resampled_means(defined, seed=seed))
    return Estimate(metric, values, low, high, higher_is_better, over, over, chance, tuple(notes))


def resampled_means(
    values: Float[Tensor, " sample"], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Float[Tensor, " resample"]:
    """Return the means of bootstrap resamples (Efron 1979); none for fewer than two values."""
    if len(values) < 2:
        return values.new_zeros(0)
    generator = torch.Generator().manual_seed(seed)
    block = max(1, _BUDGET // len(values))
    means = [
        counts @ values / len(values)
        for start in range(0, num_resamples, block)
        for counts in [resampling(len(values), min(block, num_resamples - start), generator).to(values.dtype)]
    ]
    return torch.cat(means)


def resampling(num_samples: int, num_resamples: int, generator: torch.Generator) -> Float[Tensor, "resample sample"]:
    """Return how often each sample is drawn in each resample, float64; every row sums to `num_samples`."""
    drawn = torch.randint(num_samples, (num_resamples, num_samples), generator=generator)
    counts = torch.zeros(num_resamples, num_samples, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones(()).double().expand(num_resamples, num_samples))


def interval(means: Float[Tensor, " resample"]) -> tuple[float, float]:
    """Return the percentile interval of resampled means at LEVEL; NaN for none."""
    means = means[~means.isnan()].double()
    if len(means) == 0:
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
