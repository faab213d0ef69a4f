"""SameClass: 1 where the label is the explained class."""

import pytest
import torch

import dualview as dv
from tests.data.test_grad_dot import fit


def test_it_compares_labels_with_the_explained_class(problem):
    explainer = fit(problem.model, problem.train, dv.SameClass())
    for targets in (None, problem.test[1]):
        found = explainer.explain(problem.test[0], targets)
        explained = problem.model(problem.test[0]).argmax(1) if targets is None else targets
        expected = [[float(label == target) for label in problem.train[1].tolist()] for target in explained.tolist()]
        assert found.dense().tolist() == expected and found.kind == "similarity"
    assert (explainer.self_influence() == 1).all()


def test_labels_that_are_no_classes_are_refused(problem):
    for kind in (dv.SameClass, dv.Confidence):
        with pytest.raises(ValueError, match=f"{kind.__name__} explains a classification, no regression task"):
            fit(dv.Task(problem.model, problem="regression"), (problem.train[0], torch.zeros(120, 4)), kind())
