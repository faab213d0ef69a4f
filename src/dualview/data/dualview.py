"""DualView: a Crammer-Singer support vector machine on the readout's features, read by its dual variables.

Source: Yolcu, Weckbecker, Wiegand, Samek and Lapuschkin, "Sparse, Efficient and Explainable Data
Attribution with DualXDA", TMLR 2025 (arXiv 2402.12118). Independent implementation.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._choice import Setting, by_fidelity, by_support, held_rows, set_aside
from dualview.data._curve import Curve
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._weights import class_weights, sample_weights
from dualview.engine.batches import Inputs
from dualview.engine.outputs import Kind, logit
from dualview.engine.record import Activations, Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task, class_logits
from dualview.errors import DualViewWarning
from dualview.solvers import crammer_singer, row_weights


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
        class_counts: "cls" training samples fitted to each class, those of weight zero left out.
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


_LATER = ("support", "fit_to", "class_weight", "sample_weight", "low_memory")  # fields that came after others


@dataclass(frozen=True, repr=False)
class DualView(DataMethod):
    """Explain a classifier by the dual variables of a sparse SVM on its last features.

    With features f, constant-augmented to [f, 1], the surrogate's logit of class c is

        logit_c(x) = bias_c + Σ_i alpha_ic ⟨f(x_i), f(x)⟩,        bias_c = Σ_i alpha_ic,

    where alpha solves the dual of  min ½‖W‖² + Σ_i C_i max_c([c ≠ y_i] + (w_c − w_{y_i})·[f_i, 1]).
    A sample's score for class c is alpha_ic ⟨f(x_i), f(x)⟩, in units of the surrogate's logit: an
    exact share of it. Any other output is explained through its gradient at the network's logits.
    Samples of class c have alpha_ic ≥ 0 and all others ≤ 0, so that where features are
    non-negative (after a ReLU) only samples of the explained class are proponents.

    Args:
        C: weight of the sum of losses; larger C gives fewer support samples and a longer fit. "auto"
            takes the sparsest surrogate that predicts the network's classes about as faithfully as the
            best, on held-out samples: those of `held_out=`, or a tenth of the training samples set
            aside for the choice, which the fit then sees. `Explainer.curve` holds what was seen.
        loss: "hinge", of Crammer and Singer.
        metric: "plain", the inner product of the features.
        support: the share of support samples to come near to, from 0 to 1; "auto" then looks for that.
        fit_to: y_i, "labels" or "predictions" (the network's own, on the training samples). Fitted to
            labels, as published, the surrogate contradicts wrong ones, which `slack` shows; fitted to
            predictions it agrees with the network more, errors included.
        class_weight: factors of C_i: one for each output column, a mapping from some columns to theirs, or
            "balanced": training samples / (classes × samples of the class), counted by `sample_weight`. A
            class is what `fit_to` says.
        sample_weight: factors of C_i: one for each training sample, not negative. Samples of weight zero
            never score.
        low_memory: fit without a copy of the features, more slowly.
        gap: relative duality gap to reach; see `solvers.crammer_singer`.
        seed: of the order in which the solver visits samples, and of those set aside.

    Example:
        >>> method = DualView()
        >>> sparse = DualView(support=0.1)
    """

    C: float | str = "auto"
    loss: str = "hinge"
    metric: str = "plain"
    _: KW_ONLY
    support: float | None = None
    fit_to: str = "labels"
    class_weight: Any = None
    sample_weight: Any = None
    low_memory: bool = False
    gap: float = 1e-6
    seed: int = 0

    kind: ClassVar[Kind] = "share"
    has_surrogate: ClassVar[bool] = True
    reads_readout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, known in (("loss", ("hinge",)), ("metric", ("plain",)), ("fit_to", ("labels", "predictions"))):
            if getattr(self, name) not in known:
                listed = " and ".join(map(repr, known)) + (" alone" if len(known) == 1 else "")
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; this version knows {listed}")
        if self.C != "auto" and not _is_positive(self.C):
            raise ValueError(f'`C` must be a positive number, or "auto"; it is {self.C!r}')
        if not _is_positive(self.gap):
            raise ValueError(f"`gap` must be a positive number; it is {self.gap!r}")
        if self.support is not None and not (_is_positive(self.support) and self.support <= 1):
            raise ValueError(f"`support` must be a share above 0, up to 1; it is {self.support!r}")
        if self.support is not None and self.C != "auto":
            raise ValueError(f"`support` asks for C to be found, and C={self.C!r} gives it: leave one of them out")
        for name in ("C", "support", "gap"):  # numpy's numbers, too
            value = getattr(self, name)
            if isinstance(value, Real) and not isinstance(value, (int, float)):
                object.__setattr__(self, name, float(value))
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            raise ValueError(f"`seed` must be a whole number; it is {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "class_weight", class_weights(self.class_weight))
        object.__setattr__(self, "sample_weight", sample_weights(self.sample_weight))

    def __repr__(self) -> str:
        """Name C, gap and seed, and what else is not at its default; of sample weights only that there are some."""
        words = {name: repr(getattr(self, name)) for name in ("C", *self._set(), "gap", "seed")}
        if self.sample_weight is not None:
            words["sample_weight"] = "..."
        return f"DualView({', '.join(f'{name}={word}' for name, word in words.items())})"

    def describe(self) -> dict[str, Any]:
        """Leave out fields that came later and are at their defaults: fits of earlier versions stay the same fits."""
        left_out = set(_LATER) - set(self._set())
        return {name: value for name, value in super().describe().items() if name not in left_out}

    def _set(self) -> list[str]:
        """Name the later fields that are not at their defaults."""
        return [f.name for f in fields(self) if f.name in _LATER and getattr(self, f.name) != f.default]

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        if task.readout is None or isinstance(task.readout, str):
            raise ValueError("the task's readout is not resolved yet; use dualview.fit")
        features = Activations((task.readout,))
        return Sides(features, features)

    # ── fitting ──────────────────────────────────────────────────────────────────────────────────

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[DualState, dict[str, Any]]:
        setting = self._setting(train, positions)
        curve = self._chosen(setting, train, positions, held_out) if self.C == "auto" else None
        solution = crammer_singer(
            setting.features,
            setting.targets,
            C=float(self.C) if curve is None else curve.C[curve.chosen],
            gap=self.gap,
            seed=self.seed,
            num_classes=setting.num_classes,
            sample_weight=setting.weights,
            low_memory=self.low_memory,
        )
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
            class_counts=torch.bincount(setting.targets[setting.weights > 0], minlength=setting.num_classes),
        )
        names = ("C", "gap", "status", "distance", "epochs", "regime", "primal", "dual", "free", "bound")
        certificate = {name: getattr(solution, name) for name in (*names, "seconds", "regime_seconds")}
        certificate |= {
            "asked_gap": self.gap,
            "support": len(support),
            "support_share": len(support) / int((setting.weights > 0).sum()),
        }
        if curve is not None:
            certificate |= {"reachable_support": list(curve.reachable_support), "curve": curve.describe()}
        return state, certificate

    def _setting(self, train: Table, positions: Int[Tensor, " train"]) -> Setting:
        """Gather what is fitted: rows, what they are fitted to, and their weights."""
        given = None if self.sample_weight is None else torch.tensor(self.sample_weight, dtype=torch.float64)
        if given is not None and len(given) != len(train):
            raise ValueError(f"`sample_weight` holds {len(given)} weights for {len(train)} training samples")
        if len(positions) == len(train):
            features, outputs = train.values, train.outputs
        else:
            features, outputs, _, _ = train.rows(positions)
        targets = self._fitted_targets(train.targets[positions], outputs)
        if self.fit_to == "predictions" and len(targets.unique()) == 1:
            raise ValueError(
                f'fit_to="predictions": the network predicts class {int(targets[0])} for all {len(targets)} training '
                'samples, so there is nothing to fit; use fit_to="labels"'
            )
        by_class = self.class_weight
        if isinstance(by_class, tuple) and isinstance(by_class[0], tuple):
            by_class = dict(by_class)
        num_classes = max(2, train.num_classes)
        weights = row_weights(targets.numpy(), num_classes, None if given is None else given[positions], by_class)
        return Setting(features, targets, torch.from_numpy(weights), num_classes, self.seed, self.low_memory)

    def _fitted_targets(self, labels: Int[Tensor, " row"], outputs: Float[Tensor, "row cls"]) -> Int[Tensor, " row"]:
        return labels if self.fit_to == "labels" else class_logits(outputs).argmax(1)

    def _chosen(
        self, setting: Setting, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None
    ) -> Curve:
        """Choose C, on what is held out or else on training samples that are set aside."""
        held = None if held_out is None else held_rows(held_out)
        if self.support is not None:
            return by_support(setting, self.support, held)
        if held is None:
            aside = set_aside(setting.targets, setting.weights, self.seed)
            held = held_rows(HeldOut(train, positions[aside]))
            setting = setting._replace(weights=setting.weights.index_fill(0, aside, 0.0))
        return by_fidelity(setting, held)

    def state_from(self, tensors: dict[str, Tensor]) -> DualState:
        return DualState(**{name: tensors[name] for name in DualState._fields})

    def scored(self, state: DualState) -> Int[Tensor, " train"]:
        return state.support

    def known_classes(self, state: DualState, train: Table, positions: Int[Tensor, " train"]) -> Int[Tensor, " cls"]:
        return state.class_counts.nonzero().squeeze(1)

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────

    def prepare(self, state: DualState, task: Task, test: Rows, train: Table) -> Prepared:
        directions = task.directions(test.outputs, test.targets)
        if getattr(task.single_output, "linear", False) and task.single_output != logit:
            unseen = ((directions != 0).any(0) & (state.class_counts == 0)).nonzero().flatten().tolist()
            if unseen:
                raise ValueError(f"{task.measured} asks for class {unseen[0]}, which {self._without_samples()}")
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

    def self_scores(self, state: DualState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        """Return alpha_{i,y_i} ‖f_i‖²: the sample's share of the surrogate logit of the class it was fitted to."""
        return self.importances(state, train) * train.values.square().sum(1)

    def importances(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return alpha_{i,y_i}, from 0 (no support sample) to C_i (at the bound), y_i the class it was fitted to."""
        fitted = self._fitted_targets(train.targets, train.outputs)
        own = state.coefficients(train.index).gather(1, fitted[:, None]).squeeze(1)
        return own.to(train.values.dtype)

    def slacks(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return the hinge loss max_c([c ≠ y_i] + logit_c(x_i)) − logit_{y_i}(x_i) of the label y_i.

        c runs over the classes that samples were fitted to, and y_i. It is 0 where the surrogate keeps the
        label's margin, above 1 where it predicts another class. A label that no sample was fitted to has
        the logit 0, with which the surrogate starts.
        """
        logits, labels = self.logits(state, train.values), train.targets[:, None]
        costs = (logits + 1).masked_fill(state.class_counts == 0, -torch.inf)
        own = logits.gather(1, labels)
        return (costs.scatter(1, labels, own) - own).amax(1)

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
            f"class {column}{name} {self._without_samples()}, so nothing can explain it (test row {row}"
            f"{f' and {len(unseen) - 1} more' if len(unseen) > 1 else ''})"
        )
        if given:
            raise ValueError(f"{message}: give other targets=")
        warnings.warn(
            f"the network predicts a class that the fit never saw: {message}; its scores for that class are zero",
            DualViewWarning,
            stacklevel=5,
        )

    def _without_samples(self) -> str:
        among = " of a weight above zero" if (self.sample_weight, self.class_weight) != (None, None) else ""
        if self.fit_to == "labels":
            return f"has no training samples{among}"
        return f"is predicted for no training sample{among}"


def _is_positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and 0 < float(value) < math.inf
