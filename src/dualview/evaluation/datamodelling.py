"""Whether scores foretell what models retrained on other sets of samples put out.

Nothing is trained here. `outputs` are what retrained models measured, one run per set of training
samples, and `scores` say what including a sample adds to that same measured output: positive
raises it. No sign is turned on the way. For an output that is a loss a helpful sample's score is
negative, as its effect on the loss is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dualview.errors import NonFiniteError
from dualview.evaluation._estimate import NUM_RESAMPLES, Estimate, interval, resampling
from dualview.evaluation._scores import Scores, raw_scores, summable
from dualview.ops.ranking import correlation, ranks

Method = Literal["spearman", "pearson"]

FEW_RUNS = 50  # one sample's rank correlation of random scores then deviates from 0 by 1/√49 = 0.14
LOW_CEILING = 0.3  # seeds then agree by less than r = 0.05, for the mean of two
ACCURACY_GAP = 0.1  # a retrained model this far below the others, or the full one, is called half-trained

_BLOCK = 2**16  # resampled correlations that are held at once: they stay in the cache


def linear_datamodelling_score(
    scores: Scores,
    masks: Bool[Tensor, "subset train"],
    outputs: Float[Tensor, "*seed run test"],
    *,
    accuracy: Float[Tensor, "*layout"] | None = None,
    full_accuracy: float | None = None,
    allow_similarity: bool = False,
    seed: int = 0,
) -> Estimate:
    """Correlate the sum of scores over each subset with the output of the model retrained on it.

    LDS_t = Spearman over subsets j of (ȳ_jt, Σ over i in S_j of scores[t, i]), ȳ the mean over seeds
    (Park et al. 2023). Its interval resamples subsets and test samples, each on their own. That is
    wide rather than narrow (Owen 2007): by √3 where test samples share nothing, as under random scores.

    Args:
        scores: effects of inclusion on the measured output, "test train".
        masks: True where a training sample was in the subset.
        outputs: "subset test", or "seed subset test" for several retrainings of each subset.
        accuracy: of the retrained models, 0 to 1, in any layout; runs that fell behind are noted.
        full_accuracy: of the model that was explained, on the same samples.
        allow_similarity: whether scores whose sums mean nothing may be summed all the same.
        seed: of the resampling.

    Returns:
        One correlation a test sample, from −1 to 1; 0 is what random scores have on average. The notes
        give the noise ceiling.
    """
    added = summable(scores, allow_similarity=allow_similarity)
    outputs = _by_seed(outputs, len(masks), len(added))
    _check_masks(masks, added.shape[1])
    notes = _training_notes(accuracy, full_accuracy) + _ceiling_notes(noise_ceiling(outputs, seed=seed), len(outputs))
    return _agreement(
        "linear datamodelling score", _sums(added, masks), outputs.mean(0).T, notes, runs="subsets", seed=seed
    )


def noise_ceiling(outputs: Float[Tensor, "*seed run test"], *, method: Method = "spearman", seed: int = 0) -> Estimate:
    """Return the correlation with the mean over R seeds that a perfect, noiseless prediction would have.

    ceiling = sqrt(R r / (1 + (R − 1) r)), r the mean correlation over runs between two seeds
    (Spearman 1910, Brown 1910); sqrt(2r / (1 + r)) for two. r is averaged over all pairs of seeds and
    over test samples before the formula is applied: one sample's own r is too noisy to be put under a
    root. The root is concave, so where samples differ in their noise, this is above the mean of their own
    ceilings. For ranks the formula is an approximation, at most 2.3 % too high under normal noise.

    Args:
        outputs: "seed run test", runs being subsets, left-out samples or left-out groups.
        method: the correlation.
        seed: of the resampling.

    Returns:
        The one ceiling, written for every test sample that has one; NaN for one seed.
    """
    outputs = _by_seed(outputs, *outputs.shape[-2:])
    num_seeds, _, num_test = outputs.shape
    if num_seeds == 1:
        nothing = outputs.new_full((num_test,), math.nan)
        return Estimate("noise ceiling", nothing, math.nan, math.nan, None, notes=("one seed: no ceiling",))
    standing = _standing(outputs.transpose(1, 2).flatten(0, 1), method).unflatten(0, (num_seeds, num_test))
    pairs = torch.combinations(torch.arange(num_seeds))
    first, second = (standing[pairs[:, side]].flatten(0, 1) for side in (0, 1))
    agreement = correlation(first, second).unflatten(0, (-1, num_test)).nanmean(0)
    resampled = torch.cat(list(_resampled(first, second, num_test, seed)))
    low, high = interval(_ceiling(resampled, num_seeds))
    mean = agreement.nanmean()
    undefined = int(agreement.isnan().sum())
    notes = [f"outputs of {undefined} of {num_test} test samples do not vary: left out"] if undefined else []
    if mean <= 0:
        notes.append(f"two seeds agree by r = {float(mean):.2g}: no more than chance, so the ceiling is 0")
    values = torch.where(agreement.isnan(), torch.nan, _ceiling(mean, num_seeds))
    return Estimate(
        "noise ceiling", values, low, high, None, resampled=_resampled_names(num_test, "runs"), notes=tuple(notes)
    )


def leave_one_out_correlation(
    scores: Scores,
    outputs: Float[Tensor, "*seed run test"],
    reference: Float[Tensor, "*reference test"],
    index: Int[Tensor, " left"],
    *,
    method: Method = "spearman",
    seed: int = 0,
) -> Estimate:
    """Correlate scores with what leaving single training samples out did to the output.

    Per test sample: the correlation over left-out samples j of scores[t, index[j]] and
    reference_t − outputs_jt, both means over seeds. Nothing is summed, so similarities are judged too.

    Args:
        scores: effects of inclusion on the measured output, "test train".
        outputs: "run test" or "seed run test"; run j was trained without sample index[j].
        reference: "test" or "seed test", outputs of models trained on everything. What is the same for all
            runs cannot change a correlation: its seeds serve to tell how large seed noise is.
        index: positions in the training set.
        method: "spearman" for ranks, "pearson" for values.
        seed: of the resampling.

    Returns:
        One correlation a test sample, from −1 to 1; the notes say how far the differences exceed seed noise.
    """
    added = raw_scores(scores)
    num_train = added.shape[1]
    if bool(((index < 0) | (index >= num_train)).any()):
        raise ValueError(f"`index` must hold positions from 0 to {num_train - 1}; it holds {index.tolist()}")
    return _left_out(
        "leave-one-out correlation",
        added[:, index],
        outputs,
        reference,
        runs="left-out samples",
        method=method,
        seed=seed,
    )


def group_correlation(
    scores: Scores,
    masks: Bool[Tensor, "group train"],
    outputs: Float[Tensor, "*seed run test"],
    reference: Float[Tensor, "*reference test"],
    *,
    method: Method = "spearman",
    allow_similarity: bool = False,
    seed: int = 0,
) -> Estimate:
    """Correlate the sum of scores over each left-out group with what leaving it out did to the output.

    Per test sample: the correlation over groups F_j of Σ over i in F_j of scores[t, i] and
    reference_t − outputs_jt, both means over seeds (Koh et al. 2019).

    Args:
        scores: effects of inclusion on the measured output, "test train".
        masks: what each run was trained on: False where a sample was left out.
        outputs: see `leave_one_out_correlation`; one run a group.
        reference: see `leave_one_out_correlation`.
        method: "spearman" for ranks, "pearson" for values.
        allow_similarity: whether scores whose sums mean nothing may be summed all the same.
        seed: of the resampling.
    """
    added = summable(scores, allow_similarity=allow_similarity)
    _check_masks(masks, added.shape[1])
    return _left_out(
        "group correlation", _sums(added, ~masks), outputs, reference, runs="left-out groups", method=method, seed=seed
    )


def _left_out(
    metric: str, predicted: Tensor, outputs: Tensor, reference: Tensor, *, runs: str, method: Method, seed: int
) -> Estimate:
    """Correlate predicted effects "test run" with reference − outputs."""
    num_test, num_runs = predicted.shape
    outputs = _by_seed(outputs, num_runs, num_test)
    if reference.shape[-1] != num_test or reference.ndim not in (1, 2):
        raise ValueError(
            f"`reference` has shape {tuple(reference.shape)}; expected (seed, {num_test}) or ({num_test},)"
        )
    reference = reference.detach().cpu().double().reshape(-1, num_test)
    effects = reference.mean(0)[:, None] - outputs.mean(0).T
    ceiling = noise_ceiling(outputs, method=method, seed=seed)
    notes = _ceiling_notes(ceiling, len(outputs)) + _size_notes(effects, reference)
    return _agreement(metric, predicted, effects, notes, runs=runs, method=method, seed=seed)


def _agreement(
    metric: str,
    predicted: Float[Tensor, "test run"],
    truth: Float[Tensor, "test run"],
    notes: list[str],
    *,
    runs: str,
    method: Method = "spearman",
    seed: int,
) -> Estimate:
    """Return the correlation over runs of each test sample, and all that a reader of it must know."""
    first, second = _standing(predicted, method), _standing(truth, method)
    values = correlation(first, second)
    defined = ~values.isnan()
    notes = _shape_notes(predicted, truth, runs, method) + notes
    num_defined = int(defined.sum())
    resampled = list(_resampled(first[defined], second[defined], num_defined, seed)) if num_defined else []
    low, high = interval(torch.cat(resampled)) if resampled else (math.nan, math.nan)
    return Estimate(
        metric, values, low, high, resampled=_resampled_names(num_defined, runs), chance=0.0, notes=tuple(notes)
    )


def _resampled(
    first: Float[Tensor, "row run"], second: Float[Tensor, "row run"], num_test: int, seed: int
) -> Iterator[Float[Tensor, " resample"]]:
    """Yield mean correlations of resampled test samples over resampled runs.

    Ranks are not made anew for each resample: Pearson's correlation of the ranks under the weights of the
    runs comes from five matrix products for all resamples at once. The drawn ties that making them
    anew would bring pull the correlation down; the spread is the same to a few percent.

    Args:
        first: ranks or values, several rows a test sample where several pairs are averaged: "(pair test) run".
        second: the same of the other side.
        num_test: number of test samples.
        seed: of the resampling.
    """
    num_rows, num_runs = first.shape
    a, b = first.T.contiguous(), second.T.contiguous()
    products = (a, b, a * a, b * b, a * b)
    generator = torch.Generator().manual_seed(seed)
    block = max(1, _BLOCK // max(num_rows, num_runs))
    for start in range(0, NUM_RESAMPLES, block):
        size = min(block, NUM_RESAMPLES - start)
        drawn_runs = resampling(num_runs, size, generator)
        drawn_tests = resampling(num_test, size, generator)
        sum_a, sum_b, sum_aa, sum_bb, sum_ab = (drawn_runs @ product for product in products)
        spread_a = _spread(num_runs * sum_aa, sum_a)
        spread_b = _spread(num_runs * sum_bb, sum_b)
        found = (num_runs * sum_ab - sum_a * sum_b) / (spread_a * spread_b).sqrt()
        found = found.unflatten(1, (-1, num_test))
        weights = drawn_tests[:, None].expand_as(found).masked_fill(found.isnan(), 0)
        yield (found.nan_to_num() * weights).sum((1, 2)) / weights.sum((1, 2))


def _spread(squares: Tensor, sums: Tensor) -> Tensor:
    """Return n Σw x² − (Σw x)²; NaN where the drawn entries are all equal, to rounding."""
    spread = squares - sums.square()
    return spread.masked_fill(spread <= 1e-13 * squares, torch.nan)


def _ceiling(agreement: Tensor, num_seeds: int) -> Tensor:
    agreement = agreement.clamp(min=0)
    return (num_seeds * agreement / (1 + (num_seeds - 1) * agreement)).sqrt()


def _standing(values: Float[Tensor, "row run"], method: Method) -> Float[Tensor, "row run"]:
    """Return what Pearson's correlation is taken of: ranks or values, centred for exact moments."""
    if method not in ("spearman", "pearson"):
        raise ValueError(f"`method` must be 'spearman' or 'pearson'; it is {method!r}")
    if method == "spearman":
        return 2 * ranks(values) - (values.shape[1] + 1)  # whole numbers
    values = values.double()
    centred = values - values.mean(1, keepdim=True)
    return centred.masked_fill((values == values[:, :1]).all(1, keepdim=True), 0)


def _sums(scores: Float[Tensor, "test train"], masks: Bool[Tensor, "run train"]) -> Float[Tensor, "test run"]:
    """Return the sum of scores over each set, equal where only the order of adding differed.

    Rounding would otherwise put subsets of equal sums into a random order, those of constant scores
    first of all. Its bound is n ε Σ|s|.
    """
    scores = scores.double()
    sums, order = (scores @ masks.double().T).sort(dim=1)
    rounding = scores.shape[1] * torch.finfo(torch.float64).eps * scores.abs().sum(1, keepdim=True)
    apart = torch.ones_like(sums, dtype=torch.bool)
    apart[:, 1:] = sums.diff(dim=1) > rounding
    first_equal = (apart * torch.arange(sums.shape[1])).cummax(dim=1).values
    return torch.empty_like(sums).scatter_(1, order, sums.gather(1, first_equal))


def _by_seed(outputs: Tensor, num_runs: int, num_test: int) -> Float[Tensor, "seed run test"]:
    if outputs.ndim not in (2, 3) or outputs.shape[-2:] != (num_runs, num_test):
        raise ValueError(
            f"`outputs` have shape {tuple(outputs.shape)}; expected (seed, run, test) or (run, test), "
            f"with {num_runs} runs and {num_test} test samples"
        )
    if num_runs < 2:
        raise ValueError(f"`outputs` hold {num_runs} runs; a correlation over runs needs at least two")
    outputs = outputs.detach().cpu().double().reshape(-1, num_runs, num_test)
    broken = (~outputs.isfinite()).any(2).any(0).nonzero().flatten().tolist()
    if broken:
        raise NonFiniteError(f"`outputs` are NaN or infinite in the runs {broken[:5]}: leave them out", tuple(broken))
    return outputs


def _check_masks(masks: Tensor, num_train: int) -> None:
    if masks.shape[1] != num_train:
        raise ValueError(f"`masks` speak of {masks.shape[1]} training samples, `scores` of {num_train}")


def _resampled_names(num_test: int, runs: str) -> str:
    return f"test samples and {runs}" if num_test > 1 else runs


def _shape_notes(predicted: Tensor, truth: Tensor, runs: str, method: Method) -> list[str]:
    """Say what the numbers themselves show: few runs, constant rows, ties."""
    num_test, num_runs = predicted.shape
    notes = [f"only {num_runs} {runs}, fewer than {FEW_RUNS}"] if num_runs < FEW_RUNS else []
    constant = [(values == values[:, :1]).all(1) for values in (predicted, truth)]
    for name, rows in zip(
        ("scores do not tell the {} apart", "outputs are the same for all {}"), constant, strict=True
    ):
        if rows.any():
            who = f"{int(rows.sum())} of {num_test} test samples"
            notes.append(f"undefined for {who}, whose {name.format(runs)}: left out")
    if method == "spearman":
        for name, values in (("predictions", predicted), ("outputs", truth)):
            tied = (values.sort(dim=1).values.diff(dim=1) == 0).any(1) & ~constant[0] & ~constant[1]
            if tied.any():
                notes.append(f"ties: {name} for {int(tied.sum())} of {num_test} test samples; tied {runs} share a rank")
    return notes


def _ceiling_notes(ceiling: Estimate, num_seeds: int) -> list[str]:
    """Say how much of the order of the outputs is not seed noise."""
    if num_seeds == 1:
        return ["one seed: no noise ceiling, so what of a low value is seed noise cannot be told"]
    if math.isnan(ceiling.mean):
        return ["noise ceiling: undefined, since outputs do not vary over runs"]
    where = (
        f"noise ceiling {ceiling.mean:.2f} ({ceiling.low:.2f} to {ceiling.high:.2f}) for the mean of {num_seeds} seeds"
    )
    low = f", below {LOW_CEILING}: mostly seed noise is being predicted" if ceiling.mean < LOW_CEILING else ""
    return [where + low]


def _size_notes(effects: Float[Tensor, "test run"], reference: Float[Tensor, "seed test"]) -> list[str]:
    """Compare how far runs differ with how far seeds of the full model do."""
    if len(reference) < 2:
        return []
    between_runs, between_seeds = (
        float(values.var(dim).mean().sqrt()) for values, dim in ((effects, 1), (reference, 0))
    )
    within = "" if between_runs > between_seeds else ": the differences are within seed noise"
    return [f"runs deviate by {between_runs:.2g}, seeds of the full model by {between_seeds:.2g}{within}"]


def _training_notes(accuracy: Tensor | None, full_accuracy: float | None) -> list[str]:
    """Say whether the retrained models learnt what the explained one did."""
    if accuracy is None:
        return []
    accuracy, notes = accuracy.flatten().double(), []
    middle, mean = float(accuracy.median()), float(accuracy.mean())
    behind = int((accuracy < middle - ACCURACY_GAP).sum())
    if behind:
        lowest = f"median {middle:.2f}, lowest {float(accuracy.min()):.2f}"
        notes.append(f"half-trained: {behind} of {len(accuracy)} retrained models fell behind in accuracy ({lowest})")
    if full_accuracy is not None and mean < full_accuracy - ACCURACY_GAP:
        notes.append(f"weaker models: accuracy {mean:.2f} when retrained, {full_accuracy:.2f} of the explained one")
    return notes
