"""One number for each training sample, which is its score whatever the test sample."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Suspicions(NamedTuple):
    """The state of baselines that look at outputs and labels alone.

    Attributes:
        positions: "train" positions that are scored.
        values: one for every training sample, scored or not.
    """

    positions: Int[Tensor, " train"]
    values: Float[Tensor, " train"]
