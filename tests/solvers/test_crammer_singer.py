"""The optimum itself: closed forms, a generic solver, another library."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from dualview.errors import GapWarning, NonFiniteError
from dualview.solvers import crammer_singer


def blobs(num_rows, num_units, num_classes, seed, spread=1.0):
    """Overlapping classes, every class present."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    centres = random.normal(size=(num_classes, num_units))
    return centres[labels] + spread * random.normal(size=(num_rows, num_units)), labels


def test_two_points_have_the_closed_form():
    """For one row a class, W = ±(a φ_1 - b φ_2), and D = a + b - |a φ_1 - b φ_2|² has a linear gradient."""
    features = np.array([[2.0, 0.5], [-1.0, 1.0]])
    phi = np.c_[features, np.ones(2)]
    gram = phi @ phi.T
    a, b = np.linalg.solve(2 * gram * [[1, -1], [-1, 1]], [1, 1])
    assert 0 < a < 1 and 0 < b < 1  # so that C = 1 does not bind
    solution = crammer_singer(features, np.array([0, 1]), C=1.0, gap=1e-13)
    np.testing.assert_allclose(solution.coefficients.to_dense(), [[a, -a], [-b, b]], rtol=1e-6)
    np.testing.assert_allclose(solution.weights[0], a * phi[0] - b * phi[1], rtol=1e-6)
    assert solution.primal == pytest.approx((a + b) / 2, rel=1e-12)  # D = a + b - |W|²/2, and |W|²/2 = (a + b)/2


def test_where_C_binds_everywhere_the_coefficients_are_known():
    """W has norm below n C |φ|, so for tiny C every margin is violated and all of C goes to the best rival."""
    features, labels = blobs(40, 5, 2, seed=0)
    solution = crammer_singer(features, labels, C=1e-6)
    expected = 1e-6 * np.where(labels[:, None] == np.arange(2), 1, -1)
    np.testing.assert_array_equal(solution.coefficients.to_dense().numpy(), expected)


@pytest.mark.parametrize("C", [0.05, 0.7, 20.0])
@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_optimum_agrees_with_a_generic_solver(C, num_classes, primal, assert_certified):
    """SLSQP on the primal, with a slack variable a row and every margin written out as a constraint."""
    features, labels = blobs(6, 2, num_classes, seed=num_classes)
    phi, size = np.c_[features, np.ones(6)], 3 * num_classes

    def objective(z):
        return 0.5 * (z[:size] ** 2).sum() + C * z[size:].sum(), np.r_[z[:size], np.full(6, C)]

    rows, offsets = [], []
    for i in range(6):
        for m in range(num_classes):
            difference = np.zeros((num_classes, 3))
            difference[labels[i]] += phi[i]
            difference[m] -= phi[i]
            rows.append(np.r_[difference.ravel(), np.arange(6) == i])
            offsets.append(float(m != labels[i]))
    margins = {"type": "ineq", "fun": lambda z: np.array(rows) @ z - offsets, "jac": lambda z: np.array(rows)}
    start = np.r_[np.zeros(size), np.ones(6)]
    best = minimize(objective, start, jac=True, constraints=margins, method="SLSQP", options={"ftol": 1e-15})

    other = best.x[:size].reshape(num_classes, 3)
    theirs = primal(other, features, labels, C)  # best.fun is lower: SLSQP's constraints hold within 1e-8 or so

    solution = crammer_singer(features, labels, C=C, gap=1e-10)
    assert_certified(solution, features, labels, C)
    assert solution.primal == pytest.approx(theirs, rel=1e-6)
    assert solution.dual <= theirs * (1 + 1e-14)  # the primal rounds, in another order on another processor
    # Strong convexity: |W - W*| ≤ sqrt(2 (P - P*)) for either, and D ≤ P*.
    distance = np.linalg.norm(solution.weights.numpy() - other)
    assert distance <= sum(math.sqrt(2 * max(P - solution.dual, 1e-14)) for P in (solution.primal, theirs))


def test_optimality_conditions_hold_row_by_row():
    """Whatever of p = C e_y - alpha is not tiny stands on a class of the largest margin."""
    C = 0.3
    features, labels = blobs(60, 4, 4, seed=3)
    solution = crammer_singer(features, labels, C=C, gap=1e-12)
    own = labels[:, None] == np.arange(4)
    p = C * own - solution.coefficients.to_dense().numpy()
    margins = np.c_[features, np.ones(60)] @ solution.weights.numpy().T + ~own
    violation = (margins.max(1, keepdims=True) - margins)[p > 1e-3 * C]
    # No term of P - D = sum of p·violation is negative, so none exceeds it.
    assert violation.max() <= solution.gap * solution.primal / (1e-3 * C) + 1e-12
    free = ((p > 1e-3 * C).sum(1) >= 2).sum()
    assert free > 5  # else nothing was tested


DIGITS = load_digits()
CASES = [(name, C) for name in ("digit pixels", "digit units", "mnist units") for C in (1e-5, 1e-3, 1e-1)]


@pytest.mark.parametrize(("name", "C"), CASES)
def test_no_worse_than_liblinear(name, C, mnist, relu_features, primal, assert_certified):
    if name == "mnist units":
        features, labels = relu_features(mnist[0][::3], 128), mnist[1][::3]
    else:
        pixels = (DIGITS.data / 16).astype(np.float32)
        features, labels = pixels if name == "digit pixels" else relu_features(pixels, 100), DIGITS.target
    solution = crammer_singer(features, labels, C=C)
    assert solution.status == "converged" and solution.gap <= 1e-6
    assert_certified(solution, features, labels, C)

    svm = LinearSVC(multi_class="crammer_singer", C=C, tol=1e-6, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # LIBLINEAR's count of passes is not set for this problem
        svm.fit(features.astype(np.float64), labels)
    theirs = primal(np.c_[svm.coef_, svm.intercept_], features.astype(np.float64), labels, C)
    assert solution.primal <= theirs * (1 + 1e-6)
    assert solution.dual <= theirs  # a lower bound of every primal value, theirs too


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_may_come_in_any_order(seed):
    features, labels = blobs(120, 6, 3, seed)
    order = np.random.default_rng(seed).permutation(120)
    straight = crammer_singer(features, labels, C=0.1, gap=1e-11)
    shuffled = crammer_singer(features[order], labels[order], C=0.1, gap=1e-11)
    bound = sum(math.sqrt(2 * s.gap * s.primal) for s in (straight, shuffled))
    assert torch.linalg.vector_norm(straight.weights - shuffled.weights) <= bound
    # Few rows of these are free, and their features independent, so alpha is as unique as W.
    difference = straight.coefficients.to_dense()[order] - shuffled.coefficients.to_dense()
    assert difference.abs().max() <= 1e-3 * 0.1


def test_the_kind_of_array_does_not_matter():
    """Tensors, arrays, strides and half precision: the same numbers give the same bits."""
    values, labels = blobs(50, 8, 3, seed=5)
    half = torch.tensor(values).to(torch.bfloat16)
    features = half.float()
    expected = crammer_singer(features, torch.tensor(labels), C=0.1)
    wide = torch.zeros(50, 16)
    wide[:, ::2] = features
    for other in (
        half,
        features.requires_grad_(),
        features.detach().T.contiguous().T,
        wide[:, ::2],
        features.detach().numpy(),
        features.detach().numpy()[::-1].copy()[::-1],
    ):
        solution = crammer_singer(other, labels.astype(np.uint8), C=0.1)
        assert torch.equal(solution.weights, expected.weights)
        assert torch.equal(solution.coefficients.to_dense(), expected.coefficients.to_dense())


def test_precision_is_a_choice(mnist, relu_features, assert_certified):
    """Rows rounded to float32 are another problem, whose solution is certified on the rows as given."""
    features, labels = np.pi * relu_features(mnist[0][::5], 64).astype(np.float64), mnist[1][::5]
    with pytest.warns(GapWarning, match=r"gap=1.0e-10.*larger gap .*dtype=torch.float64"):
        narrow = crammer_singer(features, labels, C=0.01, gap=1e-10, dtype=torch.float32)
    assert narrow.status == "stalled" and 1e-10 < narrow.gap < 1e-4
    wide = crammer_singer(features, labels, C=0.01, gap=1e-10)
    of_float32 = crammer_singer(features.astype(np.float32), labels, C=0.01, gap=1e-9)
    assert wide.gap <= 1e-10 and of_float32.gap <= 1e-9
    for solution in (narrow, wide):
        assert_certified(solution, features, labels, 0.01)
    assert_certified(of_float32, features.astype(np.float32), labels, 0.01)


def test_a_limit_is_announced_with_what_was_reached(assert_certified):
    features, labels = blobs(200, 10, 4, seed=2)
    with pytest.warns(GapWarning, match=r"reached max_epochs after \d+ passes at a relative gap of .*smaller C"):
        solution = crammer_singer(features, labels, C=1e3, max_epochs=5)
    assert solution.status == "limit" and solution.gap > 1e-6 and 5 <= solution.epochs <= 10
    assert_certified(solution, features, labels, 1e3)


def test_sparse_where_sparsity_costs_nothing():
    """What is left of alpha is above a millionth of its largest entry, or gap would not allow the cut."""
    features, labels = blobs(400, 10, 5, seed=4, spread=0.3)
    solution = crammer_singer(features, labels, C=0.1)
    magnitudes = solution.coefficients.values().abs()
    assert magnitudes.min() > 1e-6 * magnitudes.max()
    assert len(solution.coefficients.values()) < 400  # far from dense: 5 × 400


GOOD = {"features": np.eye(4, 3), "labels": np.array([0, 1, 1, 0]), "C": 1.0}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": np.zeros(4, int)}, r"one class only \(0\)"),
        ({"labels": np.array([0, 1, 1])}, r"each of the 4 rows; got shape \(3,\)"),
        ({"labels": np.array([0.0, 1, 1, 0])}, "labels must be integers.*float64"),
        ({"labels": np.array([False, True, True, False])}, "labels must be integers.*bool"),
        ({"labels": np.array([0, -1, 1, 0])}, "row 1 has label -1"),
        ({"num_classes": 1}, "num_classes - 1 = 0; row 1 has label 1"),
        ({"features": np.zeros((0, 3)), "labels": np.zeros(0, int)}, r"features are empty: shape \(0, 3\)"),
        ({"features": np.zeros((4, 0))}, r"features are empty: shape \(4, 0\)"),
        ({"features": np.zeros(4)}, r"axes \(train, unit\); got shape \(4,\)"),
        ({"features": np.eye(4, 3, dtype=int)}, "floating-point numbers; got int64"),
        ({"features": np.full((4, 3), 1e200)}, "overflow float64"),
        ({"features": np.full((4, 3), 1e20), "dtype": torch.float32}, "overflow with this C.*float64"),
        ({"C": 0.0}, "C must be a positive.*got 0.0"),
        ({"C": -1.0}, "C must be a positive"),
        ({"C": math.nan}, "C must be a positive"),
        ({"C": math.inf}, "C must be a positive"),
        ({"gap": 0.0}, "gap must be a positive"),
        ({"gap": math.nan}, "gap must be a positive"),
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"dtype": torch.float16}, "dtype must be"),
    ],
)
def test_what_cannot_be_solved_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        crammer_singer(**(GOOD | wrong))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_named(bad):
    features = np.ones((3000, 4), np.float32)
    features[[7, 2500], [1, 3]] = bad
    with pytest.raises(NonFiniteError, match="2 of 3000 rows hold NaN or infinity: 7, 2500") as caught:
        crammer_singer(features, np.arange(3000) % 2, C=1.0)
    assert caught.value.index == (7, 2500)


@pytest.mark.parametrize("C", [1e-5, 1e-3, 1e-1])
def test_the_order_of_the_rows_does_not_matter_to_the_bit(C: float):
    """Real rows of float32: at the default gap another order of visits would divide alpha otherwise."""
    digits = load_digits()
    features, labels = torch.tensor(digits.data[:600]).float() / 16, torch.tensor(digits.target[:600])
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    one, other = crammer_singer(features, labels, C=C), crammer_singer(features[order], labels[order], C=C)
    assert torch.equal(one.coefficients.to_dense()[order], other.coefficients.to_dense())
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-12, atol=1e-14)  # sums in another order
