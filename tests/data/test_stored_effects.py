"""What a stored fit of a gradient or influence method rests on besides its rows, and what opening it refuses."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.errors import DualViewWarning, StoreMismatch


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def train() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    return torch.randn(60, 6, generator=generator) + F.one_hot(labels, 6), labels


def weighted_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none") * (1 + targets)


@pytest.mark.filterwarnings("ignore:the strongest proponents")
@pytest.mark.parametrize("method", [dv.GradDot(projection=16), dv.GradDot(), dv.TRAK(projection=16)])
def test_rows_of_parameters_that_are_frozen_since_are_not_taken_over(model, train, method, tmp_path):
    before = dv.fit(method, model, train, store=tmp_path, progress=False)
    model[0].requires_grad_(False)
    with pytest.raises(StoreMismatch, match="parameters frozen since"):
        dv.open(tmp_path, model)
    again = dv.fit(method, model, train, store=tmp_path, progress=False).explain(train[0][:4]).dense()
    fresh = dv.fit(method, model, train, progress=False).explain(train[0][:4]).dense()
    torch.testing.assert_close(again, fresh, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(again, before.explain(train[0][:4]).dense(), rtol=0.1)


def test_learning_rates_belong_to_the_fit(model, train, tmp_path):
    states = [copy.deepcopy(model.state_dict()) for _ in range(2)]
    first = dv.Task(model, checkpoints=list(zip(states, (1.0, 1e-3), strict=True)))
    second = dv.Task(model, checkpoints=list(zip(states, (1e-3, 1.0), strict=True)))
    dv.fit(dv.TracIn(), first, train, store=tmp_path, progress=False)
    with pytest.raises(StoreMismatch, match="learning_rates"):
        dv.open(tmp_path, second)
    dv.fit(dv.TracIn(), second, train, store=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds 2 fits"):  # the second one did not replace the first
        dv.open(tmp_path, first)


@pytest.mark.parametrize("method", [dv.Loss(), dv.KernelInfluence(), dv.ForwardInfluence(), dv.LastLayerInfluence()])
def test_the_loss_belongs_to_the_fit(model, train, method, tmp_path):
    dv.fit(method, model, train, store=tmp_path, progress=False)
    dv.open(tmp_path, model)
    with pytest.raises(StoreMismatch, match="loss"):
        dv.open(tmp_path, dv.Task(model, loss=weighted_loss))


def test_errors_of_held_out_data_are_not_replaced_by_those_of_training(model, train, tmp_path):
    held_out = torch.randn(20, 6), torch.arange(20) % 3
    explainer = dv.fit(dv.ForwardInfluence(), model, train, held_out=held_out, store=tmp_path, progress=False)
    assert len(explainer.errors()) > 0
    with pytest.raises(ValueError, match="give data=: a store does not keep the rows of the held-out data set"):
        dv.open(tmp_path, model).errors()


def test_numbers_of_numpy_are_stored():
    method = dv.ForwardInfluence(sites=np.int64(1))
    object.__setattr__(method, "damping", np.float32(2))  # which the type check of these tests would refuse
    assert json.loads(json.dumps(method.describe()))["damping"] == 2.0 and method.describe()["sites"] == 1


def test_matched_temperatures_do_not_overwrite_each_other(model, train, tmp_path):
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure[2].weight.mul_(20)
    for seed in (1, 2):
        held_out = torch.randn(30, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(30) % 3
        method = dv.ForwardInfluence(temperature="matched")
        dv.fit(method, sure, train, held_out=held_out, store=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds 2 fits"):
        dv.open(tmp_path, sure)


def test_a_response_without_effects_is_zero_and_says_so(train):
    model = nn.Linear(6, 3).double()
    inputs = 3.0 * F.one_hot(train[1], 6).double()
    explainer = dv.fit(dv.DualView(C=1e3), model, (inputs, train[1]), progress=False)
    assert explainer.certificate["bound"] == 0
    with pytest.warns(DualViewWarning, match="all effects are zero"):
        assert not explainer.response(inputs[:4], train[1][:4]).dense().any()


def test_a_page_needs_a_surrogate(model, train, tmp_path):
    explainer = dv.fit(dv.GradDot(), model, train, progress=False)
    with pytest.raises(TypeError, match="a page shows how far a surrogate can be trusted, and GradDot has none"):
        dv.write_report(explainer, train, tmp_path / "page.html")
