"""Guided integrated gradients: a path that moves first what the output hardly depends on."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.engine.path import Stand, rounding, walk_draws
from dualview.engine.removal import as_removal
from dualview.features._method import Explained, FeatureMethod


@dataclass(frozen=True, repr=False)
class GuidedIG(FeatureMethod):
    """Guided integrated gradients (Kapishnikov et al. 2021), without anchors.

    In each of `steps` steps the L1 distance to x falls by the same amount. Of the features that are not
    there yet the share with the smallest |∂f/∂x_i| moves, all of them by the same part of what each
    has left; where they arrive and that is not enough, the next ones follow. φ_i is the integral of ∂f/∂x_i
    along this path, so that the scores add up to f(x) − f(x'): where f changes for reasons that x does
    not share, other features have moved by then.

    Args:
        baseline: x', as for `IntegratedGradients`.
        steps: how many times the gradient chooses.
        fraction: the share of the features that moves at once.

    Costs `steps` + 1 forward and backward passes a sample and draw, one after another, and a forward pass
    for its prediction.

    Example:
        >>> GuidedIG(steps=100).attribute(model, images).values  # doctest: +SKIP
    """

    baseline: Any = 0.0
    _: KW_ONLY
    steps: int = 200
    fraction: float | int = 0.25

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        if self.steps < 1:
            raise ValueError(f"`steps` is {self.steps}; expected at least 1")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"`fraction` is {self.fraction}; expected more than 0 and at most 1")

    def explain(self, measured: Measured) -> Explained:
        found = walk_draws(measured, self.baseline.reference(measured), self._move)
        return Explained(found.shares, change=found.change)

    def _move(self, stand: Stand) -> Tensor:
        if stand.step + 1 >= self.steps:
            return stand.ends
        points, ends = stand.points, stand.ends
        slopes = stand.slopes.abs().nan_to_num(torch.inf)
        room = rounding(slopes)
        due = (ends - points).abs().sum(1) / (self.steps - stand.step)
        while bool((due > 0).any()):
            way = ends - points
            moving = (way != 0).sum(1, keepdim=True)
            count = (self.fraction * moving).ceil().long().clamp(min=1)
            last = slopes.masked_fill(way == 0, torch.inf).sort(1).values.gather(1, count - 1)
            chosen = (slopes <= last + room) & (way != 0)
            reach = (way.abs() * chosen).sum(1)
            part = torch.where(due < reach, due / reach, 1.0)[:, None]
            points = torch.where(chosen, torch.where(part < 1, points + part * way, ends), points)
            due = torch.where(due < reach, 0.0, due - reach) * (moving[:, 0] > 0)
        return points
