"""Each metric of the table: with a scorer that knows, with one that knows nothing, and where it does not apply."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dualview as dv
from dualview.evaluation import metrics
from dualview.evaluation.cases import case_of, case_of_task
from dualview.evaluation.contenders import BASELINES, Best, Contender, Fitted, Method
from dualview.evaluation.metrics import METRICS, Inapplicable, Judged, choose, chosen
from dualview.evaluation.selection import brittleness
from dualview.evaluation.tasks import planted, recipes

RANDOM, SAME_CLASS = BASELINES["random"], BASELINES["same-class"]


def load():
    """What the fixture's source loads, where no fixture can reach."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(220) % 4
    inputs = torch.randn(220, 6, generator=generator) + 2 * torch.eye(6)[labels]
    return planted.split(planted.unspoilt(inputs, labels), 160, 60)


@dataclass(frozen=True)
class Knowing(Contender):
    """Scores by what is planted: 1 for the training samples to be found."""

    wanted: object
    kind = "effect"
    name = "knowing"

    def fit(self, task, train, train_targets):
        suspicions = {name: self.wanted(None, None) for name in ("self_influence", "slack")}
        return Fitted(self.wanted, lambda: suspicions, 0.0, lambda: 0)


def judged(toy_problem, variant, contender):
    return Judged(case_of(toy_problem(variant), num_subsets=40, num_seeds=2), contender)


def test_detection_by_one_who_knows(toy_problem):
    _, (train, test) = None, case_of(toy_problem("shortcut")).planted
    finds = Knowing(lambda inputs, targets: train.marked.float().expand(len(test.labels), -1))
    assert METRICS["shortcut-detection"].measure(judged(toy_problem, "shortcut", finds)).mean == pytest.approx(1)
    mixed, mixed_test = case_of(toy_problem("mixed")).planted
    finds = Knowing(lambda inputs, targets: mixed.foreign.float().expand(len(mixed_test.labels), -1))
    found = METRICS["mixed-data-detection"].measure(judged(toy_problem, "mixed", finds))
    assert found.mean == pytest.approx(1) and found.num_samples == int(mixed_test.foreign.sum())
    merged, merged_test = case_of(toy_problem("merged")).planted
    finds = Knowing(lambda inputs, targets: (merged_test.subclasses[:, None] == merged.subclasses).float())
    found = METRICS["subclass-detection"].measure(judged(toy_problem, "merged", finds))
    right = case_of(toy_problem("merged")).predicted == merged_test.labels
    assert found.mean == 1 and found.num_samples == int(right.sum())
    flipped, _ = case_of(toy_problem("flipped")).planted
    finds = Knowing(lambda inputs, targets: flipped.flipped.float())
    one = Judged(case_of(toy_problem("flipped")), finds)
    for name in ("mislabel-detection", "mislabel-detection-slack", "mislabel-recall", "mislabel-recall-slack"):
        assert METRICS[name].measure(one).mean == 1


def test_class_alone_tells_the_class(toy_problem):
    assert METRICS["class-detection"].measure(judged(toy_problem, "standard", SAME_CLASS)).mean == 1
    noise = METRICS["class-detection"].measure(judged(toy_problem, "standard", RANDOM))
    assert noise.low <= noise.chance <= noise.high


def test_datamodelling_of_noise_of_class_and_of_the_truth(toy_problem):
    noise = METRICS["lds"].measure(judged(toy_problem, "standard", RANDOM))
    assert noise.low <= 0 <= noise.high and any("fewer than 50" in note for note in noise.notes)
    same = METRICS["lds"].measure(judged(toy_problem, "standard", SAME_CLASS))
    assert "similarities: their sums mean nothing of their own" in same.notes
    case = case_of(toy_problem("standard"), num_subsets=40, num_seeds=2)
    masks, outputs, _ = case.truth()
    scores = torch.linalg.lstsq(masks.double(), outputs.mean(0)).solution.T.float()  # fits the 40 subsets exactly
    fits = Knowing(lambda inputs, targets: scores)
    assert METRICS["lds"].measure(judged(toy_problem, "standard", fits)).mean > 0.99


def test_the_best_is_chosen_on_subsets_of_its_own(toy_problem):
    """One candidate knows the subsets for the choice, the other those for the score."""
    case = case_of(toy_problem("standard"), num_subsets=40, num_seeds=2)
    reserved = dataclasses.replace(case, reserved=True)
    solutions = []
    for for_choice in (True, False):
        masks, outputs, _ = reserved.truth(for_choice=for_choice)
        solutions.append(torch.linalg.lstsq(masks.double(), outputs.mean(0)).solution.T.float())
    candidates = tuple(Knowing(lambda inputs, targets, s=s: s) for s in solutions)
    found = choose(Best(candidates[::-1]), reserved)
    assert found.contender is candidates[0] and found.name == "knowing, best of 2"
    scored = METRICS["lds"].measure(Judged(reserved, found)).mean
    assert scored < 0.5 < METRICS["lds"].measure(Judged(reserved, candidates[1])).mean


@pytest.mark.parametrize(
    "name", ["model-randomisation", "stability", "sparsity", "hoyer", "top-k-cardinality", "static-share"]
)
def test_others_of_a_real_method(name, toy_problem):
    one = judged(toy_problem, "standard", Method(dv.DualView(C=0.1)))
    found = METRICS[name].measure(one)
    assert found.num_samples > 0 and -1 <= found.mean <= 1
    if name in ("stability", "model-randomisation"):
        assert one.seconds["scores of others"] > 0
        # Class alone does not look at the network: nothing changes with it.
        assert METRICS[name].measure(judged(toy_problem, "standard", SAME_CLASS)).mean == pytest.approx(1)


def test_of_candidates_that_are_undefined_none_is_chosen(toy_problem):
    case = dataclasses.replace(case_of(toy_problem("standard"), num_subsets=40, num_seeds=2), reserved=True)
    constant = Knowing(lambda inputs, targets: torch.zeros(60, 160))
    assert choose(Best((constant, SAME_CLASS)), case).contender == SAME_CLASS
    with pytest.raises(ValueError, match="undefined for every candidate"):
        choose(Best((constant, constant)), case)


def test_a_loss_turns_the_sign_of_a_tensor_and_not_of_a_result(toy_problem):
    """What makes the margin larger makes the loss smaller: the scores' agreement with retraining stays."""
    problem, folder = toy_problem("standard"), toy_problem("standard").folder
    found = {}
    for output in (dv.margin, dv.loss):
        task = dataclasses.replace(problem.task(problem.model()), output=output)
        case = case_of_task(
            task, problem.train.pairs, problem.test.pairs, retrain=train_toy, bank_folder=folder / output.name,
            num_subsets=40, num_seeds=1,
        )  # fmt: skip
        for contender in (SAME_CLASS, Method(dv.DualView(C=0.01))):
            found[output.name, contender.name] = METRICS["lds"].measure(Judged(case, contender)).mean
            assert METRICS["class-detection"].measure(Judged(case, contender)).mean > 0.9
    for name in ("same class", "DualView(C=0.01)"):
        assert found["margin", name] > 0.1 and found["loss", name] > 0.1


def test_labels_that_are_no_columns_are_explained_as_what_they_are(toy_problem):
    problem = toy_problem("standard")
    names = {20: 0, 0: 1, 3: 2, 1: 3}
    label_of = torch.tensor([20, 0, 3, 1])
    task = dataclasses.replace(problem.task(problem.model()), classes=names)
    renamed = case_of_task(
        task, *((part.inputs, label_of[part.labels]) for part in (problem.train, problem.test))
    )  # fmt: skip
    method = Method(dv.DualView(C=0.1))
    found = METRICS["class-detection"].measure(Judged(renamed, method))
    expected = METRICS["class-detection"].measure(judged(toy_problem, "standard", method))
    assert torch.equal(found.values, expected.values) and found.mean > 0.9


def test_networks_that_learnt_less_are_said(toy_problem):
    problem = toy_problem("standard")
    case = case_of_task(
        problem.task(problem.model()), problem.train.pairs, problem.test.pairs, retrain=hardly_train,
        bank_folder=problem.folder / "hardly", num_subsets=4, num_seeds=1,
    )  # fmt: skip
    notes = METRICS["lds"].measure(Judged(case, SAME_CLASS)).notes
    assert any(note.startswith("weaker models: accuracy 0.") for note in notes)


def train_toy(mask, seed):
    train, _ = load()
    return recipes.Recipe(recipes.mlp, 6, 0.1, 20, momentum=0.9).train(*train.pairs, 4, mask=mask, seed=seed)


def hardly_train(mask, seed):
    train, _ = load()
    return recipes.Recipe(recipes.mlp, 1, 1e-6, 20).train(*train.pairs, 4, mask=mask, seed=seed)


@pytest.mark.parametrize("name", ["coreset-selection", "data-pruning", "brittleness"])
def test_those_that_retrain(name, toy_problem):
    found = METRICS[name].measure(judged(toy_problem, "standard", Method(dv.DualView(C=0.1))))
    assert METRICS[name].retrains and found.num_samples > 0


def test_brittleness_is_taken_of_a_few_test_samples_as_the_function_takes_it(toy_problem):
    """Each test sample has networks trained for it alone, so that the first ten of all are the first ten alone."""
    one = judged(toy_problem, "standard", Method(dv.DualView(C=0.1)))
    found = METRICS["brittleness"].measure(one)
    few = tuple(part[: metrics.BRITTLE_TESTS] for part in one.case.test)
    alone = brittleness(one.scores[: metrics.BRITTLE_TESTS], one.case.seeded_retrain, one.case.task, few).score
    assert torch.equal(found.values, alone.values) and len(found.values) == 10
    assert "the first 10 test samples" in found.notes


@pytest.mark.parametrize("name", ["coreset-selection", "data-pruning"])
def test_similarities_are_summed_all_the_same_and_the_note_says_so(name, toy_problem):
    found = METRICS[name].measure(judged(toy_problem, "standard", SAME_CLASS))
    assert found.num_samples > 0 and metrics.SIMILAR in found.notes


def test_what_does_not_apply_says_why(toy_problem):
    problem = toy_problem("standard")
    own = case_of_task(problem.task(problem.model()), problem.train.pairs, problem.test.pairs)
    for name, reason in (
        ("lds", r"how to train the network: give --train MODULE:FUNCTION .* or case_of_task\(retrain=\.\.\.\)"),
        ("model-randomisation", "before training is not known"),
        ("stability", "no networks of other seeds"),
        ("shortcut-detection", "nothing is known to be planted"),
        ("coreset-selection", "nothing says how to train"),
    ):
        with pytest.raises(Inapplicable, match=reason):
            METRICS[name].measure(Judged(own, SAME_CLASS))


class Wrapped(nn.Module):
    """A linear model that returns its logits inside of something."""

    def __init__(self, wrap):
        super().__init__()
        self.fc, self.wrap = nn.Linear(6, 4), wrap

    def forward(self, x):
        return self.wrap(self.fc(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits: logits,
        lambda logits: {"hidden": torch.zeros(3, 2), "logits": logits},
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: (logits, torch.zeros(3, 2)),
    ],
    ids=["tensor", "dict", "object", "tuple"],
)
def test_passes_are_counted_wherever_the_logits_are(wrap):
    inputs, labels = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4

    class Passing(Contender):
        kind, name = "effect", "passing"

        def fit(self, task, train, train_targets):
            task.forward(inputs[:5]).sum().backward()
            return Fitted(explain, dict, 0.0, lambda: 0)

    def explain(given, targets):
        with torch.no_grad():
            case.task.forward(inputs[:2])
        return torch.ones(3, 9)

    case = case_of_task(dv.Task(Wrapped(wrap).eval()), (inputs, labels), (inputs[:3], labels[:3]))
    one = Judged(case, Passing())
    assert one.scores.shape == (3, 9) and one.passes == {"fit": (5, 5), "explain": (2, 0)}


def test_what_is_no_output_is_refused_by_what_runs_the_model_and_a_squeezed_one_is_a_row():
    inputs, labels = torch.zeros(4, 6), torch.tensor([0, 1, 0, 1])
    case = case_of_task(dv.Task(Wrapped(lambda logits: logits).eval()), (inputs, labels), (inputs[:1], labels[:1]))
    one = Judged(case, SAME_CLASS)
    case.task.model.wrap = lambda logits: "logits"
    with one._counter("fit"), pytest.raises(TypeError, match="the model returned str; expected logits"):
        case.task.forward(inputs)
    case.task.model.wrap = lambda logits: logits[:, :1].squeeze()
    with one._counter("explain"):
        case.task.forward(inputs[:1]).sum().backward()
    assert one.passes == {"fit": (0, 0), "explain": (1, 1)}


def test_metrics_by_name():
    assert chosen(["lds", "hoyer"]) == [METRICS["lds"], METRICS["hoyer"]]
    assert not any(metric.retrains for metric in chosen(None)) and chosen(["all"]) == list(METRICS.values())
    with pytest.raises(ValueError, match="there is no metric 'LDS'; there are class-detection"):
        chosen(["LDS"])
    assert metrics.STABILITY_SEEDS >= 3
