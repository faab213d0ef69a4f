"""One layer of a plan: from its calls in a pass to its recorded numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dualview.engine.gradients.capture import Call, upcast
from dualview.engine.gradients.layers import Layer, LinearMap, bias_gradient, factor_pairs, weight_gradient


class PlannedLayer(NamedTuple):
    """A layer whose gradients come from what it saw and made.

    Attributes:
        name: of the module.
        parameters: "weight" and "bias", as far as they are recorded, with their names in the model.
        axes: of the input in each call of a pass.
        copied: whether it hands on a copy of its output: an in-place operation follows.
        rank: pairs of factors by which they are recorded, under the weight's name; 0 if they are not.
    """

    name: str
    parameters: dict[str, str]
    axes: tuple[int, ...]
    copied: bool
    rank: int = 0

    def record(self, layer: Layer, calls: list[Call], deltas: list[Tensor], rows: int) -> dict[str, Tensor]:
        """Return "row ..." for each recorded parameter, summed over the calls.

        Raises:
            ValueError: the calls are not those that were planned.
        """
        pairs = self.pairs(calls, deltas, rows)
        if self.rank:
            assert isinstance(layer, LinearMap)
            sides = zip(*(factor_pairs(layer, *pair) for pair in pairs), strict=True)
            factors = torch.cat([torch.cat(side, dim=1).flatten(1) for side in sides], dim=1)
            return {self.parameters["weight"]: factors}
        found: dict[str, Tensor] = {}
        for kind, name in self.parameters.items():
            gradient = weight_gradient if kind == "weight" else bias_gradient
            first, *more = (gradient(layer, *pair) for pair in pairs)
            found[name] = sum(more, first)
        return found

    def pairs(self, calls: list[Call], deltas: list[Tensor], rows: int) -> list[tuple[Tensor, Tensor]]:
        """Return a and δ of each call; a lone sample whose axis the model squeezed away gets it back."""
        pairs = [(upcast(call.inputs.detach()), upcast(delta)) for call, delta in zip(calls, deltas, strict=True)]
        if rows == 1 and tuple(inputs.ndim + 1 for inputs, _ in pairs) == self.axes:
            pairs = [(inputs[None], delta[None]) for inputs, delta in pairs]
        as_planned = tuple(inputs.ndim for inputs, _ in pairs) == self.axes
        if not as_planned or any(len(inputs) != rows for inputs, _ in pairs) or any(call.overwritten for call in calls):
            raise ValueError(
                f"layer {self.name!r} was called with inputs of shape {[tuple(call.inputs.shape) for call in calls]} "
                f"for {rows} samples; the plan is made for {len(self.axes)} calls with {list(self.axes)} axes, the "
                "samples' first. Where the way through the model depends on its inputs, leave this layer out of "
                "parameters="
            )
        return pairs
