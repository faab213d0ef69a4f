"""What is recorded of each parameter's gradient, and recording it for a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.engine.batches import Inputs
from dualview.engine.gradients.capture import deltas_of, differentiable, fresh, tapped, upcast
from dualview.engine.gradients.layers import Layer
from dualview.engine.gradients.planned_layer import PlannedLayer
from dualview.engine.gradients.sample_wise import loop_gradients, vmap_gradients
from dualview.engine.task import Task
from dualview.ops.layout import Layout


@dataclass(frozen=True, eq=False)
class GradientPlan:
    """How the per-sample gradients of a model are recorded; made by `plan_gradients`.

    Attributes:
        task: its output is what is differentiated, or its loss.
        of_loss: whether it is the loss.
        layout: of the recorded rows; parts carry the names of parameters, factors that of the weight.
        coverage: how each parameter of the model is recorded: "factors", "direct" (built from what its
            layer saw and made), "vmap", "loop" (one backward pass a sample), "zero" (the logits do not depend
            on it), "not selected" or "not selected: frozen".
        layers: those that are recorded as "factors" or "direct", and those that must not be called.
    """

    task: Task
    of_loss: bool
    layout: Layout
    coverage: dict[str, str]
    layers: tuple[PlannedLayer, ...]

    def record(
        self,
        inputs: Inputs,
        targets: Tensor | None = None,
        *,
        directions: Float[Tensor, "row cls"] | None = None,
    ) -> tuple[Float[Tensor, "row unit"], Float[Tensor, "row logit"], Tensor]:
        """Record one batch: a forward pass, and a backward pass through the activations.

        Args:
            inputs: of the batch.
            targets: what the output is measured for; the network's predictions by default.
            directions: gradient v of what is differentiated with respect to the logits, where that is something else
                than the plan says.

        Returns:
            values: ∂⟨v, logits⟩/∂parameters of each row, laid out as `layout`.
            raw: the network's outputs.
            targets: as given, or the predictions.

        Raises:
            ValueError: the batch takes another way through the model than the samples the plan was made with.
        """
        task, model = self.task, self.task.model
        if targets is None and directions is None and self.of_loss and task.problem != "classification":
            raise ValueError(f"the loss of a {task.problem} task needs targets=: a prediction is no label")
        parameters = dict(model.named_parameters())
        unused = {name: parameters[name] for name, how in self.coverage.items() if how == "zero"}
        with differentiable(model, unused.values()):
            with tapped(model, {layer.name: layer.copied for layer in self.layers}) as calls:
                logits = task.forward(fresh(inputs))
            raw = upcast(logits.detach()).cpu()
            if targets is None:
                targets = task.predicted(raw)
            if directions is None:
                directions = (task.loss_directions if self.of_loss else task.directions)(raw, targets)
            directions = directions.to(logits)
            deltas = deltas_of(task.logits(logits), directions, calls, unused)
            found: dict[str, Tensor] = {}
            for layer in self.layers:
                module: Layer = model.get_submodule(layer.name)  # type: ignore[assignment]
                found |= layer.record(module, calls[layer.name], deltas[layer.name], len(raw))
            for how, gradients in (("vmap", vmap_gradients), ("loop", loop_gradients)):
                chosen = {name: parameters[name] for name, by in self.coverage.items() if by == how}
                if chosen:
                    found |= gradients(task, chosen, inputs, directions)
            return self._row(found, len(raw)), raw, targets

    def _row(self, found: dict[str, Tensor], rows: int) -> Tensor:
        pieces = []
        for part in self.layout:
            piece = found[part.name].reshape(rows, -1) if part.name in found else torch.zeros(rows, part.width)
            if piece.shape[1] != part.width:
                raise ValueError(
                    f"the gradient of {part.name!r} takes {piece.shape[1]} numbers a sample in this batch, and took "
                    f"{part.width} for the samples it was planned with: give inputs of one shape"
                )
            pieces.append(upcast(piece).cpu())
        return torch.cat(pieces, dim=1)
