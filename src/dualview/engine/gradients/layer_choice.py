"""Choosing the layers whose gradients come from what they saw and made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dualview.engine.batches import Inputs
from dualview.engine.gradients.agreement import agreeing
from dualview.engine.gradients.capture import deltas_of, differentiable, fresh, tapped
from dualview.engine.gradients.layers import Layer, holds_rows, is_layer
from dualview.engine.gradients.planned_layer import PlannedLayer
from dualview.engine.task import Task


def plan_layers(
    task: Task, chosen: Mapping[str, Tensor], inputs: Inputs, directions: Tensor, truth: Mapping[str, Tensor]
) -> tuple[PlannedLayer, ...]:
    """Return the layers that give the true gradients of these samples, with the parameters they give.

    Layers of the chosen parameters that are not called for these samples come without parameters: they stand for
    the plan's word that they never are.
    """
    model = task.model
    candidates = _candidates(model, chosen)
    copied = _overwritten(task, candidates, inputs)
    with differentiable(model):
        with tapped(model, copied) as calls:
            logits = task.logits(task.forward(fresh(inputs)))
        deltas = deltas_of(logits, directions, calls)
    layers: list[PlannedLayer] = []
    found: dict[str, Tensor] = {}
    for name, (module, parameters) in candidates.items():
        if all(holds_rows(module, call.inputs, len(logits)) for call in calls[name]):
            axes = tuple(call.inputs.ndim for call in calls[name])
            layers.append(PlannedLayer(name, parameters if axes else {}, axes, copied[name]))
            found |= layers[-1].record(module, calls[name], deltas[name], len(logits))
    right = agreeing(found, truth)
    settled = (_settled(layer, candidates[layer.name][0], deltas[layer.name], right) for layer in layers)
    return tuple(layer for layer in settled if layer.parameters or not layer.axes)


def _candidates(model: nn.Module, chosen: Mapping[str, Tensor]) -> dict[str, tuple[Layer, dict[str, str]]]:
    """Return the layers that own chosen parameters alone: name → module, its parameters and their names."""
    owners = Counter(id(one) for module in model.modules() for one in module.parameters(recurse=False))
    found: dict[str, tuple[Layer, dict[str, str]]] = {}
    for name, module in model.named_modules():
        own = {kind: f"{name}.{kind}".lstrip(".") for kind, one in _own(module) if owners[id(one)] == 1}
        own = {kind: place for kind, place in own.items() if place in chosen}
        if own and is_layer(module):
            found[name] = module, own
    return found


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _overwritten(task: Task, layers: Mapping[str, object], inputs: Inputs) -> dict[str, bool]:
    """Tell for each layer whether a later in-place operation changes what it made."""
    with differentiable(task.model), torch.no_grad(), tapped(task.model, dict.fromkeys(layers, False)) as calls:
        task.forward(fresh(inputs))
    return {name: any(call.overwritten for call in calls[name]) for name in layers}


def _settled(layer: PlannedLayer, module: Layer, deltas: list[Tensor], right: set[str]) -> PlannedLayer:
    """Keep the parameters whose gradient is right, by factors where these are shorter and quicker to multiply."""
    kept = {kind: name for kind, name in layer.parameters.items() if name in right}
    rank = 0
    if "weight" in kept and _may_be_factored(layer, module):
        outs, ins = len(module.weight), module.weight[0].numel()
        rank = sum(delta[0].numel() // outs for delta in deltas)
        if rank**2 * (ins + outs) >= ins * outs:
            rank = 0
    return layer._replace(parameters=kept, rank=rank)


def _may_be_factored(layer: PlannedLayer, module: Layer) -> bool:
    """Whether it is a linear map of whole inputs; a sequence's length, and so its rank, may change with the batch."""
    if isinstance(module, nn.Linear):
        return set(layer.axes) == {2}
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
