"""Whatever is given: a certificate that is true, a status that fits, and everything left as it was found."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualview.errors import GapWarning
from dualview.solvers import crammer_singer, path
from dualview.solvers.crammer_singer.newton import ProximalNewton
from dualview.solvers.crammer_singer.sequential import SequentialAscent


def solve(features, labels, **options):
    """Solve, and check that there is a warning exactly where the gap was not reached."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = crammer_singer(features, labels, **options)
    reached = solution.gap <= options.get("gap", 1e-6)
    assert (solution.status == "converged") == reached
    assert solution.status in ("converged", "limit", "stalled")
    assert [warning.category for warning in caught] == ([] if reached else [GapWarning])
    return solution


def imbalanced(num_rows, num_units, rare, seed=0, num_classes=3):
    """All rows but `rare` of each other class belong to class 0."""
    random = np.random.default_rng(seed)
    labels = np.zeros(num_rows, np.int64)
    for m in range(1, num_classes):
        labels[random.choice(num_rows, rare, replace=False)] = m
    labels[:num_classes] = np.arange(num_classes)
    centres = 2 * random.normal(size=(num_classes, num_units))
    return (centres[labels] + random.normal(size=(num_rows, num_units))).astype(np.float32), labels


@st.composite
def problems(draw):
    """Problems with one or several of the things that go wrong in practice."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_rows, num_units = draw(st.sampled_from([2, 3, 7, 30, 120])), draw(st.integers(1, 7))
    num_classes = draw(st.integers(2, 5))
    labels = random.integers(num_classes, size=num_rows)
    if draw(st.booleans()):  # imbalance
        labels[random.random(num_rows) < 0.95] = 0
    labels[:2] = 0, 1
    features = random.normal(size=(num_rows, num_units)) + random.normal(size=(num_classes, num_units))[labels]
    if draw(st.booleans()):  # duplicates, also with other labels
        features = features[random.integers(max(1, num_rows // 3), size=num_rows)]
    if draw(st.booleans()):  # columns of any scale
        features *= 10.0 ** random.uniform(-6, 6, num_units)
    if draw(st.booleans()):
        features[:, 0] = draw(st.sampled_from([0.0, 1.0, -1e3]))  # dead or constant
    if draw(st.booleans()):
        features[random.random(num_rows) < 0.3] = 0
    if draw(st.booleans()):
        features = features.round()  # ties
    factors = 10.0 ** random.uniform(-4, 4, num_rows) if draw(st.booleans()) else np.ones(num_rows)
    C = 10.0 ** draw(st.floats(-9, 6))
    return features.astype(draw(st.sampled_from([np.float32, np.float64]))), labels, C, factors


@settings(max_examples=80)
@given(problems(), st.booleans(), st.sampled_from([None, torch.float64]), st.sampled_from([1e-3, 1e-6, 1e-10]))
def test_any_problem_is_certified(assert_certified, problem, low_memory, dtype, gap):
    features, labels, C, factors = problem
    options = {"low_memory": low_memory, "dtype": dtype, "gap": gap}
    solution = solve(features, labels, C=C, sample_weight=factors, max_epochs=150, **options)
    assert_certified(solution, features, labels, C * factors)
    # Small costs are solved by every means.
    if C * factors.max() * (1.0 + features.astype(np.float64) ** 2).sum(1).max() < 1e-3 and gap >= 1e-6:
        assert solution.status == "converged"


@pytest.mark.parametrize("C", [1e-9, 1e-4, 1.0])
def test_one_row_in_ten_thousand(C, assert_certified):
    features, labels = imbalanced(20_000, 2, rare=2)
    solution = solve(features, labels, C=C)
    assert_certified(solution, features, labels, C)
    assert solution.gap <= 1e-6


def test_a_hundred_thousand_rows(assert_certified):
    features, labels = imbalanced(100_000, 4, rare=10_000)
    solution = solve(features, labels, C=1e-2, gap=1e-5)
    assert_certified(solution, features, labels, 1e-2)
    assert solution.status == "converged"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("C", [1e-4, 0.1, 10.0])
def test_less_memory_gives_the_same_optimum(C, dtype, assert_certified):
    features, labels = imbalanced(400, 6, rare=100, seed=1)
    features = features.astype(dtype)
    features[:, 2] = 0
    copied, in_place = (solve(features, labels, C=C, gap=1e-8, low_memory=way) for way in (False, True))
    assert_certified(in_place, features, labels, C)
    assert copied.status == in_place.status == "converged"
    assert torch.linalg.vector_norm(copied.weights - in_place.weights) <= copied.distance + in_place.distance


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_features_may_be_read_only_and_mapped(C, low_memory, tmp_path):
    features, labels = imbalanced(300, 5, rare=60, seed=2)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert not mapped.flags.writeable
    expected = crammer_singer(features, labels, C=C, low_memory=low_memory)
    assert torch.equal(crammer_singer(mapped, labels, C=C, low_memory=low_memory).weights, expected.weights)


def test_bytes_may_come_in_the_other_order():
    features, labels = imbalanced(300, 5, rare=60, seed=2)
    foreign = features.astype(features.dtype.newbyteorder())
    assert torch.equal(
        crammer_singer(foreign, labels, C=1e-3).weights, crammer_singer(features, labels, C=1e-3).weights
    )


def raise_at(monkeypatch, kind, name, call):
    """Let the call of this number, from 0, end as Ctrl-C would end it."""
    method, calls = getattr(kind, name), iter(range(10**9))

    def interrupted(*arguments, **options):
        if next(calls) == call:
            raise KeyboardInterrupt
        return method(*arguments, **options)

    monkeypatch.setattr(kind, name, interrupted)


INTERRUPTIONS = [
    (1e-3, SequentialAscent, "_assess", [1, 2, 4, 7]),
    (1e-3, SequentialAscent, "_ascend", [1, 2, 4]),
    (10.0, SequentialAscent, "_evaluate", [0, 1, 2]),
    (10.0, ProximalNewton, "_value", [0, 1, 3, 6]),
    (10.0, ProximalNewton, "_settle", [0, 1, 5, 12, 30]),
    (10.0, ProximalNewton, "_newton_step", [0, 2, 9]),
    (10.0, ProximalNewton, "_add", [0, 1, 4, 12]),
]


@pytest.mark.parametrize(("C", "kind", "name", "call"), [(*case[:3], n) for case in INTERRUPTIONS for n in case[3]])
def test_interruption_returns_the_best_so_far(C, kind, name, call, monkeypatch, assert_certified):
    features, labels = imbalanced(300, 6, rare=80, seed=3)
    raise_at(monkeypatch, kind, name, call)
    with pytest.warns(GapWarning, match="was interrupted"):
        solution = crammer_singer(features, labels, C=C, gap=1e-11)
    assert solution.status == "interrupted" and solution.gap > 1e-11
    assert_certified(solution, features, labels, C)
    if kind is ProximalNewton:  # the sequential ascent had prepared a start
        assert solution.dual > 0


@pytest.mark.parametrize("name", ["_value", "_settle", "_newton_step", "_add"])
def test_a_later_interruption_loses_nothing(name, monkeypatch):
    """What Newton's method says of its best is what the certificate says, and the start is never better."""
    features, labels = imbalanced(300, 6, rare=80, seed=4)
    gaps = []
    prepared = ProximalNewton.__init__

    def begun(self, *arguments, **options):
        prepared(self, *arguments, **options)
        gaps.append((self, self.gap))

    for call in (2, 6, 11, 17, 26):
        with monkeypatch.context() as patch:
            patch.setattr(ProximalNewton, "__init__", begun)
            raise_at(patch, ProximalNewton, name, call)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GapWarning)
                solution = crammer_singer(features, labels, C=10.0, gap=1e-11)
        newton, first = gaps[-1]
        assert newton.gap <= first
        assert solution.gap == pytest.approx(newton.gap, rel=1e-5)


def test_interruption_while_the_start_is_prepared_keeps_it(monkeypatch):
    """A few passes at a smaller C are a feasible point at the larger one, and better than nothing."""
    features, labels = imbalanced(300, 6, rare=80, seed=5)
    raise_at(monkeypatch, SequentialAscent, "_evaluate", 2)
    with pytest.warns(GapWarning, match="was interrupted"):
        solution = crammer_singer(features, labels, C=10.0)
    assert solution.dual > 0 and solution.regime == "sequential"


@pytest.mark.parametrize("second", [1.1e-3, 10.0])
def test_interruption_on_a_path_keeps_the_start(second, monkeypatch):
    features, labels = imbalanced(300, 6, rare=80, seed=6)
    found = path(features, labels, [1e-3, second, second])
    first = next(found)
    with monkeypatch.context() as patch:
        raise_at(patch, SequentialAscent if second < 1 else ProximalNewton, "__init__", 0)
        with pytest.warns(GapWarning, match="was interrupted"):
            solution = next(found)
    assert solution.dual >= 0.9 * first.dual  # the dual of the same alpha is no smaller at a larger C
    assert next(found).status == "converged"


@pytest.mark.parametrize("C", [1e-4, 0.05, 5.0, 1e3])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_seed_decides_every_bit(C, low_memory):
    features, labels = imbalanced(300, 6, rare=80, seed=7)
    first, again = (crammer_singer(features, labels, C=C, seed=3, low_memory=low_memory) for _ in range(2))
    assert torch.equal(first.weights, again.weights) and first.epochs == again.epochs
    assert torch.equal(first.coefficients.indices(), again.coefficients.indices())
    assert torch.equal(first.coefficients.values(), again.coefficients.values())


@pytest.mark.parametrize("C", [1e-3, 10.0])
def test_two_threads_are_two_afterwards(C, monkeypatch):
    """One inside, whatever torch was set to; the same number after an end by exception."""
    features, labels = imbalanced(200, 5, rare=40, seed=8)
    kind, name = (SequentialAscent, "_evaluate") if C < 1 else (ProximalNewton, "_value")
    method, inside = getattr(kind, name), []
    monkeypatch.setattr(kind, name, lambda *given: inside.append(torch.get_num_threads()) or method(*given))
    one = crammer_singer(features, labels, C=C)
    try:
        torch.set_num_threads(2)
        two = crammer_singer(features, labels, C=C)
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="max_epochs"):
            crammer_singer(features, labels, C=C, max_epochs=0)
        monkeypatch.setattr(kind, name, lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            crammer_singer(features, labels, C=C)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(inside) == {1}
    assert torch.equal(one.weights, two.weights)


@pytest.mark.parametrize("max_epochs", [1, 3, 10, 40])
@pytest.mark.parametrize("C", [1e-2, 1e2])
def test_the_limit_of_passes_holds_over_all_regimes(C, max_epochs, assert_certified):
    """A run between two evaluations may go on beyond it, by at most half of the passes before, and one step."""
    features, labels = imbalanced(500, 8, rare=150, seed=9)
    solution = solve(features, labels, C=C, gap=1e-13, max_epochs=max_epochs)
    assert_certified(solution, features, labels, C)
    assert solution.epochs <= 1.5 * max_epochs + 12
