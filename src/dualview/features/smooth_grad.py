"""The gradient around the input: its mean, mean square or variance under noise."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dualview.engine.measured import Measured, Parts
from dualview.engine.outputs import Kind
from dualview.engine.path import accumulate, passes, per_row
from dualview.features._method import Explained, FeatureMethod

Statistic = Literal["mean", "square", "variance"]


@dataclass(frozen=True, repr=False)
class SmoothGrad(FeatureMethod):
    """The gradient under noise: SmoothGrad (Smilkov et al. 2017), SmoothGrad² (Hooker et al. 2019), VarGrad.

    With g_k = ∂f/∂x (x + σ z_k) for standard-normal z_k, it is the mean of g_k, of g_k², or their variance
    (Adebayo et al. 2018; divided by `draws`). The mean estimates the gradient of f smoothed by a Gaussian,
    in units of output per unit of input; the other two are in the square of that and have no sign.

    Args:
        noise: σ as a share of the range of a sample's input, max − min.
        draws: how many z_k; they are the same for every sample, so that neither its place nor its
            batch matters.
        seed: of the draws.
        statistic: "mean", "square" (of SmoothGrad²) or "variance" (VarGrad).

    Costs `draws` forward and backward passes a sample, and a forward pass for its prediction.

    Example:
        >>> SmoothGrad(draws=50).attribute(model, images).values  # doctest: +SKIP
    """

    noise: float | int = 0.15
    _: KW_ONLY
    draws: int = 25
    seed: int = 0
    statistic: Statistic = "mean"

    kind: ClassVar[Kind] = "similarity"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.noise > 0:
            raise ValueError(f"`noise` is {self.noise}; expected more than 0, a share of the input's range")
        if self.draws < 1:
            raise ValueError(f"`draws` is {self.draws}; expected at least 1")
        if self.statistic not in get_args(Statistic):
            raise ValueError(f"`statistic` is {self.statistic!r}; choose from 'mean', 'square' and 'variance'")

    def explain(self, measured: Measured) -> Explained:
        normal = self._normal(measured.parts)
        scale = {place: self.noise * _ranges(part) for place, part in measured.parts.items()}
        first: Parts = {}
        second: Parts = {}
        pivots: Parts = {}  # the variance of what has a mean near zero loses no digits
        for samples, draws in passes(measured, self.draws):
            points = {
                place: part[samples] + per_row(scale[place][samples], part) * normal[place][draws]
                for place, part in measured.parts.items()
            }
            _, slopes = measured.gradients(samples, points)
            if self.statistic == "variance":
                own = draws == 0
                accumulate(pivots, {k: slope[own].detach() for k, slope in slopes.items()}, samples[own], len(measured))
                slopes = {place: slope - pivots[place][samples] for place, slope in slopes.items()}
            accumulate(first, slopes, samples, len(measured))
            accumulate(second, {place: slope.square() for place, slope in slopes.items()}, samples, len(measured))
        means, squares = ({place: part / self.draws for place, part in total.items()} for total in (first, second))
        if self.statistic == "variance":
            return Explained({place: squares[place] - means[place].square() for place in means})
        return Explained(squares if self.statistic == "square" else means)

    def _normal(self, parts: Parts) -> Parts:
        generator = torch.Generator().manual_seed(self.seed)
        return {
            place: torch.randn((self.draws, *part.shape[1:]), generator=generator, dtype=torch.float64).to(part)
            for place, part in parts.items()
        }


def _ranges(part: Tensor) -> Tensor:
    """Return max − min of each sample."""
    flat = part.flatten(1)
    return flat.amax(1) - flat.amin(1)
