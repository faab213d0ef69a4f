"""Confidence: the most probable other class against the label, written out sample by sample."""

import torch
from torch import nn

import dualview as dv
from tests.data.test_grad_dot import fit


def test_it_is_the_margin_of_probabilities(problem):
    explainer = fit(problem.model, problem.train, dv.Confidence())
    expected = []
    for z, y in zip(problem.model(problem.train[0]).tolist(), problem.train[1].tolist(), strict=True):
        p = torch.tensor(z, dtype=torch.float64).exp()
        p = (p / p.sum()).tolist()
        expected.append(max(p[:y] + p[y + 1 :]) - p[y])
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(explainer.explain(*problem.test).dense(), expected.expand(30, -1), rtol=0, atol=1e-14)
    torch.testing.assert_close(explainer.self_influence(), expected, rtol=0, atol=1e-14)
    wrong = problem.model(problem.train[0]).argmax(1) != problem.train[1]
    assert torch.equal(expected > 0, wrong) and wrong.any()  # above zero where another class is predicted


def test_of_one_logit_it_is_that_of_its_two_classes(problem):
    model = nn.Linear(6, 1).double()
    labels = problem.train[1] % 2
    p = model(problem.train[0]).detach().sigmoid()[:, 0]
    found = fit(model, (problem.train[0], labels), dv.Confidence()).self_influence()
    torch.testing.assert_close(found, torch.where(labels == 1, 1 - 2 * p, 2 * p - 1), rtol=0, atol=1e-14)
