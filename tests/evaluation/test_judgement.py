"""The table of contenders, metrics and cases, its ranks and its costs."""

import csv
import dataclasses
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch

import dualview as dv
from dualview.evaluation._estimate import Estimate
from dualview.evaluation._table import COLUMNS, COSTS
from dualview.evaluation.cases import case_of
from dualview.evaluation.contenders import BASELINES, Best, Contender, Fitted, Method, contender
from dualview.evaluation.judgement import Judgement, Line, judge
from dualview.evaluation.metrics import METRICS, Metric

RANDOM, SAME_CLASS = BASELINES["random"], BASELINES["same-class"]


def line(contender, value, *, metric="m", data="d", better=True, notes=()):
    values = torch.tensor([value, value]).double()
    return Line(data, "standard", metric, contender, Estimate(metric, values, value, value, better, notes=tuple(notes)))


def test_ranks_share_ties_turn_with_the_better_way_and_leave_out_what_does_not_apply():
    lines = (
        *(line(name, value) for name, value in (("a", 3.0), ("b", 2.0), ("c", 2.0))),
        *(line(name, value, metric="loss", better=False) for name, value in (("a", 3.0), ("b", 1.0))),
        *(line(name, value, metric="neither", better=None) for name, value in (("a", 3.0), ("b", 1.0))),
        line("a", 1.0, metric="alone"),
        line("b", math.nan, metric="undefined"),
        Line("d", "standard", "loss", "c", None, "has none"),
    )
    assert Judgement(lines, ()).ranks() == {"a": (1.5, 2), "b": (1.75, 2), "c": (2.5, 1)}


def test_tables_hold_every_note():
    judgement = Judgement(
        (
            line("a", 0.5, notes=["few", "tied"]),
            line("b", math.nan, notes=["few"]),
            Line("d", "standard", "m", "c", None, "c has no slack"),
        ),
        (),
    )
    text = judgement.to_markdown()
    assert "| d | standard | m | a | 0.500 | (0.500 to 0.500) |" in text and "| [1] [2] |" in text
    assert "undefined" in text and "does not apply" in text
    assert text.endswith("[1] few  \n[2] tied  \n[3] c has no slack  \n")
    rows = list(csv.DictReader(io.StringIO(judgement.to_csv())))
    assert tuple(rows[0]) == (*COLUMNS, *COSTS) and rows[0]["notes"] == "few; tied"
    assert rows[1]["value"] == "" and rows[2]["notes"] == "c has no slack"


def test_a_judgement_of_real_contenders(toy_problem):
    contenders = [RANDOM, SAME_CLASS, Method(dv.DualView(C=0.1))]
    metrics = [METRICS[name] for name in ("class-detection", "sparsity", "mislabel-detection", "mislabel-recall-slack")]
    cases = [partial(case_of, toy_problem(variant)) for variant in ("standard", "flipped")]
    found = judge(contenders, metrics, cases, progress=False)
    assert len(found.lines) == 12 and len(found.costs) == 6
    by_name = {(line.metric, line.contender): line for line in found.lines}
    assert by_name["class-detection", "same class"].estimate.mean == 1
    assert by_name["mislabel-detection", "same class"].why_not == "it has no self-influence to rank training samples by"
    assert by_name["mislabel-recall-slack", "DualView(C=0.1)"].estimate.mean > 0.3
    again = judge(contenders, metrics, cases, progress=False)
    assert [line.row() for line in again.lines] == [line.row() for line in found.lines]  # to the last digit
    for cost in found.costs:
        assert cost.num_test == 60 and cost.explain_seconds >= 0 and cost.metric_seconds > 0
    # Each reads a sample once, and some more to look at the model; nothing goes backward.
    for cost in found.costs:
        assert 160 <= cost.fit_passes[0] < 200 and 60 <= cost.explain_passes[0] < 70
        assert cost.fit_passes[1] == cost.explain_passes[1] == 0
    by_contender = {cost.contender: cost.num_bytes for cost in found.costs}
    assert by_contender["DualView(C=0.1)"] - by_contender["random"] > 160 * 64 * 4  # it keeps features, too


def test_with_a_best_of_several_scores_are_on_subsets_of_their_own(toy_problem):
    case = partial(case_of, toy_problem("standard"), num_subsets=40, num_seeds=2)
    alone = judge([SAME_CLASS], [METRICS["lds"]], [case], progress=False)
    beside = judge([SAME_CLASS, Best((RANDOM, SAME_CLASS))], [METRICS["lds"]], [case], progress=False)
    same, best = beside.lines
    assert best.contender == "same class, best of 2" and best.estimate.mean == same.estimate.mean
    assert same.estimate.mean != alone.lines[0].estimate.mean  # of 20 subsets, not of 40


@dataclass(frozen=True)
class Scoring(Contender):
    """What a function of the task, the training samples and the number of test samples says."""

    scores: Callable[..., torch.Tensor]
    kind = "effect"
    name = "scoring"

    def fit(self, task, train, train_targets):
        scores = self.scores(task, train[0])
        return Fitted(lambda inputs, columns: scores.expand(len(columns), -1), dict, 0.0, lambda: 0)


def test_scores_without_a_number_are_a_line_that_says_so(toy_problem):
    broken = Scoring(lambda task, inputs: torch.full((len(inputs),), math.nan))
    found = judge([broken], [METRICS["sparsity"]], [partial(case_of, toy_problem("standard"))], progress=False)
    assert found.lines[0].estimate is None and found.lines[0].why_not.startswith("undefined: `scores` are NaN")


def test_a_contender_that_refuses_the_data_says_why_and_the_others_go_on(toy_problem):
    counting, metrics = contender("BM25"), [METRICS["class-detection"], METRICS["sparsity"]]
    found = judge([counting, SAME_CLASS], metrics, [partial(case_of, toy_problem("standard"))], progress=False)
    refused, judged = found.lines[:2], found.lines[2:]
    assert all(line.estimate is None and "BM25" in line.why_not for line in refused)
    assert all(line.estimate is not None for line in judged)
    assert [cost.contender for cost in found.costs] == ["same class"]


def test_gradients_are_counted(toy_problem):
    def gradients(task, inputs):
        for rows in inputs.split(40):
            task.model(rows.requires_grad_()).sum().backward()
        return torch.ones(len(inputs))

    case = partial(case_of, toy_problem())
    cost = judge([Scoring(gradients)], [METRICS["sparsity"]], [case], progress=False).costs[0]
    assert cost.fit_passes == (160, 160)


def test_names_must_differ(toy_problem):
    case = partial(case_of, toy_problem("standard"))
    for contenders, cases in (([SAME_CLASS], [case, case]), ([SAME_CLASS, SAME_CLASS], [case])):
        with pytest.raises(ValueError, match="names must differ: toy, standard or one of same class"):
            judge(contenders, [METRICS["sparsity"]], cases, progress=False)


def test_a_case_without_a_metric_for_it_costs_nothing(toy_problem):
    found = judge([SAME_CLASS], [METRICS["sparsity"]], [partial(case_of, toy_problem("flipped"))], progress=False)
    assert found == Judgement((), ()) and found.to_markdown().startswith("|")
    with pytest.raises(KeyError):
        METRICS["nothing"]


def test_what_takes_too_long_is_stopped_and_said(toy_problem):
    def endless(task, inputs):
        while True:
            time.sleep(0.01)

    metrics = [METRICS[name] for name in ("sparsity", "mislabel-recall")]
    cases = [partial(case_of, toy_problem(variant)) for variant in ("standard", "flipped")]
    found = judge([Scoring(endless), RANDOM], metrics, cases, limit=0.2, progress=False)
    said = {(line.variant, line.contender): line.why_not for line in found.lines}
    assert said["standard", "scoring"] == "making its scores was stopped after 0.2 s"
    assert said["flipped", "scoring"] == "making its scores was stopped after 0.2 s on standard"  # and not tried anew
    assert said["standard", "random"] == said["flipped", "random"] == ""
    assert {cost.contender for cost in found.costs} == {"random"}


def test_a_metric_that_trains_networks_and_takes_too_long_is_not_tried_for_others(toy_problem):
    def endless(judged):
        while True:
            time.sleep(0.01)

    slow = Metric("slow", "standard", endless, retrains=True)
    case = partial(case_of, toy_problem())
    found = judge([RANDOM, SAME_CLASS], [slow, METRICS["sparsity"]], [case], limit=0.2, progress=False)
    assert [line.why_not for line in found.lines if line.metric == "slow"] == [
        "it was stopped after 0.2 s",
        "it was stopped after 0.2 s for random",
    ]
    assert all(line.estimate is not None for line in found.lines if line.metric == "sparsity")


def test_what_is_kept_is_found_by_the_same_call_and_by_no_other(toy_problem, tmp_path, monkeypatch):
    metrics = [METRICS["sparsity"], METRICS["model-randomisation"]]
    cases = [partial(case_of, toy_problem())]
    first = judge([SAME_CLASS, contender("BM25")], metrics, cases, keep=tmp_path, progress=False)
    fits = []
    fit = Method.fit
    monkeypatch.setattr(Method, "fit", lambda self, *given: fits.append(self.name) or fit(self, *given))
    again = judge([SAME_CLASS, contender("BM25")], metrics, cases, keep=tmp_path, progress=False)
    assert again.to_csv() == first.to_csv() and again.costs == first.costs and not fits
    assert torch.equal(again.lines[0].estimate.values, first.lines[0].estimate.values)
    judge([SAME_CLASS], metrics[:1], cases, keep=tmp_path, progress=False)  # other metrics
    judge([SAME_CLASS], metrics, [partial(case_of, toy_problem(), seed=1)], keep=tmp_path, progress=False)
    monkeypatch.setattr("dualview.evaluation._kept._code", lambda: "other code")
    judge([SAME_CLASS], metrics, cases, keep=tmp_path, progress=False)
    assert len(fits) == 1 + 2 + 2  # model randomisation fits again


def test_nothing_is_kept_of_a_case_that_nothing_identifies(toy_problem, tmp_path):
    case = dataclasses.replace(case_of(toy_problem()), identity=None)
    with pytest.raises(ValueError, match="`keep`: toy is no built-in case"):
        judge([SAME_CLASS], [METRICS["sparsity"]], [lambda: case], keep=tmp_path, progress=False)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_is_a_time(toy_problem, limit):
    with pytest.raises(ValueError, match="`limit` must be a positive number of seconds"):
        judge([RANDOM], [METRICS["sparsity"]], [partial(case_of, toy_problem())], limit=limit, progress=False)
