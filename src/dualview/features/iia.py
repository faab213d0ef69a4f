"""Iterated Integrated Attributions: gradients along a path of inputs, and along one of activations at each of them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from dualview.engine.maps import as_maps, map_site, over_input
from dualview.engine.measured import Measured, Parts
from dualview.engine.outputs import Kind
from dualview.engine.path import Straight, accumulate, ends, passes
from dualview.engine.removal import as_removal
from dualview.engine.site import Site
from dualview.features._method import Explained, FeatureMethod

Start = Literal["zero", "minimum"]


@dataclass(frozen=True, repr=False)
class IIA(FeatureMethod):
    """Iterated Integrated Attributions (Barkan et al. 2023), through one site.

    With inputs x_i = x' + i/n (x − x'), their activations h_i at the site and points h_ij = h_i0 + j/m (h_i − h_i0)

        M = Σ_i Σ_j ∂f/∂h(h_ij) · ReLU(h_ij − h_i0) / (n (m + 1) / 2),      i = 1 … n, j = 1 … m,

    summed over channels and laid over the input, channels first, by linear interpolation. The divisor, which is
    this library's, makes it a weighted mean over nodes: n = m = 1 is gradient × ReLU(activation), and where the
    network is linear after the site M is the mean over i of gradient × ReLU(h_i − h_i0). Scores add up to nothing.
    The result's `sites` name the site, and hold M as it is there.

    Args:
        site: a module's name (its output) or a `Site`, with activations "test channel height width" or
            "test channel time"; None takes the convolution that is called last, or where that is one branch of
            several, as in a residual block, the module that puts them together (`engine.maps.last_maps`).
        baseline: x', as `IntegratedGradients` takes it; averaged over draws.
        outer: n.
        inner: m.
        start: h_i0: "zero", or the "minimum" of each channel of h_i over space.
        collapsed: what the authors' public code computes, whose inner path stands still:
            Σ_i ∂f/∂h(h_i) · ReLU(h_i) / n. `inner` and `start` do not matter then.
        tokens: the site holds tokens "test token channel" (a vision transformer), the last of which make up
            a grid (rows, columns).

    Costs for each sample and draw n (m + 1) forward and n m backward passes (collapsed: n of each), a forward pass
    for f(x), and without `site` one of a single sample for each batch.

    Example:
        >>> IIA("layer4", start="minimum").attribute(model, images).values  # doctest: +SKIP
    """

    site: Site | str | None = None
    _: KW_ONLY
    baseline: Any = 0.0
    outer: int = 10
    inner: int = 10
    start: Start = "zero"
    collapsed: bool = False
    tokens: tuple[int, ...] | None = None

    kind: ClassVar[Kind] = "similarity"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        for name in ("outer", "inner"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected at least 1")
        if self.start not in get_args(Start):
            raise ValueError(f"`start` is {self.start!r}; choose from 'zero' and 'minimum'")

    def explain(self, measured: Measured) -> Explained:
        site = map_site(measured, self.site)
        reference = self.baseline.reference(measured)
        path = Straight(reference, ends(measured, reference), "right", self.outer)
        along = self._collapsed if self.collapsed else self._iterated
        total: Parts = {}
        for samples, nodes in passes(measured, path.num_nodes):
            points, _ = path.at(samples, nodes)
            found = along(measured, site, samples, points).sum(1) / path.num_nodes
            accumulate(total, {site: found}, samples, len(measured))
        return Explained(over_input(measured, total[site]), sites={site: total[site]})

    def _iterated(self, measured: Measured, site: Site, samples: Tensor, points: Parts) -> Tensor:
        """Return the weighted mean over j for some inputs, "row channel space…"."""
        end = measured.activations([site], samples, points)[site]
        space = tuple(range(2, end.ndim)) if self.tokens is None else (1,)
        way = end - end.amin(space, keepdim=True) if self.start == "minimum" else end
        total: Tensor | float = 0.0
        for j in range(1, self.inner + 1):
            point = end - (1 - j / self.inner) * way
            _, _, gradients = measured.gradients_at([site], samples, {**points, site: point})
            total = total + j * gradients[site]  # ReLU(h_ij − h_i0) is j/m of its last one
        divisor = self.inner * (self.inner + 1) / 2
        return as_maps(total * way.relu() / divisor, self.tokens)

    def _collapsed(self, measured: Measured, site: Site, samples: Tensor, points: Parts) -> Tensor:
        """Return gradient × ReLU(activation) for some inputs, "row channel space…"."""
        _, activations, gradients = measured.gradients_at([site], samples, points)
        return as_maps(gradients[site] * activations[site].relu(), self.tokens)
