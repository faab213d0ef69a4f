"""Grad-CAM: the maps of a layer, weighted by how much the output wants each."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dualview.engine.maps import as_maps, map_site, over_input
from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.engine.site import Site
from dualview.errors import DualViewWarning
from dualview.features._method import Explained, FeatureMethod

Variant = Literal["plain", "plus-plus"]


@dataclass(frozen=True, repr=False)
class GradCAM(FeatureMethod):
    """Grad-CAM (Selvaraju et al. 2017) and Grad-CAM++ (Chattopadhyay et al. 2018).

    With activations A "channel height width" at a site and g = ∂f/∂A there, the map is ReLU(Σ_c w_c A_c):

    - "plain": w_c is the mean of g_c over space;
    - "plus-plus": w_c = Σ_ij α_cij · max(g_cij, 0), α = g² / (2g² + g³ Σ_ab A_cab), the paper's weights for
      Y = exp(f) with the common factor exp(f) left out, so that they do not overflow.

    It is laid over the input, channels first, by linear interpolation. It says where the site holds what speaks for the
    output, at the site's resolution, and what goes round the site is not seen. The result's `sites` name the site, and
    hold the map as it is there.

    Args:
        site: a module's name (its output) or a `Site`, with activations "test channel height width" or
            "test channel time"; None takes the convolution that is called last, or where that is one branch of
            several, as in a residual block, the module that puts them together (`engine.maps.last_maps`).
        variant: "plain" or "plus-plus".
        relu: keep the positive part only; False keeps the sign.
        tokens: the site holds tokens "test token channel" (a vision transformer), the last of which make up
            a grid (rows, columns).

    Costs a forward and a backward pass for each sample, a forward pass for f(x), and without `site` one of a
    single sample for each batch.

    Example:
        >>> GradCAM("layer4").attribute(model, images).values  # "test 1 height width"  # doctest: +SKIP
    """

    site: Site | str | None = None
    _: KW_ONLY
    variant: Variant = "plain"
    relu: bool = True
    tokens: tuple[int, ...] | None = None

    kind: ClassVar[Kind] = "similarity"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ValueError(f"`variant` is {self.variant!r}; choose from 'plain' and 'plus-plus'")

    def explain(self, measured: Measured) -> Explained:
        site = map_site(measured, self.site)
        weigh = plain_weights if self.variant == "plain" else plus_plus_weights
        found = []
        for samples in measured.chunks(len(measured)):
            _, activations, gradients = measured.gradients_at([site], samples, {})
            maps, slopes = as_maps(activations[site], self.tokens), as_maps(gradients[site], self.tokens)
            found.append((weigh(maps, slopes) * maps).sum(1))
        combined = torch.cat(found)
        maps = combined.relu() if self.relu else combined
        if maps[0].numel() == 1:
            warnings.warn(
                f"the maps at {site.module!r} have one place, so that all of the input scores alike: name an earlier "
                "site",
                DualViewWarning,
                stacklevel=5,
            )
        return Explained(over_input(measured, maps), sites={site: maps})


def plain_weights(maps: Tensor, slopes: Tensor) -> Tensor:
    """Return the mean slope of each channel, "row channel 1…"."""
    return slopes.mean(space_of(maps), keepdim=True)


def plus_plus_weights(maps: Tensor, slopes: Tensor) -> Tensor:
    """Return Σ g⁺ / (2 + g ΣA) of each channel, "row channel 1…"."""
    space = space_of(maps)
    # Differs from Eq. 19 of Chattopadhyay et al.: α is divided through by g², whose zeros have no g⁺, and a negative
    # ΣA, which rectified maps cannot have, counts as 0 where the denominator could vanish.
    total = maps.sum(space, keepdim=True).relu()
    rising = slopes.relu()
    return (rising / (2 + rising * total)).sum(space, keepdim=True)


def space_of(maps: Tensor) -> tuple[int, ...]:
    """Return the axes behind the channels."""
    return tuple(range(2, maps.ndim))
