"""The gradient times the input: what removing a number of the input would change, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.features._method import Explained, FeatureMethod


@dataclass(frozen=True, repr=False)
class InputXGradient(FeatureMethod):
    """The input times the gradient, φ_i = x_i ∂f/∂x_i (Shrikumar et al. 2016).

    Taylor's first-order term around x of f(x) − f(x with x_i = 0): it estimates what including x_i
    changes, in units of the output, so it is an effect. It is no share: the scores add up to
    f(x) − f(0) only where f is linear between 0 and x, as in networks of ReLUs without biases.
    What is 0 in the input gets 0, whatever it does.

    Costs a forward and backward pass a sample, and a forward pass for its prediction.

    Example:
        >>> InputXGradient().attribute(model, images).values  # doctest: +SKIP
    """

    kind: ClassVar[Kind] = "effect"
    keeps_graph: ClassVar[bool] = True

    def explain(self, measured: Measured) -> Explained:
        _, gradients = measured.gradients(measured.samples, measured.parts)
        return Explained({place: measured.parts[place] * part for place, part in gradients.items()})
