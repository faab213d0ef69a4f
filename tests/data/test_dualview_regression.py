"""DualView of regressions and of several labels: closed forms, the choice of C, fidelity, and what is refused."""

import math

import pytest
import torch
from sklearn.svm import LinearSVR
from torch import Tensor, nn
from torch.nn.functional import pad

import dualview as dv
from dualview.data._faithful import agreements


def network(outputs: int, targets: Tensor, inputs: Tensor, loss) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, outputs)).double()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(80):
            optimiser.zero_grad()
            loss(model(inputs), targets).backward()
            optimiser.step()
    return model


def data(outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    inputs = torch.randn(120, 4, generator=generator, dtype=torch.float64)
    slopes = torch.randn(4, outputs, generator=generator, dtype=torch.float64)
    return inputs, (inputs @ slopes).sin() + 0.1 * torch.randn(120, outputs, generator=generator, dtype=torch.float64)


def regression(outputs: int) -> tuple[dv.Task, Tensor, Tensor]:
    inputs, values = data(outputs)
    return dv.Task(network(outputs, values, inputs, nn.functional.mse_loss), problem="regression"), inputs, values


def several_labels() -> tuple[dv.Task, Tensor, Tensor]:
    inputs, values = data(3)
    labels = (values > 0).double()
    loss = nn.functional.binary_cross_entropy_with_logits
    return dv.Task(network(3, labels, inputs, loss), problem="multi-label"), inputs, labels


def fit(method: dv.DualView, task: dv.Task, train, **settings: object) -> dv.Explainer:
    return dv.fit(method, task, train, progress=False, **settings)


def ridge(features: Tensor, targets: Tensor, C: float, A: Tensor) -> Tensor:
    """Return argmin ½ Σ_c (w_cᵀ A w_c + b_c²) + C Σ_i ½‖W phi_i − t_i‖² by its normal equations, "out unit"."""
    phi = pad(features, (0, 1), value=1.0)
    whole = torch.block_diag(A, torch.ones(1, 1, dtype=torch.float64))
    return torch.linalg.solve(whole + C * phi.T @ phi, C * phi.T @ targets).T


@pytest.mark.parametrize("metric", ["plain", "whitened"])
@pytest.mark.parametrize("held_out", [None, 0.25])
@pytest.mark.parametrize("outputs", [1, 3])
def test_squared_is_ridge_regression(outputs: int, held_out: float | None, metric: str):
    task, inputs, values = regression(outputs)
    explainer = fit(dv.DualView(0.3, "squared", metric, gap=1e-12), task, (inputs, values), held_out=held_out)
    seen = explainer.positions
    assert len(seen) == (120 if held_out is None else 90)
    features = task.model[:2](inputs).detach()
    moment = features[seen].T @ features[seen] / len(seen)
    eye = torch.eye(12, dtype=torch.float64)
    A = eye if metric == "plain" else moment + 0.01 * torch.linalg.eigvalsh(moment).mean() * eye
    W = ridge(features[seen], values[seen], 0.3, A)
    tests = torch.randn(9, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = pad(task.model[:2](tests).detach(), (0, 1), value=1.0) @ W.T
    torch.testing.assert_close(explainer.surrogate_logits(tests), expected, rtol=1e-5, atol=1e-6)
    alpha = explainer.state.coefficients(seen)
    z = pad(features[seen], (0, 1), value=1.0) @ W.T
    torch.testing.assert_close(alpha, 0.3 * (values[seen] - z), rtol=0, atol=1e-6)
    by_output = explainer.explain_classes(tests, top=120)
    assert list(by_output) == list(range(outputs))
    for column, scores in by_output.items():
        both = scores.dense().sum(1) + scores.bias
        torch.testing.assert_close(both, explainer.surrogate_logits(tests)[:, column], rtol=1e-10, atol=1e-10)
        assert torch.equal(scores.dense(), explainer.explain(tests, column).dense())
    torch.testing.assert_close(explainer.importance()[seen], alpha.abs().sum(1))


def test_epsilon_is_support_vector_regression():
    """scikit-learn's has the same objective where the constant is a feature of scale 1 and the intercept penalised."""
    task, inputs, values = regression(1)
    explainer = fit(dv.DualView(0.5, "epsilon", epsilon=0.2, gap=1e-10), task, (inputs, values))
    features = task.model[:2](inputs).detach()
    peer = LinearSVR(epsilon=0.2, C=0.5, tol=1e-9, max_iter=1_000_000, random_state=0)
    peer.fit(features.numpy(), values[:, 0].numpy())
    expected = torch.from_numpy(peer.predict(features.numpy()))
    found = explainer.surrogate_logits(inputs)[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    alpha = explainer.state.coefficients(torch.arange(120))[:, 0]
    inside = (found - values[:, 0]).abs() < 0.2 - 1e-4
    assert (alpha[inside] == 0).all() and inside.any() and (alpha.abs() <= 0.5 * (1 + 1e-12)).all()
    slack = explainer.suspects().columns["slack"]
    beyond = ((found - values[:, 0]).abs() - 0.2).clamp(min=0).sort(descending=True).values
    torch.testing.assert_close(slack, beyond, rtol=1e-9, atol=1e-12)


def test_labels_are_classes_by_themselves():
    """The softmax of one label is a logistic regression with a penalty, solved here by Newton's method."""
    task, inputs, labels = several_labels()
    explainer = fit(dv.DualView(0.3, "softmax", gap=1e-13), task, (inputs, labels))
    phi = pad(task.model[:2](inputs).detach(), (0, 1), value=1.0)
    expected = []
    for t in labels.T:
        w = torch.zeros(13, dtype=torch.float64)
        for _ in range(30):
            p = (phi @ w).sigmoid()
            hessian = torch.eye(13, dtype=torch.float64) + 0.3 * (phi * (p * (1 - p))[:, None]).T @ phi
            w = w - torch.linalg.solve(hessian, w + 0.3 * phi.T @ (p - t))
        expected.append(phi @ w)
    torch.testing.assert_close(explainer.surrogate_logits(inputs), torch.stack(expected, 1), rtol=1e-5, atol=1e-5)
    scores = explainer.explain(inputs[:7], 2)
    both = scores.dense().sum(1) + scores.bias
    torch.testing.assert_close(both, explainer.surrogate_logits(inputs[:7])[:, 2], rtol=1e-10, atol=1e-10)
    expected_slack = nn.functional.softplus((1 - 2 * labels) * torch.stack(expected, 1)).sum(1)
    ranking = explainer.suspects()
    torch.testing.assert_close(ranking.columns["slack"], expected_slack[ranking.index], rtol=1e-4, atol=1e-5)


# ── fidelity and the choice of C ─────────────────────────────────────────────────────────────────


def test_fidelity_is_that_of_numbers():
    task, inputs, values = regression(3)
    explainer = fit(dv.DualView(1.0, "squared"), task, (inputs[:90], values[:90]), held_out=(inputs[90:], values[90:]))
    surrogate, network_says = explainer.surrogate_logits(inputs[90:]), task.model(inputs[90:]).detach()
    r2 = 1 - (surrogate - network_says).square().sum() / (network_says - network_says.mean(0)).square().sum()
    assert explainer.fidelity["held_out"]["r2"] == pytest.approx(float(r2), abs=1e-12)
    assert explainer.fidelity["held_out"]["rows"] == 30 and 0.8 < r2 < 1
    assert set(explainer.fidelity["train"]) == {"r2", "correlation", "rows"}


@pytest.mark.parametrize("loss", ["squared", "epsilon"])
def test_C_is_chosen_by_how_much_of_the_network_is_explained(loss: str):
    task, inputs, values = regression(1)
    train, held = (inputs[:90], values[:90]), (inputs[90:], values[90:])
    explainer = fit(dv.DualView(loss=loss), task, train, held_out=held)
    curve = explainer.curve
    assert len(curve) > 4 and all(map(math.isfinite, curve.fidelity_error))
    assert curve.fidelity[0] < 0.5  # where C is tiny the surrogate says nothing
    assert explainer.fidelity["held_out"]["r2"] == pytest.approx(curve.fidelity[curve.chosen], abs=0.02)
    best = max(
        fit(dv.DualView(10.0**k, loss, gap=1e-3), task, train, held_out=held).fidelity["held_out"]["r2"]
        for k in range(-2, 3)
    )
    assert explainer.fidelity["held_out"]["r2"] > best - 0.03


@pytest.mark.parametrize("loss", ["smooth-hinge", "softmax", "sparsemax"])
def test_C_is_chosen_for_labels(loss: str):
    task, inputs, labels = several_labels()
    explainer = fit(dv.DualView(loss=loss), task, (inputs[:90], labels[:90]), held_out=(inputs[90:], labels[90:]))
    says = [explainer.surrogate_logits(inputs[90:]) > 0, task.model(inputs[90:]) > 0]
    agreement = float((says[0] == says[1]).double().mean())
    assert explainer.fidelity["held_out"]["agreement"] == agreement > 0.85
    assert max(explainer.curve.fidelity) - 0.05 <= agreement


def test_the_measures_of_a_choice_are_those_of_the_problem():
    generator = torch.Generator().manual_seed(0)
    network_says = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    surrogate = network_says + 0.3 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    sharp, smoothed = agreements(surrogate, network_says, "regression")
    variance = (network_says - network_says.mean(0)).square().mean()
    expected = 1 - (surrogate - network_says).square().mean() / variance
    assert torch.equal(sharp, smoothed) and float(sharp.mean()) == pytest.approx(float(expected), abs=1e-14)
    sharp, _ = agreements(surrogate, network_says, "multi-label")
    assert torch.equal(sharp, ((surrogate > 0) == (network_says > 0)).double().mean(1))
    for constant in (network_says[:1], torch.ones(4, 2, dtype=torch.float64)):
        with pytest.raises(ValueError, match="the outputs are all alike: give a number for C"):
            agreements(surrogate[: len(constant)], constant, "regression")


def test_a_fit_to_predictions_is_a_fit_to_the_networks_numbers():
    task, inputs, values = regression(2)
    found = fit(dv.DualView(0.3, "squared", fit_to="predictions"), task, (inputs, values))
    expected = fit(dv.DualView(0.3, "squared"), task, (inputs, task.model(inputs).detach()))
    assert torch.equal(found.state.weights, expected.state.weights)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def test_losses_that_do_not_go_with_the_problem_are_refused():
    task, inputs, values = regression(1)
    for loss in ("hinge", "smooth-hinge", "softmax", "entmax", "sparsemax"):
        with pytest.raises(
            ValueError, match=f"loss='{loss}' does not go with a regression task: give one of 'squared'"
        ):
            fit(dv.DualView(1.0, loss), task, (inputs, values))
    with pytest.raises(ValueError, match="metric='curvature' is of class probabilities; a regression has"):
        fit(dv.DualView(1.0, "squared", "curvature"), task, (inputs, values))
    with pytest.raises(ValueError, match="`class_weight` weighs the classes of a classification"):
        fit(dv.DualView(1.0, "squared", class_weight="balanced"), task, (inputs, values))
    task, inputs, labels = several_labels()
    for loss in ("squared", "epsilon"):
        with pytest.raises(
            ValueError, match=f"loss='{loss}' does not go with a multi-label task.*'hinge', .*'sparsemax'"
        ):
            fit(dv.DualView(1.0, loss), task, (inputs, labels))
    classes = dv.Task(task.model)
    with pytest.raises(ValueError, match="loss='epsilon' does not go with a classification task"):
        fit(dv.DualView(1.0, "epsilon"), classes, (inputs, labels[:, 0].long()))


def test_what_is_of_classes_is_refused(tmp_path):
    task, inputs, values = regression(2)
    explainer = fit(dv.DualView(0.3, "squared"), task, (inputs, values), store=tmp_path)
    with pytest.raises(ValueError, match=r"a regression task has no wrong classes to rank: .*suspects\(by='loss'\)"):
        explainer.errors((inputs, values))
    with pytest.raises(ValueError, match="a page shows right and wrong classes, and this is a regression task"):
        dv.write_report(explainer, (inputs, values), tmp_path / "page.html")
    with pytest.raises(ValueError, match="neighbours are drawn with their classes"):
        dv.plot(explainer.explain(inputs[:1], 0))
    with pytest.raises(ValueError, match="give targets=: which of the 2 output columns"):
        explainer.explain(inputs[:1])


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_stored_regression_is_opened_again(tmp_path, outputs: int):
    """One output leaves a bias of one number with a stride of its own."""
    task, inputs, values = regression(outputs)
    before = fit(dv.DualView(0.3, "squared", "whitened"), task, (inputs, values), store=tmp_path)
    after = dv.open(tmp_path, task)
    assert after.fidelity == before.fidelity
    torch.testing.assert_close(after.explain(inputs[:5], 0).dense(), before.explain(inputs[:5], 0).dense())
    torch.testing.assert_close(after.response(inputs[:5], 0).dense(), before.response(inputs[:5], 0).dense())
