"""SAMP: a path that moves first what changes the output most, so that few features get the credit."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.engine.path import Stand, rounding, walk_draws
from dualview.engine.removal import as_removal
from dualview.features._method import Explained, FeatureMethod

Direction = Literal["insertion", "deletion", "both"]


@dataclass(frozen=True, repr=False)
class SAMP(FeatureMethod):
    """Salient manipulation paths, SAMP and SAMP++ (Zhang, Zheng, Zhou and Lu 2024).

    Among the paths that move each feature once from x' to x, it follows greedily the one whose steps'
    contributions vary most: each step moves the features with the largest first-order contribution
    ∂f/∂x_i · (x_i − its value now). φ_i adds up ∂f/∂x_i times the way along it, to f(x) − f(x'). Deletion
    walks from x to x', moves first what lowers f most, and its scores' signs are turned.

    SAMP++ is SAMP(eta=0.01, momentum=0.5): small steps, in a direction that does not jump.

    A path that goes where the gradient is largest is where gradients say least about the next point: on
    photographs their sums miss f(x) − f(x') by many times itself, on a small residual network by a few times, on
    a plain one by half of it, on tables by a few hundredths (the card has the table).
    Each step's change of f is known, and with `complete` what its terms miss of it is shared among
    them, in proportion to their size. This is the library's own; `checks["missed by gradients"]` says how
    much it was, the sum over steps of its size. It was written from a summary of the
    paper, and not checked against its text; no code was published.

    Args:
        baseline: x', as for `IntegratedGradients`.
        share: of all features, how many move in a step.
        direction: "insertion" (x' to x), "deletion" (x to x'), or "both" for their mean.
        eta: the L1 length of a step at most, as a share of that from x' to x; features then move in
            part, and stay among those that move. None sets no bound.
        momentum: μ of the running mean of gradients, μ · mean + (1 − μ) · gradient, that ranks features.
        complete: let each step's terms add up to its change of f; False adds up gradients alone, as published.

    Costs at most 1/share + 1/eta + 1 forward and backward passes a sample, draw and direction, one after
    another, each term rounded up, and a forward pass for the prediction.

    Example:
        >>> SAMP(share=0.05, eta=0.01, momentum=0.5).attribute(model, images).values  # doctest: +SKIP
    """

    baseline: Any = 0.0
    _: KW_ONLY
    share: float | int = 0.01
    direction: Direction = "both"
    eta: float | int | None = None
    momentum: float | int = 0.0
    complete: bool = True

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` is {self.share}; expected more than 0 and at most 1")
        if self.direction not in get_args(Direction):
            raise ValueError(f"`direction` is {self.direction!r}; choose from 'insertion', 'deletion' and 'both'")
        if self.eta is not None and not 0 < self.eta <= 1:
            raise ValueError(f"`eta` is {self.eta}; expected more than 0 and at most 1, or None")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` is {self.momentum}; expected at least 0 and less than 1")

    def explain(self, measured: Measured) -> Explained:
        reference = self.baseline.reference(measured)
        found, settings = [], {"momentum": self.momentum, "complete": self.complete}
        if self.direction != "deletion":
            found.append(walk_draws(measured, reference, self._move, **settings))
        if self.direction != "insertion":
            found.append(walk_draws(measured, reference, self._fall, backwards=True, **settings))
        return Explained(
            {place: _mean([walked.shares[place] for walked in found]) for place in found[0].shares},
            change=_mean([walked.change for walked in found]),
            checks={"missed by gradients": _mean([walked.missed for walked in found])},
        )

    def _fall(self, stand: Stand) -> Tensor:
        return self._move(stand._replace(slopes=-stand.slopes))

    def _move(self, stand: Stand) -> Tensor:
        """Move the features with the largest slope · way to the end, or as far as `eta` lets them."""
        way = stand.ends - stand.points
        gain = (stand.slopes * way).masked_fill(way == 0, -torch.inf)
        last = gain.topk(math.ceil(self.share * way.shape[1])).values[:, -1:]
        chosen = (gain >= last - rounding(gain)) & (way != 0)
        arrived = torch.where(chosen, stand.ends, stand.points)
        if self.eta is None:
            return arrived
        reach, bound = (way.abs() * chosen).sum(1), self.eta * stand.length
        part = torch.where(reach > bound, bound / reach, 1.0)[:, None]
        return torch.where(part < 1, stand.points + part * way * chosen, arrived)


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean(0)
