"""The dual variables against the solver of DualDA's authors: LIBLINEAR, patched to hand them out."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dualview.solvers import crammer_singer

# Importing the fork warns of its own age; it reports convergence by a number it never sets.
pytestmark = pytest.mark.filterwarnings("ignore")
svm = pytest.importorskip("sklearn_dual.svm")

DIGITS = load_digits()


def relu_features(num_rows, width):
    """Random hidden units of distinct digits."""
    random = np.random.default_rng(0)
    pixels, first = np.unique(DIGITS.data / 16, axis=0, return_index=True)
    chosen = random.permutation(len(pixels))[:num_rows]
    features = np.maximum(pixels[chosen] @ random.normal(0, 1, (64, width)) - 0.1, 0)
    assert len(np.unique(features, axis=0)) == num_rows  # duplicates would share their coefficients in any way
    return features, DIGITS.target[first][chosen]


def solve_both(features, labels, C):
    """Return (coefficients, weights) of ours, the same of theirs, and the solution's certificate."""
    ours = crammer_singer(features, labels, C=C, gap=1e-9)
    theirs = svm.LinearSVC(
        multi_class="crammer_singer", C=C, tol=1e-8, intercept_scaling=1, max_iter=100_000, random_state=0
    ).fit(features, labels)
    weights = np.c_[theirs.coef_, theirs.intercept_]
    return (ours.coefficients.to_dense().numpy(), ours.weights.numpy()), (theirs.alpha_.T, weights), ours


@pytest.mark.parametrize("C", [1e-3, 1e-1])
def test_scores_of_all_pairs_agree(C):
    """alpha_ic ⟨f_i, f⟩ for each class, training and test row, to 1e-4 of the largest score.

    Neither solver stops at the optimum, and alpha has no bound of its own; what is compared moves by
    about the square root of the relative gap, 3e-5.
    """
    features, labels = relu_features(1200, 150)
    train, test = features[:1000], features[1000:]
    (ours, _), (theirs, _), _ = solve_both(train, labels[:1000], C)
    products = train @ test.T
    scores = [alpha.T[:, :, None] * products for alpha in (ours, theirs)]
    largest = np.abs(scores[1]).max()
    assert np.abs(scores[0] - scores[1]).max() <= 1e-4 * largest
    assert (np.abs(ours) > 1e-6 * C).any(1).sum() < 1000  # some rows are no support vectors
    free = (np.abs(ours) > 1e-3 * C) & (np.abs(ours) < (1 - 1e-3) * C)
    assert free.any(1).sum() > 20  # and some stand at no bound, where solvers may differ


def test_logits_agree_within_the_certificates():
    """‖W - W*‖ ≤ √(2(P - D)) for either solver's weights, so their logits differ by no more than both bounds."""
    C = 1e-5
    features, labels = relu_features(1200, 150)
    train, test = features[:1000], features[1000:]
    (_, ours), (alpha, theirs), certificate = solve_both(train, labels[:1000], C)

    phi = np.c_[train, np.ones(1000)]
    own = labels[:1000, None] == np.arange(10)
    margins = phi @ theirs.T + ~own
    primal = 0.5 * (theirs**2).sum() + C * (margins.max(1) - margins[own]).sum()
    dual = alpha[own].sum() - 0.5 * (theirs**2).sum()
    gaps = certificate.primal - certificate.dual, primal - dual
    assert 0 <= gaps[0] <= 1e-9 * certificate.primal and -1e-12 * primal <= gaps[1] <= 1e-6 * primal

    phi = np.c_[test, np.ones(len(test))]
    bound = sum(math.sqrt(2 * max(gap, 1e-15 * primal)) for gap in gaps) * np.linalg.norm(phi, axis=1, keepdims=True)
    assert (np.abs(phi @ (ours - theirs).T) <= bound).all()
