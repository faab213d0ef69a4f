"""What every metric of scores has in common, and ties against all orders of the equal ones."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from dualview.data._attribution import DataAttribution
from dualview.errors import NonFiniteError
from dualview.evaluation import _scores
from dualview.evaluation._scores import (
    chance_of_jaccard,
    expected_jaccard,
    first_k,
    proponent_scores,
    raw_scores,
    row_blocks,
    summable,
)
from dualview.evaluation.retrieval import (
    class_detection,
    mixed_data_detection,
    shortcut_detection,
    subclass_detection,
)
from dualview.evaluation.sanity import (
    agreement,
    hoyer,
    model_randomisation,
    sparsity,
    stability,
    static_share,
    top_k_cardinality,
)
from dualview.evaluation.significance import significance

NUM_TEST, NUM_TRAIN = 7, 12
SCORES = torch.randn(NUM_TEST, NUM_TRAIN, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(NUM_TEST, NUM_TRAIN, generator=torch.Generator().manual_seed(1))
TIED = torch.randint(-2, 3, (NUM_TEST, NUM_TRAIN), generator=torch.Generator().manual_seed(2)).float()
LABELS = torch.arange(NUM_TRAIN) % 3
ASKED = torch.tensor([0, 1, 2, 0, 0, 2, 1])
MARKED = torch.arange(NUM_TRAIN) % 4 == 1
ROWS = ASKED < 2
EVERY_TRAIN, EVERY_TEST = torch.arange(NUM_TRAIN), torch.arange(NUM_TEST)

# (scores, order of the training samples, order of the test samples) → Estimate
METRICS = {
    "class": lambda s, train, test: class_detection(s, LABELS[train], ASKED[test], 4),
    "subclass": lambda s, train, test: subclass_detection(s, LABELS[train], ASKED[test], 4, correct=ROWS[test]),
    "shortcut": lambda s, train, test: shortcut_detection(s, MARKED[train], ROWS[test]),
    "mixed": lambda s, train, test: mixed_data_detection(s, MARKED[train]),
    "cardinality": lambda s, train, test: top_k_cardinality(s, 4),
    "static": lambda s, train, test: static_share(s, 4),
    "randomisation": lambda s, train, test: model_randomisation(s, OTHER[test][:, train]),
    "stability": lambda s, train, test: stability([s, OTHER[test][:, train], s]),
    "agreement": lambda s, train, test: agreement({"a": s, "b": OTHER[test][:, train]}).between("a", "b"),
    "sparsity": lambda s, train, test: sparsity(s, 0.4),
    "hoyer": lambda s, train, test: hoyer(s),
    "significant": lambda s, train, test: significance([s, OTHER[test][:, train]]).share_significant(0.3),
}
ORDERED = [name for name in METRICS if name not in ("sparsity", "hoyer", "significant")]


def attribution(scores: Tensor, **changes) -> DataAttribution:
    num_test, num_train = scores.shape
    fields = {
        "scores": scores,
        "train_index": torch.arange(num_train),
        "num_train": num_train,
        "kind": "effect",
        "measured": "loss",
        "linearised": False,
        "lower_is_better": False,
        "bias": torch.zeros(num_test),
        "bias_shares": torch.zeros(num_test, num_train),
        "test_index": torch.arange(num_test),
        "targets": torch.zeros(num_test, dtype=torch.int64),
        "predicted": torch.zeros(num_test, dtype=torch.int64),
        "train_targets": torch.zeros(num_train, dtype=torch.int64),
        "method": "Slow()",
    }
    return DataAttribution(**(fields | changes))


def test_proponents_of_a_loss_are_its_negative_scores():
    result = attribution(SCORES, lower_is_better=True)
    assert torch.equal(proponent_scores(result), -SCORES)
    assert torch.equal(proponent_scores(dataclasses.replace(result, lower_is_better=False)), SCORES)
    assert torch.equal(proponent_scores(SCORES.double()), SCORES.double())
    assert torch.equal(raw_scores(result), SCORES) and torch.equal(summable(result), SCORES)


def test_scores_of_other_types_are_read_or_refused():
    half = SCORES.half().requires_grad_()
    assert torch.equal(raw_scores(half), half.detach().float())
    for wrong in (SCORES[0], SCORES.long(), SCORES[:0]):
        with pytest.raises(ValueError, match='must be a float tensor "test train".*it is torch'):
            raw_scores(wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", METRICS)
def test_scores_that_are_no_numbers_are_refused(name: str, value: float):
    scores = SCORES.clone()
    scores[5, 3] = scores[2, 1] = value
    with pytest.raises(NonFiniteError, match="NaN or infinite in 2 of 7 rows, the first of them row 2") as caught:
        METRICS[name](scores, EVERY_TRAIN, EVERY_TEST)
    assert caught.value.index == (2, 5)


def test_sums_of_similarities_and_of_cut_results_are_refused():
    similar = attribution(SCORES, kind="similarity")
    with pytest.raises(ValueError, match=r"`scores` are similarities \(Slow\(\)\).*allow_similarity=True"):
        summable(similar)
    assert torch.equal(summable(similar, allow_similarity=True), SCORES)
    assert torch.equal(summable(SCORES), SCORES)
    with pytest.raises(ValueError, match="holds only the top 3 of each sign, and all scores are needed"):
        summable(attribution(SCORES, top_k=3))


def test_a_cut_result_serves_as_many_proponents_as_it_holds():
    cut = attribution(SCORES, top_k=4)
    assert torch.equal(class_detection(cut, LABELS, ASKED, 4).values, class_detection(SCORES, LABELS, ASKED, 4).values)
    with pytest.raises(ValueError, match="top 4 of each sign, and the 5 strongest are needed.*or with top=5"):
        class_detection(cut, LABELS, ASKED, 5)
    with pytest.raises(ValueError, match="all scores are needed"):
        shortcut_detection(cut, MARKED)


def test_a_cut_result_without_enough_proponents_is_refused():
    """What was cut may be stronger than the opponents that were kept."""
    few = SCORES.abs().clone()
    few[3, 2:] *= -1
    with pytest.raises(ValueError, match="test row 3 has only 2 proponents: the 3 strongest cannot be told"):
        raw_scores(attribution(few, top_k=4), k=3)
    assert torch.equal(raw_scores(attribution(few, top_k=4), k=2), few)
    raw_scores(dataclasses.replace(attribution(-few, top_k=4), lower_is_better=True), k=2)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "significant"])  # that keeps the sign
def test_a_loss_is_read_the_other_way_round(name: str):
    loss = METRICS[name](attribution(-SCORES, lower_is_better=True), EVERY_TRAIN, EVERY_TEST)
    plain = METRICS[name](SCORES, EVERY_TRAIN, EVERY_TEST)
    torch.testing.assert_close(loss.values, plain.values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scores", [SCORES, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_samples_does_not_matter(name: str, scores: Tensor):
    """To rounding: sums over training samples run in another order."""
    train = torch.randperm(NUM_TRAIN, generator=torch.Generator().manual_seed(3))
    test = torch.randperm(NUM_TEST, generator=torch.Generator().manual_seed(4))
    before = METRICS[name](scores, EVERY_TRAIN, EVERY_TEST)
    after = METRICS[name](scores[test][:, train], train, test)
    torch.testing.assert_close(after.values, before.values[test], rtol=1e-12, atol=1e-12, equal_nan=True)
    assert after.chance == before.chance or after.chance == pytest.approx(before.chance)
    assert after.notes == before.notes


@pytest.mark.parametrize("name", ORDERED)
def test_constant_scores_are_at_chance_and_said_to_be_constant(name: str):
    """To 1e-12: the logarithms of factorials behind static_share are good to 1e-14."""
    scores = torch.full((NUM_TEST, NUM_TRAIN), 0.3)
    found = METRICS[name](scores, EVERY_TRAIN, EVERY_TEST)
    assert found.mean == pytest.approx(found.chance, abs=1e-12)
    assert any("test samples have constant scores" in note for note in found.notes)


@pytest.mark.parametrize("name", METRICS)
def test_blocks_of_rows_change_nothing(name: str, monkeypatch):
    whole = METRICS[name](TIED, EVERY_TRAIN, EVERY_TEST)
    monkeypatch.setattr(_scores, "BLOCK_ENTRIES", 2 * NUM_TRAIN)
    assert [len(TIED[block]) for block in row_blocks(TIED)] == [2, 2, 2, 1]
    found = METRICS[name](TIED, EVERY_TRAIN, EVERY_TEST)
    torch.testing.assert_close(found.values, whole.values, rtol=1e-13, atol=1e-13, equal_nan=True)


# ── ties ─────────────────────────────────────────────────────────────────────────────────────────


def lists_over_all_orders(row: list[float], k: int) -> list[set[int]]:
    """Return the first k for every order of the samples in which equal ones keep that order."""
    orders = itertools.permutations(range(len(row)))
    return [set(sorted(order, key=lambda i: -row[i])[:k]) for order in orders]


@pytest.mark.parametrize("row", [[1.0, 1, 1, 1, 1], [3.0, 1, 1, 0, 1], [2.0, 2, 1, 0, 0], [0.0, 2, 0, 0, 2]], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_who_is_among_the_first_k_over_all_orders(row: list[float], k: int):
    lists = lists_over_all_orders(row, k)
    expected = [sum(i in chosen for chosen in lists) / len(lists) for i in range(5)]
    first = first_k(torch.tensor([row]), k)
    assert first.membership()[0].tolist() == pytest.approx(expected, abs=1e-15)
    wanted = torch.tensor([True, False, True, True, False])
    assert first.expected(wanted).item() == pytest.approx(expected[0] + expected[2] + expected[3], abs=1e-15)
    assert bool(first.notes()) == (len(set(map(frozenset, lists))) > 1)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_more_than_there_are_is_refused(k: int):
    with pytest.raises(ValueError, match=f"`k` is {k}; expected 1 to 5, the number of training samples"):
        first_k(torch.zeros(2, 5), k)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_expected_jaccard_index_over_all_pairs_of_orders(k: int):
    rows = [[1.0, 1, 1, 1, 1], [3.0, 1, 1, 0, 1], [2.0, 2, 1, 0, 0], [0.0, 2, 0, 0, 2], [5.0, 4, 3, 2, 1]]
    lists = [lists_over_all_orders(row, k) for row in rows]
    found = expected_jaccard(first_k(torch.tensor(rows), k), k)
    for s, t in itertools.product(range(5), range(5)):
        indices = [len(a & b) / len(a | b) for a in lists[s] for b in lists[t]] if s != t else [0.0]
        assert found[s, t].item() == pytest.approx(math.fsum(indices) / len(indices), abs=1e-13)
    two = expected_jaccard(first_k(torch.tensor(rows[:2]), k), k)
    torch.testing.assert_close(two, found[:2, :2], rtol=0, atol=1e-14)
    constant = [len(a & b) / len(a | b) for a in lists[0] for b in lists[0]]
    assert chance_of_jaccard(k, 5) == pytest.approx(math.fsum(constant) / len(constant), abs=1e-13)
