"""States of the model at several times of its training, or from several trainings."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dualview.engine.task import Task


class Checkpoint(NamedTuple):
    """One state of the model.

    Attributes:
        model: a copy of the user's model in this state, or the user's own.
        learning_rate: of the training at that time, where it was given.
    """

    model: nn.Module
    learning_rate: float | None = None


def checkpoints_of(task: Task) -> tuple[Checkpoint, ...]:
    """Return the task's checkpoints as models; the model itself where there are none.

    Each of `task.checkpoints` is a state dict, the path of one in safetensors, or a model; or one of these in a
    pair with its learning rate.

    Raises:
        TypeError: one is something else.
        ValueError: a state does not fit the model, a learning rate is not positive, or only some have one.
    """
    if not task.checkpoints:
        return (Checkpoint(task.model),)
    found = tuple(_loaded(task.model, entry, f"checkpoints[{k}]") for k, entry in enumerate(task.checkpoints))
    with_rate = sum(one.learning_rate is not None for one in found)
    if with_rate not in (0, len(found)):
        raise ValueError(
            f"{with_rate} of the {len(found)} `checkpoints` have a learning rate; give all of them, or none"
        )
    return found


def _loaded(model: nn.Module, entry: Any, name: str) -> Checkpoint:
    state, rate = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
    if rate is not None and not (isinstance(rate, (int, float)) and 0 < rate < float("inf")):
        raise ValueError(f"the learning rate of `{name}` is {rate!r}; expected a positive number")
    rate = None if rate is None else float(rate)
    if isinstance(state, nn.Module):
        return Checkpoint(state, rate)
    if isinstance(state, (str, os.PathLike)):
        if not os.fspath(state).endswith(".safetensors"):
            raise TypeError(
                f"`{name}` is {os.fspath(state)!r}; only safetensors files are read, or give its state dict"
            )
        try:
            state = safetensors.torch.load_file(state)
        except SafetensorError as error:
            raise ValueError(f"`{name}`: {os.fspath(state)} is no safetensors file, or damaged: {error}") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError(f"`{name}` is a {type(state).__name__}; expected a state dict, a safetensors path or a model")
    other = copy.deepcopy(model)
    try:
        other.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"`{name}` does not fit {type(model).__name__}: {error}") from None
    return Checkpoint(other, rate)
