"""Checkpoints in every form a user has them, and those that are none."""

import copy

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.engine.checkpoints import checkpoints_of


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.fixture
def state(model) -> dict[str, Tensor]:
    return {name: value + 1 for name, value in model.state_dict().items()}


def states_of(task: dv.Task) -> list[dict[str, Tensor]]:
    return [one.model.state_dict() for one in checkpoints_of(task)]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_every_form_of_a_state(model, state, tmp_path):
    path = tmp_path / "one.safetensors"
    safetensors.torch.save_file(state, path)
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    before = copy.deepcopy(model.state_dict())
    found = checkpoints_of(dv.Task(model, checkpoints=[state, path, str(path), other]))
    for one in found:
        assert_same(one.model.state_dict(), state)
        assert one.learning_rate is None
    assert found[3].model is other and len({id(one.model) for one in found}) == 4
    assert_same(model.state_dict(), before)


def test_pairs_carry_their_learning_rate(model, state):
    found = checkpoints_of(dv.Task(model, checkpoints=[(state, 0.1), (model, 1)]))
    assert [one.learning_rate for one in found] == [0.1, 1.0] and found[1].model is model


def test_without_checkpoints_there_is_the_model(model):
    (found,) = checkpoints_of(dv.Task(model))
    assert found.model is model and found.learning_rate is None


def test_states_that_do_not_fit_are_named(model, state, tmp_path):
    missing = {name: value for name, value in state.items() if name != "2.bias"}
    wide = {**state, "2.weight": torch.zeros(4, 5)}
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"123")
    for entry, kind, message in (
        (missing, ValueError, r"`checkpoints\[1\]` does not fit Sequential: .*Missing key.*2\.bias"),
        (wide, ValueError, r"`checkpoints\[1\]` does not fit Sequential: .*size mismatch for 2\.weight"),
        (broken, ValueError, r"`checkpoints\[1\]`: .*broken\.safetensors is no safetensors file, or damaged"),
        ("model.pt", TypeError, r"`checkpoints\[1\]` is 'model.pt'; only safetensors files are read"),
        ({"model": state, "epoch": 3}, TypeError, r"`checkpoints\[1\]` is a dict; expected a state dict, a safet"),
        (7, TypeError, r"`checkpoints\[1\]` is a int; expected a state dict"),
        (tmp_path / "none.safetensors", FileNotFoundError, r"none\.safetensors"),
    ):
        with pytest.raises(kind, match=f"(?s){message}"):
            checkpoints_of(dv.Task(model, checkpoints=[state, entry]))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan"), "0.1", torch.tensor(0.1)], ids=str)
def test_learning_rates_that_are_none_are_named(model, state, rate):
    with pytest.raises(ValueError, match=r"the learning rate of `checkpoints\[0\]` is .*; expected a positive number"):
        checkpoints_of(dv.Task(model, checkpoints=[(state, rate)]))


def test_all_or_none_have_a_learning_rate(model, state):
    with pytest.raises(ValueError, match="1 of the 2 `checkpoints` have a learning rate; give all of them, or none"):
        checkpoints_of(dv.Task(model, checkpoints=[(state, 0.1), state]))
