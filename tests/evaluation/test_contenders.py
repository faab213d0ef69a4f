"""What is judged: methods by their words, and baselines."""

import pytest
import torch

import dualview as dv
from dualview.evaluation.contenders import (
    BASELINES,
    Best,
    Chosen,
    Method,
    RandomScores,
    SameClass,
    contender,
    contenders,
)

TASK = dv.Task(torch.nn.Linear(2, 3))


def test_words_become_methods_with_their_settings():
    assert contender("DualView(C=1e-3, fit_to='predictions')") == Method(dv.DualView(C=1e-3, fit_to="predictions"))
    assert contender("DualView") == contender(dv.DualView()) == Method(dv.DualView())
    assert contender("random") == RandomScores() and contender("same-class") is BASELINES["same-class"]
    assert contender(SameClass()) == SameClass()
    assert [one.name for one in contenders(["random", "DualView(gap=1e-3)"])] == ["random", "DualView(gap=0.001)"]
    assert contender("DualView").name == "DualView"
    best = contender("best(DualView(C=0.1), random)")
    assert contender("best(same-class, random)").candidates == (SameClass(), RandomScores())
    assert best == Best((Method(dv.DualView(C=0.1)), RandomScores()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Dualview", "names no method; known: random, same-class, DualView, best"),
        ("DualView(0.1)", "is no method with plain settings"),
        ("DualView(C=open('x'))", "is no method with plain settings"),
        ("DualView(depth=3)", "unexpected keyword argument 'depth'"),
        ("os.system('x')", "is no method with plain settings"),
        ("DualView(", "is no method with plain settings"),
        ("best(DualView)", "must name two or more"),
    ],
)
def test_other_words_are_refused(given, message):
    with pytest.raises(ValueError, match=".") as caught:
        contender(given)
    assert message in str(caught.value)


def test_baselines():
    labels = torch.tensor([0, 1, 1, 2])
    fitted = SameClass().fit(TASK, None, labels)
    assert fitted.explain(None, torch.tensor([1, 2])).tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]
    assert not fitted.suspicions() and SameClass().kind == "similarity"
    noise = RandomScores(3).fit(TASK, None, torch.zeros(5000).long())
    scores = noise.explain(None, torch.zeros(4).long())
    assert torch.equal(scores, noise.explain(None, torch.zeros(4).long())) and scores.shape == (4, 5000)
    assert abs(float(scores.mean())) < 4 / 20_000**0.5 and abs(float(scores.std()) - 1) < 0.03
    assert not torch.equal(
        RandomScores(4).fit(TASK, None, torch.zeros(5000).long()).explain(None, torch.zeros(4).long()), scores
    )


def test_a_method_scores_as_its_explainer_does(toy_problem):
    problem = toy_problem("flipped")
    task = problem.task(problem.model())
    method = dv.DualView(C=0.1)
    fitted = Method(method).fit(task, problem.train.pairs, problem.train.labels)
    explainer = dv.fit(method, task, problem.train.pairs, progress=False)
    targets = problem.test.labels
    assert torch.equal(
        fitted.explain(problem.test.inputs, targets).dense(), explainer.explain(problem.test.inputs, targets).dense()
    )
    suspicions = fitted.suspicions()
    assert torch.equal(suspicions["self_influence"], explainer.self_influence())
    ranking = explainer.suspects(by="slack")
    assert torch.equal(suspicions["slack"][ranking.index], ranking.columns["slack"])
    assert fitted.num_bytes() > 160 * 64 * 4 and fitted.seconds > 0
    chosen = Chosen(Method(method), 3)
    assert chosen.name == "DualView(C=0.1), best of 3" and chosen.kind == "share"
    again = chosen.fit(task, problem.train.pairs, problem.train.labels)
    assert torch.equal(again.suspicions()["slack"], suspicions["slack"])
