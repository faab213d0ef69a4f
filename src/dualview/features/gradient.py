"""The gradient of the measured output with respect to the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.features._method import Explained, FeatureMethod


@dataclass(frozen=True, repr=False)
class Gradient(FeatureMethod):
    """The gradient ∂f/∂x_i (Baehrens et al. 2010; Simonyan et al. 2014).

    How fast the measured output grows with each number of the input, at the input: a sensitivity, in
    units of output per unit of input. It says nothing of what the input's present value contributes.

    Args:
        absolute: take |∂f/∂x_i|, as saliency maps do; the sign is lost.

    Example:
        >>> Gradient().attribute(model, images).values  # doctest: +SKIP
    """

    absolute: bool = False

    kind: ClassVar[Kind] = "similarity"
    keeps_graph: ClassVar[bool] = True

    def explain(self, measured: Measured) -> Explained:
        _, gradients = measured.gradients(measured.samples, measured.parts)
        return Explained({place: part.abs() for place, part in gradients.items()} if self.absolute else gradients)
