"""What `fit` refuses, and in which words."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import dualview as dv
from dualview.errors import NonFiniteError


def fit(task: dv.Task | nn.Module, train: object, **settings: object) -> dv.Explainer:
    return dv.fit(dv.DualView(C=0.02), task, train, progress=False, **settings)


class TwoHeads(nn.Module):
    """Two layers that give the same output: which of them is the readout is for the user to say."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)
        self.right.load_state_dict(self.left.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).relu()
        self.right(features)
        return self.left(features)


def test_an_unknown_readout_lists_the_layers(problem):
    with pytest.raises(ValueError) as caught:
        fit(dv.Task(problem.model, readout="fc"), problem.train)
    assert str(caught.value) == (
        "readout='fc' is not a module of Sequential. Linear layers are: '0' (6 → 10), '2' (10 → 4)."
    )


def test_an_ambiguous_readout_names_the_candidates(problem):
    model = TwoHeads().double()
    with pytest.raises(ValueError, match=r"'left' and 'right' all make the model's output.*readout="):
        fit(model, problem.train)
    named = fit(dv.Task(model, readout="left"), problem.train)
    assert named.task.readout == dv.Site("left", "input")


def test_no_readout_says_what_to_do(problem):
    with pytest.raises(ValueError, match=r"readout.*Softmax|[Ss]oftmax.*readout|wrap the model"):
        fit(nn.Sequential(problem.model, nn.Softmax(1)), problem.train)


def relabelled(problem: object, **changes: object) -> tuple[Tensor, Tensor]:
    labels = problem.train[1].clone()
    for position, label in changes.values():
        labels[position] = label
    return problem.train[0], labels


@pytest.mark.parametrize(("position", "label"), [(0, 4), (77, 4), (77, -1)])
def test_labels_that_are_no_columns_are_refused(problem, position: int, label: int):
    train = relabelled(problem, one=(position, label))
    with pytest.raises(ValueError, match=rf"label {label} \(sample {position}\).*columns 0 to 3.*classes="):
        fit(problem.model, train, batch_size=16)


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(6), 0


def test_data_without_positions_or_samples_are_refused(problem):
    for data in (Endless(), DataLoader(Endless()), iter([1, 2])):
        with pytest.raises(TypeError, match="`train` is an iterable data set.*map-style"):
            fit(problem.model, data)
    inputs, labels = problem.train
    for data in ((inputs[:0], labels[:0]), [], TensorDataset(inputs[:0], labels[:0])):
        with pytest.raises(ValueError, match="`train` is an empty data set"):
            fit(problem.model, data)
    with pytest.raises(ValueError, match="`held_out` is an empty data set"):
        fit(problem.model, problem.train, held_out=(inputs[:0], labels[:0]))
    with pytest.raises(TypeError, match=r"`train` is a tuple of one tensor; expected \(inputs, labels\)"):
        fit(problem.model, (inputs,))
    with pytest.raises(ValueError, match=r"different numbers of samples: \[120, 119\]"):
        fit(problem.model, (inputs, labels[1:]))


def test_regression_and_multi_label_targets_are_refused(problem):
    inputs, labels = problem.train
    with pytest.raises(ValueError, match="not whole numbers.*problem=.regression"):
        fit(problem.model, (inputs, torch.linspace(0, 1, 120)))
    with pytest.raises(ValueError, match=r"shape \(4, 4\); expected one label per sample.*multi-label"):
        fit(problem.model, (inputs, nn.functional.one_hot(labels, 4)))


@pytest.mark.parametrize("position", [0, 3, 64, 119])
def test_nan_in_training_names_the_sample(problem, position: int):
    inputs = problem.train[0].clone()
    inputs[position, 1] = torch.nan
    with pytest.raises(NonFiniteError, match=rf"sample {position} ") as caught:
        fit(problem.model, (inputs, problem.train[1]), batch_size=16)
    assert caught.value.index == (position,)


def test_held_out_data_of_another_shape_are_refused(problem):
    inputs, labels = problem.test
    pooled = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(3, 4)).double()
    with pytest.raises(ValueError, match=r"`held_out`.*\(1, 5\); expected \(test, 6\) as in training"):
        fit(pooled, problem.train, held_out=(inputs[:, :5], labels))


def test_names_must_fit(problem):
    with pytest.raises(ValueError, match="`names` hold 119 names for 120 training samples"):
        fit(problem.model, problem.train, names=["x"] * 119)
    with pytest.raises(ValueError, match="`class_names` hold 3 names for 4 output columns"):
        fit(dv.Task(problem.model, class_names=["a", "b", "c"]), problem.train)


def test_one_class_in_all_is_refused(problem):
    with pytest.raises(ValueError, match="one class only"):
        fit(problem.model, (problem.train[0], torch.zeros(120, dtype=torch.int64)))


def test_several_outputs_at_once_are_refused(problem):
    explainer = fit(dv.Task(problem.model, output=(dv.logit, dv.margin)), problem.train)
    with pytest.raises(ValueError, match="`output` is a tuple of 2.*one output a call"):
        explainer.explain(problem.test[0])
