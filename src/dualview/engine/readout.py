"""Finding the readout: the one Linear whose output is the model's output, by reshape only."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualview.engine.batches import Inputs
from dualview.engine.isolation import untouched
from dualview.engine.site import Site, describe_linears, module_at
from dualview.engine.task import Task


class _Call(NamedTuple):
    name: str
    times: int
    is_output: bool


def with_readout(task: Task, inputs: Inputs) -> Task:
    """Return the task with its readout checked, or found where it names none, on a probe batch.

    Raises:
        ValueError: the named readout is no module, no Linear, is not called exactly once, or does
            not make the model's output; or none or several layers qualify. The error lists them.
    """
    model = task.model
    name = task.readout.module if isinstance(task.readout, Site) else task.readout
    if name is not None:
        module = module_at(model, name)
        if not isinstance(module, nn.Linear):
            raise ValueError(f"readout={name!r} is a {type(module).__name__}, not a Linear. {describe_linears(model)}")
    calls = _linear_calls(task, inputs)
    if name is None:
        makers = [call.name for call in calls if call.is_output and call.times == 1]
        if len(makers) != 1:
            found = "no Linear layer makes" if not makers else f"{' and '.join(map(repr, makers))} all make"
            raise ValueError(
                f"the readout of {type(model).__name__} was not found: {found} the model's output as it is. "
                f"Name it with readout=; if something follows it (a softmax, a second head), wrap the model so that "
                f"it returns the layer's output. {describe_linears(model)}"
            )
        name = makers[0]
    else:
        _check_named(name, calls, model)
    return dataclasses.replace(task, readout=Site(name, "input"))


def _check_named(name: str, calls: list[_Call], model: nn.Module) -> None:
    call = next(call for call in calls if call.name == name)
    if call.times != 1:
        raise ValueError(
            f"readout={name!r} is called {call.times} times in one forward pass; a readout is called once. "
            f"{describe_linears(model)}"
        )
    if not call.is_output:
        raise ValueError(
            f"readout={name!r} does not make the model's output: what it returns is changed afterwards "
            "(a softmax, a sum of heads?). Wrap the model so that it returns this layer's output. "
            f"{describe_linears(model)}"
        )


def _linear_calls(task: Task, inputs: Inputs) -> list[_Call]:
    """Run a probe batch and report for each Linear how often it ran and whether it made the output."""
    linears = {name: m for name, m in task.model.named_modules() if isinstance(m, nn.Linear)}
    seen: dict[str, list[Tensor]] = {name: [] for name in linears}

    def hook(name: str):
        return lambda _module, _args, output: seen[name].append(output.detach().clone())

    handles = [module.register_forward_hook(hook(name)) for name, module in linears.items()]
    try:
        with untouched(task.model):
            raw = task.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [
        _Call(
            name,
            len(made),
            any(out.numel() == raw.numel() and torch.equal(out.reshape(raw.shape), raw) for out in made),
        )
        for name, made in seen.items()
    ]
