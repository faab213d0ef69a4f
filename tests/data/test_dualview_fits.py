"""What DualView is fitted to, with which weights and which C: each against a fit written out otherwise."""

import dataclasses
import json

import pytest
import torch
from torch import Tensor

import dualview as dv
from dualview.data._stored_fit import fit_name
from dualview.errors import DualViewWarning

C = 0.02


def fit(method: dv.DualView, problem, train: tuple[Tensor, Tensor] | None = None, **settings: object) -> dv.Explainer:
    return dv.fit(method, problem.model, train or problem.train, progress=False, **settings)


def alpha_of(explainer: dv.Explainer) -> Tensor:
    return explainer.state.coefficients(torch.arange(len(explainer.table)))


def assert_same_surrogate(first: dv.Explainer, second: dv.Explainer) -> None:
    """Weights lie within the distances to the one optimum that both certificates state."""
    apart = [getattr(first.state, name) - getattr(second.state, name) for name in ("weights", "bias")]
    distance = sum(part.square().sum() for part in apart).sqrt()
    assert distance <= first.certificate["distance"] + second.certificate["distance"]
    assert distance < 1e-3 * first.state.weights.norm()  # or the above would say little


# ── labels or predictions ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def predicted(problem) -> Tensor:
    columns = problem.model(problem.train[0]).argmax(1)
    assert (columns != problem.train[1]).sum() >= 5
    return columns


def test_a_fit_to_predictions_is_a_fit_to_labels_that_are_the_predictions(problem, predicted):
    found = fit(dv.DualView(C=C, fit_to="predictions"), problem)
    expected = fit(dv.DualView(C=C), problem, (problem.train[0], predicted))
    for name, tensor in expected.state._asdict().items():
        assert torch.equal(getattr(found.state, name), tensor), name
    assert torch.equal(found.importance(), expected.importance()) and found.importance().min() >= 0
    assert torch.equal(found.self_influence(), expected.self_influence())
    assert torch.equal(found.explain(problem.test[0]).dense(), expected.explain(problem.test[0]).dense())


def test_it_agrees_with_the_network_more_and_labels_show_as_slack(problem, predicted):
    to_labels, to_predictions = fit(dv.DualView(C=C), problem), fit(dv.DualView(C=C, fit_to="predictions"), problem)
    assert to_predictions.fidelity["train"]["agreement"] > to_labels.fidelity["train"]["agreement"]
    slack = to_predictions.suspects(by="slack")
    logits = to_predictions.surrogate_logits(problem.train[0])
    labels = problem.train[1]
    costs = logits + 1 - torch.nn.functional.one_hot(labels, 4)
    expected = costs.amax(1) - logits.gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(slack.columns["slack"], expected[slack.index], rtol=1e-12, atol=1e-12)


def test_a_class_the_network_never_predicts_has_no_column(problem):
    model = problem.to(torch.float64).model
    model[2].bias.data[1] = -100.0
    explainer = dv.fit(dv.DualView(C=C, fit_to="predictions"), model, problem.train, progress=False)
    assert explainer.state.class_counts[1] == 0 and explainer.state.class_counts.sum() == 120
    assert list(explainer.explain_classes(problem.test[0])) == [0, 2, 3]
    with pytest.raises(ValueError, match="class 1 is predicted for no training sample, so nothing can explain it"):
        explainer.explain(problem.test[0], 1)
    slacks = explainer.suspects().columns["slack"]
    assert slacks.isfinite().all() and (slacks >= 0).all()
    labelled = explainer.suspects().columns["target"] == 1
    assert labelled.any() and (slacks[labelled] > 0).all()


def test_a_network_that_predicts_one_class_is_refused(problem):
    model = problem.to(torch.float64).model
    model[2].bias.data[1] = 100.0
    with pytest.raises(ValueError, match="the network predicts class 1 for all 120 training samples"):
        dv.fit(dv.DualView(C=C, fit_to="predictions"), model, problem.train, progress=False)


# ── weights ──────────────────────────────────────────────────────────────────────────────────────


def test_integer_weights_are_repeated_rows(problem):
    weights = torch.randint(0, 4, (120,), generator=torch.Generator().manual_seed(2))
    weighted = fit(dv.DualView(C=C, gap=1e-9, sample_weight=weights), problem)
    repeated = fit(
        dv.DualView(C=C, gap=1e-9), problem, tuple(part.repeat_interleave(weights, 0) for part in problem.train)
    )
    assert_same_surrogate(weighted, repeated)
    assert torch.equal(weighted.state.class_counts, torch.bincount(problem.train[1][weights > 0], minlength=4))


def test_samples_of_weight_zero_never_score(problem):
    weights = (torch.arange(120) % 3 != 0).double()
    found = fit(dv.DualView(C=C, sample_weight=weights), problem)
    alone = fit(dv.DualView(C=C), problem, tuple(part[weights > 0] for part in problem.train))
    assert (found.state.support % 3 != 0).all() and (alpha_of(found)[::3] == 0).all()
    assert torch.equal(alpha_of(found)[weights > 0], alpha_of(alone))
    assert (found.explain(problem.test[0]).dense()[:, ::3] == 0).all() and (found.self_influence()[::3] == 0).all()


def test_weights_belong_to_positions_where_a_share_is_held_out(problem):
    weights = 1 + torch.arange(120) % 4
    found = fit(dv.DualView(C=C, sample_weight=weights), problem, held_out=0.25)
    kept = found.positions
    assert len(kept) == 90
    alone = fit(dv.DualView(C=C, sample_weight=weights[kept]), problem, tuple(part[kept] for part in problem.train))
    assert torch.equal(alpha_of(found)[kept], alpha_of(alone))
    with pytest.raises(ValueError, match="`sample_weight` holds 3 weights for 120 training samples"):
        fit(dv.DualView(C=C, sample_weight=[1, 2, 3]), problem)


@pytest.mark.parametrize("given", ["balanced", {0: 2.0, 3: 0.5}, [2.0, 1.0, 1.0, 0.5]])
def test_class_weights_are_weights_of_their_samples(problem, given):
    labels = problem.train[1]
    if given == "balanced":
        by_class = 120 / (4 * torch.bincount(labels).double())
    else:
        by_class = torch.tensor([2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    found = fit(dv.DualView(C=C, class_weight=given), problem)
    expected = fit(dv.DualView(C=C, sample_weight=by_class[labels]), problem)
    assert_same_surrogate(found, expected)
    own = alpha_of(found).gather(1, labels[:, None]).squeeze(1)
    assert (own <= C * by_class[labels] * (1 + 1e-12)).all() and own.max() > C


def test_classes_of_weight_zero_have_no_column(problem):
    found = fit(dv.DualView(C=C, class_weight={1: 0.0}), problem)
    assert found.state.class_counts[1] == 0
    with pytest.raises(ValueError, match="class_weight names class 7"):
        fit(dv.DualView(C=C, class_weight={7: 1.0}), problem)


def test_low_memory_changes_nothing_but_the_road(problem):
    assert_same_surrogate(fit(dv.DualView(C=C, low_memory=True), problem), fit(dv.DualView(C=C), problem))


# ── the choice of C ──────────────────────────────────────────────────────────────────────────────


def test_C_is_chosen_on_held_out_data_which_the_fit_does_not_see(problem):
    auto = fit(dv.DualView(), problem, held_out=problem.test)
    curve = auto.curve
    assert curve.num_held_out == 30 and curve.by == "fidelity"
    chosen = curve.C[curve.chosen]
    assert auto.certificate["C"] == chosen
    given = fit(dv.DualView(C=chosen), problem)
    assert torch.equal(alpha_of(auto), alpha_of(given)) and given.curve is None
    assert auto.fidelity["train"] == given.fidelity["train"]
    other = fit(dv.DualView(), problem, held_out=(problem.test[0].flip(1), problem.test[1]))
    assert other.curve.C[0] == curve.C[0] and other.curve.fidelity != curve.fidelity


def test_without_held_out_data_a_part_is_set_aside_and_then_fitted_too(problem):
    auto = fit(dv.DualView(), problem)
    assert auto.curve.num_held_out == 24 and len(auto.positions) == 120 and set(auto.fidelity) == {"train"}
    assert torch.equal(alpha_of(auto), alpha_of(fit(dv.DualView(C=auto.certificate["C"]), problem)))
    assert fit(dv.DualView(seed=1), problem).curve.fidelity != auto.curve.fidelity


def test_a_held_out_share_serves_for_the_choice(problem):
    auto = fit(dv.DualView(), problem, held_out=0.25)
    assert auto.curve.num_held_out == 30 and len(auto.positions) == 90
    assert torch.isin(auto.state.support, auto.positions).all()


def test_the_default_needs_no_setting_and_holds_its_curve_in_the_result(problem):
    explainer = fit(dv.DualView(), problem)
    assert explainer.method == dv.DualView("auto") and repr(explainer.method) == "DualView(C='auto', gap=1e-06, seed=0)"
    scores = explainer.explain(problem.test[0])
    assert scores.certificate["curve"] == explainer.curve.describe()
    surrogate = explainer.surrogate_logits(problem.test[0]).gather(1, scores.targets[:, None]).squeeze(1)
    torch.testing.assert_close(scores.dense().sum(1) + scores.bias, surrogate, rtol=1e-9, atol=1e-9)


def test_a_support_share_is_asked_for(problem):
    explainer = fit(dv.DualView(support=0.6), problem, held_out=problem.test)
    assert explainer.certificate["support_share"] == pytest.approx(0.6, abs=0.02)
    assert explainer.curve.asked_support == 0.6 and explainer.curve.num_held_out == 30
    low, high = explainer.certificate["reachable_support"]
    assert low < 0.6 < high == 1
    with pytest.warns(DualViewWarning, match="makes support=0.001 of these samples"):
        fit(dv.DualView(support=0.001), problem)
    with pytest.raises(
        ValueError, match=r"`support` asks for C to be found, and C=0.1 gives it: leave one of them out"
    ):
        dv.DualView(C=0.1, support=0.5)


# ── descriptions and the store ───────────────────────────────────────────────────────────────────

METHODS = (
    dv.DualView(),
    dv.DualView(C=C),
    dv.DualView(support=0.6),
    dv.DualView(C=C, fit_to="predictions", class_weight={0: 2.0}, low_memory=True),
    dv.DualView(C=C, class_weight=[1, 2, 1, 1], sample_weight=torch.arange(120) % 3),
)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_method_is_rebuilt_from_its_description(method: dv.DualView):
    description = json.loads(json.dumps(method.describe()))
    assert dv.DualView(**{name: value for name, value in description.items() if name != "method"}) == method
    if method.sample_weight is None:
        assert eval(repr(method), {"DualView": dv.DualView}) == method
    else:
        assert "sample_weight=..." in repr(method)
    assert len({method, dataclasses.replace(method)}) == 1


def test_fits_of_earlier_versions_keep_their_names(problem):
    """What version 0.1.0.dev0 wrote, and how it named the file."""
    earlier = {"method": "DualView", "C": 0.02, "loss": "hinge", "metric": "plain", "gap": 1e-06, "seed": 0}
    assert dv.DualView(C=0.02).describe() == earlier
    assert fit_name(dv.DualView(C=0.02), 120, 120) == "DualView-414d7cc4e239"


def test_fits_that_chose_otherwise_stand_beside_each_other(problem, tmp_path):
    """What is held out decides C, and C the fit."""
    inputs, labels = problem.test
    first = fit(dv.DualView(), problem, held_out=problem.test, store=tmp_path)
    other = fit(dv.DualView(), problem, held_out=(inputs, labels.flip(0)), store=tmp_path)
    assert other.certificate["C"] == first.certificate["C"]  # labels say nothing of fidelity
    assert dv.open(tmp_path, problem.model).certificate["C"] == first.certificate["C"]
    few = fit(dv.DualView(), problem, held_out=(inputs[:3], labels[:3]), store=tmp_path)
    assert few.certificate["C"] != first.certificate["C"]  # else the following would say nothing
    with pytest.raises(ValueError, match="holds 2 fits: say which with method="):
        dv.open(tmp_path, problem.model)


def test_shares_of_support_are_of_the_samples_that_take_part(problem):
    weights = torch.arange(120) % 2
    explainer = fit(dv.DualView(support=0.6, sample_weight=weights), problem)
    share = explainer.certificate["support_share"]
    assert share == pytest.approx(0.6, abs=0.05) and share == explainer.certificate["support"] / 60


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_fits_come_back_from_a_store(problem, tmp_path, method: dv.DualView):
    stored = fit(method, problem, held_out=problem.test, store=tmp_path)
    opened = dv.open(tmp_path, problem.model, method=method)
    assert opened.method == method and opened.curve == stored.curve
    assert (opened.curve is None) == (method.C != "auto")
    assert opened.certificate["C"] == stored.certificate["C"]
    assert torch.equal(opened.explain(problem.test[0]).dense(), stored.explain(problem.test[0]).dense())
    assert torch.equal(opened.self_influence(), stored.self_influence())
