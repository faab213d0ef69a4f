"""InputKernel: how alike two samples are to the network, by the gradients of its outputs; and who has neighbours.

Source: Charpiat, Girard, Felardos and Tarabalka, "Input Similarity from the Neural Network Perspective",
NeurIPS 2019. Independent implementation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._explainer import Explainer
from dualview.data._gradients import parameter_names
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.gradients import Gradients, Member, members
from dualview.engine.isolation import without_autocast
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, logit
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.gradients import apply, combine, dense, products
from dualview.ops.layout import Layout, dense_width_of
from dualview.ops.similarity import inverse_roots

BLOCK = 1024
BLOCK_NUMBERS = 2**22  # of dense gradients at once


class KernelState(NamedTuple):
    """What normalises the kernel.

    Attributes:
        positions: "train" positions that are scored.
        roots: "train out out", K_ii^(−½).
    """

    positions: Int[Tensor, " train"]
    roots: Float[Tensor, "train out out"]


@dataclass(frozen=True)
class InputKernel(DataMethod):
    """Compare samples by how a change of the network that moves one's outputs moves the other's.

    With K_xx' = J_x J_x'ᵀ, J_x the gradients of the network's d outputs,

        score(x, i) = (1/d) tr(K_xx^(−½) K_xi K_ii^(−½)),

    from −1 to 1, without unit, whatever is measured of the prediction; for one output the cosine of gradients. Roots
    are pseudo-inverse ones: where outputs cannot be moved independently a sample's score for itself, its
    self-influence, is the rank of K_ii over d; else it is 1. A network with one logit for two classes has one output.

    Args:
        parameters: names of parameters or modules; by default all that require gradients.
        cutoff: eigenvalues of K_xx up to this share of the largest one count as zero.

    Example:
        >>> method = InputKernel()
    """

    parameters: str | Sequence[str] | None = None
    _: KW_ONLY
    cutoff: float = 1e-5

    State: ClassVar[type[KernelState]] = KernelState
    kind: ClassVar[Kind] = "similarity"
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        object.__setattr__(self, "cutoff", positive(self.cutoff, "cutoff", or_zero=True))
        if self.cutoff >= 1:
            raise ValueError(f"`cutoff` is a share of the largest eigenvalue, below 1; it is {self.cutoff!r}")

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        gradients = Gradients(logit, (Checkpoint(task.model),), parameter_names(self.parameters), each_class=True)
        return Sides(gradients, gradients)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[KernelState, dict[str, Any]]:
        roots = torch.cat([self._roots(rows, train.layout) for rows in train.blocks(BLOCK, positions)])
        full = int((torch.linalg.matrix_rank(roots) == roots.shape[1]).sum())
        return KernelState(positions, roots), {"full_rank": full}

    def prepare(self, state: KernelState, task: Task, test: Rows, train: Table) -> Prepared:
        """Keep each test sample's root, flattened, beside its gradients."""
        return Prepared(test.values, self._roots(test, train.layout).flatten(1), train.layout)

    def score(self, state: KernelState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        """Return (1/d) Σ_bc (K_xi)_bc ⟨column b of K_xx^(−½), column c of K_ii^(−½)⟩."""
        theirs = state.roots[torch.searchsorted(state.positions, train.index)]
        mine = test.directions.unflatten(1, theirs.shape[1:])
        total = test.values.new_zeros(len(test.values), len(train.index))
        for b, one in enumerate(_by_output(test.layout, test.values, mine.shape[1])):
            for c, other in enumerate(_by_output(test.layout, train.values, mine.shape[1])):
                total += products(one.layout, one.gradients, other.gradients) * (mine[:, :, b] @ theirs[:, :, c].T)
        return total / mine.shape[1]

    def self_scores(self, state: KernelState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        roots = state.roots[torch.searchsorted(state.positions, train.index)]
        kernels = _own_kernels(table.layout, train)
        return (roots @ kernels @ roots).diagonal(dim1=1, dim2=2).mean(1)

    def _roots(self, rows: Rows, layout: Layout) -> Float[Tensor, "row out out"]:
        return inverse_roots(_own_kernels(layout, rows).double(), self.cutoff).to(rows.values.dtype)


def _by_output(layout: Layout, values: Float[Tensor, "row unit"], num_outputs: int) -> list[Member]:
    """Return the gradients of each output; of a single logit those of the class z/2, not of its mirror image −z/2."""
    return members(layout, values)[-num_outputs:]


def _own_kernels(layout: Layout, rows: Rows) -> Float[Tensor, "row out out"]:
    """Return K_xx of each row."""
    by_output = _by_output(layout, rows.values, rows.outputs.shape[1])
    size = max(1, BLOCK_NUMBERS // (len(by_output) * dense_width_of(by_output[0].layout)))
    found = []
    for start in range(0, len(rows.values), size):
        some = slice(start, start + size)
        jacobians = torch.stack([dense(one.layout, one.gradients[some]) for one in by_output], dim=1)
        found.append(jacobians @ jacobians.mT)
    return torch.cat(found)


# ── neighbours ───────────────────────────────────────────────────────────────────────────────────


@without_autocast
def neighbour_counts(
    explainer: Explainer, inputs: Any = None, *, threshold: float | None = None, power: float | None = None
) -> Float[Tensor, " test"]:
    """Count the training samples that the network takes for alike.

        soft:                        Σ_j k(x, j)
        less soft, with `power` m:   Σ_j max(k(x, j), 0)^m
        hard, with `threshold` t:    #{j: k(x, j) > t}

    The soft count is ⟨ĝ(x), Σ_j ĝ_j⟩ of the normalised gradients ĝ, without a matrix of all pairs: its cost grows with
    test plus training samples, that of the others with their product.

    Args:
        explainer: a fitted InputKernel.
        inputs: as for `explain`; None: the training samples, each of which is a neighbour of its own.
        threshold: t.
        power: m, positive.

    Raises:
        TypeError: the explainer holds another method.
        ValueError: threshold and power are given.
    """
    method = _checked(explainer)
    if threshold is not None and power is not None:
        raise ValueError("give `threshold` or `power`, not both: they count in different ways")
    if power is not None:
        positive(power, "power")
    state, table = explainer.state, explainer.table

    def near(kernel: Tensor) -> Tensor:
        return kernel > threshold if threshold is not None else kernel.clamp(min=0) ** (power or 1.0)

    sums = _normalised_sum(explainer) if threshold is None and power is None else None
    counts = []
    for rows in _rows(explainer, inputs):
        test = method.prepare(state, explainer.task, rows, table)
        if sums is not None:
            counts.append(_soft_counts(test, sums))
            continue
        blocks = table.blocks(BLOCK, state.positions)
        parts = [near(method.score(state, test, train)).sum(1) for train in blocks]
        counts.append(torch.stack(parts).sum(0).to(rows.values.dtype))
    return torch.cat(counts)


def _normalised_sum(explainer: Explainer) -> Float[Tensor, "out param"]:
    """Return Σ_j K_jj^(−½) J_j, dense."""
    roots, layout = explainer.state.roots, explainer.table.layout
    total, start = torch.zeros(()), 0
    for rows in explainer.table.blocks(BLOCK, explainer.state.positions):
        some = roots[start : start + len(rows.index)]
        start += len(some)
        for c, one in enumerate(_by_output(layout, rows.values, roots.shape[1])):
            total = total + combine(one.layout, some[:, :, c].T, one.gradients)
    return total


def _soft_counts(test: Prepared, sums: Float[Tensor, "out param"]) -> Float[Tensor, " test"]:
    roots = test.directions.unflatten(1, (len(sums), len(sums)))
    by_output = _by_output(test.layout, test.values, len(sums))
    parts = [(roots[:, :, b] * apply(one.layout, one.gradients, sums)).sum(1) for b, one in enumerate(by_output)]
    return torch.stack(parts).sum(0) / len(sums)


class Denoised(NamedTuple):
    """What averaging over neighbours does to noise; see `self_denoising`.

    Attributes:
        means: Σ_j a_j y_j.
        gaps: y − Σ_j a_j y_j.
        variances: Σ_j a_j a_jᵀ.
    """

    means: Float[Tensor, "test out"]
    gaps: Float[Tensor, "test out"]
    variances: Float[Tensor, "test out out"]


@without_autocast
def self_denoising(explainer: Explainer, inputs: Any = None) -> Denoised:
    """Return how far a regression network averages the noise of its training labels away.

        a_j = (Σ_j K_xj)⁻¹ K_xj,

    K as for `InputKernel`, but not normalised. Where the squared loss is stationary, Σ_j a_j y_j is the same of the
    network's outputs y and of the labels. Independent noise of variance σ² in all labels then reaches it with the
    covariance σ² Σ_j a_j a_jᵀ; the gaps, y the network's outputs, say how far these vary among neighbours.

    Args:
        explainer: a fitted InputKernel.
        inputs: as for `explain`; None: the training samples.

    Raises:
        TypeError: the explainer holds another method.
        ValueError: a sample has no neighbours, or outputs that depend on each other.
    """
    _checked(explainer)
    found = []
    for rows in _rows(explainer, inputs):
        num_rows, num_outputs = rows.outputs.shape
        total = rows.values.new_zeros(num_rows, num_outputs, num_outputs)
        squares, weighted = torch.zeros_like(total), torch.zeros_like(rows.outputs)
        for train in explainer.table.blocks(BLOCK, explainer.state.positions):
            kernel = _kernels(explainer.table.layout, rows, train)
            total += kernel.sum(1)
            squares += torch.einsum("xjab,xjcb->xac", kernel, kernel)
            weighted += torch.einsum("xjab,jb->xa", kernel, train.outputs)
        factors, pivots, failed = torch.linalg.lu_factor_ex(total)
        if bool(failed.any()):
            raise ValueError(
                f"the summed kernel of sample {int(rows.index[failed > 0][0])} is singular: its outputs depend on each "
                "other, or no training sample's gradient meets its own; denoising is for regression networks"
            )
        means, half = (torch.linalg.lu_solve(factors, pivots, right) for right in (weighted[..., None], squares))
        found.append(
            Denoised(means[..., 0], rows.outputs - means[..., 0], torch.linalg.lu_solve(factors, pivots, half.mT))
        )
    return Denoised(*(torch.cat(part) for part in zip(*found, strict=True)))


def _kernels(layout: Layout, left: Rows, right: Rows) -> Float[Tensor, "left right out out"]:
    mine, theirs = (_by_output(layout, rows.values, rows.outputs.shape[1]) for rows in (left, right))
    columns = [products(one.layout, one.gradients, other.gradients) for one in mine for other in theirs]
    return torch.stack(columns, dim=2).unflatten(2, (len(mine), len(theirs)))


def _checked(explainer: Explainer) -> InputKernel:
    if not isinstance(explainer.method, InputKernel):
        raise TypeError(f"neighbours are those of a fitted InputKernel; this explainer holds {explainer.method!r}")
    return explainer.method


def _rows(explainer: Explainer, inputs: Any) -> Iterator[Rows]:
    """Walk the recorded inputs, or the training samples, in blocks."""
    if inputs is None:
        return explainer.table.blocks(BLOCK)
    several = explainer.task.problem == "regression"
    rows = explainer.rows(inputs, 0 if several else None)
    return (Rows(*(part[start : start + BLOCK] for part in rows)) for start in range(0, len(rows.index), BLOCK))
