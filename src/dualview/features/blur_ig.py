"""Integrated gradients along the blur path: from the input smoothed to the input sharp."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from dualview.engine.measured import Measured, Parts
from dualview.engine.outputs import Kind
from dualview.engine.path import Curve, integrate, reference_values
from dualview.engine.removal import Blur, blurred
from dualview.features._method import Explained, FeatureMethod


@dataclass(frozen=True, repr=False)
class BlurIG(FeatureMethod):
    """Blur integrated gradients (Xu, Venugopalan and Sundararajan 2020).

    φ_i = ∫₀¹ ∂f/∂x_i (γ(α)) γ_i'(α) dα where γ(α) is the input, smoothed by a Gaussian of standard
    deviation (1 − α) σ. Nothing stands in for absence but the loss of detail: no baseline is chosen,
    and no new edge appears on the way. The scores add up to f(x) − f(γ(0)).

    Args:
        sigma: σ in pixels (or time steps), where the path begins. Images are smoothed along their last
            two axes, series and rows along their last one.
        steps: straight pieces that the path is followed in.

    Costs `steps` forward and backward passes a sample, and a forward pass for each end.

    Example:
        >>> BlurIG(sigma=20).attribute(model, images).values  # doctest: +SKIP
    """

    sigma: float | int = 50.0
    _: KW_ONLY
    steps: int = 50

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.baseline  # refuses what is no standard deviation
        if self.steps < 1:
            raise ValueError(f"`steps` is {self.steps}; expected at least 1")

    @property
    def baseline(self) -> Blur:
        """What stands in for absent features."""
        return Blur(self.sigma)

    def explain(self, measured: Measured) -> Explained:
        def point(samples: Tensor, alphas: Tensor) -> Parts:
            sigmas = self.sigma * (1 - alphas)
            return {place: blurred(part[samples], sigmas) for place, part in measured.parts.items()}

        values = integrate(measured, Curve(point, self.steps))
        start = reference_values(measured, self.baseline.reference(measured))
        return Explained(values, change=measured.values - start)
