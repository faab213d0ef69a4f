"""Finding the readout: the one Linear whose output is the model's output, by reshape only."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dualview.engine.batches import Inputs
from dualview.engine.isolation import untouched
from dualview.engine.site import Site, describe_linears, module_at
from dualview.engine.task import Task
from dualview.errors import NonFiniteError


class _Call(NamedTuple):
    name: str
    times: int
    is_output: bool
    is_picked: bool  # it runs at every position of a sequence, and the model returns one of them


_PICKED = (
    "{name!r} runs at every position of a sequence, of which the model returns one. Wrap the model so that it picks "
    "the position first and runs this layer on it alone"
)


def with_readout(task: Task, inputs: Inputs) -> Task:
    """Return the task with its readout checked, or found where it names none, on a probe batch.

    Raises:
        ValueError: the named readout is no module, no Linear, is not called exactly once, or does
            not make the model's output; or none or several layers qualify. The error lists them.
        NonFiniteError: the model's output is NaN or infinite for some of the inputs.
    """
    model = task.model
    name = task.readout.module if isinstance(task.readout, Site) else task.readout
    if name is not None:
        module = module_at(model, name)
        if not isinstance(module, nn.Linear):
            raise ValueError(f"readout={name!r} is a {type(module).__name__}, not a Linear. {describe_linears(model)}")
    calls = _calls(task, inputs)
    if name is None:
        name = _only_maker(calls, model)
    else:
        _check_named(name, calls[module_at(model, name)], model)
    return dataclasses.replace(task, readout=Site(name, "input"))


def _only_maker(calls: dict[nn.Module, _Call], model: nn.Module) -> str:
    makers = {module: call for module, call in calls.items() if call.is_output}
    linears = [call for module, call in makers.items() if isinstance(module, nn.Linear)]
    if len(linears) == 1 and linears[0].times == 1:
        return linears[0].name
    if len(linears) > 1:
        names = " and ".join(repr(call.name) for call in linears)
        found = f"{names} all make the model's output; name one with readout="
    elif linears:
        found = f"{linears[0].name!r} makes the model's output, but is called {linears[0].times} times"
    elif makers:
        module, call = next(iter(makers.items()))
        found = (
            f"{call.name!r}, a {type(module).__name__}, makes the model's output; only an nn.Linear will do. "
            "A 1×1 convolution on pooled features is one: put an nn.Linear with its weights in its place"
        )
    elif picked := [call.name for call in calls.values() if call.is_picked]:
        found = _PICKED.format(name=picked[0])
    else:
        found = (
            "no Linear layer makes the model's output as it is. If something follows it (a softmax, a sum of heads), "
            "wrap the model so that it returns the layer's output"
        )
    raise ValueError(f"the readout of {type(model).__name__} was not found: {found}. {describe_linears(model)}")


def _check_named(name: str, call: _Call, model: nn.Module) -> None:
    if call.times != 1:
        raise ValueError(
            f"readout={name!r} is called {call.times} times in one forward pass; a readout is called once. "
            f"{describe_linears(model)}"
        )
    if call.is_picked:
        raise ValueError(f"readout={_PICKED.format(name=name)}. {describe_linears(model)}")
    if not call.is_output:
        raise ValueError(
            f"readout={name!r} does not make the model's output: what it returns is changed afterwards "
            "(a softmax, a sum of heads?). Wrap the model so that it returns this layer's output. "
            f"{describe_linears(model)}"
        )


def _calls(task: Task, inputs: Inputs) -> dict[nn.Module, _Call]:
    """Run a probe batch; tell for each Linear and convolution how often it ran and whether it made the output."""
    modules = task.model.named_modules()
    names: dict[nn.Module, str] = {m: name for name, m in modules if isinstance(m, (nn.Linear, _ConvNd))}
    seen: dict[nn.Module, list[Tensor]] = {module: [] for module in names}

    def see(module: nn.Module, _args: tuple, output: Tensor) -> None:
        seen[module].append(output.detach().clone())

    handles = [module.register_forward_hook(see) for module in names]
    try:
        with untouched(task.model):
            raw = task.forward(inputs)
    finally:
        for handle in handles:
            handle.remove()
    bad = (~raw.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"the model's output is NaN or infinite for sample {bad[0]} of the {len(raw)} that it was tried on: "
            "mend or leave out these inputs",
            tuple(bad),
        )
    return {
        module: _Call(
            names[module],
            len(made),
            any(_is_output(out, raw) for out in made),
            any(_is_picked(out, raw) for out in made),
        )
        for module, made in seen.items()
    }


def _is_output(out: Tensor, raw: Tensor) -> bool:
    return out.numel() == raw.numel() and torch.equal(out.reshape(raw.shape), raw)


def _is_picked(out: Tensor, raw: Tensor) -> bool:
    """Whether each sample's output stands at one of several positions of what a layer made."""
    if _is_output(out, raw) or out.ndim < 3 or (out.shape[0], out.shape[-1]) != tuple(raw.shape):
        return False
    return bool((out.flatten(1, -2) == raw[:, None]).all(2).any(1).all())
