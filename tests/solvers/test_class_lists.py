"""The regime for many classes against the dense one, whose every row holds all classes."""

import tracemalloc

import numpy as np
import pytest

from dualview.solvers.crammer_singer import _lists_loop, class_lists
from dualview.solvers.crammer_singer.certificate import certify
from dualview.solvers.crammer_singer.class_lists import ClassListAscent, SparseRows
from dualview.solvers.crammer_singer.problem import pose
from dualview.solvers.crammer_singer.rows import Rows
from dualview.solvers.crammer_singer.sequential import Patience, SequentialAscent

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
ENDLESS = Patience(99, dual=0.0, gap=1.0)


def overlapping(num_classes, num_rows=240, width=20, seed=0):
    """Non-negative features of classes that overlap, a tenth of the labels drawn anew."""
    values = np.random.default_rng(seed)
    centres = values.normal(size=(num_classes, width))
    labels = np.arange(num_rows) % num_classes
    features = np.maximum(centres[labels] + values.normal(size=(num_rows, width)), 0)
    drawn_anew = values.random(num_rows) < 0.1
    labels[drawn_anew] = values.integers(num_classes, size=drawn_anew.sum())
    return features, labels


def solved(rows, kind=ClassListAscent, gap=1e-9, dtype=FLOAT64, **settings):
    """Solve to the gap, and return the ascent with its certificate."""
    ascent = kind(rows, dtype=dtype, **settings)
    assert ascent.run(gap, 1e5, ENDLESS) == "reached"
    return ascent, certified(rows, ascent.best)


def certified(rows, best):
    return certify(rows.problem, rows.given(best), 0.0)


def bound(certificate):
    """‖weights - optimal weights‖ is no larger."""
    return np.sqrt(2 * max(certificate.primal - certificate.dual, 0.0))


def assert_agree(first, second):
    assert max(first.gap, second.gap) <= 1.01e-9
    assert np.linalg.norm(first.weights - second.weights) <= bound(first) + bound(second)
    assert first.dual <= second.primal and second.dual <= first.primal


@pytest.mark.parametrize("num_classes", [60, 120])
@pytest.mark.parametrize("C", [1e-4, 0.01, 0.3])
def test_lists_and_all_classes_find_the_same_solution(num_classes, C):
    features, labels = overlapping(num_classes)
    rows = Rows(pose(features, labels, C=C), dtype=FLOAT64, seed=0)
    assert_agree(solved(rows)[1], solved(rows, SequentialAscent)[1])


def test_coefficients_agree_where_they_are_unique():
    """With more columns than rows phi_i are independent, so that W determines alpha = W phi⁺."""
    values = np.random.default_rng(1)
    features, labels = values.normal(size=(120, 150)), np.arange(120) % 60
    rows = Rows(pose(features, labels, C=0.1), dtype=FLOAT64, seed=0)
    first, second = (solved(rows, kind)[1] for kind in (ClassListAscent, SequentialAscent))
    difference = (first.coefficients - second.coefficients).to_dense().numpy()
    least = np.linalg.svd(np.c_[features, np.ones(120)], compute_uv=False)[-1]
    assert np.linalg.norm(difference) <= (bound(first) + bound(second)) / least


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_gap_is_that_of_the_best_coefficients(dtype):
    """Scores are of order one; their rounding enters the gap times the sum of costs."""
    features, labels = overlapping(60)
    rows = Rows(pose(features.astype(np.float32), labels, C=0.01), dtype=FLOAT32, seed=0)
    ascent, certificate = solved(rows, gap=1e-3, dtype=dtype)
    rounding = 100 * np.finfo(dtype).eps * rows.costs.sum() / certificate.primal
    assert certificate.gap == pytest.approx(ascent.gap, abs=rounding + 1e-12)
    assert ascent.best.values.dtype == dtype


def test_lists_that_would_be_too_long_reach_less_far(monkeypatch):
    features, labels = overlapping(60)
    rows = Rows(pose(features, labels, C=0.01), dtype=FLOAT64, seed=0)
    expected = solved(rows)[1]
    monkeypatch.setattr(class_lists, "_FIRST_REACH", 2.0)
    monkeypatch.setattr(class_lists, "_LONGEST_LISTS", 1)
    monkeypatch.setattr(class_lists, "BLOCK_ROWS", 16)  # a sample that says little of the others
    calls = []
    shorten = ClassListAscent._shorten
    monkeypatch.setattr(ClassListAscent, "_shorten", lambda ascent: (calls.append(1), shorten(ascent)))
    assert_agree(solved(rows)[1], expected)
    assert calls


def test_no_list_is_cut_where_rows_have_many_coefficients():
    """Orthogonal rows: only one's own class can be told from the others, so that all K - 1 share its cost."""
    features, labels = np.eye(80), np.arange(80)
    rows = Rows(pose(features, labels, C=0.01), dtype=FLOAT64, seed=0)
    ascent, certificate = solved(rows, gap=1e-12)
    counts = (certificate.coefficients.to_dense() != 0).sum(1)
    assert (counts == 80).all() and len(ascent.best.values) == 80 * 80
    assert_agree(certificate, solved(rows, SequentialAscent)[1])


def test_rows_of_equal_content_under_many_labels_and_zero_rows():
    values = np.random.default_rng(3)
    features, labels = overlapping(60, num_rows=240)
    features[:60] = values.normal(size=20)
    features[60:130] = 0
    labels[:60] = np.arange(60)
    rows = Rows(pose(features, labels, C=0.05), dtype=FLOAT64, seed=0)
    assert_agree(solved(rows)[1], solved(rows, SequentialAscent)[1])


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_start_from_another_C(factor):
    features, labels = overlapping(70)
    rows = Rows(pose(features, labels, C=0.02), dtype=FLOAT64, seed=0)
    start = solved(rows)[0].best
    kept = start.values.copy()
    other = rows.at(0.02 * factor)
    ascent, certificate = solved(other, start=start)
    assert_agree(certificate, solved(other)[1])
    assert ClassListAscent(rows, dtype=FLOAT64, start=start).gap <= 1e-9
    np.testing.assert_array_equal(start.values, kept)


def test_costs_differ_by_row():
    features, labels = overlapping(60)
    weights = np.random.default_rng(4).choice([0.0, 0.01, 1.0, 30.0], size=len(labels))
    rows = Rows(pose(features, labels, C=0.01, sample_weight=weights), dtype=FLOAT64, seed=0)
    assert len(rows) < len(labels)
    assert_agree(solved(rows)[1], solved(rows, SequentialAscent)[1])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_rows_gathered_from_the_features_give_the_same_optimum(dtype):
    features, labels = overlapping(60, width=30)
    features[:, 7] = 0
    problem = pose(features.astype(dtype), labels, C=0.01)
    copied, gathered = (Rows(problem, dtype=dtype, seed=0, low_memory=low) for low in (False, True))
    assert len(gathered.live) == 29 and len(copied.live) == 0
    assert_agree(solved(copied)[1], solved(gathered)[1])


def test_widening_goes_on_from_the_best():
    features, labels = overlapping(60)
    rows = Rows(pose(features.astype(np.float32), labels, C=0.05), dtype=FLOAT32, seed=0)
    ascent, before = solved(rows, gap=1e-4, dtype=FLOAT32)
    ascent = ClassListAscent(rows, dtype=FLOAT64, start=ascent.best)  # as a run that widens does
    assert ascent.dtype == FLOAT64 and ascent.gap == pytest.approx(before.gap, rel=0.1)
    assert ascent.run(1e-9, 1e5, ENDLESS) == "reached"
    assert_agree(certified(rows, ascent.best), solved(rows, SequentialAscent)[1])


def test_dual_never_falls():
    """Each step is the exact maximum over one row; weights rebuilt from the coefficients change nothing."""
    features, labels = overlapping(60)
    rows = Rows(pose(features, labels, C=0.1), dtype=FLOAT64, seed=0)
    ascent = ClassListAscent(rows, dtype=FLOAT64)
    duals, passes = [], 0.0
    while ascent.gap > 1e-9:
        ascent.run(1e-9, passes + 1, ENDLESS)
        passes = ascent.passes
        duals.append(ascent._last.dual)
    assert len(duals) > 5
    assert (np.diff(duals) >= -1e-13 * duals[-1]).all()


@pytest.mark.parametrize(("stored", "dtype"), [(FLOAT32, FLOAT32), (FLOAT32, FLOAT64), (FLOAT64, FLOAT64)])
def test_compiled_and_plain_loops_agree(stored, dtype):
    """Both visit the same rows in the same order and differ in how they order the sum of a product.

    A list may close over a class one rounding error away, or not; its coefficient is then as small.
    """
    features, labels = overlapping(9, num_rows=31, width=4)
    rows = [Rows(pose(features.astype(stored), labels, C=0.3), dtype=stored, seed=1) for _ in range(2)]
    ends = [
        ClassListAscent(own, dtype=dtype, compiled=compiled) for own, compiled in zip(rows, (True, False), strict=True)
    ]
    for end in ends:
        end.run(1e-30, 12.0, ENDLESS)
    first, second = (end.best[:] for end in ends)
    np.testing.assert_allclose(first, second, atol=2000 * np.finfo(dtype).eps)
    assert ends[0].passes == pytest.approx(ends[1].passes, rel=0.1)


def test_sweep_over_a_block_steps_one_row_after_another():
    """Against the projection by bisection, the scores of each row being those of the weights at its turn."""
    values = np.random.default_rng(5)
    num_classes, C = 7, 0.4
    features, targets = values.normal(size=(5, 3)), values.integers(num_classes, size=5)
    weights = values.normal(size=(num_classes, 3))
    expected = weights.copy()
    sq_norms = (features**2).sum(1)
    u = np.zeros((5, num_classes))
    for i, y in enumerate(targets):
        one = np.arange(num_classes) == y
        point = one + (expected @ features[i] + ~one) / (C * sq_norms[i])
        low, high = point.min() - 1, point.max()
        for _ in range(200):
            tau = (low + high) / 2
            low, high = (tau, high) if np.maximum(point - tau, 0).sum() > 1 else (low, tau)
        u[i] = one - np.maximum(point - tau, 0)
        expected += C * u[i][:, None] * features[i]
    starts, classes, made = np.zeros(6, np.int64), np.zeros(35, np.int32), np.zeros(35)
    filled = _lists_loop.sweep(
        features @ weights.T, features @ features.T, features, targets, np.full(5, C), sq_norms,
        np.arange(6), targets.astype(np.int32), np.zeros(5), weights, starts, classes, made, 0,
    )  # fmt: skip
    rows = SparseRows(starts, classes[:filled], made[:filled], num_classes)
    np.testing.assert_allclose(rows[:], u, atol=1e-12)
    np.testing.assert_allclose(weights, expected, atol=1e-12)


def test_same_seed_same_bits():
    features, labels = overlapping(60)
    problem = pose(features.astype(np.float32), labels, C=0.01)
    first, again, other = (
        solved(Rows(problem, dtype=FLOAT32, seed=seed), gap=1e-4, dtype=FLOAT32)[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.best.starts, again.best.starts)
    np.testing.assert_array_equal(first.best.classes, again.best.classes)
    np.testing.assert_array_equal(first.best.values, again.best.values)
    assert first.best.values.tobytes() != other.best.values.tobytes()


def test_sparse_rows_as_dense_blocks_of_any_rows():
    values = np.random.default_rng(6)
    dense = values.normal(size=(9, 5)) * (values.random((9, 5)) < 0.5)
    targets = values.integers(5, size=9)
    listed = [
        [y, *(m for m in range(5) if m != y and (dense[i, m] or values.random() < 0.5))] for i, y in enumerate(targets)
    ]
    starts = np.cumsum([0, *map(len, listed)])
    classes = np.concatenate(listed).astype(np.int32)
    rows = SparseRows(starts, classes, dense[np.repeat(np.arange(9), np.diff(starts)), classes], 5)
    order = values.permutation(9)
    for made in (rows, rows.compact()):
        np.testing.assert_array_equal(made[2:7], dense[2:7])
        np.testing.assert_array_equal(made[order], dense[order])
        np.testing.assert_array_equal(made.classes[made.starts[:-1]], targets)
    dense[np.arange(9), targets] = 1
    assert len(rows.compact().values) == np.count_nonzero(dense)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_memory_holds_no_score_of_all_rows_for_all_classes(dtype):
    """The bound is 24 bytes a row for each of 50 classes, beside a block of 1,024 rows' scores and the weights."""
    num_rows, num_classes = 10_000, 1000
    values = np.random.default_rng(7)
    labels = np.arange(num_rows) % num_classes
    noise = values.normal(size=(num_rows, 15))
    features = (values.normal(size=(num_classes, 15))[labels] + noise).astype(np.float32)
    rows = Rows(pose(features, labels, C=1e-4), dtype=FLOAT32, seed=0)
    ClassListAscent(rows, dtype=dtype)  # compiles
    tracemalloc.start()
    ascent = ClassListAscent(rows, dtype=dtype)
    ascent.run(1e-30, 8.0, ENDLESS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ascent.gap < 0.2
    scores = 1024 * num_classes * (2 * dtype.itemsize + 4)
    assert peak < 24 * num_rows * 50 + scores + 3 * num_classes * rows.width * 8
    assert peak < num_rows * num_classes * dtype.itemsize
