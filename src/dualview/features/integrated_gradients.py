"""Integrated gradients: the output's change from a baseline, shared along a straight path."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch

from dualview.engine.measured import Measured, Parts
from dualview.engine.outputs import Kind
from dualview.engine.path import Straight, ends, integrate, passes, reference_values
from dualview.engine.removal import Reference, as_removal
from dualview.engine.site import Site, as_site
from dualview.features._method import Explained, FeatureMethod
from dualview.ops.quadrature import Rule, quadrature


@dataclass(frozen=True, repr=False)
class IntegratedGradients(FeatureMethod):
    """Integrated gradients (Sundararajan, Taly and Yan 2017), at the inputs or at a site inside the model.

    φ_i = (x_i − x'_i) ∫₀¹ ∂f/∂x_i (x' + α (x − x')) dα. The scores add up to f(x) − f(x'); what the
    quadrature misses is the result's `completeness_error`. In terms of Taylor's effects at x' each term
    of order κ is shared as κ_i / |κ|.

    Args:
        baseline: x', what absence means: a number, a tensor (one sample's input, or one for each), a map
            from the places of several inputs to these, or `Constant`, `Blur`, `Samples`, `Noise`. Over
            several draws the scores are averaged.
        steps: nodes on the path. 50 do for smooth networks; networks of ReLUs want 200 of the midpoint.
        rule: "gauss-legendre", "midpoint", "trapezoid", "left" or "right".
        site: a module's name (its output) or a `Site`: the path is then the straight line between the
            activations on the baseline and on the input, which are put in their place while the input stays.

    Costs `steps` forward and backward passes a sample and draw, a forward pass a sample, and one for each
    reference, shared or its own. At a site there is another forward pass for each end.

    Example:
        >>> scores = IntegratedGradients(baseline=Blur(10), steps=100).attribute(model, images)  # doctest: +SKIP
        >>> scores.completeness_error.abs().max()  # doctest: +SKIP
    """

    baseline: Any = 0.0
    _: KW_ONLY
    steps: int = 50
    rule: Rule = "gauss-legendre"
    site: Site | str | None = None

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        quadrature(self.rule, self.steps)  # refuses what it cannot do

    def explain(self, measured: Measured) -> Explained:
        reference = self.baseline.reference(measured)
        if self.site is None:
            end = ends(measured, reference)
        else:
            reference, end = at_site(measured, reference, as_site(measured.task.model, self.site))
        values = integrate(measured, Straight(reference, end, self.rule, self.steps))
        return Explained(values, change=measured.values - reference_values(measured, reference))


def at_site(measured: Measured, reference: Reference, site: Site) -> tuple[Reference, Parts]:
    """Return the activations at a site: those on the references, and those on the inputs as they are."""
    end = [measured.activations([site], rows, {})[site] for rows in measured.chunks(len(measured))]
    start = [
        measured.activations([site], rows, reference.rows(rows, draws))[site]
        for rows, draws in passes(measured, reference.draws)
    ]
    drawn = torch.cat(start).unflatten(0, (reference.draws, len(measured)))
    return Reference({site: drawn.transpose(0, 1)}), {site: torch.cat(end)}
