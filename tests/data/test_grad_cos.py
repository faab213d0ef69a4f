"""GradCos against cosines of gradients taken one by one, however small these are."""

import copy

import torch
from torch import nn

import dualview as dv
from tests.data.test_grad_dot import CLOSE, MEASURES, PROBLEMS, fit, numbers, rows


def cosines(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left / left.norm(dim=1, keepdim=True)) @ (right / right.norm(dim=1, keepdim=True)).T


def test_scores_are_cosines_of_gradients(problem):
    losses = rows(problem.model, *problem.train)
    for name, (output, measure) in MEASURES.items():
        found = fit(dv.Task(problem.model, output=output), problem.train, dv.GradCos()).explain(*problem.test)
        expected = -cosines(rows(problem.model, *problem.test, measure), losses)
        torch.testing.assert_close(found.dense(), expected, **CLOSE)
        assert found.kind == "similarity" and found.lower_is_better == (name == "loss")


def test_other_problems(problem):
    for kind, loss in PROBLEMS.items():
        labels = numbers(kind)
        task = dv.Task(problem.model, problem=kind)
        found = fit(task, (problem.train[0], labels), dv.GradCos()).explain(problem.test[0], 1).dense()
        left = rows(problem.model, problem.test[0], torch.ones(30, dtype=torch.int64), MEASURES["logit"][1])
        torch.testing.assert_close(found, -cosines(left, rows(problem.model, problem.train[0], labels, loss)), **CLOSE)


def test_samples_that_are_fitted_well_keep_their_direction_in_single_precision(problem):
    """With a margin of 60, 1 − p is 1e-26: its square is 0 in float32, and p itself rounds to 1."""
    model = copy.deepcopy(problem.model)
    with torch.no_grad():
        factor = 60 / dv.margin(model(problem.train[0]), problem.train[1]).max()
        model[2].weight *= factor
        model[2].bias *= factor
    margins = dv.margin(model(problem.train[0]), problem.train[1])
    assert (margins > 17).sum() > 10
    expected = -cosines(rows(model, *problem.test, MEASURES["logit"][1]), rows(model, *problem.train))
    (inputs, labels), (test, targets) = ((x.float(), y) for x, y in (problem.train, problem.test))
    found = fit(model.float(), (inputs, labels), dv.GradCos()).explain(test, targets).dense()
    # logits of size 60 are known to 60 · 6e-8, and so is log p, which is the relative error of a gradient
    assert (found - expected).abs().max() < 2e-5
    assert expected[:, margins > 17].abs().max() > 0.3


def test_a_gradient_of_zero_has_no_direction():
    model = nn.Linear(3, 1, bias=False).double()
    inputs = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 2, 2]], dtype=torch.float64)
    labels = model(inputs).detach() + 1
    explainer = fit(dv.Task(model, problem="regression"), (inputs, labels), dv.GradCos())
    expected = torch.tensor([[1.0, 0, 1 / 3], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(explainer.explain(inputs[:2]).dense(), expected, rtol=0, atol=1e-15)
    assert explainer.self_influence().tolist() == [1, 0, 1]
