"""What scores find: samples of the same class, shortcuts, wrong labels, foreign samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dualview.errors import NonFiniteError
from dualview.evaluation._estimate import Estimate, estimate
from dualview.evaluation._scores import Scores, constancy_notes, first_k, proponent_scores, row_blocks


def found_among(ranking: Int[Tensor, " rank"], wanted: Bool[Tensor, " train"], k: int) -> int:
    """Count the wanted samples among the first k of a ranking.

    Args:
        ranking: positions of samples, most suspicious first.
        wanted: whether each sample of the data set is one to be found, e.g. has a flipped label.
        k: how many of the ranking are looked at; at most its length.

    Returns:
        A count from 0 to min(k, number wanted). A random order finds k · (share wanted) on average.
    """
    if not 1 <= k <= len(ranking):
        raise ValueError(f"`k` is {k}; expected 1 to {len(ranking)}, the length of the ranking")
    return int(wanted[ranking[:k]].sum())


def share_among(neighbours: Int[Tensor, "test k"], wanted: Bool[Tensor, " train"]) -> float:
    """Return the share of wanted samples among the neighbours of all test samples; −1 marks an empty place.

    Returns:
        From 0 to 1; NaN where there are no neighbours at all.
    """
    named = neighbours[neighbours >= 0]
    return float(wanted[named].float().mean()) if len(named) else float("nan")


def by_highest(scores: Tensor) -> Int[Tensor, " rank"]:
    """Rank samples by a score, highest first; among equal ones the lower position first."""
    return torch.argsort(scores, descending=True, stable=True)


def class_detection(
    scores: Scores, train_targets: Int[Tensor, " train"], test_targets: Int[Tensor, " test"], k: int = 5
) -> Estimate:
    """Measure the share of the k strongest proponents that have the class which was explained.

    The identical class test of Hanawa et al. (ICLR 2021), with k in place of one. Equal scores at
    the k-th place count as on average over their orders, so constant scores are at chance exactly.

    Args:
        scores: "test train", or a DataAttribution.
        train_targets: training labels.
        test_targets: the class each test row was explained for: the predicted one, as a rule.
        k: how many proponents are looked at.

    Returns:
        One share from 0 to 1 a test sample; chance is the mean share of the class in the training set.

    Raises:
        ValueError: scores are not finite, k is out of range, or lengths differ.
    """
    return _same_label("class detection", scores, train_targets, test_targets, k, None)


def subclass_detection(
    scores: Scores,
    train_subclasses: Int[Tensor, " train"],
    test_subclasses: Int[Tensor, " test"],
    k: int = 5,
    *,
    correct: Bool[Tensor, " test"] | None = None,
    train_superclasses: Int[Tensor, " train"] | None = None,
    test_superclasses: Int[Tensor, " test"] | None = None,
) -> Estimate:
    """Measure the share of the k strongest proponents of the same original class, for a model of merged classes.

    The identical subclass test of Hanawa et al. (ICLR 2021). A method that only knows the merged
    class reaches what a random choice within it gives; a note says how much that is.

    Args:
        scores: "test train", or a DataAttribution, for the merged class.
        train_subclasses: original training labels.
        test_subclasses: original test labels.
        k: how many proponents are looked at.
        correct: whether the merged class was predicted rightly; other rows do not count. None: all count.
        train_superclasses: merged training labels, for the note.
        test_superclasses: merged test labels, for the note.

    Returns:
        One share from 0 to 1 a test sample, NaN where `correct` is False; chance is over the whole training set.

    Raises:
        ValueError: see `class_detection`; or one of the two superclass arguments came without the other.
    """
    if (train_superclasses is None) != (test_superclasses is None):
        raise ValueError("`train_superclasses` and `test_superclasses` go together; only one of them was given")
    notes: list[str] = []
    if train_superclasses is not None and test_superclasses is not None:
        _same_length("train_superclasses", train_superclasses, len(train_subclasses), "training sample")
        _same_length("test_superclasses", test_superclasses, len(test_subclasses), "test sample")
        alike = (_counts(train_subclasses, test_subclasses), _counts(train_superclasses, test_superclasses))
        within = (alike[0] / alike[1])[slice(None) if correct is None else correct].nanmean()
        notes.append(f"a random choice within the superclass would give {float(within):.3g}")
    return _same_label("subclass detection", scores, train_subclasses, test_subclasses, k, correct, notes)


def shortcut_detection(
    scores: Scores, marked: Bool[Tensor, " train"], rows: Bool[Tensor, " test"] | None = None
) -> Estimate:
    """Measure the average precision with which proponents retrieve the training samples that carry a shortcut.

    Per test sample Σ over marked samples of (precision at its place) / (number marked), the area
    under the step-wise precision-recall curve, averaged over the orders of equal scores.

    Args:
        scores: "test train", or a DataAttribution.
        marked: whether each training sample carries the shortcut.
        rows: the test samples that count: those the shortcut misled. None: all count.

    Returns:
        One value from above 0 to 1 a test sample, NaN where `rows` is False. Chance is the mean over
        all orders, (H_n + (m − 1)/(n − 1) · (n − H_n)) / n for m marked of n and H_n = 1 + 1/2 + … + 1/n:
        a little more than the share of marked samples.

    Raises:
        ValueError: scores are not finite, or lengths differ.
    """
    return _average_precision("shortcut detection", scores, marked, rows, "marked")


def mixed_data_detection(
    scores: Scores, foreign: Bool[Tensor, " train"], rows: Bool[Tensor, " test"] | None = None
) -> Estimate:
    """Measure the average precision with which proponents retrieve training samples of another data set mixed in.

    Args:
        scores: "test train", or a DataAttribution.
        foreign: whether each training sample comes from the other data set.
        rows: the test samples that count: those of the other data set. None: all count.

    Returns:
        As `shortcut_detection`.
    """
    return _average_precision("mixed-data-set detection", scores, foreign, rows, "foreign")


def mislabel_detection(suspicion: Float[Tensor, " train"], flipped: Bool[Tensor, " train"]) -> Estimate:
    """Measure how early flipped labels come when samples are checked in the order of suspicion.

    A = mean over the k flipped of n samples of (n − r_i + 1)/n, r_i the place of sample i, is the
    area under the curve of the recall; (A − A_min)/(A_max − A_min) with A_max = ((k+1)/2 + n − k)/n
    is 0 for the worst order and 1 for the best. That is the area under the ROC curve: the mean over
    flipped samples of the share of rightly labelled ones that are less suspicious, equal ones by half.

    Args:
        suspicion: larger is more suspicious, e.g. self-influence.
        flipped: whether each label is wrong.

    Returns:
        That share, one value from 0 to 1 a flipped sample, in the order of the training set.

    Raises:
        ValueError: suspicions are not finite, or lengths differ.
    """
    # 1. Differs from the published A_min = k/(2n): the worst order has the flipped samples at the last
    #    k places, whose terms 1/n … k/n have the mean (k+1)/(2n). With k/(2n) it would score above 0.
    suspicion = _one_row("suspicion", suspicion)[0]
    _check_mask("flipped", flipped, len(suspicion), "training sample")
    right = suspicion[~flipped].sort().values
    below = torch.searchsorted(right, suspicion[flipped])
    not_above = torch.searchsorted(right, suspicion[flipped], right=True)
    values = (below + not_above).double() / (2 * len(right))  # 0/0 = NaN where every label is wrong
    notes = [*_few("flipped", flipped), *_constant(suspicion)]
    return estimate("mislabel detection", values, over="flipped samples", chance=0.5, notes=notes)


def recall_at(suspicion: Float[Tensor, " train"], wanted: Bool[Tensor, " train"], k: int) -> Estimate:
    """Measure the share of wanted samples among the k most suspicious.

    Args:
        suspicion: larger is more suspicious.
        wanted: whether each sample is one to be found.
        k: how many samples are checked.

    Returns:
        One value a wanted sample: the probability that it is among the first k, 0 or 1 but for ties
        at the k-th place. Chance is k/n; no order reaches more than k / (number wanted).

    Raises:
        ValueError: suspicions are not finite, k is out of range, or lengths differ.
    """
    row = _one_row("suspicion", suspicion)
    _check_mask("wanted", wanted, row.shape[1], "training sample")
    first = first_k(row, k)
    notes = [*_few("wanted", wanted), *_constant(row[0]), *first.notes()]
    values = first.membership()[0][wanted]
    return estimate(f"recall at {k}", values, over="wanted samples", chance=k / row.shape[1], notes=notes)


def _same_label(
    metric: str,
    scores: Scores,
    train_labels: Tensor,
    test_labels: Tensor,
    k: int,
    rows: Tensor | None,
    notes: Sequence[str] = (),
) -> Estimate:
    matrix = proponent_scores(scores, k=k)
    _same_length("train labels", train_labels, matrix.shape[1], "training sample")
    _same_length("test labels", test_labels, len(matrix), "test sample")
    rows = _counting(rows, len(matrix))
    matrix, same = matrix[rows], train_labels == test_labels[rows, None]
    first, counts = first_k(matrix, k), same.sum(1)
    notes = [*notes, *_nobody(rows), *constancy_notes(matrix), *first.notes()]
    absent = int((counts == 0).sum())
    if absent:
        notes.append(f"the class of {absent} of {len(matrix)} test samples has no training sample")
    chance = float(counts.double().mean()) / matrix.shape[1] if len(matrix) else None
    return estimate(metric, _placed(first.expected(same) / k, rows), chance=chance, notes=notes)


def _average_precision(metric: str, scores: Scores, wanted: Tensor, rows: Tensor | None, adjective: str) -> Estimate:
    matrix = proponent_scores(scores)
    _check_mask(adjective, wanted, matrix.shape[1], "training sample")
    rows = _counting(rows, len(matrix))
    matrix, num_wanted = matrix[rows], int(wanted.sum())
    notes = [*_nobody(rows), *_few(adjective, wanted), *constancy_notes(matrix)]
    if not num_wanted:
        return estimate(metric, _placed(matrix.new_full((len(matrix),), torch.nan), rows), notes=notes)
    blocks = [average_precision(matrix[block], wanted) for block in row_blocks(matrix)]
    values = torch.cat(blocks) if blocks else matrix.new_zeros(0)
    chance = chance_of_average_precision(num_wanted, matrix.shape[1])
    return estimate(metric, _placed(values, rows), chance=chance, notes=notes)


def average_precision(scores: Float[Tensor, "test train"], wanted: Bool[Tensor, " train"]) -> Float[Tensor, " test"]:
    """Return the average precision of each row, averaged over all orders of equal scores.

    In a group of g equal scores with p wanted ones, behind a samples with A wanted ones, place j holds
    a wanted one with probability p/g, and then (j − 1)(p − 1)/(g − 1) wanted ones stand before it in the
    group on average. So each of its p wanted samples adds, with h = Σ_{j ≤ g} 1/(a + j),

        1/g · Σ_j (A + 1 + (j − 1)(p − 1)/(g − 1)) / (a + j) = ((A + 1) h + (p − 1)/(g − 1) · (g − (a + 1) h)) / g.

    Differs from scikit-learn's, which gives a group the precision at its end: m/n for constant scores,
    below what a random order has. Without ties both are the same.
    """
    num_train = scores.shape[1]
    # numpy sorts values alone ten times as fast as torch; the places of the wanted ones are looked up
    ordered = torch.from_numpy(np.sort(scores.numpy(), axis=1))
    found = torch.from_numpy(np.sort(scores[:, wanted].numpy(), axis=1))
    above, group = _place_among(ordered, found)
    wanted_above, wanted_group = _place_among(found, found)
    harmonic = _harmonic(num_train)
    h = torch.where(group == 1, 1 / (above + 1).double(), harmonic[above + group] - harmonic[above])
    density = (wanted_group - 1).double() / (group - 1).clamp(min=1)
    return (((wanted_above + 1) * h + density * (group - (above + 1) * h)) / group).mean(1)


def chance_of_average_precision(num_wanted: int, num_train: int) -> float:
    """Return the mean average precision over all orders: that of one group of equals."""
    total = float(_harmonic(num_train)[-1])
    density = (num_wanted - 1) / max(num_train - 1, 1)
    return (total + density * (num_train - total)) / num_train


def _harmonic(n: int) -> Float[Tensor, " n_plus_1"]:
    """Return H_0 … H_n, H_i = 1 + 1/2 + … + 1/i."""
    return torch.cat([torch.zeros(1).double(), (1 / torch.arange(1, n + 1).double()).cumsum(0)])


def _place_among(ordered: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of each rising row are larger than each value, and how many are equal to it."""
    above = torch.searchsorted(ordered, values, right=True)
    return ordered.shape[1] - above, above - torch.searchsorted(ordered, values)


def _counts(train_labels: Tensor, test_labels: Tensor) -> Float[Tensor, " test"]:
    """Count the training samples that have each test sample's label."""
    ordered = train_labels.sort().values
    ends = [torch.searchsorted(ordered, test_labels.contiguous(), right=right) for right in (False, True)]
    return (ends[1] - ends[0]).double()


def _counting(rows: Tensor | None, num_test: int) -> Bool[Tensor, " test"]:
    rows = torch.ones(num_test, dtype=torch.bool) if rows is None else rows
    _check_mask("rows that count", rows, num_test, "test sample")
    return rows


def _placed(values: Tensor, rows: Tensor) -> Float[Tensor, " test"]:
    """Return the values at their test rows, NaN at the others."""
    whole = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    whole[rows] = values.double()
    return whole


def _one_row(name: str, values: Tensor) -> Float[Tensor, "1 train"]:
    if values.ndim != 1 or not len(values) or not values.is_floating_point():
        found = f"{values.dtype} of shape {tuple(values.shape)}"
        raise ValueError(f"`{name}` must be a float tensor with one number a training sample; it is {found}")
    values = values.detach().cpu()
    if not torch.isfinite(values).all():
        bad = (~torch.isfinite(values)).nonzero().squeeze(1)
        raise NonFiniteError(
            f"`{name}` is NaN or infinite for {len(bad)} of {len(values)} training samples, the first of them "
            f"sample {int(bad[0])}; mend it, or leave these samples out",
            tuple(bad[:10].tolist()),
        )
    return values[None]


def _same_length(name: str, values: Tensor, expected: int, what: str) -> None:
    if values.shape != (expected,):
        raise ValueError(f"{name}: shape {tuple(values.shape)}; expected ({expected},), one entry a {what}")


def _check_mask(name: str, values: Tensor, expected: int, what: str) -> None:
    if values.dtype != torch.bool:
        raise ValueError(f"{name}: {values.dtype}; expected a bool tensor, True for each {what} that is meant")
    _same_length(name, values, expected, what)


def _nobody(rows: Tensor) -> list[str]:
    return [] if rows.any() else ["no test sample qualifies"]


def _few(adjective: str, wanted: Tensor) -> list[str]:
    count = int(wanted.sum())
    if 1 < count < len(wanted):
        return []
    who = {0: "no training sample is", 1: "only one training sample is"}.get(count, "every training sample is")
    return [f"{who} {adjective}"]


def _constant(suspicion: Tensor) -> list[str]:
    return ["the suspicion is constant, which orders nothing"] if suspicion.amin() == suspicion.amax() else []
