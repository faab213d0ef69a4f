"""What every dual solver returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DualSolution:
    """A dual solution with its certificate, evaluated in float64 from the coefficients themselves.

    The primal problem is min over W of ½ Σ_c W_cᵀ M_c W_c + Σᵢ Cᵢ·lossᵢ with W_c = M_c⁻¹ Σᵢ coefficients_ic [fᵢ, 1],
    M the identity but for `dual` under another metric; P is its value at `weights`, D the maximised dual's value at
    `coefficients`, so D ≤ optimum ≤ P. "cls" are the outputs where the targets are numbers or labels.

    Attributes:
        coefficients: sparse (COO, coalesced) float64 tensor "train cls". Rows sum to zero where classes compete.
        weights: float64 "cls unit", the constant's weight (the bias) in the last column; always
            made from the coefficients as above.
        gap: relative duality gap (P − D)/P at the returned pair.
        status: "converged" where gap ≤ the asked gap, else "limit" (of epochs), "stalled" (no
            progress is possible in the precision of the data) or "interrupted" (from the keyboard).
        epochs: passes over the training rows.
        regime: which algorithms ran, e.g. "sequential, newton".
        primal: P, float64.
        dual: D, float64.
        seconds: wall time of the solve; a first one on a machine includes the compilation of the loops.
        regime_seconds: wall time of each algorithm that ran.
        C: weight of the sum of losses.
        free: rows whose largest |alpha_ic| lies between 0 and its bound; between classes that is 0 < alpha_y < Cᵢ.
        bound: rows whose largest |alpha_ic| is Cᵢ, on one rival class or several; none under the squared loss, which
            has no bound. Without any, every larger C has the same solution of the hinge.
    """

    coefficients: Float[Tensor, "train cls"]
    weights: Float[Tensor, "cls unit"]
    gap: float
    status: str
    epochs: int
    regime: str
    primal: float
    dual: float
    seconds: float
    regime_seconds: dict[str, float]
    C: float
    free: int
    bound: int

    @property
    def distance(self) -> float:
        """Bound on ‖weights − optimal weights‖, in the metric, by strong convexity: √(2(P − D))."""
        return math.sqrt(2 * max(self.primal - self.dual, 0.0))
