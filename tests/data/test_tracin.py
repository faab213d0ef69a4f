"""TracIn against gradients taken one by one at each checkpoint, and against the training that it traces."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from tests.data.test_grad_dot import CLOSE, MEASURES, PROBLEMS, fit, numbers, rows

RATES = (0.1, 0.025)


@pytest.fixture(scope="module")
def states(problem) -> list[nn.Module]:
    """Two states of the network besides its last."""
    generator = torch.Generator().manual_seed(2)
    found = [copy.deepcopy(problem.model) for _ in RATES]
    with torch.no_grad():
        for model in found:
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return found


def expected(problem, states: list[nn.Module], rates: tuple[float, ...], name: str = "logit") -> Tensor:
    return -sum(
        rate * rows(model, *problem.test, MEASURES[name][1]) @ rows(model, *problem.train).T
        for rate, model in zip(rates, states, strict=True)
    )


@pytest.mark.parametrize("name", MEASURES)
def test_scores_are_weighted_sums_over_the_checkpoints(problem, states, name: str):
    pairs = [(model.state_dict(), rate) for model, rate in zip(states, RATES, strict=True)]
    output = MEASURES[name][0]
    found = fit(dv.Task(problem.model, output=output, checkpoints=pairs), problem.train, dv.TracIn())
    torch.testing.assert_close(found.explain(*problem.test).dense(), expected(problem, states, RATES, name), **CLOSE)
    assert found.certificate["learning_rates"] == list(RATES)
    own = sum(r * rows(model, *problem.train).square().sum(1) for r, model in zip(RATES, states, strict=True))
    torch.testing.assert_close(found.self_influence(), own, **CLOSE)


def test_learning_rates_of_the_method_or_of_nobody(problem, states):
    task = dv.Task(problem.model, checkpoints=states)
    for method, rates in ((dv.TracIn(RATES), RATES), (dv.TracIn(), (1.0, 1.0))):
        found = fit(task, problem.train, method).explain(*problem.test).dense()
        torch.testing.assert_close(found, expected(problem, states, rates), **CLOSE)


def test_without_checkpoints_it_is_the_model_itself(problem):
    found = fit(problem.model, problem.train, dv.TracIn((0.5,))).explain(*problem.test).dense()
    torch.testing.assert_close(found, expected(problem, [problem.model], (0.5,)), **CLOSE)


def test_other_problems(problem, states):
    for kind, loss in PROBLEMS.items():
        labels, task = numbers(kind), dv.Task(problem.model, problem=kind, checkpoints=states)
        found = fit(task, (problem.train[0], labels), dv.TracIn(RATES)).explain(problem.test[0], 3).dense()
        column = torch.full((30,), 3)
        truth = -sum(
            rate
            * rows(model, problem.test[0], column, MEASURES["logit"][1])
            @ rows(model, problem.train[0], labels, loss).T
            for rate, model in zip(RATES, states, strict=True)
        )
        torch.testing.assert_close(found, truth, **CLOSE)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_predictions_are_those_of_the_model_wherever_it_stands_among_its_checkpoints(problem, states, last: int):
    checkpoints = [*states[:last], problem.model, *states[last:]]
    predicted = problem.model(problem.test[0]).argmax(1)
    explainer = fit(dv.Task(problem.model, checkpoints=checkpoints), problem.train, dv.TracIn())
    found = explainer.explain(problem.test[0])
    assert torch.equal(found.targets, predicted) and torch.equal(found.predicted, predicted)
    torch.testing.assert_close(found.dense(), explainer.explain(problem.test[0], predicted).dense(), **CLOSE)


def test_the_users_checkpoints_are_left_untouched(problem, states):
    models = [copy.deepcopy(model).train() for model in states]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    fit(dv.Task(problem.model, checkpoints=models), problem.train, dv.TracIn()).explain(problem.test[0])
    for model, state in zip(models, before, strict=True):
        assert model.training and all(one.requires_grad and one.grad is None for one in model.parameters())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# ── the training that is traced ──────────────────────────────────────────────────────────────────


def trained(epochs: int) -> tuple[nn.Module, list[dict[str, Tensor]], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Train by single samples for a time of 1; return the model, its state before each step, train and test."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(7) % 3
    model = nn.Linear(3, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(3) / 2)
        model.bias.zero_()
    states = []
    for _ in range(epochs):
        for x, y in zip(inputs[:5], labels[:5], strict=True):
            states.append(copy.deepcopy(model.state_dict()))
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), [*model.parameters()])
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 1 / (5 * epochs) * gradient
    return model, states, (inputs[:5], labels[:5]), (inputs[5:], labels[5:])


def test_it_approaches_the_ideal_of_the_paper_as_the_steps_get_smaller():
    """The ideal share of a sample is the change of the test loss in the steps on it; their sum is the whole change.

    Each sample is visited once in five steps, so that a checkpoint before each step counts a fifth of its rate.
    """
    errors = []
    for epochs in (2, 4):
        model, states, train, (test, targets) = trained(epochs)
        probe, losses = copy.deepcopy(model), []
        for state in (*states, model.state_dict()):
            probe.load_state_dict(state)
            losses.append(F.cross_entropy(probe(test), targets, reduction="none").detach())
        ideal = torch.stack(losses).diff(dim=0).reshape(epochs, 5, 2).sum(0).T
        change = losses[-1] - losses[0]
        torch.testing.assert_close(ideal.sum(1), change, rtol=1e-14, atol=1e-14)
        task = dv.Task(model, output=dv.loss, checkpoints=[(state, 1 / (5 * epochs) / 5) for state in states])
        found = fit(task, train, dv.TracIn()).explain(test, targets)
        assert found.lower_is_better
        errors.append(float((found.dense() - ideal).norm() / ideal.norm()))
    assert errors[1] < 0.2 and 1.6 < errors[0] / errors[1] < 2.4  # first order


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def test_learning_rates_that_do_not_fit_are_refused(problem, states):
    for method, checkpoints, message in (
        (dv.TracIn((0.1,)), states, "1 `learning_rates` for 2 checkpoints"),
        (dv.TracIn(RATES), (), "2 `learning_rates` for 1 checkpoints"),
        (dv.TracIn(RATES), [(model, 0.1) for model in states], "`learning_rates` are given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(dv.Task(problem.model, checkpoints=checkpoints), problem.train, method)


@pytest.mark.parametrize("rates", [0.1, (0.1, 0.0), (float("nan"),), ("0.1",)], ids=str)
def test_learning_rates_that_are_none_are_refused(rates):
    method = object.__new__(dv.TracIn)  # past the tests' check of annotations
    for name, value in {**dv.TracIn().describe(), "learning_rates": rates}.items():
        object.__setattr__(method, name, value)
    with pytest.raises(ValueError, match="`learning_rates` must be positive numbers in a tuple; they are"):
        method.__post_init__()
