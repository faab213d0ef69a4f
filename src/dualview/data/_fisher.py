"""Directions of the logits whose gradients, as outer products, make a Fisher or Gauss-Newton matrix."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.engine import outputs
from dualview.engine.tables import Table
from dualview.engine.task import MAX_CLASSES_TRIED, Task

Kind = Literal["sampled", "exact", "empirical"]


@dataclass(frozen=True, eq=False)
class Fisher:
    """Directions v with E Σ_v v vᵀ = the Hessian of the loss in the logits; "empirical": the gradient of the loss.

    Attributes:
        kind: "sampled" draws one direction a sample, from labels of the network's own prediction; "exact" has one for
            each output column.
        task: whose loss it is.
        draws: random numbers for each training sample, so that batches do not matter.
        scale: of the loss, in units of the one that goes with the problem.
    """

    kind: Kind
    task: Task
    draws: Float[Tensor, "train draw"]
    scale: float

    @classmethod
    def of(cls, kind: Kind, task: Task, table: Table, seed: int) -> Fisher:
        """Look at the loss of each recorded row, and draw.

        Raises:
            ValueError: the loss is no cross-entropy (squared error, binary cross-entropy) of the outputs, or multiple.
        """
        generator = torch.Generator().manual_seed(seed)
        columns = 1 if task.problem == "classification" else table.num_classes
        draw = torch.randn if task.problem == "regression" else torch.rand
        draws = draw(len(table), columns, generator=generator, dtype=torch.float64)
        return cls(kind, task, draws, 1.0 if kind == "empirical" else _scale(task, table))

    def directions(
        self, raw: Float[Tensor, "row logit"], targets: Tensor, index: Int[Tensor, " row"]
    ) -> list[Float[Tensor, "row cls"]]:
        """Return the directions for a batch, each with a vector a row."""
        if self.kind == "empirical":
            return [self.task.loss_directions(raw, targets)]
        logits, draws = self.task.logits(raw).double(), self.draws[index]
        every = torch.eye(logits.shape[1], dtype=torch.float64)
        if self.task.problem == "regression":
            found = [draws] if self.kind == "sampled" else [one.expand_as(logits) for one in every]
        elif self.task.problem == "multi-label":
            p = logits.sigmoid()
            found = [p - (draws < p).double()] if self.kind == "sampled" else [(p * (1 - p)).sqrt() * e for e in every]
        else:
            p = logits.softmax(1)
            if self.kind == "sampled":
                found = [p - every[_drawn(p, draws)]]
            else:
                found = [p[:, c, None].sqrt() * (every[c] - p) for c in range(p.shape[1])]
        return [self.scale**0.5 * one for one in found]

    def num_surprises(self, table: Table, index: Int[Tensor, " row"]) -> int:
        """Return how many drawn labels of a classification are other classes than the network predicts."""
        p = self.task.logits(table.rows(index).outputs).double().softmax(1)
        return int((_drawn(p, self.draws[index]) != p.argmax(1)).sum())


def _drawn(p: Float[Tensor, "row cls"], draws: Float[Tensor, "row 1"]) -> Int[Tensor, " row"]:
    """Return a label for each row, drawn with these probabilities."""
    return (p.cumsum(1) <= draws).sum(1).clamp(max=p.shape[1] - 1)


def _scale(task: Task, table: Table) -> float:
    """Return the multiple of the usual loss that a task's loss is.

    Recorded rows alone cannot tell: losses of samples that are fitted well are rounding.
    """
    logits, one_logit = task.logits(table.outputs), table.num_classes == 1

    def losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        usual = dataclasses.replace(task, loss=outputs.loss)
        own, expected = (one.losses(logits, targets, one_logit=one_logit).double() for one in (task, usual))
        return own, expected

    with torch.no_grad():
        own, expected = losses(*_probes(task, logits, table.targets))
        scale = float(own.sum() / expected.sum())
        rounding = 32 * torch.finfo(logits.dtype).eps * logits.shape[1] * float(logits.abs().max()) * abs(scale)
        same = torch.allclose(own, scale * expected, rtol=1e-3, atol=0.0)
        own, expected = losses(logits, table.targets)
        same = same and torch.allclose(own, scale * expected, rtol=1e-3, atol=rounding)
    if not (same and scale > 0):
        usual = {
            "classification": "cross-entropy",
            "regression": "squared error",
            "multi-label": "binary cross-entropy",
        }
        raise ValueError(
            f"the curvature is derived for the {usual[task.problem]} of the outputs, and this task's `loss` gives "
            "other values (class weights, label smoothing, another loss?): fisher='empirical' takes any loss"
        )
    return scale


def _probes(task: Task, logits: Float[Tensor, "row cls"], targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets, two rows for each of some columns, whose losses are large and unlike each other."""
    columns = logits.shape[1]
    chosen = torch.arange(min(columns, MAX_CLASSES_TRIED))
    units = torch.eye(columns, dtype=logits.dtype)[chosen]
    if task.problem == "regression":
        probes = units * (float((logits - targets).abs().max()) or 1.0)  # beyond these errors it may be Huber's loss
        goals = [torch.zeros_like(probes), 0.5 * probes]
    else:
        probes = units * math.log(columns + 1)  # of probability 1/2, about
        labels = [chosen, (chosen + 1) % columns]
        goals = labels if task.problem == "classification" else [units, 1 - units]
    return torch.cat([probes, probes]), torch.cat(goals)
