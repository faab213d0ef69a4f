"""DualView against brute force: the whole test × train × unit × class sum, written out."""

import dataclasses
import warnings

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.engine.tables import Rows, Table
from dualview.errors import DualViewWarning
from dualview.solvers import crammer_singer

OUTPUTS = {
    "logit": dv.logit,
    "contrast": dv.contrast(2, 0),
    "margin": dv.margin,
    "log_probability": dv.log_probability,
    "loss": dv.loss,
}
# Shares of Σ|scores|: what is left of rounding when a few hundred products are summed in another order.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def alpha_of(explainer: dv.Explainer) -> Tensor:
    """Dual coefficients "train cls", read entry by entry from the compressed rows."""
    state = explainer.state
    dense = torch.zeros(len(explainer.table), explainer.num_classes, dtype=torch.float64)
    for row, position in enumerate(state.support.tolist()):
        for entry in range(int(state.row_start[row]), int(state.row_start[row + 1])):
            dense[position, state.entry_class[entry]] = state.entry_value[entry]
    return dense


def directions(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient of the measured output with respect to the logits, by autograd, one row at a time."""
    rows = []
    for z, y in zip(logits.detach(), targets.tolist(), strict=True):
        z = z.clone().requires_grad_()
        rivals = torch.cat([z[:y], z[y + 1 :]])
        value = {
            "logit": z[y],
            "contrast": z[2] - z[0],
            "margin": z[y] - rivals.exp().sum().log(),
            "log_probability": z[y] - z.exp().sum().log(),
            "loss": z.exp().sum().log() - z[y],
        }[name]
        rows.append(torch.autograd.grad(value, z)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", OUTPUTS)
def test_scores_are_the_exact_shares_of_the_surrogate(problem, name: str, dtype: torch.dtype):
    problem = problem.to(dtype)
    task = dv.Task(problem.model, output=OUTPUTS[name])
    explainer = dv.fit(dv.DualView(C=0.02), task, problem.train, progress=False)
    inputs, targets = problem.test
    scores = explainer.explain(inputs, targets)

    features, network = (problem.model[:2](x).detach().double() for x in (problem.train[0], inputs))
    v = directions(name, problem.model(inputs).double(), targets)
    alpha = alpha_of(explainer)
    dense = torch.einsum("tc,ic,ik,tk->tik", v, alpha, features, network)
    weights = alpha.T @ torch.cat([features, torch.ones(len(features), 1)], 1)
    logits = network @ weights[:, :-1].T + weights[:, -1]

    scale = dense.sum(2).abs().sum(1)
    # v is rounded to a few eps of 1, however small it is where the network is sure of itself
    rounding = 8 * torch.finfo(dtype).eps * (alpha.abs().sum(1) @ (features @ network.T).abs())
    close = TOLERANCE[dtype] * scale + (0 if name in ("logit", "contrast") else rounding)
    assert ((scores.dense() - dense.sum(2)).abs().sum(1) <= close).all()
    assert ((scores.bias - v @ alpha.sum(0)).abs() <= close).all()
    assert ((scores.dense().double().sum(1) + scores.bias - (v * logits).sum(1)).abs() <= close).all()
    assert ((scores.bias_shares.double().sum(1) - scores.bias).abs() <= close).all()
    assert ((explainer.surrogate_logits(inputs) - logits).abs().amax(1) <= close).all()
    assert scale.min() > 0.01  # or the above would hold of nothing
    assert scores.linearised == (name not in ("logit", "contrast"))
    assert scores.lower_is_better == (name == "loss")
    assert scores.measured == ("contrast(2, 0)" if name == "contrast" else name)


@pytest.mark.parametrize("name", OUTPUTS)
def test_other_outputs_weigh_the_scores_of_the_classes(problem, explainer, name: str):
    inputs, targets = problem.test
    by_class = torch.stack([explainer.explain(inputs, c).dense() for c in range(4)], dim=2)
    v = directions(name, problem.model(inputs), targets)
    task = dataclasses.replace(explainer.task, output=OUTPUTS[name])
    scores = dataclasses.replace(explainer, task=task).explain(inputs, targets).dense()
    expected = torch.einsum("tc,tic->ti", v, by_class)
    assert ((scores - expected).abs().sum(1) <= 1e-12 * by_class.abs().sum((1, 2))).all()
    if name == "contrast":  # the difference of two class scores, said once more without v
        difference = by_class[:, :, 2] - by_class[:, :, 0]
        assert ((scores - difference).abs().sum(1) <= 1e-12 * by_class.abs().sum((1, 2))).all()


def test_scores_of_all_classes_cancel(problem, explainer):
    """Each row of the dual sums to zero, so each training sample's scores do."""
    by_class = torch.stack([explainer.explain(problem.test[0], c).dense() for c in range(4)])
    assert (by_class.sum(0).abs() <= 1e-14 * by_class.abs().sum(0)).all()


def test_own_class_speaks_for_and_others_against(problem, explainer):
    """Features are non-negative after the ReLU, so the sign of a score is the sign of alpha."""
    scores = explainer.explain(problem.test[0], problem.test[1]).dense()
    own = problem.train[1][None, :] == problem.test[1][:, None]
    assert (scores[own] >= 0).all() and (scores[~own] <= 0).all()
    assert (scores[own] > 0).any() and (scores[~own] < 0).any()


def test_self_influence_and_importance_are_alpha_of_the_own_label(problem, explainer):
    features = problem.model[:2](problem.train[0]).detach()
    own = alpha_of(explainer).gather(1, problem.train[1][:, None]).squeeze(1)
    torch.testing.assert_close(explainer.importance(), own, rtol=0, atol=0)
    torch.testing.assert_close(explainer.self_influence(), own * features.square().sum(1), rtol=1e-13, atol=0)
    assert 0 < own.max() <= 0.02 and (own == 0).any()


def table_of(features: Tensor, labels: Tensor, num_classes: int) -> Table:
    return Table([Rows(features, torch.zeros(len(labels), num_classes), labels, torch.arange(len(labels)))])


def test_the_state_is_the_solvers_solution(problem):
    features, labels = problem.model[:2](problem.train[0]).detach(), problem.train[1]
    method = dv.DualView(C=0.02, gap=1e-8, seed=3)
    positions = torch.arange(len(labels))
    state, certificate = method.fit(dv.Task(problem.model), table_of(features, labels, 4), positions)
    solution = crammer_singer(features, labels, C=0.02, gap=1e-8, seed=3, num_classes=4)
    alpha = solution.coefficients.to_dense()
    assert torch.equal(state.coefficients(positions), alpha)
    assert torch.equal(state.weights, solution.weights[:, :-1])
    assert torch.equal(state.bias, solution.weights[:, -1])
    assert torch.equal(state.support, alpha.abs().sum(1).nonzero().squeeze(1))
    assert torch.equal(state.class_counts, torch.bincount(labels, minlength=4))
    assert certificate["support"] == len(state.support)
    assert certificate["support_share"] == len(state.support) / 120
    assert certificate["status"] == "converged" and certificate["C"] == 0.02 and "curve" not in certificate
    for name in ("gap", "primal", "dual", "distance", "free", "bound", "regime"):
        assert certificate[name] == getattr(solution, name)
    assert certificate["regime_seconds"].keys() == solution.regime_seconds.keys()
    assert certificate["gap"] <= certificate["asked_gap"] == 1e-8

    asked = torch.tensor([119, 0, 7, 7, int(state.support[0]), int((alpha.abs().sum(1) == 0).nonzero()[0])])
    assert torch.equal(state.coefficients(asked), alpha[asked])
    assert state.coefficients(torch.empty(0, dtype=torch.int64)).shape == (0, 4)


def test_a_fit_on_some_rows_names_them_by_their_place_in_the_training_set(problem):
    features, labels = problem.model[:2](problem.train[0]).detach(), problem.train[1]
    positions = torch.arange(1, 120, 2)
    method = dv.DualView(C=0.02)
    state, certificate = method.fit(dv.Task(problem.model), table_of(features, labels, 4), positions)
    solution = crammer_singer(features[positions], labels[positions], C=0.02, num_classes=4)
    alpha = torch.zeros(120, 4, dtype=torch.float64)
    alpha[positions] = solution.coefficients.to_dense()
    assert torch.equal(state.coefficients(torch.arange(120)), alpha)
    assert (state.support % 2 == 1).all()
    assert certificate["support_share"] == len(state.support) / 60


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["C", "gap"])
def test_hyper_parameters_are_positive_numbers(field: str, value: object):
    with pytest.raises(ValueError) as caught:
        dv.DualView(**{"C": 1.0, field: value})
    allowed = ', or "auto"' if field == "C" else ""
    assert str(caught.value) == f"`{field}` must be a positive number{allowed}; it is {value!r}"


# ── a class without samples ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def without_class_1(problem) -> dv.Explainer:
    """A fit that never saw class 1, which the network predicts for some test samples."""
    inputs, labels = problem.train
    seen = labels != 1
    task = dv.Task(problem.model, class_names=["ant", "bee", "cow", "dog"])
    return dv.fit(dv.DualView(C=0.02), task, (inputs[seen], labels[seen]), progress=False)


def test_a_class_without_samples_has_an_empty_column(problem, without_class_1):
    state = without_class_1.state
    assert state.class_counts[1] == 0
    assert 1 not in state.entry_class
    assert (without_class_1.surrogate_logits(problem.test[0])[:, 1] == 0).all()
    assert list(without_class_1.explain_classes(problem.test[0])) == [0, 2, 3]


def test_asking_for_a_class_without_samples_is_refused(problem, without_class_1):
    message = r"class 1 \(bee\) has no training samples.*test row 0 and 29 more.*targets="
    with pytest.raises(ValueError, match=message):
        without_class_1.explain(problem.test[0], 1)
    with pytest.raises(ValueError, match=r"class 1 \(bee\)"):
        without_class_1.explain_classes(problem.test[0], [0, 1])


def test_a_prediction_that_training_never_showed_is_warned_of(problem, without_class_1):
    inputs = problem.test[0]
    predicted = problem.model(inputs).argmax(1)
    assert (predicted == 1).any()
    with pytest.warns(DualViewWarning, match=r"class 1 \(bee\)"):
        scores = without_class_1.explain(inputs)
    assert torch.equal(scores.targets, predicted)
    assert (scores.dense()[predicted == 1] == 0).all() and (scores.bias[predicted == 1] == 0).all()
    assert (scores.dense()[predicted != 1] != 0).any(1).all()
    with pytest.warns(DualViewWarning, match="bee"):
        dv.relate(without_class_1, inputs)


def test_what_does_not_explain_predictions_does_not_warn_of_them(problem, without_class_1):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without_class_1.explain_classes(problem.test[0])
        logits = without_class_1.surrogate_logits(problem.test[0])
    assert logits.shape == (30, 4)


def test_a_bare_task_has_no_features_to_name():
    with pytest.raises(ValueError, match=r"not resolved yet; use dualview\.fit"):
        dv.DualView(C=1.0).representations(dv.Task(nn.Linear(2, 2)))
