"""Arnoldi: influence functions in the dominant eigenspace of the training loss's curvature.

Source: Schioppa, Zablotskaia, Vilar and Sokolov, "Scaling Up Influence Functions", AAAI 2022 (arXiv 2112.03052).
Independent implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import BLOCK, gradient_sides, member_layout, parameter_names
from dualview.data._influence import absolute_damping, class_gradients
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive, whole
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.curvature import Kind as Curvature
from dualview.engine.curvature import LossCurvature
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, loss
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.krylov import arnoldi, dominant


class ArnoldiState(NamedTuple):
    """What a fit leaves.

    Attributes:
        positions: "fitted" positions that are scored.
        inverses: "rank", 1/(λ_k + λ).
        vectors: "rank param", eigenvectors.
        projected: "fitted rank", training gradients along these.
    """

    positions: Int[Tensor, " fitted"]
    inverses: Float[Tensor, " rank"]
    vectors: Float[Tensor, "rank param"]
    projected: Float[Tensor, "fitted rank"]


@dataclass(frozen=True)
class Arnoldi(DataMethod):
    """Estimate the effect of including each training sample by influence along the directions of largest curvature.

        score(x, i) = −(1/n) Σ_k ⟨u_k, ∇φ(x)⟩ ⟨u_k, ∇ℓ_i⟩/(λ_k + λ),

    λ_k, u_k the Ritz pairs of largest |λ_k| of the Hessian of the mean training loss, or of its Gauss-Newton matrix,
    from Arnoldi's iteration, in units of the measured output φ. Training gradients are projected once, at fit time, so
    that explaining takes `rank` numbers a sample. Flat directions are left out, where damping would keep them and count
    them most. Self-influence is what including a sample takes from its own loss.

    Args:
        rank: directions that are kept. Of these those are dropped in which λ_k + λ is below λ/2, which stand for
            negative curvature: their inverse would have no meaning, and no bound.
        iterations: products with the matrix, one after the other.
        damping: λ, as a multiple of the mean diagonal of the Gauss-Newton matrix.
        curvature: "hessian" or "gauss-newton".
        parameters: names of parameters or modules; by default all that require gradients.
        samples: training samples, drawn at random, whose mean loss gives the curvature; None: all.
        seed: of these, of the first vector, and of an estimated unit of damping.

    Example:
        >>> method = Arnoldi(rank=50, iterations=100)
    """

    rank: int = 100
    iterations: int = 200
    _: KW_ONLY
    damping: float = 10.0
    curvature: Curvature = "hessian"
    parameters: str | Sequence[str] | None = None
    samples: int | None = None
    seed: int = 0

    State: ClassVar[type[ArnoldiState]] = ArnoldiState
    kind: ClassVar[Kind] = "effect"
    inverts_curvature: ClassVar[bool] = True
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        object.__setattr__(self, "damping", positive(self.damping, "damping", or_zero=True))
        if self.curvature not in ("gauss-newton", "hessian"):
            raise ValueError(f"`curvature` is {self.curvature!r}; choose from 'gauss-newton' and 'hessian'")
        for name, least in (("rank", 1), ("iterations", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(getattr(self, name), name, least))
        if self.samples is not None:
            object.__setattr__(self, "samples", whole(self.samples, "samples", 1))
        if self.rank > self.iterations:
            raise ValueError(
                f"`rank` must be up to iterations={self.iterations}, as many as these find; it is {self.rank}"
            )

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return gradient_sides(task, loss, (Checkpoint(task.model),), parameters=self.parameters)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[ArnoldiState, dict[str, Any]]:
        generator = torch.Generator().manual_seed(self.seed)
        chosen = positions
        if self.samples is not None:
            chosen = positions[torch.randperm(len(positions), generator=generator)[: self.samples].sort().values]
        curvature = LossCurvature(train, chosen, member_layout(train, 0), self.curvature)
        damping, how = absolute_damping(self.damping, curvature, self.seed)
        start = torch.randn(curvature.size, generator=generator, dtype=torch.float64).to(train.dtype)
        found = arnoldi(curvature.product, start, steps=self.iterations, generator=generator)
        values, vectors = dominant(found, self.rank)
        rounding = len(start) * torch.finfo(train.dtype).eps * float(values.abs().max())
        kept = values + damping > max(damping / 2, rounding)
        if not bool(kept.any()):
            raise ValueError(
                f"none of the {len(values)} eigenvalues of largest size is positive: give more damping, or take "
                "curvature='gauss-newton'"
            )
        vectors = vectors[kept]
        projected = torch.cat([_along(vectors, train, rows) for rows in train.blocks(BLOCK, positions)])
        facts = {
            "damping": damping,
            "unit_of_damping": how,
            "rank": int(kept.sum()),
            "negative_eigenvalues": int((values < -rounding).sum()),
            "dropped": int((~kept).sum()),
            "largest_eigenvalue": float(values[kept].max()),
            "smallest_eigenvalue": float(values[kept].min()),
        }
        return ArnoldiState(positions, (1 / (values[kept] + damping)).to(train.dtype), vectors, projected), facts

    def prepare(self, state: ArnoldiState, task: Task, test: Rows, train: Table) -> Prepared:
        return Prepared(_along(state.vectors, train, test) * state.inverses, test.outputs, train.layout)

    def score(self, state: ArnoldiState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return test.values @ self._projected(state, train).T / -len(state.positions)

    def self_scores(self, state: ArnoldiState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return self._projected(state, train).square() @ state.inverses / len(state.positions)

    def solve(self, state: ArnoldiState, vectors: Float[Tensor, "k param"], train: Table) -> Float[Tensor, "k param"]:
        """Multiply by the inverse in the kept subspace, and by zero outside."""
        return vectors @ state.vectors.T * state.inverses @ state.vectors

    def _projected(self, state: ArnoldiState, train: Rows) -> Float[Tensor, "train rank"]:
        return state.projected[torch.searchsorted(state.positions, train.index)]


def _along(vectors: Float[Tensor, "rank param"], train: Table, rows: Rows) -> Float[Tensor, "row rank"]:
    return torch.cat([block[:, 0] @ vectors.T for _, block in class_gradients(train.layout, rows)])
