"""What a metric sees: predictions, labels and retrained networks, of built-in problems and of a user's own."""

import dataclasses

import pytest
import torch
from torch.utils.data import TensorDataset

import dualview as dv
from dualview.evaluation.cases import case_of, case_of_task, misled, with_model
from dualview.evaluation.tasks.problem import MARKED_CLASS


def test_a_problem_as_a_case(toy_problem):
    case = case_of(toy_problem("shortcut"), num_subsets=4)
    train, test = case.planted
    assert torch.equal(case.train_targets, train.labels) and torch.equal(case.test_targets, test.labels)
    assert torch.equal(case.predicted, case.task.model(test.inputs).argmax(1))
    assert (
        torch.equal(misled(case), (case.predicted == MARKED_CLASS) & (test.labels != MARKED_CLASS))
        and misled(case).any()
    )
    assert with_model(case, case.untrained()).model is not case.task.model
    assert case.task.measured == "margin"


def test_its_bank_holds_the_margins_of_networks_that_saw_half(toy_problem):
    problem = toy_problem()
    case = case_of(problem, num_subsets=4, num_seeds=2)
    bank = case.bank(progress=False)
    assert bank.outputs.shape == (2, 4, 60) and (bank.masks.sum(1) == 80).all()
    model = problem.retrain(bank.masks[1], 1)
    expected = dv.margin(model(problem.test.inputs), problem.test.labels).double()
    torch.testing.assert_close(bank.outputs[1, 1], expected, rtol=1e-5, atol=1e-5)
    masks, outputs, accuracy = case.truth()
    assert len(masks) == 4 and outputs.shape == (2, 4, 60) and accuracy.shape == (2, 4)
    kept = dataclasses.replace(case, reserved=True)
    assert torch.equal(kept.truth()[0], masks[2:]) and torch.equal(kept.truth(for_choice=True)[1], outputs[:, :2])


def test_a_task_of_ones_own(toy_problem, tmp_path):
    problem = toy_problem()
    train, test = (TensorDataset(*part.pairs) for part in (problem.train, problem.test))
    case = case_of_task(problem.task(problem.model()), train, test)
    assert torch.equal(case.train_targets, problem.train.labels) and torch.equal(case.test_targets, problem.test.labels)
    assert case.test_inputs is test and torch.equal(case.predicted, case_of(problem).predicted)
    with pytest.raises(ValueError, match=r"need a function train\(mask, seed\) and a store folder"):
        case.bank()
    whole = case_of_task(
        case.task, train, test, retrain=problem.retrain, bank_folder=tmp_path / "b", num_subsets=2, num_seeds=1
    )
    assert whole.bank(progress=False).outputs.shape == (1, 2, 60)
    same = problem.retrain(torch.ones(160).bool(), 3)
    assert torch.equal(whole.other_model(3)[1].weight, same[1].weight)


def test_labels_that_are_no_columns(toy_problem):
    problem = toy_problem()
    names = [f"class {label}" for label in problem.train.labels.tolist()]
    data = list(zip(problem.train.inputs, names, strict=True))
    task = dataclasses.replace(problem.task(problem.model()), classes={f"class {k}": k for k in range(4)})
    assert torch.equal(case_of_task(task, data, data).train_targets, problem.train.labels)
