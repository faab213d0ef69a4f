"""Relations and their maps under a metric: both sides' unit shares against the whole tensor, written out."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import dualview as dv

METRICS = ("plain", "whitened", "curvature")
OUTPUTS = {"logit": dv.logit, "contrast": dv.contrast(0, 2), "margin": dv.margin}
LOSS = {"plain": "softmax", "whitened": "hinge", "curvature": "sparsemax"}
C = {"plain": 0.05, "whitened": 0.3, "curvature": 0.05}


@pytest.fixture(scope="module")
def data() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A model without biases before the readout, 50 training samples of 3 classes, and 7 test inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Linear(5, 9, bias=False), nn.ReLU(), nn.Linear(9, 8, bias=False), nn.ReLU()]
        model = nn.Sequential(*body, nn.Linear(8, 3)).double()
        labels = torch.arange(50) % 3
        inputs = torch.randn(50, 5, dtype=torch.float64) + 2 * nn.functional.one_hot(labels, 5)
        test = torch.randn(7, 5, dtype=torch.float64) + 1
    return model, inputs, labels, test


@pytest.fixture(scope="module")
def explainers(data) -> dict[str, dv.Explainer]:
    model, inputs, labels, _ = data
    return {
        metric: dv.fit(dv.DualView(C[metric], LOSS[metric], metric), model, (inputs, labels), progress=False)
        for metric in METRICS
    }


def whole(explainer: dv.Explainer, data, v: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_c v_c alpha_ic (A_c⁻¹ f_i)_k f_k(x) and Σ_c v_c alpha_ic f_ik (A_c⁻¹ f(x))_k, "test train unit"."""
    model, inputs, _, tests = data
    train, test = (model[:4](x).detach() for x in (inputs, tests))
    weights = torch.ones(50, 3, dtype=torch.float64)
    damping, metric = {"whitened": 0.01, "curvature": 0.1}.get(explainer.method.metric), explainer.method.metric
    if metric == "curvature":
        p = (model(inputs).detach() / 2).softmax(1)
        weights = p * (1 - p)
    A = torch.einsum("ic,ik,il->ckl", weights, train, train) / 50
    eye = torch.eye(8, dtype=torch.float64)
    A = eye.expand(3, -1, -1) if damping is None else A + damping * torch.linalg.eigvalsh(A).mean() * eye
    M = A.inverse()
    alpha = explainer.state.coefficients(torch.arange(50))
    seen_from_test = torch.einsum("tc,ic,ckl,il,tk->tik", v, alpha, M, train, test)
    seen_from_train = torch.einsum("tc,ic,ik,ckl,tl->tik", v, alpha, train, M, test)
    return seen_from_test, seen_from_train


def measured(explainer: dv.Explainer, name: str) -> dv.Explainer:
    return dataclasses.replace(explainer, task=dataclasses.replace(explainer.task, output=OUTPUTS[name]))


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("metric", METRICS)
def test_both_sides_unit_shares_are_those_of_the_tensor_and_add_up_alike(data, explainers, metric: str, name: str):
    explainer = measured(explainers[metric], name)
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    relation = dv.relate(explainer, data[3], targets)
    v = explainer.task.directions(data[0](data[3]).detach(), targets)
    sides = dict(zip(("test", "train"), whole(explainer, data, v), strict=True))
    scale = sides["test"].abs().sum((1, 2))
    close = 1e-9 * scale
    scores = explainer.explain(data[3], targets)
    assert torch.equal(relation.by_train(), scores.dense())
    pairs_t, pairs_i = torch.arange(7).repeat_interleave(50), torch.arange(50).repeat(7)
    for side, tensor in sides.items():
        assert ((tensor.sum(2) - relation.by_train()).abs().sum(1) <= close).all()
        assert ((relation.by_unit(side=side) - tensor.sum(1)).abs().sum(1) <= close).all()
        assert ((relation.by_unit(side=side).sum(1) + relation.bias - relation.surrogate_outputs).abs() <= close).all()
        gradients, features = relation.factors(pairs_t, pairs_i, side=side)
        own = data[0][:4](data[3][pairs_t] if side == "test" else data[1][pairs_i]).detach()
        torch.testing.assert_close(features, own, rtol=1e-12, atol=1e-14)
        apart = (gradients * features).view(7, 50, 8) - tensor
        assert (apart.abs().sum((1, 2)) <= close).all()
    for t, i in ((0, 3), (6, 49)):
        torch.testing.assert_close(relation.pair(t, i), sides["test"][t, i], rtol=1e-7, atol=1e-9 * float(scale[t]))
        assert abs(float(relation.pair(t, i).sum() - relation.by_train()[t, i])) <= float(close[t])
    if metric != "plain":  # or the sides would not have been told apart
        assert (sides["test"] - sides["train"]).abs().sum() > 0.1 * scale.sum()


@pytest.mark.filterwarnings("ignore:of the network's own output")
@pytest.mark.parametrize("metric", METRICS)
def test_each_map_is_seeded_with_its_own_sides_shares(data, explainers, metric: str):
    """Without biases the epsilon rule is gradient × input of Σ_k g_k f_k, with g that side's factor."""
    explainer, model = explainers[metric], data[0]
    relation = dv.relate(explainer, data[3])
    pairs = [(0, int(explainer.state.support[0])), (2, int(explainer.state.support[-1])), (5, 7)]
    tests, trains = (list(column) for column in zip(*pairs, strict=True))
    maps = dv.render(relation, dv.LRP("epsilon", epsilon=0), tests, trains)
    sides = whole(explainer, data, torch.eye(3, dtype=torch.float64)[relation.targets])
    for pair, (t, i) in enumerate(pairs):
        for heat, sample, tensor in ((maps.test, data[3][t], sides[0]), (maps.train, data[1][i], sides[1])):
            x = sample[None].clone().requires_grad_()
            features = model[:4](x)[0]
            factor = torch.where(features == 0, 0, tensor[t, i] / features).detach()
            expected = torch.autograd.grad(features @ factor, x)[0][0] * sample
            torch.testing.assert_close(heat[pair], expected, rtol=1e-7, atol=1e-9 * float(sides[0][t].abs().sum()))
    scores = relation.by_train()[tests, trains]
    torch.testing.assert_close(maps.scores, scores, rtol=1e-8, atol=1e-12)
    for heat in (maps.test, maps.train):
        torch.testing.assert_close(heat.sum(1), scores, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")
def test_with_biases_each_map_and_what_was_absorbed_is_the_score(data, explainers):
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    explainer = dv.fit(dv.DualView(0.05, "softmax", "curvature"), model, (data[1], data[2]), progress=False)
    relation = dv.relate(explainer, data[3])
    maps = dv.render(relation, dv.LRP("epsilon-plus"), test=[0, 1], k=2)
    for heat, account in ((maps.test, maps.test_account), (maps.train, maps.train_account)):
        absorbed = sum(entry.amount for entry in account.absorbed)
        assert absorbed.abs().max() > 0
        torch.testing.assert_close(heat.sum(1) + absorbed, maps.scores, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(account.seed, maps.scores, rtol=1e-9, atol=1e-12)


def test_several_outputs_of_a_regression_are_related(data):
    model, inputs, _, tests = data
    task = dv.Task(model, problem="regression")
    explainer = dv.fit(dv.DualView(0.3, "squared", "whitened"), task, (inputs, inputs[:, :3]), progress=False)
    relation = dv.relate(explainer, tests, 1)
    output = explainer.surrogate_logits(tests)[:, 1]
    for side in ("test", "train"):
        torch.testing.assert_close(relation.by_unit(side=side).sum(1) + relation.bias, output, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(relation.by_train().sum(1) + relation.bias, output, rtol=1e-9, atol=1e-10)
