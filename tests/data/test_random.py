"""Random: normal noise that says nothing, and the same noise again."""

import copy
from typing import get_type_hints

import torch

import dualview as dv
from dualview.data.random import Drawn
from tests.data.test_grad_dot import fit, numbers


def scores(problem, model=None, seed: int = 0) -> torch.Tensor:
    return fit(model or problem.model, problem.train, dv.Random(seed)).explain(*problem.test).dense()


def test_it_is_standard_normal(problem):
    found = scores(problem)
    count = found.numel()  # 3600: the bounds are five standard errors
    assert abs(found.mean()) < 5 / count**0.5 and abs(found.std() - 1) < 5 / (2 * count) ** 0.5
    assert abs(found.pow(4).mean() - 3) < 5 * (96 / count) ** 0.5
    rows = torch.corrcoef(found)[*torch.triu_indices(30, 30, 1)]
    assert rows.abs().max() < 5 / 120**0.5


def test_it_depends_on_the_seed_the_network_and_the_positions_alone(problem):
    again, other = scores(problem), scores(problem, seed=1)
    assert torch.equal(scores(problem), again)
    model = copy.deepcopy(problem.model)
    with torch.no_grad():
        model[0].bias += 0.1
    for changed in (other, scores(problem, model)):
        assert torch.corrcoef(torch.stack([changed.flatten(), again.flatten()]))[0, 1].abs() < 5 / 3600**0.5
    explainer = fit(problem.model, problem.train, dv.Random())
    assert torch.equal(explainer.explain(problem.test[0][:4]).dense(), again[:4])
    own = explainer.self_influence()
    assert torch.equal(own, explainer.self_influence()) and not any(torch.equal(own, row) for row in again)


def test_the_seed_is_annotated_as_one_number():
    seed = get_type_hints(Drawn)["seed"]
    assert isinstance(torch.tensor([3]), seed) and not isinstance(torch.tensor([3, 4]), seed)


def test_it_scores_every_kind_of_task(problem):
    for kind in ("regression", "multi-label"):
        explainer = fit(dv.Task(problem.model, problem=kind), (problem.train[0], numbers(kind).double()), dv.Random())
        assert torch.equal(explainer.explain(problem.test[0], 1).dense(), scores(problem))
