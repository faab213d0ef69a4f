"""Per-sample gradients of any parameters: all samples at once by `torch.func.vmap`, or one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualview.engine.batches import Inputs, map_tensors, take_rows, tensors_in
from dualview.engine.gradients.capture import differentiable, fresh
from dualview.engine.task import Task


def vmap_gradients(
    task: Task, parameters: Mapping[str, Tensor], inputs: Inputs, directions: Float[Tensor, "row cls"]
) -> dict[str, Tensor]:
    """Return each row's gradients of ⟨directions, logits⟩, "row ..." for each parameter, in one vectorised pass.

    Raises:
        RuntimeError: the model does what `torch.func.vmap` cannot follow.
    """
    model = _Forward(task)

    def explained(chosen: dict[str, Tensor], row: list[Tensor], direction: Tensor) -> Tensor:
        remaining = iter(row)  # tensors_in and map_tensors go in the same order
        sample = map_tensors(lambda tensor: next(remaining)[None] if tensor.ndim else tensor, inputs)
        raw = torch.func.functional_call(model, chosen, (sample,))
        return (task.logits(raw)[0] * direction).sum()

    chosen = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    rows = [tensor for tensor in tensors_in(fresh(inputs)).values() if tensor.ndim]
    with differentiable(task.model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # a loop over the samples inside one operation
        found = torch.func.vmap(torch.func.grad(explained), in_dims=(None, 0, 0))(chosen, rows, directions)
    return {name.removeprefix("model."): gradient for name, gradient in found.items()}


def loop_gradients(
    task: Task, parameters: Mapping[str, Tensor], inputs: Inputs, directions: Float[Tensor, "row cls"]
) -> dict[str, Tensor]:
    """Return the same by one backward pass a sample; parameters that no sample's logits depend on are left out."""
    samples: list[tuple[Tensor | None, ...]] = []
    with differentiable(task.model, parameters.values()):
        for row, direction in enumerate(directions):
            logits = task.logits(task.forward(fresh(take_rows(inputs, row, row + 1))))
            if logits.requires_grad:
                chosen = tuple(parameters.values())
                samples.append(torch.autograd.grad(logits, chosen, direction[None], allow_unused=True))
            else:
                samples.append((None,) * len(parameters))
    return {
        name: torch.stack([torch.zeros_like(parameter) if one is None else one.to_dense() for one in gradients])
        for (name, parameter), gradients in zip(parameters.items(), zip(*samples, strict=True), strict=True)
        if any(one is not None for one in gradients)
    }


class _Forward(nn.Module):
    """A task's forward pass as a module, so that `functional_call` can exchange its parameters."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task_forward = task.forward

    def forward(self, inputs: Inputs) -> Tensor:
        return self.task_forward(inputs)
