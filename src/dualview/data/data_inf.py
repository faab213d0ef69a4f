"""DataInf: influence through a closed form that swaps the inverse of a mean for a mean of inverses.

Source: Kwon, Wu, Wu and Zou, "DataInf: Efficiently Estimating Data Influence in LoRA-tuned LLMs and Diffusion
Models", ICLR 2024 (arXiv 2310.00902). Independent implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import gradient_sides, member_blocks, member_layout, parameter_names
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.gradients import members
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, loss
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.gradients import apply, combine, products, squared_norms
from dualview.ops.layout import Layout, dense_width_of, width_of

SELF_ROWS = 512  # samples that are paired with all others at a time, for their product with themselves


class DataInfState(NamedTuple):
    """What a fit leaves.

    Attributes:
        positions: "fitted" positions that are scored.
        damping: "part", λ of each part of the parameters.
        curved: "part fitted", λ + ‖g_i‖² in that part.
    """

    positions: Int[Tensor, " fitted"]
    damping: Float[Tensor, " part"]
    curved: Float[Tensor, "part fitted"]


@dataclass(frozen=True)
class DataInf(DataMethod):
    """Estimate the effect of including each training sample by influence, with a mean of inverses for the inverse.

    With g_i the gradient of a training sample's loss, part by part of the parameters,

        score(x, i) = −∇φ(x)ᵀ B g_i / n,
        B = (1/n) Σ_j (λI + g_j g_jᵀ)⁻¹ = (1/λ)(I − (1/n) Σ_j g_j g_jᵀ/(λ + ‖g_j‖²)),

    in units of the measured output φ. B stands for (λI + (1/n) Σ_j g_j g_jᵀ)⁻¹; it is right for one sample, and the
    more so the larger λ. A part holds the parameters of one module, a layer's weight and bias, say. Self-influence is
    what including a sample takes from its own loss.

    Args:
        damping: λ, as a multiple of the mean diagonal of (1/n) Σ_j g_j g_jᵀ in each part; the paper's is 0.1.
        parameters: names of parameters or modules; by default all that require gradients.

    Example:
        >>> method = DataInf()
    """

    damping: float = 0.1
    _: KW_ONLY
    parameters: str | Sequence[str] | None = None

    State: ClassVar[type[DataInfState]] = DataInfState
    kind: ClassVar[Kind] = "effect"
    inverts_curvature: ClassVar[bool] = True
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        object.__setattr__(self, "damping", positive(self.damping, "damping"))

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return gradient_sides(task, loss, (Checkpoint(task.model),), parameters=self.parameters)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[DataInfState, dict[str, Any]]:
        parts = _by_module(member_layout(train, 0))
        norms = torch.cat([_norms(parts, rows.values) for rows in member_blocks(train, positions, 0)], dim=1)
        widths = torch.tensor([dense_width_of(part) for part in parts], dtype=torch.float64)
        damping = self.damping * norms.double().mean(1) / widths
        damping = damping.clamp(min=torch.finfo(norms.dtype).tiny)  # of a part that no loss depends on
        facts = {"damping": dict(zip(map(_module, parts), damping.tolist(), strict=True))}
        return DataInfState(positions, damping, norms + damping[:, None].to(norms.dtype)), facts

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────

    def prepare(self, state: DataInfState, task: Task, test: Rows, train: Table) -> Prepared:
        held = [rows.values for rows in member_blocks(train, state.positions, 0)]
        (one,) = members(train.layout, test.values)
        total = test.values.new_zeros(len(test.index), len(state.positions))
        parts = _by_module(one.layout)
        for k, part in enumerate(parts):
            left, rights = _split(parts, one.gradients)[k], [_split(parts, block)[k] for block in held]
            near = torch.cat([products(part, left, right) for right in rights], dim=1)
            taken = _times_kernel(part, near / state.curved[k] / len(state.positions), rights)
            total += (near - taken) / float(state.damping[k])
        return Prepared(total.div_(-len(state.positions)), test.outputs, train.layout)

    def score(self, state: DataInfState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return test.values[:, torch.searchsorted(state.positions, train.index)]

    def self_scores(self, state: DataInfState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        (one,) = members(table.layout, train.values)
        parts = _by_module(one.layout)
        norms = _norms(parts, one.gradients)
        total = (norms / state.damping[:, None].to(norms.dtype)).sum(0)
        start = 0
        for rows in member_blocks(table, state.positions, 0):
            stop = start + len(rows.index)
            by_part = zip(parts, _split(parts, one.gradients), _split(parts, rows.values), strict=True)
            for k, (part, left, right) in enumerate(by_part):
                near = products(part, left, right)
                taken = near * (near / state.curved[k, start:stop])  # the square may be too large for single precision
                total -= taken.sum(1) / (float(state.damping[k]) * len(state.positions))
            start = stop
        return total / len(state.positions)

    def solve(self, state: DataInfState, vectors: Float[Tensor, "k param"], train: Table) -> Float[Tensor, "k param"]:
        parts = _by_module(member_layout(train, 0))
        solved = vectors.clone()
        widths = [dense_width_of(part) for part in parts]
        pieces, given = torch.split(solved, widths, dim=1), torch.split(vectors, widths, dim=1)
        start = 0
        for rows in member_blocks(train, state.positions, 0):
            stop = start + len(rows.index)
            for k, values in enumerate(_split(parts, rows.values)):
                near = apply(parts[k], values, given[k]).T / state.curved[k, start:stop]
                pieces[k].sub_(combine(parts[k], near, values) / len(state.positions))
            start = stop
        for k, piece in enumerate(pieces):
            piece.div_(float(state.damping[k]))
        return solved


def _by_module(layout: Layout) -> list[Layout]:
    """Return the parts of the parameters: what is recorded of each module, which stands side by side."""
    return [tuple(part) for _, part in groupby(layout, key=lambda one: one.name.rpartition(".")[0])]


def _module(part: Layout) -> str:
    name = part[0].name.rpartition(".")[0]
    return name or part[0].name


def _split(parts: list[Layout], rows: Float[Tensor, "row unit"]) -> tuple[Tensor, ...]:
    return torch.split(rows, [width_of(part) for part in parts], dim=1)


def _norms(parts: list[Layout], rows: Float[Tensor, "row unit"]) -> Float[Tensor, "part row"]:
    """Return the squared norm of each row's gradient in each part."""
    return torch.stack([squared_norms(part, values) for part, values in zip(parts, _split(parts, rows), strict=True)])


def _times_kernel(
    layout: Layout, weights: Float[Tensor, "test train"], blocks: list[Tensor]
) -> Float[Tensor, "test train"]:
    """Return weights · K, K the inner products of all rows of the blocks, of which each pair is made once."""
    result = torch.zeros_like(weights)
    sizes = [len(block) for block in blocks]
    by_block, found = weights.split(sizes, dim=1), result.split(sizes, dim=1)
    for i, left in enumerate(blocks):
        for j, right in enumerate(blocks[: i + 1]):
            near = products(layout, left, right)
            found[j].addmm_(by_block[i], near)
            if j < i:
                found[i].addmm_(by_block[j], near.T)
    return result
