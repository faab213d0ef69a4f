"""Planning how per-sample gradients are recorded: each way is tried on a few samples first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from dualview.engine import outputs
from dualview.engine.batches import Inputs, map_tensors, num_rows, take_rows
from dualview.engine.gradients.agreement import agreeing
from dualview.engine.gradients.capture import differentiable, fresh
from dualview.engine.gradients.layer_choice import plan_layers
from dualview.engine.gradients.plan import GradientPlan
from dualview.engine.gradients.planned_layer import PlannedLayer
from dualview.engine.gradients.sample_wise import loop_gradients, vmap_gradients
from dualview.engine.gradients.selection import selected
from dualview.engine.task import Measure, Task
from dualview.errors import NonFiniteError
from dualview.ops.layout import Layout, Part, factors, plain

PROBE_ROWS = 4


def plan_gradients(
    task: Task,
    inputs: Inputs,
    *,
    of: str | Measure,
    parameters: str | Iterable[str] | None = None,
) -> GradientPlan:
    """Choose for each parameter the fastest way to record its per-sample gradients that is right.

    The ways are tried on the first samples of `inputs`, for random directions of the logits, and compared with
    one backward pass a sample: first from what each layer saw and made, then by vmap, else one by one.

    Args:
        task: the model, its loss and its output.
        inputs: some samples, at best four or more.
        of: what is differentiated: the per-sample training "loss", the task's "output", the "margin" of the
            target, or a function (logits "row cls", targets "row") → "row".
        parameters: names of parameters, and of modules, which stand for all theirs; by default all that require
            gradients. A frozen parameter is recorded if it is named.

    Raises:
        ValueError: nothing is selected, the logits do not depend on what is, or a sample's logits depend on the
            other samples of its batch.
        NonFiniteError: the logits are NaN or infinite for some of the samples.
    """
    model, probe = task.model, _probe(inputs)
    chosen = selected(model, parameters)
    directions = _random_directions(task, probe)
    truth = loop_gradients(task, chosen, probe, directions)
    if not truth:
        raise ValueError(f"the logits do not depend on any of the selected parameters: {', '.join(chosen)}")
    coverage = {
        name: "not selected" if parameter.requires_grad or parameters is not None else "not selected: frozen"
        for name, parameter in model.named_parameters()
    }
    coverage |= {name: "loop" if name in truth else "zero" for name in chosen}

    layers = plan_layers(task, chosen, probe, directions, truth)
    for layer in layers:
        coverage |= dict.fromkeys(layer.parameters.values(), "factors" if layer.rank else "direct")
    left = {name: parameter for name, parameter in chosen.items() if coverage[name] == "loop"}
    coverage |= dict.fromkeys(_vmapped(task, left, probe, directions, truth), "vmap")
    of_loss = of in ("loss", outputs.loss)
    measured = task if of_loss else _measuring(task, of)
    return GradientPlan(measured, of_loss, _layout(chosen, coverage, layers), coverage, layers)


def _probe(inputs: Inputs) -> Inputs:
    """Return a few samples; a lone one twice, since what has no sample axis shows only beside another."""
    if num_rows(inputs) == 1:
        return map_tensors(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor, inputs)
    return take_rows(inputs, 0, PROBE_ROWS)


def _random_directions(task: Task, inputs: Inputs) -> Tensor:
    """Return random directions of the logits, after a check that each row's logits are its own."""
    with differentiable(task.model), torch.no_grad():
        raw = task.forward(fresh(inputs))
        alone = torch.cat([task.forward(fresh(take_rows(inputs, row, row + 1))) for row in range(len(raw))])
    bad = (~raw.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"the model's output is NaN or infinite for samples {bad}: mend or leave these out", tuple(bad)
        )
    if (raw - alone).norm() > torch.finfo(raw.dtype).eps ** 0.5 * raw.norm():
        raise ValueError(
            "a sample's logits depend on the other samples of its batch (a norm without running statistics? something "
            "random?), so that they have no per-sample gradients"
        )
    generator = torch.Generator().manual_seed(0)
    return torch.randn(task.logits(raw).shape, generator=generator, dtype=torch.float64).to(raw)


def _vmapped(
    task: Task, left: dict[str, nn.Parameter], inputs: Inputs, directions: Tensor, truth: dict[str, Tensor]
) -> set[str]:
    """Return the names for which vmap agrees with the truth."""
    if not left:
        return set()
    try:
        return agreeing(vmap_gradients(task, left, inputs, directions), truth)
    except (RuntimeError, TypeError, ValueError):  # the model does what vmap cannot follow
        return set()


def _measuring(task: Task, of: str | Measure) -> Task:
    """Return the task with what is differentiated as its output."""
    if of == "output":
        return task
    if of == "margin":
        return replace(task, output=outputs.margin)
    if isinstance(of, str):
        raise ValueError(
            f"of={of!r}; expected 'loss', 'output', 'margin' or a function (logits, targets) → one per row"
        )
    return replace(task, output=of)


def _layout(chosen: dict[str, nn.Parameter], coverage: dict[str, str], layers: tuple[PlannedLayer, ...]) -> Layout:
    by_weight = {layer.parameters["weight"]: layer for layer in layers if layer.rank}
    parts: list[Part] = []
    for name, parameter in chosen.items():
        if name in by_weight:
            layer, outs = by_weight[name], len(parameter)
            parts.append(factors(name, layer.rank, parameter.numel() // outs, outs, bias="bias" in layer.parameters))
        elif coverage[name] in ("direct", "vmap", "loop"):
            parts.append(plain(name, parameter.numel()))
    return tuple(parts)
