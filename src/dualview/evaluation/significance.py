"""Which scores stand out of the noise that the seed of the training makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.data._explainer import Explainer
from dualview.engine.frames import imported_pandas
from dualview.evaluation._estimate import Estimate, estimate
from dualview.evaluation._scores import Scores, raw_scores

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Significance:
    """Scores over runs: mean, spread, and two numbers that are easily taken for each other.

    Attributes:
        num_runs: T.
        mean: "test train", in the unit and with the sign of the scores.
        sd: "test train", standard deviation over runs, from T − 1 degrees of freedom.
        signal_to_noise: "test train", z = mean / sd. It does not grow with T.
        noise_p: "test train", 2 (1 − Φ(|z|)), from 0 to 1: the p of Nguyen et al. (NeurIPS 2023). It is
            no test of a zero mean: of ten runs of pure noise it calls 1.6 in 10,000 pairs below .05.
        t_p: "test train", two-sided p of Student's t-test of a zero mean, T − 1 degrees of freedom.
    """

    num_runs: int
    mean: Float[Tensor, "test train"]
    sd: Float[Tensor, "test train"]
    signal_to_noise: Float[Tensor, "test train"]
    noise_p: Float[Tensor, "test train"]
    t_p: Float[Tensor, "test train"]

    def share_above_noise(self, level: float = 0.05) -> Estimate:
        """Measure the share of training samples whose `noise_p` is below the level, per test sample.

        Chance is what normal noise of mean zero gives: P(|t| > √T Φ⁻¹(1 − level/2)), T − 1 degrees of freedom.
        """
        threshold = torch.tensor(NormalDist().inv_cdf(1 - level / 2) * math.sqrt(self.num_runs))
        chance = float(student_p(threshold, self.num_runs - 1))
        return self._share("share of pairs above the noise", self.noise_p, level, chance)

    def share_significant(self, level: float = 0.05) -> Estimate:
        """Measure the share of training samples whose `t_p` is below the level, per test sample.

        Chance, for normal noise of mean zero, is the level.
        """
        return self._share("share of significant pairs", self.t_p, level, level)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one line per pair, by falling |signal_to_noise| within each test sample.

        Columns: test, train, mean, sd, signal_to_noise, noise_p, t_p.
        """
        pandas = imported_pandas()
        order = self.signal_to_noise.abs().argsort(dim=1, descending=True, stable=True)
        columns = {"test": torch.arange(len(order))[:, None].expand_as(order), "train": order}
        for name in ("mean", "sd", "signal_to_noise", "noise_p", "t_p"):
            columns[name] = getattr(self, name).gather(1, order)
        return pandas.DataFrame({name: column.flatten().numpy() for name, column in columns.items()})

    def _share(self, metric: str, p: Tensor, level: float, chance: float) -> Estimate:
        notes = []
        still = int((self.sd == 0).sum())
        if still:
            notes.append(
                f"{still} of {self.sd.numel()} pairs have the same score in all runs: p is 0, or 1 if that is 0"
            )
        values = (p < level).double().mean(1)
        return estimate(metric, values, higher_is_better=None, chance=chance, notes=notes)


def uncertainty(inputs: Any, targets: Any = None, *, over: Sequence[Explainer | Sequence[Explainer]]) -> Significance:
    """Explain with several fits, and tell for each pair of samples what of its score is noise.

    The fits differ in what should not matter: the seed of the training, or of a random projection.

    Args:
        inputs: a batch as the models take it, or a data set; as for `Explainer.explain`.
        targets: the class to explain, one a test sample or one for all; by default what the first network predicts,
            for all fits alike.
        over: two or more fits on one training set. An entry may hold several, the checkpoints of one run: these are
            averaged first, as they are no independent draws.

    Returns:
        Mean, standard deviation, signal-to-noise ratio, the p of Nguyen et al., and that of a t-test, for each pair.

    Raises:
        ValueError: there are fewer than two runs; the fits differ in the number, labels or held-out share of their
            training samples (inputs are not compared), in what they measure, or in the method, seeds aside; or one
            has no sample of a class that the first network predicts, and no `targets` are given.

    Example:
        >>> found = uncertainty(inputs, over=[fit(GradDot(), model, train) for model in models])  # doctest: +SKIP
        >>> found.to_pandas().query("t_p < 0.01")  # doctest: +SKIP
    """
    if isinstance(over, Explainer):
        raise ValueError("`over` must hold two or more fits, to have a spread; it is a single one")
    runs = [[run] if isinstance(run, Explainer) else list(run) for run in over]
    if len(runs) < 2 or not all(runs):
        raise ValueError(f"`over` must hold two or more runs, to have a spread; it holds {len(runs)}")
    explainers = [explainer for run in runs for explainer in run]
    first = explainers[0]
    for k, other in enumerate(explainers[1:], start=1):
        for name, mine, theirs in (
            ("training samples", len(first.table), len(other.table)),
            ("labels", first.table.targets.tolist(), other.table.targets.tolist()),
            ("measured output", first.task.measured, other.task.measured),
            ("method", _but_for_seeds(first.method.describe()), _but_for_seeds(other.method.describe())),
            ("fitted samples", first.positions.tolist(), other.positions.tolist()),
        ):
            if mine != theirs:
                told = "" if name in ("labels", "fitted samples") else f": {mine!r} and {theirs!r}"
                raise ValueError(f"fits 0 and {k} of `over` differ in their {name}{told}")
    found: list[list[Tensor]] = []
    for run in runs:
        found.append([])
        for explainer in run:
            result = explainer.explain(inputs, targets)
            found[-1].append(result.dense())
            if targets is None:
                columns = result.targets
                back = None if first.task.classes is None else {c: label for label, c in first.task.classes.items()}
                targets = columns if back is None else [back[column] for column in columns.tolist()]
    return significance(found)


def _but_for_seeds(description: Any) -> Any:
    """Return a method's fields without the seeds."""
    if not isinstance(description, dict):
        return description
    return {name: _but_for_seeds(value) for name, value in description.items() if name != "seed"}


def significance(runs: Sequence[Scores | Sequence[Scores]]) -> Significance:
    """Compare the mean of each pair's score over runs with its spread (Nguyen, Seo and Oh, NeurIPS 2023).

    z = mean / sd, noise_p = 2 (1 − Φ(|z|)); t = √T z, t_p = P(|Student's t, T − 1| ≥ |t|).
    Where all runs agree sd is 0: both p are 0 for a mean that is not zero, as no noise could have made it,
    and 1 for a mean of zero, which is evidence of nothing.

    Args:
        runs: per seed the scores "test train", or a sequence of them, one a checkpoint: these are
            averaged first, as checkpoints of one run are no independent draws.

    Raises:
        ValueError: scores are not finite, shapes differ, or there are fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"`runs` must hold two or more, to have a spread; it holds {len(runs)}")
    means = [_run_mean(run, f"runs[{i}]") for i, run in enumerate(runs)]
    shapes = [tuple(run.shape) for run in means]
    if len(set(shapes)) > 1:
        raise ValueError(f"`runs` must all be of one shape (test, train); they are {shapes}")
    # Deviations from the first run: those of equal runs are exactly zero, whatever rounding does to a mean.
    deviations = [run - means[0] for run in means]
    shift = torch.stack(deviations).mean(0)
    mean = means[0] + shift
    sd = (torch.stack([(d - shift).square() for d in deviations]).sum(0) / (len(runs) - 1)).sqrt()
    z = (mean / sd).masked_fill((sd == 0) & (mean == 0), 0.0)
    noise_p = torch.special.erfc(z.abs() / math.sqrt(2))
    return Significance(len(runs), mean, sd, z, noise_p, student_p(z * math.sqrt(len(runs)), len(runs) - 1))


def student_p(t: Tensor, degrees: int) -> Tensor:
    """Return P(|T| ≥ |t|) for Student's T with whole degrees of freedom, to 1e-15 absolute.

    With θ = arctan(|t|/√ν) it is 1 − A, A a finite sum of powers of cos θ (Abramowitz and Stegun 26.7.3-4):
    sin θ (1 + 1/2 cos²θ + 1·3/(2·4) cos⁴θ + …) for even ν, and
    2/π (θ + sin θ (cos θ + 2/3 cos³θ + 2·4/(3·5) cos⁵θ + …)) for odd ν, up to cos^(ν − 2) θ.

    Args:
        t: any numbers; infinite ones have p = 0.
        degrees: ν, at least 1.
    """
    theta = torch.atan(t.abs().double() / math.sqrt(degrees))
    sine, cosine = theta.sin(), theta.cos()
    odd = degrees % 2
    term = cosine if odd else torch.ones_like(cosine)
    total = torch.zeros_like(theta)
    for power in range(odd, degrees - 1, 2):
        total += term
        term = term * cosine.square() * (power + 1) / (power + 2)
    inside = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return (1 - inside).clamp(0, 1).masked_fill(t.isinf(), 0.0)


def _run_mean(run: Scores | Sequence[Scores], name: str) -> Float[Tensor, "test train"]:
    """Return a run's scores in float64, averaged over its checkpoints."""
    if not isinstance(run, Sequence):
        return raw_scores(run, name=name).double()
    if not run:
        raise ValueError(f"`{name}` holds no checkpoint")
    checkpoints = [raw_scores(scores, name=f"{name}[{i}]").double() for i, scores in enumerate(run)]
    return torch.stack(checkpoints).mean(0)
