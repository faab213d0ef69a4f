"""Every member of the dual family finds the optimum, certifies it, and splits its logits over the training rows."""

import inspect

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from scipy.special import expit, logsumexp

from dualview.errors import GapWarning, NonFiniteError
from dualview.solvers import crammer_singer, dual, metrics

SMOOTH = ["smooth-hinge", "softmax", "entmax", "sparsemax"]
METRICS = ["plain", "whitened", "curvature"]


def task(num_rows=60, num_features=4, num_classes=3, seed=0):
    """Overlapping classes, their features, and probabilities for a metric."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % num_classes
    centres = torch.randn(num_classes, num_features, generator=random, dtype=torch.float64)
    features = centres[labels] + torch.randn(num_rows, num_features, generator=random, dtype=torch.float64)
    return features, labels, (features @ centres.T).softmax(1)


def metric_named(name, features, probabilities):
    if name == "plain":
        return metrics.plain()
    if name == "whitened":
        return metrics.whitened(features, 0.1)
    return metrics.curvature(features, probabilities, 0.5)


def matrices(name, features, probabilities):
    """M_c from its definition, "cls unit unit"."""
    num_rows, num_features = features.shape
    if name == "plain":
        blocks = [np.eye(num_features)]
    else:
        p = np.full((num_rows, 1), 0.5) if name == "whitened" else probabilities.numpy()
        weights = np.ones((num_rows, 1)) if name == "whitened" else p * (1 - p)
        blocks = [(features.numpy() * weight[:, None]).T @ features.numpy() / num_rows for weight in weights.T]
        damping = (0.1 if name == "whitened" else 0.5) * np.mean([np.diag(block).mean() for block in blocks])
        blocks = [block + damping * np.eye(num_features) for block in blocks]
    blocks = blocks * (probabilities.shape[1] // len(blocks))
    return np.stack([np.block([[b, np.zeros((num_features, 1))], [np.zeros((1, num_features)), 1]]) for b in blocks])


def simplex_projection(values):
    """By bisection for the threshold, which is slow and obviously right."""
    low, high = values.min() - 1, values.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(values - low, 0)


def entmax_by_bisection(values):
    low, high = values.max() / 2 - 1, values.max() / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (np.maximum(values / 2 - middle, 0) ** 2).sum() > 1 else (low, middle)
    return np.maximum(values / 2 - low, 0) ** 2


def row_loss(loss, z, y, smoothing=0.3):
    """L(z, y), and dL/dz, for one row."""
    own = np.eye(len(z))[y]
    if loss == "softmax":
        return logsumexp(z) - z[y], np.exp(z - logsumexp(z)) - own
    if loss == "sparsemax":
        p = simplex_projection(z)
        return p @ z - 0.5 * (p @ p - 1) - z[y], p - own
    if loss == "entmax":
        p = entmax_by_bisection(z)
        return p @ z - ((p**1.5).sum() - 1) / 0.75 - z[y], p - own
    p = simplex_projection((z + 1 - own) / smoothing)
    return p @ (z + 1 - own) - 0.5 * smoothing * (p @ p - 1) - z[y], p - own


def optimum(objective, num_outputs, num_units):
    """The least value of (value, gradient) that L-BFGS finds from zero."""
    found = minimize(
        lambda w: [part.ravel() if np.ndim(part) else part for part in objective(w.reshape(num_outputs, num_units))],
        np.zeros(num_outputs * num_units),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20000, "maxfun": 50000, "ftol": 1e-16, "gtol": 1e-11, "maxcor": 50},
    )
    return found.fun


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("loss", SMOOTH)
def test_optimum_of_smooth_losses_between_classes(loss, name):
    """P and D of the solution enclose the value that another method reaches on losses written a second time."""
    features, labels, probabilities = task()
    M = matrices(name, features, probabilities)
    phi, y, costs = np.c_[features.numpy(), np.ones(60)], labels.numpy(), 0.2 * (1 + np.arange(60) % 3)

    def objective(W):
        parts = [row_loss(loss, z, label) for z, label in zip(phi @ W.T, y, strict=True)]
        metric_part = np.einsum("cij,cj->ci", M, W)
        slopes = costs[:, None] * np.stack([gradient for _, gradient in parts])
        return 0.5 * (W * metric_part).sum() + costs @ [value for value, _ in parts], metric_part + slopes.T @ phi

    solution = dual(
        features,
        labels,
        loss=loss,
        C=0.2,
        sample_weight=torch.tensor(costs / 0.2),
        metric=metric_named(name, features, probabilities),
        gap=1e-11,
        smoothing=0.3 if loss == "smooth-hinge" else None,
    )
    best = optimum(objective, 3, 5)
    assert solution.status == "converged" and 0 <= solution.gap <= 1e-11
    assert solution.primal == pytest.approx(best, rel=1e-8) and solution.dual == pytest.approx(best, rel=1e-8)
    assert solution.primal == pytest.approx(objective(solution.weights.numpy())[0], rel=1e-13)
    assert_additive(solution, features, M)
    assert not solution.coefficients.to_dense().sum(1).any()


def assert_additive(solution, features, M):
    """Each class's logits are Σ_i alpha_ic phi_iᵀ M_c⁻¹ phi."""
    phi = np.c_[features.numpy().astype(np.float64), np.ones(len(features))]
    kernels = np.einsum("iu,cuv,jv->cij", phi, np.linalg.inv(M), phi)
    shares = np.einsum("ic,cij->jc", solution.coefficients.to_dense().numpy(), kernels)
    np.testing.assert_allclose(phi @ solution.weights.numpy().T, shares, rtol=0, atol=1e-10 * np.abs(shares).max())


def hinge_dual(phi, y, costs, M):
    """The hinge's dual as a quadratic programme, solved by an interior-point method."""
    num_rows, num_classes = len(y), len(M)
    own = np.eye(num_classes)[y]
    kernels = np.einsum("iu,cuv,jv->cij", phi, np.linalg.inv(M), phi)

    def value(alpha):
        alpha = alpha.reshape(num_rows, num_classes)
        pulled = np.einsum("cij,jc->ic", kernels, alpha)
        return 0.5 * (alpha * pulled).sum() - (alpha * own).sum(), (pulled - own).ravel()

    bounds = np.stack([np.where(own, 0, -costs[:, None]).ravel(), np.where(own, costs[:, None], 0).ravel()], 1)
    sums = LinearConstraint(np.kron(np.eye(num_rows), np.ones(num_classes)), 0, 0)
    start = np.zeros(num_rows * num_classes)
    return -minimize(
        value,
        start,
        jac=True,
        bounds=bounds,
        constraints=[sums],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-15},
    ).fun


@pytest.mark.parametrize("name", METRICS)
def test_optimum_of_the_hinge(name):
    """Shared metrics go one way, class blocks another, and a general solver of quadratic programmes a third."""
    features, labels, probabilities = task(24)
    M = matrices(name, features, probabilities)
    phi = np.c_[features.numpy(), np.ones(24)]
    best = hinge_dual(phi, labels.numpy(), np.full(24, 0.3), M)
    metric = metric_named(name, features, probabilities)
    solution = dual(features, labels, loss="hinge", C=0.3, metric=metric, gap=1e-9)
    assert ("newton" == solution.regime) == (name == "curvature")
    assert solution.primal == pytest.approx(best, rel=1e-8) and solution.dual == pytest.approx(best, rel=1e-8)
    assert_additive(solution, features, M)


def test_plain_hinge_is_crammer_singer():
    features, labels, _ = task()
    ours, theirs = (
        dual(features, labels, loss="hinge", C=0.1, gap=1e-9),
        crammer_singer(features, labels, C=0.1, gap=1e-9),
    )
    np.testing.assert_allclose(ours.weights, theirs.weights, rtol=0, atol=1e-12)
    assert (ours.free, ours.bound) == (theirs.free, theirs.bound)


def test_smoothed_hinge_tends_to_the_hinge():
    """hinge ≤ smoothed hinge ≤ hinge + gamma/2·(1 - 1/K) for each row, so the optima differ by no more."""
    features, labels, _ = task()
    hard = dual(features, labels, loss="hinge", C=0.2, gap=1e-10).primal
    for gamma in (1.0, 0.1, 1e-3):
        smooth = dual(features, labels, loss="smooth-hinge", C=0.2, gap=1e-10, smoothing=gamma).primal
        assert hard * (1 - 1e-9) <= smooth <= hard + 0.2 * 60 * gamma / 2 * (2 / 3) + 1e-9 * hard


@pytest.mark.parametrize("name", METRICS)
def test_squared_is_ridge(name):
    """W_c = (M_c + Φᵀ C Φ)⁻¹ Φᵀ C t_c, for numbers, and for classes as one-hot numbers."""
    features, labels, probabilities = task()
    M, metric = matrices(name, features, probabilities), metric_named(name, features, probabilities)
    phi, costs = np.c_[features.numpy(), np.ones(60)], 0.3 * (1 + np.arange(60) % 2)
    numbers = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 10
    for targets, values in [(numbers, numbers.numpy()), (labels, np.eye(3)[labels])]:
        found = dual(
            features, targets, loss="squared", C=0.3, sample_weight=torch.tensor(costs / 0.3), metric=metric, gap=1e-13
        )
        right = (phi.T * costs) @ values
        exact = np.stack([np.linalg.solve(M[c] + (phi.T * costs) @ phi, right[:, c]) for c in range(3)])
        np.testing.assert_allclose(found.weights, exact, rtol=0, atol=1e-10 * np.abs(exact).max())
        np.testing.assert_allclose(
            found.coefficients.to_dense(), costs[:, None] * (values - phi @ exact.T), rtol=0, atol=1e-9
        )
        assert_additive(found, features, M)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_epsilon_is_support_vector_regression(scale):
    """Its dual as a quadratic programme over alpha⁺ and alpha⁻, in any unit of the targets."""
    features, _, _ = task(30)
    random = torch.Generator().manual_seed(2)
    targets = (features @ torch.randn(4, 1, dtype=torch.float64, generator=random)) * scale
    targets += scale * torch.randn(30, 1, dtype=torch.float64, generator=random)
    phi, t, epsilon, C = np.c_[features.numpy(), np.ones(30)], targets[:, 0].numpy() / scale, 0.3, 0.5
    kernel = phi @ phi.T

    def value(halves):
        alpha = halves[:30] - halves[30:]
        slope = kernel @ alpha - t
        return 0.5 * alpha @ kernel @ alpha - alpha @ t + epsilon * halves.sum(), np.r_[slope, -slope] + epsilon

    exact = minimize(
        value,
        np.zeros(60),
        jac=True,
        bounds=[(0, C)] * 60,
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-16},
    )
    # P scales with scale² where C scales with it: alpha does.
    found = dual(features, targets, loss="epsilon", C=C * scale, epsilon=epsilon * scale, gap=1e-9)
    assert found.dual == pytest.approx(-exact.fun * scale**2, rel=1e-8)
    assert found.primal == pytest.approx(-exact.fun * scale**2, rel=1e-8)
    inside = (targets - torch.tensor(phi) @ found.weights.T).abs() < epsilon * scale * (1 - 1e-6)
    assert inside.sum() > 3 and not found.coefficients.to_dense()[inside].any()
    assert_additive(found, features, np.eye(5)[None])


def test_numbers_within_the_tube_need_no_weights():
    features, _, _ = task()
    found = dual(features, torch.full((60, 2), 0.05, dtype=torch.float64), loss="epsilon", C=1.0)
    assert found.status == "converged" and found.gap == 0 and not found.weights.any()
    assert found.coefficients.values().numel() == 0


def test_softmax_labels_are_logistic_regressions():
    features, labels, _ = task()
    targets = torch.stack([labels == 0, labels != 1, features[:, 0] > 0], 1).double()
    phi = np.c_[features.numpy(), np.ones(60)]
    found = dual(features, targets, loss="softmax", C=0.5, gap=1e-13)
    total = 0.0
    for t, weights in zip(targets.numpy().T, found.weights.numpy(), strict=True):

        def objective(W, t=t):
            z, sign = phi @ W[0], 2 * t - 1
            value = 0.5 * W[0] @ W[0] + 0.5 * np.logaddexp(0, -sign * z).sum()
            return value, (W[0] + 0.5 * phi.T @ (expit(z) - t))[None]

        best = optimum(objective, 1, 5)
        total += best
        assert objective(weights[None])[0] == pytest.approx(best, rel=1e-8)
    assert found.primal == pytest.approx(total, rel=1e-8)
    assert_additive(found, features, np.stack([np.eye(5)] * 3))


@pytest.mark.parametrize("loss", ["hinge", *SMOOTH])
def test_one_label_is_two_classes(loss):
    """With weights (-w/2, w/2) two classes have half the label's ½|w|², so half of C makes it the same problem."""
    features, labels, _ = task(num_classes=2)
    single = dual(features, labels[:, None].double(), loss=loss, C=0.2, gap=1e-12)
    double = dual(features, labels, loss=loss, C=0.1, gap=1e-12)
    np.testing.assert_allclose(single.weights[0], 2 * double.weights[1], rtol=0, atol=1e-5)
    assert single.primal == pytest.approx(2 * double.primal, rel=1e-11)


def test_sparse_losses_are_zero_off_their_support():
    """A row has no coefficient, and exactly none, where its class leads by 1/(order - 1), or 1 + gamma."""
    features, labels, _ = task(seed=3)
    for loss, lead in [("entmax", 2.0), ("sparsemax", 1.0), ("smooth-hinge", 1.5), ("hinge", 1.0)]:
        found = dual(features, labels, loss=loss, C=0.5, gap=1e-10, smoothing=0.5 if loss == "smooth-hinge" else None)
        z = features @ found.weights[:, :-1].T + found.weights[:, -1]
        own = z.gather(1, labels[:, None])
        leads = (own - z.scatter(1, labels[:, None], -torch.inf)).amin(1)
        used = found.coefficients.to_dense().ne(0).any(1)
        assert not used[leads > lead + 1e-4].any() and used[leads < lead - 1e-4].all()
        assert 5 < used.sum() < 55


def test_float32_features_are_certified_in_float64():
    features, labels, probabilities = task(150, 6, 4)
    features = features.float()
    for loss in ["hinge", "softmax", "sparsemax", "squared"]:
        found = dual(features, labels, loss=loss, C=0.1, gap=1e-9, metric=metrics.curvature(features, probabilities))
        again = dual(
            features.double(),
            labels,
            loss=loss,
            C=0.1,
            gap=1e-9,
            metric=metrics.curvature(features.double(), probabilities),
        )
        assert found.status == "converged" and found.weights.dtype == torch.float64
        assert found.primal == pytest.approx(again.primal, rel=3e-9)


def test_absent_classes_and_weightless_rows_take_no_part():
    features, labels, probabilities = task()
    metric = metrics.curvature(features, torch.cat([probabilities[:, :1], probabilities], 1))
    weights = torch.ones(60)
    weights[::7] = 0
    wide = dual(
        features,
        labels + (labels > 0),
        loss="softmax",
        C=0.1,
        num_classes=4,
        metric=metric,
        sample_weight=weights,
        gap=1e-12,
    )
    kept = weights > 0
    narrow = dual(
        features[kept], labels[kept], loss="softmax", C=0.1, gap=1e-12, metric=metric.of(torch.tensor([0, 2, 3]))
    )
    assert wide.coefficients.shape == (60, 4) and not wide.weights[1].any()
    assert not wide.coefficients.to_dense()[~kept].any() and not wide.coefficients.to_dense()[:, 1].any()
    np.testing.assert_array_equal(wide.weights[[0, 2, 3]], narrow.weights)


def test_gap_that_is_not_reached_is_announced():
    features, labels, probabilities = task()
    with pytest.warns(GapWarning, match="reached max_steps"):
        found = dual(features, labels, loss="softmax", C=10.0, max_steps=1)
    assert found.status == "limit" and found.gap > 1e-6
    with pytest.warns(GapWarning, match="made no more progress"):
        found = dual(
            features, labels, loss="hinge", C=0.1, metric=metrics.curvature(features, probabilities), gap=1e-17
        )
    assert found.status == "stalled" and found.gap < 1e-10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "log"}, "loss must be one of hinge"),
        ({"C": 0.0}, "C must be a positive"),
        ({"C": float("nan")}, "C must be a positive"),
        ({"smoothing": 0.5}, "smoothing must be positive and goes with"),
        ({"loss": "smooth-hinge", "smoothing": 0.0}, "smoothing must be positive"),
        ({"epsilon": -1.0}, "epsilon must be finite"),
        ({"loss": "epsilon"}, "floats under loss='epsilon'"),
        ({"targets": torch.full((60, 2), 0.5)}, "must be 0 or 1"),
        ({"targets": torch.arange(60) - 1}, "targets must lie in 0"),
        ({"targets": torch.zeros(60, dtype=torch.int64)}, "one class only"),
        ({"targets": torch.zeros(59, dtype=torch.int64)}, "one for each of the 60 rows"),
        ({"targets": torch.zeros(60, 2, dtype=torch.int64)}, "must be integers"),
        ({"targets": torch.zeros(60, 2), "num_classes": 2}, "goes with integer targets"),
        ({"sample_weight": torch.full((60,), -1.0)}, "sample_weight must be finite and not negative"),
        ({"sample_weight": torch.zeros(60)}, "zero for every row"),
        ({"features": torch.zeros(60, 4, dtype=torch.int64)}, "features must be floats"),
        ({"metric": metrics.whitened(torch.eye(3))}, "metric must fit 3 classes and 5 units"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    features, labels, _ = task()
    arguments = {"features": features, "targets": labels, "loss": "softmax", "C": 1.0} | changed
    with pytest.raises(ValueError, match=message):
        # Users' calls are not checked by annotations as the tests' are.
        inspect.unwrap(dual)(arguments.pop("features"), arguments.pop("targets"), **arguments)


def test_not_a_number_is_refused_by_row():
    features, labels, _ = task()
    features[7, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 60 rows") as caught:
        dual(features, labels, loss="softmax", C=1.0)
    assert caught.value.index == (7,)
    targets = torch.zeros(60, 1)
    targets[3] = torch.inf
    with pytest.raises(NonFiniteError, match="targets must be finite"):
        dual(task()[0], targets, loss="squared", C=1.0)
