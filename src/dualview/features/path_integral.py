"""A path integral along any path of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualview.engine.measured import Measured, Parts
from dualview.engine.outputs import Kind
from dualview.engine.path import Curve, integrate, per_row, reference_values
from dualview.engine.removal import Reference
from dualview.features._method import Explained, FeatureMethod


@dataclass(frozen=True, repr=False)
class PathIntegral(FeatureMethod):
    """The gradient along a path of one's own, times the way (Friedman 2004; Sundararajan et al. 2017).

    φ_i = ∫₀¹ ∂f/∂x_i (γ(α)) γ_i'(α) dα with γ(1) = x. Whatever the path, the scores add up to
    f(x) − f(γ(0)); what numbers miss is the result's `completeness_error`. Which feature gets how much
    is the path's choice: on f = x_1 x_2 the one that moves last gets all of it.

    Args:
        path: a function of x "row ..." and α, of which each row has its own, shaped so as to multiply x;
            it returns γ(α), shaped like x. With several inputs all three are maps from their places.
        steps: straight pieces that the path is followed in, with the gradient in the middle of each.
        box: refuse a path that leaves the box between γ(0) and x, where f is asked about inputs that are
            neither, and a feature may get credit for a way that it goes back.

    Costs `steps` forward and backward passes a sample, and a forward pass for each end.

    Example:
        >>> late = PathIntegral(lambda x, alpha: alpha**2 * x, steps=100)  # doctest: +SKIP
        >>> late.attribute(model, images).values  # doctest: +SKIP
    """

    path: Callable[[Any, Any], Any]
    _: KW_ONLY
    steps: int = 50
    box: bool = True

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.path):
            raise TypeError(f"`path` must be a function of inputs and α; it is a {type(self.path).__name__}")
        if self.steps < 1:
            raise ValueError(f"`steps` is {self.steps}; expected at least 1")

    def explain(self, measured: Measured) -> Explained:
        x, ones = measured.parts, torch.ones(len(measured), dtype=torch.float64)
        start = self._points(x, 0 * ones)
        box = _Box(start, x, measured.start)
        box.refuse(self._points(x, ones), measured.samples, end_alone=True)

        def point(samples: Tensor, alphas: Tensor) -> Parts:
            found = self._points({place: part[samples] for place, part in x.items()}, alphas)
            if self.box:
                box.refuse(found, samples)
            return found

        values = integrate(measured, Curve(point, self.steps))
        reference = Reference({place: part[:, None] for place, part in start.items()})
        return Explained(values, change=measured.values - reference_values(measured, reference))

    def _points(self, x: Parts, alphas: Tensor) -> Parts:
        """Call the user's function, which sees one input as it is and several as a map."""
        each = {place: per_row(alphas, part) for place, part in x.items()}
        alone = next(iter(x)) if len(x) == 1 else None
        found = self.path(x, each) if alone is None else {alone: self.path(x[alone], each[alone])}
        shapes = {place: tuple(part.shape) for place, part in x.items()}
        if {place: tuple(part.shape) for place, part in found.items()} != shapes:
            raise ValueError(f"`path` must return what it is given, shaped alike: {shapes}")
        return {place: found[place].detach().to(part) for place, part in x.items()}


@dataclass(frozen=True, eq=False)
class _Box:
    """Every number between its value at the start of a path and at its end."""

    start: Parts
    end: Parts
    first: int  # position of the first sample, for errors

    def refuse(self, points: Parts, samples: Tensor, *, end_alone: bool = False) -> None:
        """Raise where points "row ..." leave the box, or the end itself, by more than rounding."""
        for place, part in points.items():
            a, b = self.start[place][samples], self.end[place][samples]
            size = torch.maximum(a.abs(), b.abs()).flatten(1).amax(1)
            room = per_row(32 * torch.finfo(part.dtype).eps * size, part)
            low, high = (b, b) if end_alone else (torch.minimum(a, b), torch.maximum(a, b))
            outside = ((part < low - room) | (part > high + room)).flatten(1).any(1)
            if bool(outside.any()):
                sample = self.first + int(samples[outside][0])
                raise ValueError(
                    f"`path` does not end at x for sample {sample}: γ(1) must be the input itself"
                    if end_alone
                    else f"`path` leaves the box between γ(0) and x for sample {sample}: f is asked about inputs that "
                    "are neither, and a feature may get credit for a way that it goes back. If that is meant: box=False"
                )
