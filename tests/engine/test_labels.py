"""Labels of every form become output columns, or the error says which sample's is none."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualview.engine.labels import columns_of, targets_of

EXPECTED = torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([2, 0, 1]),
        torch.tensor([2, 0, 1], dtype=torch.uint8),
        torch.tensor([2.0, 0.0, 1.0]),
        torch.tensor([[2], [0], [1]]),
        torch.tensor([2.0, 0.0, 1.0], requires_grad=True),
        [2, 0, 1],
        (2, 0, 1),
        [torch.tensor(2), torch.tensor(0), torch.tensor(1)],
        np.array([2, 0, 1]),
        np.array([1, 0, 2])[::-1],
        pd.Series([2, 0, 1], index=[7, 8, 9]),
    ],
    ids=["int64", "uint8", "float", "column", "tracked", "list", "tuple", "scalars", "array", "mirrored", "series"],
)
def test_whole_numbers_in_any_form_are_columns(labels):
    columns = columns_of(labels, 3)
    assert columns.dtype == torch.int64
    assert torch.equal(columns, EXPECTED)


def test_truth_values_are_the_columns_of_two_classes():
    assert torch.equal(columns_of(torch.tensor([True, False]), 2), torch.tensor([1, 0]))
    assert torch.equal(columns_of([True, False], 2), torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["cat", "dog", "cat"], {"dog": 0, "cat": 1}),
        (("cat", "dog", "cat"), {"dog": 0, "cat": 1}),
        (np.array(["cat", "dog", "cat"]), {"dog": 0, "cat": 1}),
        (pd.Series(["cat", "dog", "cat"], index=[4, 5, 6]), {"dog": 0, "cat": 1}),
        (torch.tensor([7, -1, 7]), {-1: 0, 7: 1}),
        (torch.tensor([[7], [-1], [7]]), {-1: 0, 7: 1}),
        (torch.tensor([7.0, -1.0, 7.0]), {-1: 0, 7: 1}),
        (torch.tensor([7, -1, 7]), {"-1": 0, "7": 1}),
        (torch.tensor([7.0, -1.0, 7.0]), {"-1": 0, "7": 1}),
        (torch.tensor([0.5, 2.0, 0.5]), {2: 0, 0.5: 1}),
        (torch.tensor([True, False, True]), {False: 0, True: 1}),
    ],
    ids=["words", "tuple", "array", "series", "numbers", "column", "floats", "json", "floats json", "mixed", "bool"],
)
def test_classes_map_labels_to_columns(labels, classes):
    assert torch.equal(columns_of(labels, 2, classes), torch.tensor([1, 0, 1]))


@given(st.lists(st.integers(-5, 12), min_size=1, max_size=30), st.integers(1, 10), st.integers(0, 1000))
def test_the_first_label_outside_is_named_with_its_sample(labels, num_classes, start):
    outside = [k for k, label in enumerate(labels) if not 0 <= label < num_classes]
    if not outside:
        assert columns_of(labels, num_classes, start=start).tolist() == labels
        return
    k = outside[0]
    message = rf"^label {labels[k]} \(sample {start + k}\) is no output column: .* columns 0 to {num_classes - 1}\."
    with pytest.raises(ValueError, match=message):
        columns_of(labels, num_classes, start=start)


def test_a_label_that_classes_do_not_know_is_named_with_its_sample():
    with pytest.raises(ValueError, match=r"label 'cow' \(sample 11\) is not in classes=, which knows 'cat', 'dog'$"):
        columns_of(["cat", "cow"], 2, {"cat": 0, "dog": 1}, start=10)
    with pytest.raises(ValueError, match=r"knows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …$"):
        columns_of([99], 20, {k: k for k in range(20)})
    with pytest.raises(ValueError, match=r"label 5 \(sample 1\) is no output column"):
        columns_of(["cat", "dog"], 2, {"cat": 0, "dog": 5})


@pytest.mark.parametrize(
    ("labels", "first"),
    [(["cat", "dog"], "'cat'"), (np.array(["cat"]), "cat"), ([None, 1], "None"), (("a", 1), "'a'")],
    ids=["list", "array", "none", "mixed"],
)
def test_words_without_classes_ask_for_them(labels, first):
    with pytest.raises(ValueError, match=f"labels such as .*{first}.* are no output columns: give classes="):
        columns_of(labels, 2)


NAMES = ("benign", "malignant", "crane", "crane", "benign naevus")


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series], ids=["list", "tuple", "array", "series"])
def test_a_name_that_stands_once_is_a_label(kind):
    words = kind(["malignant", "benign", "malignant"])
    assert torch.equal(columns_of(words, 5, names=NAMES), torch.tensor([1, 0, 1]))


def test_classes_go_before_names_and_numbers_stay_columns():
    known = {"benign": 3, "a": 0}
    assert torch.equal(columns_of(["benign", "malignant", "a"], 5, known, names=NAMES), torch.tensor([3, 1, 0]))
    assert torch.equal(columns_of([1, 0], 2, names=("1", "0")), torch.tensor([1, 0]))
    assert torch.equal(columns_of(["1", "0"], 2, names=("1", "0")), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"label 'crane' .* is not in classes=, which knows 'benign', 'a'; .*2 output"):
        columns_of(["crane"], 5, known, names=NAMES)
    with pytest.raises(ValueError, match=r"label 7 \(sample 0\) is not in classes=, which knows 'benign', 'a'$"):
        columns_of([7], 5, known, names=NAMES)


def test_a_word_that_is_no_name_is_told_its_near_ones():
    with pytest.raises(ValueError, match=r"label 'Bening' \(sample 11\) is no class name: did you mean 'benign'\?$"):
        columns_of(["malignant", "Bening"], 5, names=NAMES, start=10)
    with pytest.raises(
        ValueError, match=r"label 'xyz' \(sample 0\) is no class name: class_names are 'n0', .*'n9', …$"
    ):
        columns_of(["xyz"], 20, names=[f"n{k}" for k in range(20)])
    with pytest.raises(ValueError, match=r"label 'crane' .* name of 2 output columns: give one of 2, 3$"):
        columns_of(["crane"], 5, names=NAMES)
    with pytest.raises(ValueError, match=r"label 4 \(sample 0\) is no output column"):
        columns_of(["benign naevus"], 4, names=NAMES)


def test_several_labels_per_sample_are_refused():
    one_hot = torch.eye(3)
    with pytest.raises(ValueError, match=r"shape \(3, 3\); expected one label per sample.*multi-label.*one-hot"):
        columns_of(one_hot, 3)
    with pytest.raises(ValueError, match=r"shape \(\); expected one label per sample"):
        columns_of(torch.tensor(1), 3)
    with pytest.raises(ValueError, match=r"sample 4 has the labels \[1, 0\]; expected one label per sample"):
        columns_of(torch.tensor([[1, 0]]), 2, {0: 0, 1: 1}, start=4)


def test_numbers_that_are_no_labels_are_refused():
    for values in ([0.5, 1.0], [float("nan"), 1.0]):
        with pytest.raises(ValueError, match='not whole numbers; .*problem="regression"'):
            columns_of(torch.tensor(values), 3)
    with pytest.raises(ValueError, match="complex"):
        columns_of(torch.tensor([1j]), 3)
    with pytest.raises(ValueError, match=r"label -100 \(sample 0\) is no output column"):  # torch's ignore_index
        columns_of(torch.tensor([-100]), 3)


# ── numbers to be met, and several labels a sample ───────────────────────────────────────────────

NUMBERS = torch.tensor([[3.5], [-1.0], [0.25]])


@pytest.mark.parametrize(
    "labels",
    [
        NUMBERS,
        NUMBERS.squeeze(1),
        NUMBERS.double(),
        NUMBERS.bfloat16(),
        NUMBERS.clone().requires_grad_(),
        NUMBERS.numpy(),
        NUMBERS.flip(0).numpy()[::-1],
        pd.Series([3.5, -1.0, 0.25], index=[7, 8, 9]),
        [3.5, -1.0, 0.25],
        [torch.tensor(3.5), torch.tensor(-1), torch.tensor(0.25)],
        ([3.5], [-1], [0.25]),
    ],
    ids=["column", "flat", "double", "half", "tracked", "array", "mirrored", "series", "list", "scalars", "tuple"],
)
def test_numbers_in_any_form_are_one_row_a_sample(labels):
    found = targets_of(labels, "regression", 1)
    assert torch.equal(found.float(), NUMBERS) and found.dtype in (torch.float32, torch.float64)
    assert not found.requires_grad


def test_truth_values_of_several_classes():
    expected = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    for labels in (expected, expected.bool(), expected.long(), expected.numpy(), expected.tolist()):
        assert torch.equal(targets_of(labels, "multi-label", 3).float(), expected)


def test_classes_stay_what_they_were():
    assert torch.equal(targets_of(["cat", "dog"], "classification", 2, {"dog": 0, "cat": 1}), torch.tensor([1, 0]))


@pytest.mark.parametrize(
    ("labels", "problem", "columns", "message"),
    [
        ([1.0, 2.0], "regression", 3, r"shape \(2,\); a regression task of 3 output columns needs \(row, 3\)"),
        (torch.zeros(2, 3), "multi-label", 4, r"shape \(2, 3\); a multi-label task of 4 output columns"),
        (torch.zeros(2, 1, 1), "regression", 1, r"shape \(2, 1, 1\)"),
        ([0.5, float("inf")], "regression", 1, "the targets of sample 11 are not finite numbers"),
        ([[0, 1], [0, 2]], "multi-label", 2, "the targets of sample 11 are not 0 or 1 for each class"),
        ([[0, float("nan")]], "multi-label", 2, "the targets of sample 10 are not 0 or 1"),
        (["a", "b"], "regression", 1, "`targets` such as 'a' are no rows of numbers"),
        ([None, 1.0], "regression", 1, "`targets` such as None are no rows of numbers"),
        ([[1.0, 2.0], [3.0]], "regression", 2, r"`targets` such as \[1.0, 2.0\] are no rows of numbers"),
        (torch.tensor([1j]), "regression", 1, "`targets` are complex numbers; expected real ones"),
    ],
    ids=["flat", "columns", "axes", "infinite", "count", "nan", "words", "none", "ragged", "complex"],
)
def test_labels_that_are_no_such_numbers_are_refused(labels, problem, columns, message):
    with pytest.raises(ValueError, match=message):
        targets_of(labels, problem, columns, start=10)
