"""FeatureSimilarity against similarities of activations that are computed by hand."""

import pytest
import torch
from torch import nn

import dualview as dv

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def expected(metric: str, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if metric == "euclidean":
        spread = (right[:, None] - right).square().sum(2).mean().sqrt()
        return 1 / (1 + (left[:, None] - right).square().sum(2).sqrt() / spread)
    if metric == "cosine":
        left, right = (rows / rows.norm(dim=1, keepdim=True) for rows in (left, right))
    return left @ right.T


@pytest.mark.parametrize("metric", ["dot", "cosine", "euclidean"])
def test_scores_are_similarities_of_what_enters_the_layer(problem, metric):
    layers = {None: problem.model[:2], "2": problem.model[:2], "1": problem.model[:1], "0": nn.Identity()}
    for site, before in layers.items():
        explainer = dv.fit(dv.FeatureSimilarity(metric, site), problem.model, problem.train, progress=False)
        left, right = (before(part[0]).detach() for part in (problem.test, problem.train))
        found = explainer.explain(problem.test[0])
        torch.testing.assert_close(found.dense(), expected(metric, left, right), **CLOSE)
        assert found.kind == "similarity"
        torch.testing.assert_close(explainer.self_influence(), expected(metric, right, right).diagonal(), **CLOSE)


def test_what_is_measured_does_not_matter(problem):
    plain = dv.fit(dv.FeatureSimilarity(), problem.model, problem.train, progress=False).explain(problem.test[0])
    task = dv.Task(problem.model, output=dv.loss)
    of_loss = dv.fit(dv.FeatureSimilarity(), task, problem.train, progress=False).explain(*problem.test)
    assert torch.equal(plain.dense(), of_loss.dense())


def test_a_duplicate_is_the_nearest(problem):
    inputs = problem.train[0].float()
    model = nn.Sequential(nn.Linear(6, 3)).float()
    explainer = dv.fit(dv.FeatureSimilarity("euclidean"), model, (inputs, problem.train[1] % 3), progress=False)
    scores = explainer.explain(inputs[:9]).dense()
    assert torch.equal(scores.argmax(1), torch.arange(9)) and (scores.diagonal() == 1).all()
    assert torch.equal(explainer.explain(inputs[:9], top=1).top(1).proponents.train_index[:, 0], torch.arange(9))


def test_maps_are_averaged_where_asked():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.double()
    inputs, labels = torch.randn(10, 1, 6, 6, dtype=torch.float64), torch.arange(10) % 2
    maps = model[:2](inputs).detach()
    for pooled, rows in ((False, maps.flatten(1)), (True, maps.mean((2, 3)))):
        method = dv.FeatureSimilarity("cosine", "2", pooled=pooled)  # there is no readout, and none is needed
        found = dv.fit(method, model, (inputs, labels), progress=False).explain(inputs[:3]).dense()
        torch.testing.assert_close(found, expected("cosine", rows[:3], rows), **CLOSE)


def test_numbers_and_labels_will_do(problem):
    for kind, labels in (
        ("regression", problem.train[0][:, :4]),
        ("multi-label", (problem.train[0][:, :4] > 0).double()),
    ):
        task = dv.Task(problem.model, problem=kind)
        found = dv.fit(dv.FeatureSimilarity(site="0"), task, (problem.train[0], labels), progress=False)
        torch.testing.assert_close(
            found.explain(problem.test[0], 1).dense(), problem.test[0] @ problem.train[0].T, **CLOSE
        )


def test_what_is_refused(problem):
    with pytest.raises(ValueError, match="`metric` is 'l2'; choose from 'dot', 'cosine', 'euclidean'"):
        dv.FeatureSimilarity("l2")
    with pytest.raises(ValueError, match="site='head' is not a module of Sequential. Modules are: '0', '1', '2'"):
        dv.fit(dv.FeatureSimilarity(site="head"), problem.model, problem.train, progress=False)
