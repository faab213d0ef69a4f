"""What scores are worth for choosing training data, found out by retraining.

Every protocol takes a `train(mask, seed) → model`, which trains afresh on the samples where the mask is True.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dualview.data._attribution import DataAttribution
from dualview.engine.datasets import Samples, as_samples
from dualview.engine.task import Task
from dualview.evaluation._estimate import NUM_RESAMPLES, Estimate, estimate, interval, resampling
from dualview.evaluation._scores import Scores, proponent_scores, summable
from dualview.evaluation.counterfactual import Measured, Train, measured

REMOVED = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
KEPT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BY_SCORE, AT_RANDOM = "by score", "at random"


@dataclass(frozen=True, eq=False)
class Brittleness:
    """How small a removal flips predictions.

    Attributes:
        score: share of the training set whose removal flipped each prediction, strongest proponents first.
        random: the same for samples removed at random.
        flipped: "test", whether any removal of proponents flipped the prediction.
        num_trained: how many models were trained.
    """

    score: Estimate
    random: Estimate
    flipped: Bool[Tensor, " test"]
    num_trained: int


@dataclass(frozen=True, eq=False)
class SelectionCurve:
    """Test losses of models trained on growing shares of the training set.

    Attributes:
        score: loss of each test sample, mean over shares and seeds, training samples chosen by score.
        random: the same, training samples chosen at random.
        num_kept: training samples of each share.
        loss: "by score" and "at random" → mean test loss, "seed share".
        accuracy: "by score" and "at random" → test accuracy from 0 to 1, "seed share".
    """

    score: Estimate
    random: Estimate
    num_kept: tuple[int, ...]
    loss: dict[str, Float[Tensor, "seed share"]]
    accuracy: dict[str, Float[Tensor, "seed share"]]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each share and way of choosing: mean accuracy and loss over seeds."""
        return [
            {
                "kept": num_kept,
                "chosen": arm,
                "accuracy": float(self.accuracy[arm][:, k].mean()),
                "loss": float(self.loss[arm][:, k].mean()),
                "seeds": len(self.loss[arm]),
            }
            for k, num_kept in enumerate(self.num_kept)
            for arm in self.loss
        ]


def brittleness(
    scores: Scores,
    train: Train,
    task: Task,
    test: Any,
    *,
    shares: Sequence[float] = REMOVED,
    seeds: Sequence[int] = (0,),
) -> Brittleness:
    """Find the smallest share of top proponents whose removal flips each prediction (Ilyas et al. 2022).

    The prediction is that of `task.model`; a retrained one is the class of the largest probability, the
    mean over seeds. The share is found by bisection of `shares`: log2(number of shares) + 1 removals a test
    sample. That takes for granted that what flips stays flipped under larger removals; where it does
    not, a share that flips after one that does not is found, perhaps not the first. Random removal
    follows one order for all test samples, bisected alike.

    A prediction that survives every removal counts as the largest share, so that no method gains by failing:
    the mean is a restricted one, and the notes count such samples. Left out are predictions that
    retraining on everything changes, and those of another class than the scores were made for.

    Args:
        scores: "test train", made for the predicted class; one row a sample of `test`.
        train: (mask, seed) → model.
        task: says how batches split; its model made the predictions.
        test: the labelled test samples of `scores`; choose few, since each is retrained for.
        shares: removals that are tried, as shares of the training set.
        seeds: one model of each removal per seed.

    Returns:
        Shares from 0 to 1; less is better: the scores found what the predictions rest on.
    """
    samples = as_samples(test, name="test")
    num_train = proponent_scores(scores, k=1).shape[1]
    counts = _counts(shares, num_train)
    if counts[-1] == num_train:
        raise ValueError(f"`shares` go up to {max(shares)}, which leaves nothing to train on")
    strength = proponent_scores(scores, k=counts[-1])
    if len(strength) != len(samples):
        raise ValueError(
            f"`scores` have {len(strength)} rows, `test` has {len(samples)} samples; expected one a sample"
        )
    models = _Retrained(train, task, samples, num_train)
    predicted = models.measure(task.model).probabilities.argmax(1)
    stable = models.predict(torch.arange(num_train), seeds) == predicted
    asked = scores.targets == predicted if isinstance(scores, DataAttribution) else torch.ones_like(stable)

    notes = []
    if not stable.all():
        notes.append(f"{int((~stable).sum())} of {len(samples)} predictions change when retrained on everything")
    if not asked.all():
        notes.append(f"{int((~asked).sum())} of {len(samples)} test samples were explained for another class")
    by_score = _descending(strength, seeds[0])
    at_random = _shuffled(num_train, seeds[0]).expand(len(samples), -1)
    removed = torch.full((2, len(samples)), torch.nan, dtype=torch.float64)
    for t in (stable & asked).nonzero().flatten().tolist():
        for arm, order in enumerate((by_score, at_random)):
            removed[arm, t] = _smallest_flip(models, order[t], t, predicted[t], counts, seeds)
    ties = _tie_notes(strength, counts)
    score = _restricted("brittleness", removed[0], counts[-1], num_train, notes + ties)
    random = _restricted("brittleness of random removal", removed[1], counts[-1], num_train, notes)
    return Brittleness(score, random, removed[0].isfinite(), models.num_trained)


def coreset_selection(
    scores: Scores,
    train: Train,
    task: Task,
    test: Any,
    *,
    shares: Sequence[float] = KEPT,
    seeds: Sequence[int] = (0,),
    allow_similarity: bool = False,
) -> SelectionCurve:
    """Retrain on the samples of the largest total score s_i = Σ over test samples t of |scores[t, i]|.

    Args:
        scores: "test train".
        train: (mask, seed) → model.
        task: says how batches split, and what the loss is.
        test: labelled data the models are measured on.
        shares: of the training set that are kept.
        seeds: one model of each share per seed; random selections differ from seed to seed.
        allow_similarity: whether scores whose sums mean nothing may be summed all the same.

    Returns:
        The loss of each test sample, mean over shares and seeds; less is better.
    """
    total = summable(scores, allow_similarity=allow_similarity).double().abs().sum(0)
    return _curve("coreset selection", total, train, task, test, shares, seeds, higher_is_better=False)


def data_pruning(
    scores: Scores,
    train: Train,
    task: Task,
    test: Any,
    *,
    shares: Sequence[float] = KEPT,
    seeds: Sequence[int] = (0,),
    allow_similarity: bool = False,
) -> SelectionCurve:
    """Retrain on the samples of the smallest total score, the top of `coreset_selection` being removed.

    Arguments are those of `coreset_selection`.

    Returns:
        The loss of each test sample, mean over shares and seeds; more is better: what was removed was needed.
    """
    total = summable(scores, allow_similarity=allow_similarity).double().abs().sum(0)
    return _curve("data pruning", -total, train, task, test, shares, seeds, higher_is_better=True)


def _curve(
    metric: str,
    strength: Float[Tensor, " train"],
    train: Train,
    task: Task,
    test: Any,
    shares: Sequence[float],
    seeds: Sequence[int],
    *,
    higher_is_better: bool,
) -> SelectionCurve:
    num_train = len(strength)
    counts = _counts(shares, num_train)
    models = _Retrained(train, task, as_samples(test, name="test"), num_train)
    notes = _tie_notes(strength[None], counts)
    estimates, loss, accuracy = [], {}, {}
    for arm in (BY_SCORE, AT_RANDOM):
        losses, right = [], []
        for seed in seeds:
            order = _descending(strength[None], seed)[0] if arm == BY_SCORE else _shuffled(num_train, seed)
            found = [models.on(order[:count], seed) for count in counts]
            losses.append(torch.stack([model.losses for model in found]))
            right.append(torch.stack([model.right for model in found]))
        per_test = torch.stack(losses)  # seed share test
        estimates.append(_over_tests_and_seeds(f"{metric}, {arm}", per_test.mean(1), higher_is_better, notes))
        loss[arm], accuracy[arm] = per_test.mean(2), torch.stack(right).double().mean(2)
        notes = []  # random choices have no ties
    return SelectionCurve(estimates[0], estimates[1], tuple(counts), loss, accuracy)


@dataclass(frozen=True, eq=False)
class _Retrained:
    """Models retrained on sets of samples, measured on the test samples; no set is trained on twice."""

    train: Train
    task: Task
    samples: Samples
    num_train: int
    known: dict[tuple[bytes, int], Measured] = field(default_factory=dict)

    @property
    def num_trained(self) -> int:
        return len(self.known)

    def on(self, kept: Int[Tensor, " kept"], seed: int) -> Measured:
        mask = torch.zeros(self.num_train, dtype=torch.bool)
        mask[kept] = True
        key = (mask.numpy().tobytes(), seed)
        if key not in self.known:
            model = self.train(mask, seed)
            if not isinstance(model, nn.Module):
                raise TypeError(f"`train` must return the trained model; it returned {type(model).__name__}")
            self.known[key] = self.measure(model)
        return self.known[key]

    def predict(self, kept: Int[Tensor, " kept"], seeds: Sequence[int]) -> Int[Tensor, " test"]:
        """Return the classes of the largest probability, averaged over seeds."""
        return torch.stack([self.on(kept, seed).probabilities for seed in seeds]).mean(0).argmax(1)

    def measure(self, model: nn.Module) -> Measured:
        return measured(dataclasses.replace(self.task, model=model), self.samples)


def _smallest_flip(
    models: _Retrained, order: Int[Tensor, " train"], t: int, predicted: Tensor, counts: list[int], seeds: Sequence[int]
) -> float:
    """Return the smallest of rising `counts` that flips sample t when the first so many of `order` go; inf if none."""

    def flips(count: int) -> bool:
        return bool(models.predict(order[count:], seeds)[t] != predicted)

    if not flips(counts[-1]):
        return torch.inf
    holds, flipped = -1, len(counts) - 1  # removing nothing is known to flip nothing
    while flipped - holds > 1:
        middle = (holds + flipped) // 2
        holds, flipped = (holds, middle) if flips(counts[middle]) else (middle, flipped)
    return float(counts[flipped])


def _restricted(
    metric: str, removed: Float[Tensor, " test"], largest: int, num_train: int, notes: Sequence[str]
) -> Estimate:
    """Sum up shares removed; infinite ones, which no removal flipped, count as the largest."""
    survived, tried = int(removed.isinf().sum()), int((~removed.isnan()).sum())
    if survived:
        most = f"{largest / num_train:.3g}"
        notes = [*notes, f"{survived} of {tried} predictions survive the removal of {most} and count as that"]
    return estimate(metric, removed.clamp(max=largest) / num_train, higher_is_better=False, notes=notes)


def _counts(shares: Sequence[float], num_train: int) -> list[int]:
    """Return how many samples each share is, rising and without repetition; at least one."""
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"`shares` must lie above 0 and up to 1; they are {tuple(shares)}")
    return sorted({max(1, round(share * num_train)) for share in shares})


def _shuffled(num_train: int, seed: int) -> Int[Tensor, " train"]:
    return torch.randperm(num_train, generator=torch.Generator().manual_seed(seed))


def _descending(strength: Float[Tensor, "row train"], seed: int) -> Int[Tensor, "row train"]:
    """Return positions by falling strength; equal ones in random order, since data sets may be sorted by class."""
    shuffled = _shuffled(strength.shape[1], seed)
    return shuffled[strength[:, shuffled].argsort(dim=1, descending=True, stable=True)]


def _tie_notes(strength: Float[Tensor, "row train"], counts: Sequence[int]) -> list[str]:
    """Say where a cut falls between equal scores."""
    falling = strength.sort(dim=1, descending=True).values
    cuts = torch.tensor([count for count in counts if count < strength.shape[1]], dtype=torch.int64)
    tied = int((falling[:, cuts - 1] == falling[:, cuts]).sum())
    total = len(strength) * len(cuts)
    return [f"ties: {tied} of {total} cuts fall between equal scores, which are taken in random order"] if tied else []


def _over_tests_and_seeds(
    metric: str, losses: Float[Tensor, "seed test"], higher_is_better: bool, notes: Sequence[str]
) -> Estimate:
    """Sum up losses, with an interval that resamples test samples, and seeds where there are several."""
    num_seeds, num_test = losses.shape
    if num_seeds == 1:
        notes = [*notes, "one seed: the interval does not hold the noise of retraining"]
        return estimate(metric, losses[0], higher_is_better=higher_is_better, notes=notes)
    generator = torch.Generator().manual_seed(0)
    seeds, tests = (resampling(size, NUM_RESAMPLES, generator) for size in (num_seeds, num_test))
    low, high = interval((seeds @ losses * tests).sum(1) / losses.numel())
    resampled = "test samples and seeds"
    return Estimate(metric, losses.mean(0), low, high, higher_is_better, resampled=resampled, notes=tuple(notes))
