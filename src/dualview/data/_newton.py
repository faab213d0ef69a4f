"""One Newton step in the space of recorded gradients, which TRAK and D-TRAK share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import doubts, member_blocks, member_layout
from dualview.data._method import Prepared
from dualview.engine.gradients import Member, members
from dualview.engine.tables import Rows, Table
from dualview.ops.gradients import dense
from dualview.ops.layout import dense_width_of

MAX_DENSE = 20_000  # numbers of a row, of which a matrix of all pairs is made


class Newton(NamedTuple):
    """A fitted step.

    Attributes:
        positions: "train" positions that are scored.
        factors: "checkpoint param param", the Cholesky factor of Φᵀ Φ + λI of each checkpoint.
        slopes: "train", what each training sample's gradient is multiplied by.
    """

    positions: Int[Tensor, " train"]
    factors: Float[Tensor, "checkpoint param param"]
    slopes: Float[Tensor, " train"]


def checked_ridge(ridge: Any) -> float:
    """Return the field `ridge` as a float; refuse what is no number, 0 or larger."""
    if isinstance(ridge, bool) or not isinstance(ridge, Real) or not 0 <= float(ridge) < math.inf:
        raise ValueError(f"`ridge` must be a number, 0 or larger; it is {ridge!r}")
    return float(ridge)


def newton(
    train: Table,
    positions: Int[Tensor, " train"],
    ridge: float,
    *,
    absolute: bool,
    weighted: bool = False,
    sloped: bool = True,
) -> tuple[Newton, dict[str, Any]]:
    """Fit the step of every checkpoint.

    Args:
        train: recorded gradients.
        positions: rows that the matrices are made of.
        ridge: λ, as a multiple of the mean of ‖φ_i‖², which is the mean diagonal of the samples' kernel.
        absolute: take `ridge` as λ itself.
        weighted: weigh rows in the matrices by p(1 − p) of the label.
        sloped: multiply scores by the mean of 1 − p; else by 1.

    Raises:
        ValueError: a matrix is singular, or would be too large.
    """
    num_members = len(members(train.layout, train.parts[0].values[:1]))
    factors, added = [], []
    for k in range(num_members):
        factor, absolute_ridge = _factor(_gram(train, positions, k, weighted), ridge, absolute, len(positions))
        factors.append(factor)
        added.append(absolute_ridge)
    widths = [len(factor) for factor in factors]
    if len({*widths}) > 1:
        raise ValueError(f"the checkpoints have {widths} gradient numbers; give a projection= that is smaller than all")
    slopes = torch.ones(len(train), dtype=train.dtype)
    if sloped:
        slopes = torch.stack([_doubts(train, k) for k in range(num_members)]).mean(0)
    return Newton(positions, torch.stack(factors), slopes), {"ridge": added, "width": len(factors[0])}


def _gram(train: Table, positions: Tensor, member: int, weighted: bool) -> Tensor:
    layout = member_layout(train, member)
    width = dense_width_of(layout)
    if width > MAX_DENSE:
        raise ValueError(f"{width:,} parameters are too many for a matrix of all: give projection=, or parameters=")
    total = torch.zeros(width, width, dtype=train.dtype)
    for rows in member_blocks(train, positions, member):
        gradients = dense(layout, rows.values)
        if weighted:
            doubt = doubts(rows.outputs, rows.targets)
            gradients = gradients * (doubt * (1 - doubt)).sqrt()[:, None]
        total.addmm_(gradients.T, gradients)
    return total


def _factor(matrix: Tensor, ridge: float, absolute: bool, num_rows: int) -> tuple[Tensor, float]:
    """Return the Cholesky factor of matrix + λI, and λ."""
    if ridge == 0 and len(matrix) >= num_rows:
        raise ValueError(
            f"ridge=0 needs fewer gradient numbers than training samples, and there are {len(matrix)} of {num_rows}: "
            "the matrix is singular. Give a ridge, or a smaller projection="
        )
    added = ridge if absolute else ridge * float(matrix.trace()) / num_rows
    factor, failed = torch.linalg.cholesky_ex(matrix.double() + added * torch.eye(len(matrix), dtype=torch.float64))
    smallest, largest = factor.diagonal().square().aminmax()
    if bool(failed) or smallest <= torch.finfo(matrix.dtype).eps * largest:
        raise ValueError(f"the matrix of gradients + {added:.3g}·I is singular: give a larger `ridge`")
    return factor.to(matrix.dtype), added


def _doubts(train: Table, member: int) -> Float[Tensor, " train"]:
    blocks = member_blocks(train, torch.arange(len(train)), member)
    return torch.cat([doubts(rows.outputs, rows.targets) for rows in blocks])


def prepared(state: Newton, test: Rows, train: Table) -> Prepared:
    """Return the mean-weighted solutions (Φᵀ Φ + λI)⁻¹ φ of the test rows, one checkpoint's behind the other's."""
    solved = [
        torch.cholesky_solve(dense_of(one).T, factor).T
        for factor, one in zip(state.factors, members(train.layout, test.values), strict=True)
    ]
    return Prepared(torch.cat(solved, dim=1) / len(solved), test.outputs, train.layout)


def scores(state: Newton, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
    """Return one block of scores."""
    gradients = torch.cat([dense_of(one) for one in members(test.layout, train.values)], dim=1)
    return test.values @ gradients.T * state.slopes[train.index]


def leverages(state: Newton, train: Rows, table: Table) -> Float[Tensor, "checkpoint train"]:
    """Return φᵀ (Φᵀ Φ + λI)⁻¹ φ of training rows, for each checkpoint."""
    halves = [
        torch.linalg.solve_triangular(factor, dense_of(one).T, upper=False)
        for factor, one in zip(state.factors, members(table.layout, train.values), strict=True)
    ]
    return torch.stack([half.square().sum(0) for half in halves])


def dense_of(member: Member) -> Float[Tensor, "row param"]:
    """Return a member's gradients as they are, without factors."""
    return dense(member.layout, member.gradients)
