"""What influence functions share, whatever inverse they take: dense gradients in blocks, and damping's unit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.data._gradients import member_layout
from dualview.engine.curvature import LossCurvature
from dualview.engine.gradients import members
from dualview.engine.tables import Rows, Table
from dualview.ops.gradients import dense
from dualview.ops.layout import Layout, dense_width_of, width_of

DENSE_NUMBERS = 2**23  # of dense gradients that are made at a time, where they are multiplied
SOLVED_NUMBERS = 2**25  # and where they are solved for


def measured_gradients(test: Rows, train: Table) -> Float[Tensor, "test param"]:
    """Return the dense gradients of the measured output, without the outputs that stand behind them."""
    layout = member_layout(train, 0)
    return dense(layout, test.values[:, : width_of(layout)])


def class_gradients(
    layout: Layout, rows: Rows, numbers: int = DENSE_NUMBERS
) -> Iterator[tuple[slice, Float[Tensor, "row member param"]]]:
    """Walk the dense gradients of some rows, all members of each, in blocks of about so many numbers.

    One matrix product with these is two to ten times as quick as `ops.gradients.apply`, which goes vector by vector,
    where there are many vectors.
    """
    found = members(layout, rows.values)
    size = max(1, numbers // (len(found) * dense_width_of(found[0].layout)))
    for start in range(0, len(rows.index), size):
        some = slice(start, start + size)
        yield some, torch.stack([dense(one.layout, one.gradients[some]) for one in found], dim=1)


def absolute_damping(damping: float, curvature: LossCurvature, seed: int) -> tuple[float, str]:
    """Return `damping` times the mean diagonal of the Gauss-Newton matrix, and how that was found.

    Raises:
        ValueError: the loss is flat for all samples, or bends down.
    """
    unit, exact = curvature.mean_diagonal(seed)
    if not unit > 0:
        raise ValueError(
            "the Gauss-Newton matrix is zero or negative: the loss is flat for all samples, or has no minimum"
        )
    return damping * unit, "exact" if exact else "estimated by random signs of the logits"
