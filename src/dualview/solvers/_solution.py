"""What every dual solver returns."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DualSolution:
    """A dual solution with its certificate, evaluated in float64 from the coefficients themselves.

    The primal problem is min over W of ½‖W‖² + C·Σᵢ lossᵢ with W = coefficients.T @ [features, 1];
    P is its value at `weights`, D the maximised dual's value at `coefficients`, so D ≤ optimum ≤ P.

    Attributes:
        coefficients: sparse (COO, coalesced) float64 tensor "train cls". Row sums are zero.
        weights: float64 "cls unit", the constant's weight (the bias) in the last column; always
            `coefficients.T @ [features, 1]`.
        gap: relative duality gap (P − D)/P at the returned pair.
        status: "converged" where gap ≤ the asked gap, else "limit" (of epochs) or "stalled" (no
            progress is possible in the precision of the data).
        epochs: passes over the training rows.
        regime: which algorithm ran, e.g. "sequential".
        primal: P, float64.
        dual: D, float64.
        seconds: wall time of the solve, compilation excluded where it was cached.
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
