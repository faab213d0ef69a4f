"""`explainer.response` against surrogates that are fitted anew with each sample weighing a little more and less."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import dualview as dv

H = 1e-3
ROWS = (5, 40)
C = 0.05


def fit(method: dv.DualView, task, train, **settings: object) -> dv.Explainer:
    return dv.fit(method, task, train, progress=False, **settings)


def by_refitting(explainer: dv.Explainer, train, inputs: Tensor, targets, held_out=None) -> Tensor:
    """Central differences in w_i of Σ_c v_c logit_c(x), "test row"; v is the network's, whatever the weights."""
    task, n = explainer.task, len(train[0])
    raw = task.forward(inputs).detach()
    columns = task.predicted(raw) if targets is None else torch.as_tensor(targets).expand(len(inputs))
    v = task.directions(raw, columns)
    given = explainer.method.sample_weight
    weights = torch.ones(n, dtype=torch.float64) if given is None else torch.tensor(given, dtype=torch.float64)
    found = []
    for row in ROWS:
        ends = []
        for sign in (1, -1):
            # in units of the sample's own weight, as the response is
            factor = weights * (1 + sign * H * one_hot(torch.tensor(row), n))
            method = dataclasses.replace(explainer.method, sample_weight=factor, gap=1e-13)
            again = fit(method, task, train, held_out=held_out)
            ends.append((v * again.surrogate_logits(inputs)).sum(1))
        found.append((ends[0] - ends[1]) / (2 * H))
    return torch.stack(found, 1)


def assert_is_the_derivative(explainer: dv.Explainer, train, inputs, targets=None, held_out=None) -> None:
    found = explainer.response(inputs, targets)
    assert found.kind == "effect" and (found.bias == 0).all() and (found.bias_shares == 0).all()
    expected = by_refitting(explainer, train, inputs, targets, held_out)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found.dense()[:, ROWS], expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


WEIGHTS = 0.5 + torch.arange(120) % 3


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "softmax"},
        {"loss": "softmax", "metric": "curvature", "sample_weight": WEIGHTS},
        {"loss": "squared", "metric": "whitened", "class_weight": "balanced"},
        {"loss": "softmax", "fit_to": "predictions", "class_weight": {0: 2.0, 3: 0.5}},
        {"loss": "smooth-hinge", "smoothing": 0.7, "metric": "whitened"},
    ],
    ids=str,
)
def test_it_is_the_derivative_of_refits(problem, settings: dict):
    task = dv.Task(problem.model, output=dv.margin)
    if settings.get("class_weight") == "balanced":  # counted by sample weights, so that refits would weigh otherwise
        counts = torch.bincount(problem.train[1]).double()
        explainer = fit(dv.DualView(C, gap=1e-13, **settings), task, problem.train)
        by_hand = settings | {"class_weight": tuple((120 / (4 * counts)).tolist())}
        same = fit(dv.DualView(C, gap=1e-13, **by_hand), task, problem.train)
        torch.testing.assert_close(explainer.response(problem.test[0]).dense(), same.response(problem.test[0]).dense())
        explainer = same
    else:
        explainer = fit(dv.DualView(C, gap=1e-13, **settings), task, problem.train)
    assert_is_the_derivative(explainer, problem.train, problem.test[0][:5])


def test_it_is_that_of_the_rows_the_fit_saw(problem):
    explainer = fit(dv.DualView(C, "softmax", "whitened", gap=1e-13), problem.model, problem.train, held_out=0.25)
    outside = torch.ones(120, dtype=torch.bool).index_fill(0, explainer.positions, False)
    assert (explainer.response(problem.test[0]).dense()[:, outside] == 0).all()
    assert not outside[list(ROWS)].all()
    assert_is_the_derivative(explainer, problem.train, problem.test[0][:5], held_out=0.25)


@pytest.mark.parametrize("loss", ["softmax", "squared"])
@pytest.mark.parametrize("metric", ["plain", "curvature"])
def test_classes_without_weight_take_no_part(problem, loss: str, metric: str):
    """The last class is fitted to no sample, though there are some of it, and class 1 has none at all."""
    inputs, labels = problem.train
    train = inputs, torch.where(labels == 1, 0, labels)
    method = dv.DualView(C, loss, metric, gap=1e-13, class_weight={3: 0.0})
    explainer = fit(method, problem.model, train)
    assert (explainer.state.class_counts == 0).tolist() == [False, True, False, True]
    found = explainer.response(problem.test[0], 0).dense()
    assert (found[:, labels == 3] == 0).all() and (found[:, labels != 3].abs().sum(0) > 0).all()
    assert_is_the_derivative(explainer, train, problem.test[0][:5], targets=0)


def numbers() -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    values = inputs @ torch.randn(4, 2, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    return model, inputs, values.sin() + 0.3 * torch.randn(60, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("problem_kind", "loss", "metric"),
    [
        ("regression", "squared", "whitened"),
        ("multi-label", "softmax", "curvature"),
        ("multi-label", "softmax", "plain"),
    ],
)
def test_numbers_and_labels_respond_too(problem_kind: str, loss: str, metric: str):
    model, inputs, values = numbers()
    targets = values if problem_kind == "regression" else (values > 0).double()
    task = dv.Task(model, problem=problem_kind)
    explainer = fit(dv.DualView(C, loss, metric, gap=1e-13), task, (inputs, targets))
    assert_is_the_derivative(explainer, (inputs, targets), inputs[:5] + 0.1, targets=1)


def test_the_strongest_are_those_of_all(problem):
    explainer = fit(dv.DualView(C, "sparsemax"), problem.model, problem.train)
    whole, kept = explainer.response(problem.test[0]).top(3), explainer.response(problem.test[0], top=3).top(3)
    assert torch.equal(whole.proponents.train_index, kept.proponents.train_index)
    assert torch.equal(whole.opponents.scores, kept.opponents.scores)


def test_samples_without_a_dual_variable_have_none(problem):
    explainer = fit(dv.DualView(0.3, "sparsemax", "whitened"), problem.model, problem.train)
    found = explainer.response(problem.test[0])
    outside = torch.ones(120, dtype=torch.bool).index_fill(0, explainer.state.support, False)
    assert outside.any() and (found.dense()[:, outside] == 0).all()
    assert torch.equal(found.train_index, explainer.state.support)
    assert found.method == f"response of {explainer.method!r}"


def test_it_is_of_the_family_alone(problem):
    explainer = fit(dv.LastLayerInfluence(), problem.model, problem.train)
    with pytest.raises(TypeError, match="a response needs a fitted DualView; this explainer holds LastLayerInfluence"):
        explainer.response(problem.test[0])
