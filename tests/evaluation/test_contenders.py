"""What is judged: methods by their words, and baselines."""

import pytest
import torch

import dualview as dv
from dualview.evaluation.contenders import (
    BASELINES,
    NAMES,
    Best,
    Chosen,
    Method,
    contender,
    contenders,
)


def test_words_become_methods_with_their_settings():
    assert contender("DualView(C=1e-3, fit_to='predictions')") == Method(dv.DualView(C=1e-3, fit_to="predictions"))
    assert contender("DualView") == contender(dv.DualView()) == Method(dv.DualView())
    forward = contender("ForwardInfluence(sites=('0', '2'), temperature=2.0)")
    assert forward == Method(dv.ForwardInfluence(("0", "2"), temperature=2.0))
    assert contender("DualView(C=1e-2, metric='whitened')").name == "DualView(C=0.01, metric='whitened')"
    assert contender("random") == Method(dv.Random(), "random")
    assert contender("RelatIF(of=DataInf(damping=0.5), form='theta')") == Method(
        dv.RelatIF(dv.DataInf(damping=0.5), form="theta")
    )
    assert contender(BASELINES["loss"]) is contender("loss") is BASELINES["loss"]
    assert [one.name for one in contenders(["random", "DualView(gap=1e-3)"])] == ["random", "DualView(gap=0.001)"]
    assert contender("DualView").name == "DualView"
    best = contender("best(DualView(C=0.1), random)")
    assert contender("best(same-class, random)").candidates == (BASELINES["same-class"], BASELINES["random"])
    assert best == Best((Method(dv.DualView(C=0.1)), BASELINES["random"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Dualview", "names no method; known: random, same-class, loss, confidence, "),
        ("DualView(0.1)", "is no method with plain settings"),
        ("DualView(C=open('x'))", "is no method with plain settings"),
        ("DualView(depth=3)", "unexpected keyword argument 'depth'"),
        ("RelatIF(of=DataInf(damping=-1.0))", "`damping` must be a positive number"),
        ("RelatIF(of=DataInf(depth=3))", "unexpected keyword argument 'depth'"),
        ("os.system('x')", "is no method with plain settings"),
        ("DualView(", "is no method with plain settings"),
        ("best(DualView)", "must name two or more"),
    ],
)
def test_other_words_are_refused(given, message):
    with pytest.raises(ValueError, match=".") as caught:
        contender(given)
    assert message in str(caught.value)


def test_baselines_are_methods_with_names_that_tables_read(toy_problem):
    problem = toy_problem("flipped")
    task, train, labels = problem.task(problem.model()), problem.train.pairs, problem.train.labels
    assert [one.name for one in BASELINES.values()] == ["random", "same class", "loss", "confidence"]
    same = BASELINES["same-class"].fit(task, train, labels)
    targets = problem.test.labels
    assert torch.equal(same.explain(problem.test.inputs, targets).dense(), (targets[:, None] == labels).float())
    with torch.no_grad():
        logits = task.model(train[0])
    losses = BASELINES["loss"].fit(task, train, labels).suspicions()["self_influence"]
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    doubts = BASELINES["confidence"].fit(task, train, labels).suspicions()["self_influence"]
    others = logits.softmax(1).scatter(1, labels[:, None], 0).amax(1)
    torch.testing.assert_close(doubts, others - logits.softmax(1).gather(1, labels[:, None]).squeeze(1))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "BM25"])  # which reads words, and refuses numbers
def test_every_method_can_be_judged_by_its_name(name, toy_problem):
    problem = toy_problem("flipped")
    task, train, labels = problem.task(problem.model()), problem.train.pairs, problem.train.labels
    one = contender(name)
    fitted = one.fit(task, train, labels)
    scores = fitted.explain(problem.test.inputs, problem.test.labels)
    assert scores.dense().shape == (60, 160) and scores.kind == one.kind
    ranked = set() if name in ("same-class", "GradCos") else {"self_influence"}  # theirs is 1 for all
    surrogate = {"slack"} if one.method.has_surrogate else set()
    suspicions = fitted.suspicions()
    assert set(suspicions) == ranked | surrogate
    assert all(len(values.unique()) > 1 for values in suspicions.values())
    explainer = dv.fit(one.method, task, train, progress=False)
    rows = explainer.table.rows(torch.arange(160))
    assert fitted.num_bytes() == sum(t.numel() * t.element_size() for t in (*explainer.state, *rows))


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
