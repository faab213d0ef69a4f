"""Whether scores depend on the model, on the test sample and on the seed, and how sparse they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.evaluation._estimate import LEVEL, NUM_RESAMPLES, Estimate, estimate, interval, resampling
from dualview.evaluation._scores import (
    FirstK,
    Scores,
    chance_of_jaccard,
    constancy_notes,
    expected_jaccard,
    first_k,
    proponent_scores,
    raw_scores,
    row_blocks,
)
from dualview.ops.ranking import ranks


def top_k_cardinality(scores: Scores, k: int = 10) -> Estimate:
    """Measure how many different training samples the test samples' first k proponents name, of those they could.

    D / min(n, k·T), D the number of different samples in the T lists of k. Methods whose few large
    samples win every list score low. With p_ti the probability that sample i is in list t (0 or 1 but
    for ties at the k-th place), D = Σ_i 1 − Π_t (1 − p_ti).

    Args:
        scores: "test train", or a DataAttribution.
        k: length of a list.

    Returns:
        One value a test sample: its part of D (a sample that m lists name counts 1/m in each), scaled so
        that their mean is D / min(n, k·T). The interval is not a bootstrap, as lists that are drawn twice
        name nothing new: it is ± 1.96 jackknife errors of D, from what D loses without each test sample.
        Chance, for lists drawn at random, is n (1 − (1 − k/n)^T) / min(n, k·T); it grows less than T does.

    Raises:
        ValueError: scores are not finite, or k is out of range.
    """
    matrix = proponent_scores(scores, k=k)
    num_test, num_train = matrix.shape
    first = first_k(matrix, k)
    parts, lost = torch.zeros(2, num_test, dtype=torch.float64)
    for columns in row_blocks(matrix.T):
        inside = FirstK(first.inside[:, columns], first.tied[:, columns], first.chance).membership()
        outside = 1 - inside
        surely = (outside == 0).sum(0)  # lists that hold the sample for sure
        others = torch.where(outside == 0, 1.0, outside).prod(0)  # none of the unsure ones does
        named = 1 - others * (surely == 0)
        parts += inside @ (named / inside.sum(0).clamp(min=torch.finfo(torch.float64).tiny))
        alone = torch.where(outside == 0, others * (surely == 1), others / outside * (surely == 0))
        lost += (inside * alone).sum(1)
    most = min(num_train, k * num_test)
    values = parts * num_test / most
    # (T − 1)/T Σ_t (D_t − mean)², D_t = D − lost_t; no error can be told from one test sample
    error = (lost.var(correction=0) * (num_test - 1)).sqrt() / most if num_test > 1 else torch.nan
    centre, half = float(values.mean()), NormalDist().inv_cdf((1 + LEVEL) / 2) * float(error)
    return Estimate(
        "top-k cardinality",
        values,
        centre - half,
        centre + half,
        resampled="test samples, each left out once (jackknife)",
        chance=num_train * (1 - (1 - k / num_train) ** num_test) / most,
        notes=(*constancy_notes(matrix), *first.notes()),
    )


def model_randomisation(scores: Scores, randomised: Scores) -> Estimate:
    """Correlate the scores of the trained model with those of a randomised one, by rank.

    The model parameter randomisation test (Adebayo et al. 2018; for training samples Hanawa et al.,
    ICLR 2021): scores that stay the same do not explain what was learnt.

    Args:
        scores: of the trained model, "test train", or a DataAttribution.
        randomised: of the same model with random weights, for the same outputs.

    Returns:
        Spearman's correlation of each test sample's scores, lower is better; 0 (chance) where either is constant.

    Raises:
        ValueError: scores are not finite, or shapes differ.
    """
    matrices = {
        "scores": proponent_scores(scores),
        "randomised": proponent_scores(randomised, name="randomised"),
    }
    _check_shapes(matrices)
    values = _rank_correlations(list(matrices.values()))[0, 1]
    return estimate(
        "model randomisation", values, higher_is_better=False, chance=0.0, notes=_constancy_of_each(matrices)
    )


def sparsity(scores: Scores, eps: float = 1e-6) -> Estimate:
    """Measure the share of training samples whose score is nothing beside the largest: |τ_i| / max |τ| < eps.

    Args:
        scores: "test train", or a DataAttribution.
        eps: what counts as nothing.

    Returns:
        One share from 0 to 1 a test sample; 1 where all scores are zero.

    Raises:
        ValueError: scores are not finite.
    """
    matrix = raw_scores(scores).abs()
    largest = matrix.amax(1, keepdim=True)
    # In float64: a product with eps would underflow for tiny float32 scores.
    values = ((matrix < eps * largest.double()) | (largest == 0)).double().mean(1)
    return estimate("sparsity", values, higher_is_better=None, notes=_zero_notes(largest))


def hoyer(scores: Scores) -> Estimate:
    """Measure sparsity without a threshold: (√n − L1/L2) / (√n − 1) of each row (Hoyer 2004).

    Returns:
        One value a test sample, from 0 (all scores of one size) to 1 (one score only, or all zero).

    Raises:
        ValueError: scores are not finite, or there is one training sample only.
    """
    matrix = raw_scores(scores).abs()
    if matrix.shape[1] < 2:
        raise ValueError("`scores` have one training sample; how sparse they are shows with two or more")
    largest = matrix.amax(1, keepdim=True)
    scaled = (
        matrix / largest.clamp(min=torch.finfo(matrix.dtype).tiny)
    ).double()  # squares neither over- nor underflow
    root = math.sqrt(matrix.shape[1])
    values = (root - scaled.sum(1) / scaled.square().sum(1).sqrt()) / (root - 1)
    values = values.masked_fill(largest[:, 0] == 0, 1.0)
    return estimate("Hoyer sparsity", values, higher_is_better=None, notes=_zero_notes(largest))


def static_share(scores: Scores, k: int = 10) -> Estimate:
    """Measure how alike different test samples' lists of first k proponents are.

    It is the mean over pairs of the Jaccard index |A ∩ B| / |A ∪ B|, from 0 to 1; 1 says that every test
    sample gets the same list. Where equal scores share the k-th place, it is averaged over the orders of
    them, each list's drawn on its own.

    Args:
        scores: "test train", or a DataAttribution.
        k: length of a list.

    Returns:
        One value a test sample: the mean over the other test samples, lower is better. The interval
        resamples test samples and leaves out pairs of one sample with itself. Chance is the mean of
        I / (2k − I) for a hypergeometric I. NaN for fewer than two test samples.

    Raises:
        ValueError: scores are not finite, or k is out of range.
    """
    matrix = proponent_scores(scores, k=k)
    num_test, num_train = matrix.shape
    first = first_k(matrix, k)
    similar = expected_jaccard(first, k)
    values = similar.sum(1) / (num_test - 1) if num_test > 1 else similar.sum(1) * torch.nan
    notes = [*constancy_notes(matrix), *first.notes(), *(["one test sample makes no pair"] if num_test < 2 else [])]
    counts = resampling(num_test, NUM_RESAMPLES, torch.Generator().manual_seed(0))
    means = ((counts @ similar) * counts).sum(1) / (num_test**2 - counts.square().sum(1))
    return Estimate(
        "static share",
        values,
        *interval(means),
        higher_is_better=False,
        chance=chance_of_jaccard(k, num_train),
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class Agreement:
    """How alike the scores of several methods are.

    Attributes:
        names: of the methods.
        spearman: "method method", mean over test samples of the rank correlation of their scores.
        spearman_per_test: "method method test"; 0 where either is constant.
        overlap: "method method", mean share of the first k proponents that two methods have in common;
            None where no k was given. Ties at the k-th place are drawn by each on its own, so that a
            method with ties does not agree with itself fully.
        overlap_per_test: "method method test", or None.
        chance_of_overlap: k/n, or None.
        notes: what makes the figures less than they seem.
    """

    names: tuple[str, ...]
    spearman: Float[Tensor, "method method"]
    spearman_per_test: Float[Tensor, "method method test"]
    overlap: Float[Tensor, "method method"] | None
    overlap_per_test: Float[Tensor, "method method test"] | None
    chance_of_overlap: float | None
    notes: tuple[str, ...]

    def between(self, first: str, second: str) -> Estimate:
        """Return the rank correlation of two methods with its interval over test samples; chance is 0."""
        values = self.spearman_per_test[self.names.index(first), self.names.index(second)]
        metric = f"agreement of {first} and {second}"
        return estimate(metric, values, higher_is_better=None, chance=0.0, notes=self.notes)


def agreement(results: Mapping[str, Scores], k: int | None = None) -> Agreement:
    """Correlate the scores of several methods for the same test samples, by rank.

    Args:
        results: name of the method → its scores, "test train", or a DataAttribution.
        k: compare the first k proponents, too.

    Raises:
        ValueError: scores are not finite, shapes differ, k is out of range, or there are fewer than two methods.
    """
    if len(results) < 2:
        raise ValueError(f"`results` must hold two methods or more to compare; it holds {len(results)}")
    matrices = {name: proponent_scores(scores, name=name) for name, scores in results.items()}
    num_test, num_train = _check_shapes(matrices)
    notes = _constancy_of_each(matrices)
    correlations = _rank_correlations(list(matrices.values()))
    overlaps = None
    if k is not None:
        firsts = {name: first_k(matrix, k) for name, matrix in matrices.items()}
        notes += [f"{name}: {note}" for name, first in firsts.items() for note in first.notes()]
        overlaps = _inner_products([first.membership() for first in firsts.values()]) / k
    return Agreement(
        tuple(results),
        correlations.mean(-1),
        correlations,
        None if overlaps is None else overlaps.mean(-1),
        overlaps,
        None if k is None else k / num_train,
        tuple(notes),
    )


def stability(runs: Sequence[Scores]) -> Estimate:
    """Correlate the scores of runs that differ in their seed only, by rank.

    Args:
        runs: the scores of each run, "test train", or DataAttributions; two or more.

    Returns:
        One value a test sample: Spearman's correlation, averaged over pairs of runs; 0 (chance) for a pair
        where either is constant. The interval resamples test samples and runs, and leaves out pairs of one run with
        itself; with two runs, test samples only.

    Raises:
        ValueError: scores are not finite, shapes differ, or there are fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"`runs` must hold two or more to compare; it holds {len(runs)}")
    matrices = {f"runs[{i}]": proponent_scores(run, name=f"runs[{i}]") for i, run in enumerate(runs)}
    num_test, _ = _check_shapes(matrices)
    notes = _constancy_of_each(matrices)
    correlations = _rank_correlations(list(matrices.values()))
    first, second = torch.triu_indices(len(runs), len(runs), 1)
    pairs = correlations[first, second]
    if len(runs) == 2:
        notes.append("the interval says nothing on other runs: two make one pair")
        return estimate("stability over runs", pairs[0], chance=0.0, notes=notes)
    generator = torch.Generator().manual_seed(0)
    drawn = resampling(len(runs), NUM_RESAMPLES, generator)
    weights = drawn[:, first] * drawn[:, second]
    tests = resampling(num_test, NUM_RESAMPLES, generator)
    # 0/0 = NaN where one run was drawn every time; `interval` leaves it out
    means = ((weights @ pairs) * tests).sum(1) / (weights.sum(1) * num_test)
    values, (low, high) = pairs.mean(0), interval(means)
    return Estimate(
        "stability over runs",
        values,
        low,
        high,
        resampled=f"test samples and {len(runs)} runs",
        chance=0.0,
        notes=tuple(notes),
    )


def _rank_correlations(matrices: Sequence[Tensor]) -> Float[Tensor, "run run test"]:
    """Return Spearman's correlation of each pair of matrices for each row; 0, its chance level, for constant rows."""
    blocks = [_inner_products([_unit_ranks(m[block]) for m in matrices]) for block in row_blocks(matrices[0])]
    return torch.cat(blocks, dim=-1).clamp(-1, 1)


def _unit_ranks(scores: Float[Tensor, "test train"]) -> Float[Tensor, "test train"]:
    """Return each row's centred ranks, scaled to length 1; zeros for a constant row."""
    centred = ranks(scores) - (scores.shape[1] + 1) / 2
    norms = centred.square().sum(1, keepdim=True).sqrt()
    return centred / norms.masked_fill(norms == 0, 1.0)


def _inner_products(matrices: Sequence[Tensor]) -> Float[Tensor, "run run test"]:
    products = [[(a * b).sum(1) for b in matrices[: i + 1]] for i, a in enumerate(matrices)]
    lower = [[products[max(i, j)][min(i, j)] for j in range(len(matrices))] for i in range(len(matrices))]
    return torch.stack([torch.stack(row) for row in lower])


def _check_shapes(matrices: Mapping[str, Tensor]) -> tuple[int, int]:
    shapes = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the scores must all be of one shape (test, train); they are {shapes}")
    num_test, num_train = next(iter(shapes.values()))
    return num_test, num_train


def _constancy_of_each(matrices: Mapping[str, Tensor]) -> list[str]:
    return [note for name, matrix in matrices.items() for note in constancy_notes(matrix, f"scores in {name}")]


def _zero_notes(largest: Tensor) -> list[str]:
    zero = int((largest == 0).sum())
    return [f"{zero} of {len(largest)} test samples have no score but zero, and count as 1"] if zero else []
