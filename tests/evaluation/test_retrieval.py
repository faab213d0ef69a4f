"""What scores find, on examples counted by hand, over all orders, and beside scikit-learn."""

import inspect
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from dualview.errors import NonFiniteError
from dualview.evaluation.retrieval import (
    by_highest,
    class_detection,
    found_among,
    mislabel_detection,
    mixed_data_detection,
    recall_at,
    share_among,
    shortcut_detection,
    subclass_detection,
)

WANTED = torch.tensor([False, True, False, True, True])


@pytest.mark.parametrize(("k", "found"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_found_among(k: int, found: int):
    assert found_among(torch.tensor([3, 0, 1, 2, 4]), WANTED, k) == found


def test_found_among_a_short_ranking():
    assert found_among(torch.tensor([4, 2]), WANTED, 2) == 1


@pytest.mark.parametrize("k", [0, 6, -1])
def test_found_among_more_than_there_are_is_refused(k: int):
    with pytest.raises(ValueError, match=f"`k` is {k}; expected 1 to 5"):
        found_among(torch.arange(5), WANTED, k)


def test_share_among_leaves_out_empty_places():
    neighbours = torch.tensor([[1, 0, -1], [3, 4, 2], [-1, -1, -1]])
    assert share_among(neighbours, WANTED) == pytest.approx(3 / 5)
    assert share_among(neighbours[:1], WANTED) == 0.5
    assert math.isnan(share_among(neighbours[2:], WANTED))


def test_by_highest_breaks_ties_by_position():
    assert by_highest(torch.tensor([1.0, 3.0, -2.0, 3.0, 1.0])).tolist() == [1, 3, 0, 4, 2]


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────

TRAIN_CLASSES = torch.tensor([0, 0, 1, 1, 1, 2])
HAND = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6], [9.0, 0, 0, 0, 0, 0]])


def orders(n: int) -> Tensor:
    """Return all n! rows of distinct scores."""
    return torch.tensor(list(itertools.permutations(range(n)))).double()


def slow_average_precision(order: Sequence[int], wanted: set[int]) -> float:
    hits, total = 0, 0.0
    for place, sample in enumerate(order, start=1):
        if sample in wanted:
            hits += 1
            total += hits / place
    return total / len(wanted)


def over_all_orders(row: list[float], value: Callable[[tuple[int, ...]], float]) -> float:
    """Average over the orders of the samples, equal ones standing as the order has them."""
    values = [value(tuple(sorted(o, key=lambda i: -row[i]))) for o in itertools.permutations(range(len(row)))]
    return sum(values) / len(values)


def assert_near_chance(values: Tensor, chance: float):
    """Four standard errors: a right closed form fails once in 16,000 draws of the seed."""
    assert abs(float(values.mean()) - chance) <= 4 * float(values.std()) / math.sqrt(len(values))


def test_class_detection_by_hand():
    found = class_detection(HAND, TRAIN_CLASSES, torch.tensor([0, 1, 1]), 3)
    # first three: 0 0 1; 2 1 1; sample 0 and two of five equal ones, three of which are of class 1
    assert found.values.tolist() == pytest.approx([2 / 3, 2 / 3, 2 * (3 / 5) / 3], abs=1e-15)
    assert found.chance == pytest.approx((2 + 3 + 3) / 18)
    assert found.notes == ("the k-th place is shared by equal scores for 1 of 3 rows: averaged over ties",)
    assert found.higher_is_better and found.metric == "class detection"


def test_class_detection_of_a_perfect_and_of_a_random_scorer():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.arange(60) % 4, torch.randint(4, (400,), generator=generator)
    noise = torch.rand(400, 60, generator=generator)
    assert class_detection((train == test[:, None]) + noise, train, test, 15).mean == 1
    assert class_detection((train != test[:, None]) + noise, train, test, 15).mean == 0
    found = class_detection(noise, train, test, 5)
    assert found.chance == 0.25
    assert_near_chance(found.values, 0.25)


def test_the_chance_of_class_detection_is_its_mean_over_all_orders():
    scores = orders(6)
    found = class_detection(scores, TRAIN_CLASSES, torch.ones(720, dtype=torch.int64), 4)
    assert found.mean == pytest.approx(found.chance, abs=1e-13) and found.chance == 0.5


def test_a_class_without_training_samples_is_said():
    found = class_detection(HAND, TRAIN_CLASSES, torch.tensor([0, 3, 3]), 2)
    assert found.values.tolist() == [1, 0, 0]
    assert "the class of 2 of 3 test samples has no training sample" in found.notes


def test_subclass_detection_counts_rightly_predicted_rows_only():
    train, test = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 3, 1])
    found = subclass_detection(
        HAND[[0, 1, 1]],
        train,
        test,
        2,
        correct=torch.tensor([True, False, True]),
        train_superclasses=train // 2,
        test_superclasses=test // 2,
    )
    assert found.values[[0, 2]].tolist() == [0.5, 0.5] and found.values[1].isnan()
    assert found.chance == pytest.approx((2 / 6 + 2 / 6) / 2)
    assert found.notes == (
        "a random choice within the superclass would give 0.5",
        "undefined for 1 of 3 test samples, which are left out",
    )
    everyone = subclass_detection(HAND[[0, 1, 1]], train, test, 2)
    assert everyone.values.tolist() == [0.5, 0, 0.5] and everyone.chance == pytest.approx((2 + 1 + 2) / 18)


def test_no_row_that_counts_is_said():
    nobody = torch.zeros(3, dtype=torch.bool)
    for found in (
        subclass_detection(HAND, TRAIN_CLASSES, TRAIN_CLASSES[:3], 2, correct=nobody),
        shortcut_detection(HAND, TRAIN_CLASSES == 1, nobody),
    ):
        assert math.isnan(found.mean) and found.num_samples == 0
        assert "no test sample qualifies" in found.notes


@pytest.mark.parametrize("wanted", [{0}, {1, 4}, {0, 2, 3}, set(range(6))], ids=str)
@pytest.mark.parametrize("row", [[1.0] * 6, [5.0, 4, 3, 2, 1, 0], [2.0, 2, 2, 1, 0, 0], [0.0, 0, 7, 0, 0, 1]], ids=str)
def test_average_precision_over_all_orders(row: list[float], wanted: set[int]):
    """To 1e-14 a place: differences of harmonic numbers."""
    mask = torch.tensor([i in wanted for i in range(6)])
    found = shortcut_detection(torch.tensor([row]), mask)
    expected = over_all_orders(row, lambda order: slow_average_precision(order, wanted))
    assert found.mean == pytest.approx(expected, abs=1e-13)
    chance = over_all_orders([0.0] * 6, lambda order: slow_average_precision(order, wanted))
    assert found.chance == pytest.approx(chance, abs=1e-13)


def test_average_precision_of_perfect_random_and_worst_scorers():
    generator = torch.Generator().manual_seed(0)
    marked = torch.arange(50) < 6
    noise = torch.rand(400, 50, generator=generator)
    found = shortcut_detection(noise, marked)
    assert_near_chance(found.values, found.chance)
    assert found.chance > 6 / 50  # a random order has more than the share of marked samples
    assert shortcut_detection(marked + noise, marked).values.tolist() == pytest.approx([1.0] * 400, abs=1e-13)
    worst = sum((i + 1) / (45 + i) for i in range(6)) / 6
    assert shortcut_detection(noise - marked.float(), marked).mean == pytest.approx(worst, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_average_precision_beside_scikit_learns(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    marked = torch.rand(300, generator=generator) < 0.1
    scores = torch.randn(20, 300, generator=generator, dtype=dtype)
    theirs = [average_precision_score(marked.numpy(), row.numpy()) for row in scores]
    assert shortcut_detection(scores, marked).values.tolist() == pytest.approx(theirs, abs=1e-12)
    # theirs gives a group of equal scores the precision at its end: below what a random order has on average
    constant = shortcut_detection(torch.zeros(1, 300), marked)
    share = float(marked.double().mean())
    assert average_precision_score(marked.numpy(), [0.0] * 300) == pytest.approx(share)
    assert constant.mean == pytest.approx(constant.chance, abs=1e-13) and constant.chance > share + 0.01


def test_average_precision_of_wide_ties_among_many_samples():
    """A closed form at the size of a data set: one group of 50,000 behind 100 unmarked samples."""
    num, above = 50_000, 100
    marked = torch.zeros(above + num, dtype=torch.bool)
    marked[above::1000] = True
    m = int(marked.sum())
    scores = (torch.arange(above + num) < above).float()[None]
    places = torch.arange(num).double()
    expected = float(((1 + places * (m - 1) / (num - 1)) / (above + 1 + places)).sum()) / num
    assert shortcut_detection(scores, marked).mean == pytest.approx(expected, rel=1e-9)


def test_mixed_data_detection_is_average_precision_under_its_name():
    foreign = TRAIN_CLASSES == 2
    found = mixed_data_detection(HAND, foreign, torch.tensor([True, True, False]))
    assert found.values[:2].tolist() == pytest.approx([1 / 6, 1.0], abs=1e-15) and found.values[2].isnan()
    assert found.metric == "mixed-data-set detection" and "only one training sample is foreign" in found.notes


@pytest.mark.parametrize(
    ("count", "note"), [(0, "no training sample is marked"), (6, "every training sample is marked")]
)
def test_marks_that_find_nothing_are_said(count: int, note: str):
    found = shortcut_detection(HAND, torch.arange(6) < count)
    assert note in found.notes
    assert (math.isnan(found.mean) and found.chance is None) if count == 0 else found.mean == found.chance == 1


def test_mislabel_detection_is_the_normalised_area_under_the_recall_curve():
    generator = torch.Generator().manual_seed(0)
    suspicion, flipped = torch.randn(40, generator=generator).double(), torch.arange(40) % 5 == 0
    n, k = 40, 8
    found_by = flipped[suspicion.argsort(descending=True)].double().cumsum(0) / k  # recall after each check
    area = float(found_by.mean())
    largest, smallest = ((k + 1) / 2 + n - k) / n, (k + 1) / (2 * n)
    found = mislabel_detection(suspicion, flipped)
    assert found.mean == pytest.approx((area - smallest) / (largest - smallest), abs=1e-14)
    assert found.num_samples == k and found.over == "flipped samples"
    assert found.mean == pytest.approx(roc_auc_score(flipped.numpy(), suspicion.numpy()), abs=1e-14)
    tied = suspicion.round()
    assert mislabel_detection(tied, flipped).mean == pytest.approx(roc_auc_score(flipped, tied), abs=1e-14)


def test_mislabel_detection_by_hand_at_best_at_worst_and_at_chance():
    flipped = torch.tensor([True, False, False, True, False])
    found = mislabel_detection(torch.tensor([3.0, 5, 3, 9, 1]), flipped)
    assert found.values.tolist() == pytest.approx([1.5 / 3, 1.0]) and found.chance == 0.5
    assert mislabel_detection(flipped.float(), flipped).mean == 1
    assert mislabel_detection(-flipped.float(), flipped).mean == 0
    still = mislabel_detection(torch.zeros(5), flipped)
    assert still.values.tolist() == [0.5, 0.5] and "the suspicion is constant, which orders nothing" in still.notes
    over_orders = torch.stack([mislabel_detection(row, flipped).values.mean() for row in orders(5)])
    assert float(over_orders.mean()) == pytest.approx(0.5, abs=1e-14)


@pytest.mark.parametrize(("count", "note"), [(0, "no training sample"), (1, "only one"), (4, "every training sample")])
def test_flips_that_say_little_are_said(count: int, note: str):
    found = mislabel_detection(torch.arange(4.0), torch.arange(4) < count)
    assert any(text.startswith(note) for text in found.notes)
    assert math.isnan(found.mean) == (count != 1)


def test_recall_at_by_hand_and_over_all_orders():
    wanted = torch.tensor([True, False, True, True, False])
    row = [4.0, 2, 2, 0, 2]
    found = recall_at(torch.tensor(row), wanted, 2)
    assert found.values.tolist() == pytest.approx([1, 1 / 3, 0], abs=1e-15)
    slow = over_all_orders(row, lambda order: len({0, 2, 3} & set(order[:2])) / 3)
    assert found.mean == pytest.approx(slow, abs=1e-14) and found.chance == 0.4
    assert "the k-th place is shared by equal scores for 1 of 1 rows: averaged over ties" in found.notes
    assert recall_at(wanted.float(), wanted, 3).mean == 1
    assert recall_at(torch.zeros(5), wanted, 3).mean == pytest.approx(3 / 5, abs=1e-15)
    over_orders = [recall_at(row, wanted, 2).mean for row in orders(5)]
    assert sum(over_orders) / 120 == pytest.approx(0.4, abs=1e-14)


def test_suspicions_and_masks_that_do_not_fit_are_refused():
    suspicion, mask = torch.arange(4.0), torch.tensor([True, False, False, True])
    with pytest.raises(NonFiniteError, match="NaN or infinite for 1 of 4 training samples, the first of them sample 2"):
        recall_at(torch.tensor([0, 1, math.nan, 2]), mask, 2)
    with pytest.raises(ValueError, match="`suspicion` must be a float tensor with one number a training sample"):
        mislabel_detection(torch.zeros(0), mask[:0])
    with pytest.raises(ValueError, match=r"flipped: shape \(3,\); expected \(4,\), one entry a training sample"):
        inspect.unwrap(mislabel_detection)(suspicion, mask[:3])  # past the check of annotations
    with pytest.raises(ValueError, match=r"train labels: shape \(5,\); expected \(6,\)"):
        class_detection(HAND, TRAIN_CLASSES[:5], TRAIN_CLASSES[:3])
    with pytest.raises(ValueError, match="go together; only one of them was given"):
        subclass_detection(HAND, TRAIN_CLASSES, TRAIN_CLASSES[:3], train_superclasses=TRAIN_CLASSES)
