"""Conductance: how much of the output's change flows through each unit of a layer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.engine.path import Straight, ends, integrate_image, reference_values
from dualview.engine.removal import as_removal
from dualview.engine.site import Site, as_site
from dualview.features._method import Explained, FeatureMethod
from dualview.ops.quadrature import quadrature


@dataclass(frozen=True, repr=False)
class Conductance(FeatureMethod):
    """Conductance (Dhamdhere, Sundararajan and Yan 2018) of the units at a site.

    Cond_j = ∫ ∂f/∂h_j(γ(α)) · dh_j(γ(α))/dα dα along the straight line γ from x' to x: integrated gradients
    along the image of the input's path, whereas `IntegratedGradients(site=)` goes straight from h(x') to h(x).
    Where every path through the network crosses the site, the scores add up to f(x) − f(x'); what goes round it (a
    residual connection) is missing from them, and shows in `completeness_error`.

    Args:
        site: a module's name (its output) or a `Site`. Scores are shaped like its activations.
        baseline: x', as `IntegratedGradients` takes it; averaged over draws.
        steps: nodes on the line, both its ends among them. Between two of them slopes are averaged and
            activations subtracted: an error of order steps⁻² on smooth networks, steps⁻¹ on networks of ReLUs.

    Costs `steps` forward and backward passes a sample and draw, a forward pass a sample, and one for each
    reference, shared or its own.

    Example:
        >>> Conductance("layer3").attribute(model, images).values  # "test channel height width"  # doctest: +SKIP
    """

    site: Site | str
    _: KW_ONLY
    baseline: Any = 0.0
    steps: int = 50

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        quadrature("trapezoid", self.steps)  # refuses what it cannot do

    def explain(self, measured: Measured) -> Explained:
        site = as_site(measured.task.model, self.site)
        reference = self.baseline.reference(measured)
        line = Straight(reference, ends(measured, reference), "trapezoid", self.steps)
        values = integrate_image(measured, line, site)
        return Explained(values, change=measured.values - reference_values(measured, reference))
