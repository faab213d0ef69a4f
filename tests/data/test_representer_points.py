"""RepresenterPoints against its identity, autograd's gradient of its objective, and the dual solver."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.errors import DualViewWarning
from dualview.report import write_report
from dualview.solvers import dual

EXACT = {"rtol": 0.0, "atol": 1e-10}


def augmented(model: nn.Sequential, inputs: Tensor) -> Tensor:
    return F.pad(model[:-1](inputs).detach(), (0, 1), value=1.0)


METHOD = dv.RepresenterPoints()


def fit(problem, method=METHOD, **options) -> dv.Explainer:
    return dv.fit(method, options.pop("task", problem.model), problem.train, progress=False, **options)


def alpha_of(explainer: dv.Explainer) -> Tensor:
    return explainer.state.coefficients(torch.arange(len(explainer.table)))


@pytest.mark.parametrize("fit_to", ["outputs", "labels"])
@pytest.mark.parametrize("l2", [0.003, 0.1])
def test_the_objective_is_stationary_and_shares_add_up(problem, fit_to, l2):
    explainer = fit(problem, dv.RepresenterPoints(l2, fit_to))
    features, (inputs, labels) = augmented(problem.model, problem.train[0]), problem.train
    targets = problem.model(inputs).detach().softmax(1) if fit_to == "outputs" else F.one_hot(labels).double()
    alpha = alpha_of(explainer)
    weights = (alpha.T @ features).requires_grad_()
    objective = F.cross_entropy(features @ weights.T, targets) + l2 * weights.square().sum()
    (gradient,) = torch.autograd.grad(objective, weights)
    assert gradient.norm() < 1e-11 and explainer.certificate["gradient_norm"] < 1e-11
    logits = features @ weights.detach().T
    torch.testing.assert_close(alpha, (targets - logits.softmax(1)) / (2 * l2 * len(labels)), **EXACT)
    torch.testing.assert_close(explainer.surrogate_logits(inputs), logits, **EXACT)
    found = explainer.explain(problem.test[0])
    tests = augmented(problem.model, problem.test[0])
    expected = (tests @ weights.detach().T).gather(1, found.targets[:, None]).squeeze(1)
    torch.testing.assert_close(found.dense().sum(1) + found.bias, expected, **EXACT)
    torch.testing.assert_close(
        found.dense() + found.bias_shares, tests @ features.T * alpha[:, found.targets].T, **EXACT
    )
    facts = explainer.certificate
    assert facts["status"] == "converged" and facts["identity_gap"] < 1e-10 and found.kind == "share"


def test_fitted_to_labels_it_is_the_dual_of_the_softmax_loss(problem):
    l2, (_, labels) = 0.01, problem.train
    features = augmented(problem.model, problem.train[0])[:, :-1]
    expected = dual(features, labels, loss="softmax", C=1 / (2 * l2 * len(labels)), gap=1e-14)
    found = fit(problem, dv.RepresenterPoints(l2, "labels"))
    torch.testing.assert_close(alpha_of(found), expected.coefficients.to_dense(), rtol=0, atol=1e-7)
    own = alpha_of(found).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(found.importance(), own, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.self_influence(), own * features.square().sum(1), rtol=0, atol=1e-10)
    slack = F.cross_entropy(found.surrogate_logits(problem.train[0]), labels, reduction="none")
    ranking = found.suspects()
    torch.testing.assert_close(ranking.columns["slack"], slack[ranking.index], rtol=0, atol=1e-10)


def test_two_samples_in_closed_form():
    """Features ±1 of two classes: by symmetry alpha = (1 − p)/(4 l2) with p = sigmoid(4 alpha)."""
    model = nn.Linear(1, 2).double()
    l2 = 0.05
    train = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([0, 1])
    explainer = dv.fit(dv.RepresenterPoints(l2, "labels"), model, train, progress=False)
    low, high = 0.0, 100.0  # bisection
    for _ in range(200):
        middle = (low + high) / 2
        wanted = (1 - 1 / (1 + math.exp(-4 * middle))) / (4 * l2)
        low, high = (middle, high) if middle < wanted else (low, middle)
    expected = low * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(alpha_of(explainer), expected, rtol=0, atol=1e-12)
    assert explainer.certificate["identity_gap"] < 1e-12


def test_the_certificate_compares_probabilities_as_the_authors_do(problem):
    gaps = []
    for l2 in (1e-4, 0.003, 0.1):
        explainer = fit(problem, dv.RepresenterPoints(l2))
        network = problem.model(problem.train[0]).detach().softmax(1)
        surrogate = explainer.surrogate_logits(problem.train[0]).softmax(1)
        facts = explainer.certificate
        assert facts["probability_l1"] == pytest.approx(float((network - surrogate).abs().mean()), abs=1e-12)
        centred = [part.flatten() - part.mean() for part in (network, surrogate)]
        pearson = float(F.cosine_similarity(*centred, dim=0))
        assert facts["probability_pearson"] == pytest.approx(pearson, abs=1e-12)
        gaps.append(facts["probability_l1"])
    assert gaps[0] < gaps[1] < gaps[2] and gaps[0] < 0.01


def test_other_outputs_are_explained_through_their_gradient(problem):
    alpha, logits = alpha_of(fit(problem)), problem.model(problem.test[0]).detach()
    features, tests = (augmented(problem.model, x[0])[:, :-1] for x in (problem.train, problem.test))
    p = logits.softmax(1)
    one_hot = F.one_hot(logits.argmax(1), 4)
    contrast = torch.tensor([1.0, 0, -1, 0], dtype=torch.float64).expand(30, 4)
    for output, v in ((dv.contrast(0, 2), contrast), (dv.log_probability, one_hot - p)):
        found = fit(problem, task=dv.Task(problem.model, output=output)).explain(problem.test[0])
        torch.testing.assert_close(found.dense(), tests @ features.T * (v @ alpha.T), **EXACT)
        torch.testing.assert_close(found.bias, v @ alpha.sum(0), **EXACT)


def test_every_class_at_the_cost_of_one_product(problem):
    explainer = fit(problem)
    for column, found in explainer.explain_classes(problem.test[0], top=120).items():
        expected = explainer.explain(problem.test[0], column)
        torch.testing.assert_close(found.dense(), expected.dense(), **EXACT)
        torch.testing.assert_close(found.bias, expected.bias, **EXACT)


def test_a_class_without_samples_has_shares_too(problem):
    kept = problem.train[1] != 2
    few = problem._replace(train=tuple(part[kept] for part in problem.train))
    explainer = fit(few, dv.RepresenterPoints(0.01, "labels"))
    found = explainer.explain(problem.test[0], 2)
    logits = explainer.surrogate_logits(problem.test[0])[:, 2]
    torch.testing.assert_close(found.dense().sum(1) + found.bias, logits, **EXACT)
    assert (alpha_of(explainer)[:, 2] < 0).all()


def test_one_logit_for_two_classes_is_two_columns(problem):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    explainer = dv.fit(dv.RepresenterPoints(), model, (problem.train[0], problem.train[1] % 2), progress=False)
    alpha, features = alpha_of(explainer), augmented(model, problem.train[0])
    torch.testing.assert_close(alpha[:, 0], -alpha[:, 1], **EXACT)
    p = torch.sigmoid(model(problem.train[0]).detach()[:, 0])
    surrogate = features @ features.T @ alpha[:, 1]
    torch.testing.assert_close(alpha[:, 1], (p - torch.sigmoid(2 * surrogate)) / (2 * 0.003 * 120), **EXACT)


def test_the_relation_sums_to_the_same(problem):
    explainer = fit(problem)
    relation, found = dv.relate(explainer, problem.test[0]), explainer.explain(problem.test[0])
    torch.testing.assert_close(relation.by_train(), found.dense(), **EXACT)
    torch.testing.assert_close(relation.by_unit().sum(1) + relation.bias, relation.surrogate_outputs, **EXACT)
    torch.testing.assert_close(relation.pair(3, 7).sum(), found.dense()[3, 7], **EXACT)
    maps = dv.render(relation, dv.LRP("epsilon", bias="exclude", epsilon=1e-9), test=0, train=3)
    for side in (maps.test, maps.train):
        torch.testing.assert_close(side.sum(), found.dense()[0, 3], rtol=1e-6, atol=0)


def test_a_page_shows_it_without_maps(problem, tmp_path):
    explainer = fit(problem, held_out=problem.test)
    assert explainer.fidelity["held_out"]["agreement"] > 0.9
    with pytest.warns(DualViewWarning, match="no heat maps: they need a fitted DualView"):
        write_report(explainer, problem.test, tmp_path / "page.html", rule="auto")
    assert "RepresenterPoints" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with pytest.raises(TypeError, match="a response needs a fitted DualView"):
        explainer.response(problem.test[0])


def test_single_precision_features_are_solved_as_exactly(problem):
    """What is certified is float64; the features are what they are."""
    explainer = fit(problem.to(torch.float32))
    assert explainer.certificate["status"] == "converged" and explainer.certificate["identity_gap"] < 1e-10


def test_a_fit_that_ends_early_says_so(problem, monkeypatch):
    monkeypatch.setattr("dualview.data.representer_points.MAX_STEPS", 1)
    with pytest.warns(DualViewWarning, match="ended before its gradient vanished: shares miss the fitted logits by"):
        explainer = fit(problem)
    assert explainer.certificate["status"] == "limit" and explainer.certificate["identity_gap"] > 1e-6


def test_what_is_refused(problem):
    with pytest.raises(ValueError, match="`l2` must be a positive number; it is 0.0"):
        dv.RepresenterPoints(0.0)
    with pytest.raises(ValueError, match="`fit_to` is 'predictions'; choose from 'outputs' and 'labels'"):
        dv.RepresenterPoints(fit_to="predictions")
    task = dv.Task(problem.model, problem="regression")
    with pytest.raises(ValueError, match="RepresenterPoints explains a classification, no regression task"):
        dv.fit(dv.RepresenterPoints(), task, (problem.train[0], problem.train[0][:, :4]), progress=False)
