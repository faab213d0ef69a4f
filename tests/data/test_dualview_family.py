"""The members of DualView's family: every loss under every metric, against fits and sums written out by hand."""

import dataclasses
import functools
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import dualview as dv
from dualview.errors import DualViewWarning
from dualview.solvers import dual, metrics
from dualview.solvers.losses import DeviationLoss, named

BETWEEN_CLASSES = ("hinge", "smooth-hinge", "softmax", "entmax", "sparsemax", "squared")
METRICS = ("plain", "whitened", "curvature")
C = {"plain": 0.02, "whitened": 0.05, "curvature": 0.005}
OUTPUTS = {"logit": dv.logit, "margin": dv.margin, "contrast": dv.contrast(2, 0)}

EVERY_LOSS = pytest.mark.parametrize("loss", BETWEEN_CLASSES)
EVERY_METRIC = pytest.mark.parametrize("metric", METRICS)
ONCE_EACH = pytest.mark.parametrize(
    ("loss", "metric"),
    [
        ("hinge", "whitened"),
        ("smooth-hinge", "curvature"),
        ("softmax", "plain"),
        ("entmax", "whitened"),
        ("sparsemax", "curvature"),
        ("squared", "plain"),
    ],
)


def fit(method: dv.DualView, problem, output=dv.logit, **settings: object) -> dv.Explainer:
    train = settings.pop("train", problem.train)
    return dv.fit(method, dv.Task(problem.model, output=output), train, progress=False, **settings)


@pytest.fixture(scope="module")
def member(problem):
    """The fit of a loss and a metric, made once."""
    return functools.cache(lambda loss, metric: fit(dv.DualView(C[metric], loss, metric), problem))


def features_of(problem, inputs: Tensor) -> Tensor:
    return problem.model[:2](inputs).detach().double()


def kernels(problem, metric: str, damping: float | None = None) -> Tensor:
    """A_c⁻¹ of each class, "cls unit unit", by sums over the training samples one by one."""
    features = features_of(problem, problem.train[0])
    p = (problem.model(problem.train[0]).detach().double() / 2).softmax(1)
    eye = torch.eye(features.shape[1], dtype=torch.float64)
    if metric == "plain":
        return eye.expand(4, -1, -1)
    weights = p * (1 - p) if metric == "curvature" else torch.ones_like(p)
    damping = {"whitened": 0.01, "curvature": 0.1}[metric] if damping is None else damping
    moments = torch.zeros(4, *eye.shape, dtype=torch.float64)
    for f, w in zip(features, weights, strict=True):
        moments += w[:, None, None] * torch.outer(f, f) / len(features)
    return (moments + damping * torch.linalg.eigvalsh(moments).mean() * eye).inverse()


@EVERY_METRIC
@EVERY_LOSS
def test_scores_and_bias_add_up_to_the_surrogates_output(problem, member, loss: str, metric: str):
    inputs, targets = problem.test
    explainer = member(loss, metric)
    alpha = explainer.state.coefficients(torch.arange(120))
    train, test = features_of(problem, problem.train[0]), features_of(problem, inputs)
    pairs = torch.einsum("ic,ik,ckl,tl->tic", alpha, train, kernels(problem, metric), test)
    logits = pairs.sum(1) + alpha.sum(0)
    torch.testing.assert_close(explainer.surrogate_logits(inputs), logits, rtol=1e-9, atol=1e-10)
    for name, output in OUTPUTS.items():
        task = dataclasses.replace(explainer.task, output=output)
        scores = dataclasses.replace(explainer, task=task).explain(inputs, targets)
        v = task.directions(problem.model(inputs).detach(), targets)
        close = 1e-10 * pairs.abs().sum((1, 2)).clamp(min=1e-3)
        assert ((scores.dense() - torch.einsum("tc,tic->ti", v, pairs)).abs().sum(1) <= close).all(), name
        assert ((scores.dense().sum(1) + scores.bias - (v * logits).sum(1)).abs() <= close).all(), name
        assert ((scores.bias_shares.sum(1) - scores.bias).abs() <= close).all(), name
        assert scores.kind == "share" and scores.linearised == (name == "margin")


@ONCE_EACH
def test_a_fit_is_the_solvers(problem, loss: str, metric: str):
    found = fit(dv.DualView(C[metric], loss, metric, gap=1e-8), problem)
    features = features_of(problem, problem.train[0])
    made = {
        "plain": metrics.plain,
        "whitened": lambda: metrics.whitened(features, 0.01),
        "curvature": lambda: metrics.curvature(
            features, (problem.model(problem.train[0]).detach() / 2).softmax(1), 0.1
        ),
    }[metric]()
    solution = dual(features, problem.train[1], loss=loss, C=C[metric], metric=made, gap=1e-8)
    assert found.certificate["gap"] <= found.certificate["asked_gap"] == 1e-8
    apart = torch.cat([found.state.weights, found.state.bias[:, None]], 1) - solution.weights
    distance = math.sqrt(float((apart * made.product(apart)).sum()))
    assert distance <= found.certificate["distance"] + solution.distance
    assert distance <= 1e-3 * math.sqrt(float((solution.weights * made.product(solution.weights)).sum()))
    if metric != "plain":
        assert found.certificate["damping"] == made.damping


@EVERY_LOSS
def test_whitened_is_plain_on_features_whitened_by_hand(problem, loss: str):
    """f ↦ U⁻ᵀf with A = UᵀU; the constant stays outside of A."""
    moment = kernels(problem, "whitened", damping=0.05)[0].inverse()
    whiten = torch.linalg.cholesky(moment).inverse()
    features, tests = (features_of(problem, x) @ whiten.T for x in (problem.train[0], problem.test[0]))
    head = nn.Linear(10, 4).double()
    with torch.no_grad():
        head.weight.copy_(problem.model[2].weight @ whiten.inverse())
        head.bias.copy_(problem.model[2].bias)
    by_hand = dv.fit(
        dv.DualView(0.05, loss, gap=1e-11), nn.Sequential(head), (features, problem.train[1]), progress=False
    )
    found = fit(dv.DualView(0.05, loss, "whitened", damping=0.05, gap=1e-11), problem)
    inputs, targets = problem.test
    scores, expected = found.explain(inputs, targets).dense(), by_hand.explain(tests, targets).dense()
    # the hinge's duals are not unique where its active set is degenerate; both surrogates are
    torch.testing.assert_close(found.surrogate_logits(inputs), by_hand.surrogate_logits(tests), rtol=1e-4, atol=1e-4)
    if loss != "hinge":
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@EVERY_METRIC
@EVERY_LOSS
def test_slack_is_the_surrogates_loss_and_self_influence_its_own_score(problem, member, loss: str, metric: str):
    explainer = member(loss, metric)
    inputs, labels = problem.train
    its_loss, z = named(loss), explainer.surrogate_logits(inputs)
    expected = its_loss.value(z, one_hot(labels, 4).double() if isinstance(its_loss, DeviationLoss) else labels)
    assert expected.min() > -1e-12
    suspects = explainer.suspects()
    assert suspects.by == "slack"
    torch.testing.assert_close(suspects.columns["slack"], expected[suspects.index], rtol=1e-10, atol=1e-12)
    own = explainer.explain(inputs, labels).dense().diagonal()
    torch.testing.assert_close(explainer.self_influence(), own, rtol=1e-9, atol=1e-12 * float(own.abs().max()))
    alpha = explainer.state.coefficients(torch.arange(120)).gather(1, labels[:, None]).squeeze(1)
    assert torch.equal(explainer.importance(), alpha)


@pytest.mark.parametrize("loss", ["softmax", "sparsemax", "entmax", "smooth-hinge"])
def test_dual_variables_are_the_residuals_of_the_loss(problem, loss: str):
    """alpha_i = −C ∂L/∂z at the surrogate's logits, by autograd, and zero where the loss is flat."""
    explainer = fit(dv.DualView(0.3, loss, gap=1e-13), problem)
    z = explainer.surrogate_logits(problem.train[0]).requires_grad_()
    value = named(loss).value(z, problem.train[1])
    gradient = torch.autograd.grad(value.sum(), z)[0]
    alpha = explainer.state.coefficients(torch.arange(120))
    torch.testing.assert_close(alpha, -0.3 * gradient, rtol=0, atol=2e-5)
    flat = value.detach() == 0
    assert torch.equal(alpha.abs().sum(1) == 0, flat) or loss != "softmax"
    assert bool(flat.any()) == (loss != "softmax")


@EVERY_METRIC
@EVERY_LOSS
def test_explain_classes_is_explain_of_each_class(problem, member, loss: str, metric: str):
    explainer = member(loss, metric)
    by_class = explainer.explain_classes(problem.test[0], top=120)
    assert list(by_class) == [0, 1, 2, 3]
    for column, found in by_class.items():
        expected = explainer.explain(problem.test[0], column)
        torch.testing.assert_close(found.dense(), expected.dense(), rtol=1e-12, atol=1e-15)
        assert torch.equal(found.bias, expected.bias)


@ONCE_EACH
def test_a_stored_member_is_opened_again(problem, tmp_path, loss: str, metric: str):
    method = dv.DualView(C[metric], loss, metric, smoothing=0.5 if loss == "smooth-hinge" else None)
    description = json.loads(json.dumps(method.describe()))
    assert dv.DualView(**{name: value for name, value in description.items() if name != "method"}) == method
    before = fit(method, problem, store=tmp_path, held_out=problem.test)
    after = dv.open(tmp_path, problem.model)
    assert after.method == method and after.fidelity == before.fidelity
    for name, tensor in before.state._asdict().items():
        assert torch.equal(getattr(after.state, name), tensor), name
    inputs = problem.test[0]
    for ask in ("explain", "response"):
        expected, found = (getattr(one, ask)(inputs).dense() for one in (before, after))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


def test_the_default_keeps_its_description(problem):
    assert dv.DualView().describe() == {
        "method": "DualView", "C": "auto", "loss": "hinge", "metric": "plain", "gap": 1e-06, "seed": 0
    }  # fmt: skip
    assert dv.DualView(loss="softmax", metric="whitened", damping=0.3).describe()["damping"] == 0.3


# ── the choice of C ──────────────────────────────────────────────────────────────────────────────


@ONCE_EACH
def test_C_is_chosen_along_a_whole_path_for_every_loss(problem, loss: str, metric: str):
    """Smooth losses have no row at a bound from the start, and that must not end the path."""
    explainer = fit(dv.DualView(loss=loss, metric=metric), problem, held_out=problem.test)
    curve = explainer.curve
    assert len(curve) >= 3 and list(curve.C) == sorted(curve.C)
    best = max(curve.fidelity)
    assert curve.fidelity[curve.chosen] >= best - 2 / 30 and best > 0.8
    assert explainer.certificate["C"] == curve.C[curve.chosen]
    assert all(math.isfinite(number) for number in (*curve.fidelity_error, *curve.shortfall, *curve.shortfall_error))


def test_the_chosen_softmax_is_about_as_faithful_as_the_best_of_a_fine_grid(problem):
    explainer = fit(dv.DualView(loss="softmax"), problem, held_out=problem.test)
    network = problem.model(problem.test[0]).argmax(1)
    shares = [
        float((fit(dv.DualView(10.0**k, "softmax"), problem).surrogate_logits(problem.test[0]).argmax(1) == network)
              .double().mean())
        for k in range(-3, 2)
    ]  # fmt: skip
    assert explainer.fidelity["held_out"]["agreement"] >= max(shares) - 1 / 30


def test_a_share_of_support_samples_is_asked_of_sparse_losses(problem):
    explainer = fit(dv.DualView(loss="sparsemax", support=0.6), problem)
    assert explainer.certificate["support_share"] == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "logistic"}, "`loss` is 'logistic'; choose from 'hinge', .* and 'epsilon'"),
        ({"metric": "cosine"}, "`metric` is 'cosine'; choose from 'plain', 'whitened' and 'curvature'"),
        ({"smoothing": 0.5}, "`smoothing` is of loss='smooth-hinge', and the loss is 'hinge'"),
        ({"loss": "smooth-hinge", "smoothing": 0.0}, "`smoothing` must be a positive number; it is 0.0"),
        ({"epsilon": 0.2}, "`epsilon` is of loss='epsilon', and the loss is 'hinge'"),
        ({"loss": "epsilon", "epsilon": -1.0}, "`epsilon` must be a positive number"),
        ({"damping": 0.1}, "`damping` is of metric='whitened' or 'curvature'"),
        ({"metric": "whitened", "damping": math.nan}, "`damping` must be a positive number"),
        ({"loss": "softmax", "support": 0.2}, "loss='softmax' makes all samples support samples"),
        ({"loss": "squared", "support": 0.2}, "loss='squared' makes all samples support samples"),
        ({"loss": "softmax", "low_memory": True}, "`low_memory` is of loss='hinge' with metric='plain'"),
    ],
)
def test_settings_of_members_are_checked(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dv.DualView(**settings)


# ── hard cases ───────────────────────────────────────────────────────────────────────────────────


@ONCE_EACH
def test_a_network_of_one_logit_is_explained_as_two_classes(loss: str, metric: str):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] + 0.5 * inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(5, 1)).double()
    two = nn.Sequential(nn.Linear(5, 2)).double()
    with torch.no_grad():
        two[0].weight.copy_(torch.cat([-model[0].weight, model[0].weight]) / 2)
        two[0].bias.copy_(torch.cat([-model[0].bias, model[0].bias]) / 2)
    method = dv.DualView(0.1, loss, metric, gap=1e-10)
    one_logit, two_logits = (dv.fit(method, network, (inputs, labels), progress=False) for network in (model, two))
    found = one_logit.explain(inputs[:9])
    torch.testing.assert_close(found.dense(), two_logits.explain(inputs[:9]).dense(), rtol=1e-6, atol=1e-9)
    expected = one_logit.surrogate_logits(inputs[:9]).gather(1, found.targets[:, None]).squeeze(1)
    torch.testing.assert_close(found.dense().sum(1) + found.bias, expected, rtol=1e-10, atol=1e-10)
    apart = one_logit.response(inputs[:9]).dense() - two_logits.response(inputs[:9]).dense()
    assert apart.abs().max() <= 1e-5 * one_logit.response(inputs[:9]).dense().abs().max()


@ONCE_EACH
def test_single_precision_gives_nearly_the_same_surrogate(problem, loss: str, metric: str):
    single = problem.to(torch.float32)
    found, expected = (fit(dv.DualView(C[metric], loss, metric, gap=1e-5), one) for one in (single, problem))
    assert found.certificate["status"] == "converged"
    result = found.explain(single.test[0])
    assert result.scores.dtype == torch.float32
    logits = found.surrogate_logits(single.test[0])
    own = logits.gather(1, result.targets[:, None]).squeeze(1)
    scale = result.dense().abs().sum(1)
    assert ((result.dense().sum(1) + result.bias - own).abs() <= 1e-5 * scale.clamp(min=1)).all()
    reference = expected.surrogate_logits(problem.test[0])
    assert (logits.double() - reference).abs().max() <= 0.03 * reference.abs().max()  # gaps of 1e-5 allow that much


@ONCE_EACH
def test_duplicates_weigh_twice(problem, loss: str, metric: str):
    """The metric is a mean over rows, which equal copies of all rows leave as it is; then C counts twice."""
    twice = tuple(torch.cat([part, part]) for part in problem.train)
    found = fit(dv.DualView(C[metric], loss, metric, gap=1e-10), problem, train=twice)
    expected = fit(dv.DualView(2 * C[metric], loss, metric, gap=1e-10), problem)
    torch.testing.assert_close(
        found.surrogate_logits(problem.test[0]), expected.surrogate_logits(problem.test[0]), rtol=1e-3, atol=1e-3
    )


@ONCE_EACH
def test_dead_units_have_no_share(problem, loss: str, metric: str):
    """A unit that is always zero changes nothing under any metric, and has weight zero."""
    model = nn.Sequential(*problem.to(torch.float64).model)
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].bias[3] = -1
    explainer = dv.fit(dv.DualView(0.02, loss, metric), model, problem.train, progress=False)
    assert (explainer.state.weights[:, 3] == 0).all()
    assert explainer.explain(problem.test[0]).dense().isfinite().all()


@EVERY_METRIC
def test_features_that_are_all_zero_leave_the_bias_or_are_refused(problem, metric: str):
    model = nn.Sequential(*problem.to(torch.float64).model)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)
    if metric != "plain":
        with pytest.raises(ValueError, match="features that are not all zero"):
            dv.fit(dv.DualView(0.02, "softmax", metric), model, problem.train, progress=False)
        return
    explainer = dv.fit(dv.DualView(0.02, "softmax"), model, problem.train, progress=False)
    assert (explainer.explain(problem.test[0]).dense() == 0).all() and explainer.state.bias.abs().max() > 0


@ONCE_EACH
@pytest.mark.parametrize("value", [1e-12, 1e5])
@pytest.mark.filterwarnings("ignore::dualview.errors.GapWarning")
def test_extreme_C_gives_numbers_or_says_so(problem, loss: str, metric: str, value: float):
    explainer = fit(dv.DualView(value, loss, metric, gap=1e-3), problem)
    assert explainer.explain(problem.test[0]).dense().isfinite().all()
    assert explainer.suspects().columns["slack"].isfinite().all() and explainer.self_influence().isfinite().all()
    assert explainer.response(problem.test[0]).dense().isfinite().all()
    assert explainer.certificate["status"] == "converged" or value > 1


@ONCE_EACH
def test_a_class_without_samples_has_an_empty_column(problem, loss: str, metric: str):
    inputs, labels = problem.train
    seen = labels != 1
    explainer = fit(dv.DualView(C[metric], loss, metric), problem, train=(inputs[seen], labels[seen]))
    assert (explainer.surrogate_logits(problem.test[0])[:, 1] == 0).all()
    assert list(explainer.explain_classes(problem.test[0])) == [0, 2, 3]
    with pytest.warns(DualViewWarning, match="class 1 has no training samples"):
        scores = explainer.explain(inputs)
    assert (scores.dense()[scores.targets == 1] == 0).all() and scores.dense().isfinite().all()
    assert explainer.suspects().columns["slack"].isfinite().all()
