"""DualView: a Crammer-Singer support vector machine on the readout's features, read by its dual variables.

Source: Yolcu, Weckbecker, Wiegand, Samek and Lapuschkin, "Sparse, Efficient and Explainable Data
Attribution with DualXDA", TMLR 2025 (arXiv 2402.12118). Independent implementation.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._method import DataMethod, Prepared
from dualview.engine.outputs import Kind, logit
from dualview.engine.record import Activation, Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.errors import DualViewWarning
from dualview.solvers import crammer_singer


class DualState(NamedTuple):
    """A fitted surrogate: the dual rows that are not zero, and the weights they make.

    Row r of the dual belongs to training sample support[r]; its entries stand at row_start[r] to
    row_start[r + 1] of entry_class and entry_value (compressed sparse rows).

    Attributes:
        support: "support" positions in the training set, rising.
        row_start: "support+1".
        entry_class: "entry" output columns.
        entry_value: "entry" float64 dual coefficients alpha.
        weights: "cls unit" float64, Σ_i alpha_ic f_i.
        bias: "cls" float64, Σ_i alpha_ic.
        class_counts: "cls" training samples of each class.
    """

    support: Int[Tensor, " support"]
    row_start: Int[Tensor, " row_start"]
    entry_class: Int[Tensor, " entry"]
    entry_value: Float[Tensor, " entry"]
    weights: Float[Tensor, "cls unit"]
    bias: Float[Tensor, " cls"]
    class_counts: Int[Tensor, " cls"]

    def coefficients(self, train_index: Int[Tensor, " train"]) -> Float[Tensor, "train cls"]:
        """Return the dual rows of these training samples, dense float64; zero for the others."""
        dense = self.entry_value.new_zeros(len(train_index), len(self.bias))
        if len(self.support) == 0:
            return dense
        rank = torch.searchsorted(self.support, train_index).clamp(max=len(self.support) - 1)
        held = (self.support[rank] == train_index).nonzero().squeeze(1)
        rank = rank[held]
        counts = self.row_start[rank + 1] - self.row_start[rank]
        rows = held.repeat_interleave(counts)
        within = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        entries = self.row_start[rank].repeat_interleave(counts) + within
        dense[rows, self.entry_class[entries]] = self.entry_value[entries]
        return dense


@dataclass(frozen=True)
class DualView(DataMethod):
    """Explain a classifier by the dual variables of a sparse SVM on its last features.

    With features f, constant-augmented to [f, 1], the surrogate's logit of class c is

        logit_c(x) = bias_c + Σ_i alpha_ic ⟨f(x_i), f(x)⟩,        bias_c = Σ_i alpha_ic,

    where alpha solves the dual of  min ½‖W‖² + C Σ_i max_c([c ≠ y_i] + (w_c − w_{y_i})·[f_i, 1]).
    A sample's score for class c is alpha_ic ⟨f(x_i), f(x)⟩, in units of the surrogate's logit: an
    exact share of it. Any other output is explained through its gradient at the network's logits.
    Samples of class c have alpha_ic ≥ 0 and all others ≤ 0, so that where features are
    non-negative (after a ReLU) only samples of the explained class are proponents.

    Args:
        C: weight of the sum of losses; larger C gives fewer support samples and a longer fit.
            1e-3 serves a few thousand to a hundred thousand samples of ReLU features well.
        loss: "hinge", of Crammer and Singer.
        metric: "plain", the inner product of the features.
        gap: relative duality gap to reach; see `solvers.crammer_singer`.
        seed: of the order in which the solver visits samples.

    Example:
        >>> method = DualView(C=1e-3)
    """

    C: float
    loss: str = field(default="hinge", repr=False)
    metric: str = field(default="plain", repr=False)
    _: KW_ONLY
    gap: float = 1e-6
    seed: int = 0

    kind: ClassVar[Kind] = "share"

    def __post_init__(self) -> None:
        for name, only in (("loss", "hinge"), ("metric", "plain")):
            if getattr(self, name) != only:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; this version knows {only!r} alone")
        for name in ("C", "gap"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
                raise ValueError(f"`{name}` must be a positive number; it is {value!r}")

    def representations(self, task: Task) -> Sides:
        if task.readout is None or isinstance(task.readout, str):
            raise ValueError("the task's readout is not resolved yet; use dualview.fit")
        features = Activation(task.readout)
        return Sides(features, features)

    def fit(self, task: Task, train: Table, positions: Int[Tensor, " train"]) -> tuple[DualState, dict[str, Any]]:
        targets = train.targets[positions]
        whole = len(positions) == len(train)
        features = train.values if whole else train.rows(positions).values
        num_classes = max(2, train.num_classes)
        solution = crammer_singer(features, targets, C=self.C, gap=self.gap, seed=self.seed, num_classes=num_classes)
        alpha = solution.coefficients.coalesce()
        rows, classes = alpha.indices()
        support, counts = rows.unique_consecutive(return_counts=True)
        state = DualState(
            support=positions[support],
            row_start=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            entry_class=classes.contiguous(),
            entry_value=alpha.values(),
            weights=solution.weights[:, :-1].contiguous(),
            bias=solution.weights[:, -1].contiguous(),
            class_counts=torch.bincount(targets, minlength=num_classes),
        )
        certificate = {
            "gap": solution.gap,
            "asked_gap": self.gap,
            "status": solution.status,
            "epochs": solution.epochs,
            "regime": solution.regime,
            "primal": solution.primal,
            "dual": solution.dual,
            "seconds": solution.seconds,
            "support": len(support),
            "support_share": len(support) / len(positions),
        }
        return state, certificate

    def state_from(self, tensors: dict[str, Tensor]) -> DualState:
        return DualState(**{name: tensors[name] for name in DualState._fields})

    def scored(self, state: DualState) -> Int[Tensor, " train"]:
        return state.support

    def prepare(self, state: DualState, task: Task, test: Rows) -> Prepared:
        directions = task.directions(test.outputs, test.targets)
        if getattr(task.single_output, "linear", False) and task.single_output != logit:
            unseen = ((directions != 0).any(0) & (state.class_counts == 0)).nonzero().flatten().tolist()
            if unseen:
                raise ValueError(f"{task.measured} asks for class {unseen[0]}, which has no training samples")
        return Prepared(test.values, directions)

    def score(self, state: DualState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return self.products(test.values, train).mul_(self.bias_shares(state, test, train))

    def products(self, values: Float[Tensor, "test unit"], train: Rows) -> Float[Tensor, "test train"]:
        return values @ train.values.to(values.dtype).T

    def bias_shares(self, state: DualState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        dtype = test.values.dtype
        return test.directions.to(dtype) @ state.coefficients(train.index).to(dtype).T

    def bias(self, state: DualState, test: Prepared) -> Float[Tensor, " test"]:
        dtype = test.values.dtype
        return (test.directions.double() @ state.bias).to(dtype)

    def self_scores(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return alpha_{i,y_i} ‖f_i‖²: the sample's share of its own label's surrogate logit."""
        return self.importances(state, train) * train.values.square().sum(1)

    def importances(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return alpha_{i,y_i}, from 0 (no support sample) to C (at the bound)."""
        own = state.coefficients(train.index).gather(1, train.targets[:, None]).squeeze(1)
        return own.to(train.values.dtype)

    def slacks(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return the hinge loss max_c([c ≠ y_i] + logit_c(x_i)) − logit_{y_i}(x_i), over classes with samples.

        It is 0 where the surrogate keeps the margin, above 1 where it predicts another class.
        """
        logits = self.logits(state, train.values).masked_fill(state.class_counts == 0, -torch.inf)
        costs = (logits + 1).scatter_add(1, train.targets[:, None], logits.new_full((len(logits), 1), -1.0))
        return costs.amax(1) - logits.gather(1, train.targets[:, None]).squeeze(1)

    def logits(self, state: DualState, values: Float[Tensor, "test unit"]) -> Float[Tensor, "test cls"]:
        return (values.double() @ state.weights.T + state.bias).to(values.dtype)

    def check_targets(self, state: DualState, targets: Int[Tensor, " test"], task: Task, *, given: bool) -> None:
        unseen = (state.class_counts[targets] == 0).nonzero().squeeze(1)
        if len(unseen) == 0:
            return
        row = int(unseen[0])
        column = int(targets[row])
        name = f" ({task.class_names[column]})" if task.class_names is not None else ""
        message = (
            f"class {column}{name} has no training samples, so nothing can explain it (test row {row}"
            f"{f' and {len(unseen) - 1} more' if len(unseen) > 1 else ''})"
        )
        if given:
            raise ValueError(f"{message}: give other targets=")
        warnings.warn(
            f"the network predicts a class that training never showed: {message}; its scores for that class are zero",
            DualViewWarning,
            stacklevel=5,
        )
