"""EKFAC: influence through all parameters, with Kronecker-factored curvature that is corrected in its eigenbasis.

George, Laurent, Bouthillier, Ballas and Vincent, "Fast Approximate Natural Gradient Descent in a Kronecker-factored
Eigenbasis", NeurIPS 2018 (arXiv 1806.03884); for influence: Grosse et al. 2023 (arXiv 2308.03296); K-FAC: Martens and
Grosse 2015 (arXiv 1503.05671), of convolutions Grosse and Martens 2016 (arXiv 1602.01407). Independent implementation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._fisher import Fisher
from dualview.data._fisher import Kind as FisherKind
from dualview.data._gradients import gradient_sides, member_layout, parameter_names
from dualview.data._kronecker_blocks import (
    Block,
    own_products,
    packed,
    prepared,
    scores,
    solved_vectors,
    unpacked,
)
from dualview.data._kronecker_fit import PROBE_ROWS, Curved, Form, block_shapes, fitted
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive, whole
from dualview.engine.batches import Inputs
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.gradients import GradientPlan, members, plan_gradients
from dualview.engine.gradients.factored import factored_layers
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, loss
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.errors import DualViewWarning
from dualview.ops.kronecker import terms
from dualview.ops.layout import Layout

FALLBACKS = ("diagonal", "error")
MOST_EXACT = 30_000  # backward passes, one a sample and column, up to which "auto" makes them all
ERROR_ROWS = 128  # training samples on which the error of low-rank scores is measured, half of them against the others
FEWEST_SURPRISES = 50  # of drawn labels: all curvature of a network that is sure of itself comes from these


class EKFACState(NamedTuple):
    """A fitted curvature.

    Attributes:
        positions: "fitted" positions that are scored.
        shapes: what each block is, see `Shape`.
        numbers: eigenvectors, eigenvalues and terms of all blocks, behind each other.
        damping: λ of each block.
    """

    positions: Int[Tensor, " fitted"]
    shapes: Int[Tensor, "block fact"]
    numbers: Float[Tensor, " number"]
    damping: Float[Tensor, " block"]

    @property
    def blocks(self) -> list[Block]:
        return unpacked(self.shapes, self.numbers, self.damping)


@dataclass(frozen=True)
class EKFAC(DataMethod):
    """Estimate the effect of including each training sample by influence with Kronecker-factored curvature.

    The curvature of the mean loss is taken to be one block a layer, and a block to have the eigenvectors Q_S ⊗ Q_A of
    the covariances of gradients at the layer's output and of its inputs, with eigenvalues Λ = E (Q_Sᵀ G Q_A)² over
    pseudo-gradients G:

        score(x, i) = −(1/n) ∇φ(x)ᵀ (H + λI)⁻¹ ∇ℓ_i,        (H + λI)⁻¹ G = Q_S [(Q_Sᵀ G Q_A) / (Λ + λ)] Q_Aᵀ,

    in units of the measured output φ. Layers are linear maps, ungrouped convolutions, whatever the number of positions
    and calls, and embeddings. Self-influence is ∇ℓ_iᵀ (H + λI)⁻¹ ∇ℓ_i / n: what including a sample takes from its loss.

    Args:
        damping: λ of a block, as a multiple of the mean of its eigenvalues.
        curvature: "ekfac"; "kfac" has the product of the covariances' eigenvalues as Λ; "diagonal" the diagonal of H in
            the parameters; "identity" none.
        fisher: pseudo-gradients are loss gradients for labels "sampled" from the network's prediction, of which a
            network that is sure surprises with few; "exact" has one gradient for each output column, whose outer
            products add up to the Hessian of the loss in the logits; "empirical" takes the labels as they are; "auto"
            is exact up to 30,000 training samples times columns, else sampled.
        parameters: names of parameters or modules; by default all that require gradients.
        fallback: parameters of other layers (norms, grouped convolutions, bare parameters) have a "diagonal"
            curvature, or are an "error".
        tolerance: relative root-mean-square error of scores that dividing by Λ + λ may make, by a matrix of low rank
            in layers without positions, where that is less work; 0: none. It is expected of gradients like those of
            the training samples: far from these it can be many times larger.
        absolute: whether `damping` is λ itself.
        seed: of sampled labels.

    Example:
        >>> method = EKFAC(curvature="kfac")
    """

    damping: float = 1.0
    curvature: Form = "ekfac"
    _: KW_ONLY
    fisher: FisherKind | Literal["auto"] = "auto"
    parameters: str | Sequence[str] | None = None
    fallback: Literal["diagonal", "error"] = "diagonal"
    tolerance: float = 0.01
    absolute: bool = False
    seed: int = 0

    State: ClassVar[type[EKFACState]] = EKFACState
    kind: ClassVar[Kind] = "effect"
    inverts_curvature: ClassVar[bool] = True
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", parameter_names(self.parameters))
        for name in ("damping", "tolerance"):
            object.__setattr__(self, name, positive(getattr(self, name), name, or_zero=True))
        for name, choices in (
            ("curvature", get_args(Form)),
            ("fisher", ("auto", *get_args(FisherKind))),
            ("fallback", FALLBACKS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose from {', '.join(map(repr, choices))}")
        object.__setattr__(self, "seed", whole(self.seed, "seed", 0))

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return gradient_sides(task, loss, (Checkpoint(task.model),), parameters=self.parameters)

    # ── fitting ──────────────────────────────────────────────────────────────────────────────────

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[EKFACState, dict[str, Any]]:
        layout = member_layout(train, 0)
        first = next(train.batches(torch.arange(min(PROBE_ROWS, len(train)))))
        plan = plan_gradients(task, first.inputs, of=loss, parameters=self.parameters)
        self._refuse_others(plan, layout)
        kind = self.fisher
        if kind == "auto":
            kind = "exact" if len(positions) * task.logits(train.outputs[:1]).shape[1] <= MOST_EXACT else "sampled"
        fisher = Fisher.of(kind, task, train, self.seed) if self.curvature != "identity" else None
        curved = fitted(self.curvature, plan, layout, train, positions, fisher)
        blocks = [self._damped(one, layout, train.dtype) for one in curved]
        shapes, numbers = packed(blocks, train.dtype)
        damping = torch.tensor([block.damping for block in blocks], dtype=torch.float64)
        state = EKFACState(positions, shapes, numbers, damping)
        facts: dict[str, Any] = {
            "damping": {one.name: block.damping for one, block in zip(curved, blocks, strict=True)},
            "diagonal": [name for name in block_shapes(plan, layout) if name not in factored_layers(plan)],
            "terms": {
                one.name: block.shape.terms for one, block in zip(curved, blocks, strict=True) if block.shape.terms
            },
        }
        if facts["terms"] and len(positions) > 1:
            facts["score_error"] = _error(state, layout, train)
        return state, facts | (_described(fisher, train, positions) if fisher else {})

    def _refuse_others(self, plan: GradientPlan, layout: Layout) -> None:
        others = [name for name in block_shapes(plan, layout) if name not in factored_layers(plan)]
        if others and self.fallback == "error":
            raise ValueError(
                f"{', '.join(others)} belong to no linear map, ungrouped convolution or embedding, and have no "
                "Kronecker factors: leave them out with parameters=, take fallback='diagonal', or a method without "
                "factors (Influence, KernelInfluence, DataInf)"
            )

    def _damped(self, one: Curved, layout: Layout, dtype: torch.dtype) -> Block:
        """Return a block with its damping, and the terms of its inverse.

        Raises:
            ValueError: it would be singular.
        """
        mean = float(one.eigenvalues.mean())
        damping = self.damping * (1.0 if self.absolute else mean)
        rounding = torch.finfo(dtype).eps * float(one.eigenvalues.max())
        if not damping > 0 and float(one.eigenvalues.min()) <= rounding:
            what = f"damping={self.damping:g}" if mean > 0 else "gradients that are all zero"
            raise ValueError(
                f"the curvature of {one.name!r} has eigenvalues of zero, and {what} leave it singular: give "
                + ("a larger damping" if mean > 0 else "damping= with absolute=True, or leave it out with parameters=")
            )
        inverse = 1 / (one.eigenvalues + damping)
        alone = layout[one.shape.weight].rank == 1
        found = terms(inverse, one.eigenvalues, self.tolerance if alone else 0.0)
        return Block(one.shape._replace(terms=len(found.outputs)), one.basis, one.eigenvalues, found, damping)

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────

    def prepare(self, state: EKFACState, task: Task, test: Rows, train: Table) -> Prepared:
        (one,) = members(train.layout, test.values)
        return Prepared(prepared(state.blocks, one.layout, one.gradients), test.outputs, train.layout)

    def score(self, state: EKFACState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        (one,) = members(test.layout, train.values)
        return scores(state.blocks, one.layout, test.values, one.gradients).div_(-len(state.positions))

    def self_scores(self, state: EKFACState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        (one,) = members(table.layout, train.values)
        return own_products(state.blocks, one.layout, one.gradients) / len(state.positions)

    def solve(self, state: EKFACState, vectors: Float[Tensor, "k param"], train: Table) -> Float[Tensor, "k param"]:
        return solved_vectors(state.blocks, member_layout(train, 0), vectors)


def _described(fisher: Fisher, train: Table, positions: Int[Tensor, " train"]) -> dict[str, Any]:
    """Return which Fisher matrix it was, and of a classification how many drawn labels are no predictions.

    Warns:
        DualViewWarning: these are too few.
    """
    if fisher.kind != "sampled" or fisher.task.problem != "classification":
        return {"fisher": fisher.kind}
    surprises = fisher.num_surprises(train, positions)
    if surprises < FEWEST_SURPRISES:
        warnings.warn(
            f"only {surprises} of the {len(positions)} labels that were drawn differ from the network's prediction, "
            "and nearly all of its curvature comes from these: scores depend on `seed`. fisher='exact' draws nothing",
            DualViewWarning,
            stacklevel=4,
        )
    return {"fisher": fisher.kind, "surprising_labels": surprises}


def _error(state: EKFACState, layout: Layout, train: Table) -> float:
    """Return the relative root-mean-square error that the terms make in products of some training gradients."""
    step = max(1, len(state.positions) // ERROR_ROWS)
    rows = members(train.layout, train.rows(state.positions[::step][:ERROR_ROWS]).values)[0].gradients
    left, right = prepared(state.blocks, layout, rows[::2]), rows[1::2]
    found, truth = (scores(state.blocks, layout, left, right, exact=exact) for exact in (False, True))
    return float((found - truth).norm() / truth.norm())
