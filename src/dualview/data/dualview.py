"""DualView: a sparse linear model on the readout's features, read by its dual variables.

Source: Yolcu, Weckbecker, Wiegand, Samek and Lapuschkin, "Sparse, Efficient and Explainable Data
Attribution with DualXDA", TMLR 2025 (arXiv 2402.12118). Independent implementation.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._choice import DENSE, by_fidelity, by_support, set_aside
from dualview.data._curve import Curve
from dualview.data._dual_state import DualState
from dualview.data._faithful import held_rows
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._setting import PLAIN, Setting
from dualview.data._weights import class_weights, sample_weights
from dualview.engine.batches import Inputs
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind, logit
from dualview.engine.record import Activations, Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task, class_logits
from dualview.errors import DualViewWarning
from dualview.solvers import Metric, row_weights
from dualview.solvers.losses import DeviationLoss, LabelLoss, SimplexLoss, named
from dualview.solvers.metrics import curvature, whitened

_LATER = ("support", "fit_to", "class_weight", "smoothing", "epsilon", "damping", "sample_weight", "low_memory")
LOSSES = ("hinge", "smooth-hinge", "softmax", "entmax", "sparsemax", "squared", "epsilon")
METRICS = {"plain": 0.0, "whitened": 0.01, "curvature": 0.1}  # with the damping of each
TEMPERATURE = 2.0  # of the probabilities in the curvature metric: warmer than the network's own serves better


@dataclass(frozen=True, repr=False)
class DualView(DataMethod):
    """Explain a network by the dual variables of a sparse linear model on its last features.

    With features f, constant-augmented to [f, 1], the surrogate's logit of class c is

        logit_c(x) = bias_c + Σ_i alpha_ic f(x_i)ᵀ A_c⁻¹ f(x),        bias_c = Σ_i alpha_ic,

    where alpha solves the dual of  min ½ Σ_c (w_cᵀ A_c w_c + b_c²) + Σ_i C_i L(W f_i + b, y_i). A sample's score for
    class c is alpha_ic f(x_i)ᵀ A_c⁻¹ f(x), in units of the surrogate's logit: an exact share of it. Any other output
    is explained through its gradient at the network's logits. As published, L is the hinge of Crammer and Singer and A
    the identity; then samples of class c have alpha_ic ≥ 0 and all others ≤ 0, so that where features are
    non-negative (after a ReLU) only samples of the explained class are proponents.

    Args:
        C: weight of the sum of losses; larger C gives fewer support samples and a longer fit. "auto"
            takes the sparsest surrogate that predicts the network's outputs about as faithfully as the
            best, on held-out samples: those of `held_out=`, or a tenth of the training samples set
            aside for the choice, which the fit then sees. `Explainer.curve` holds what was seen.
        loss: "hinge", of Crammer and Singer; "smooth-hinge"; "softmax", "entmax" (of order 1.5) and "sparsemax", of
            Fenchel and Young; "squared" (ridge); "epsilon" (support vector regression). Sparse are all but "softmax"
            and "squared". A regression takes "squared" or "epsilon"; a multi-label task, in which each label is a
            problem of two classes by itself, any but these two.
        metric: A, "plain": the identity; "whitened": the second moment of the features; "curvature": for each class
            the features' second moment under p(1 − p), p the network's probabilities at temperature 2.
        support: the share of support samples to come near to, from 0 to 1; "auto" then looks for that.
        fit_to: y_i, "labels" or "predictions" (the network's own, on the training samples). Fitted to
            labels, as published, the surrogate contradicts wrong ones, which `slack` shows; fitted to
            predictions it agrees with the network more, errors included.
        class_weight: factors of C_i: one for each output column, a mapping from some columns to theirs, or
            "balanced": training samples / (classes × samples of the class), counted by `sample_weight`. A
            class is what `fit_to` says.
        smoothing: of the "smooth-hinge": width of the rounding of its kink, 1 by default.
        epsilon: deviation that costs nothing under "epsilon".
        damping: added to A's diagonal, as a multiple of its mean; 0.01 for "whitened" and 0.1 for "curvature".
        sample_weight: factors of C_i: one for each training sample, not negative. Samples of weight zero
            never score.
        low_memory: fit without a copy of the features, more slowly; with the hinge and the plain metric.
        gap: relative duality gap to reach; see `solvers.dual`.
        seed: of the order in which the solver visits samples, and of those set aside.

    Example:
        >>> method = DualView()
        >>> sparse = DualView(support=0.1)
        >>> smooth = DualView(loss="sparsemax", metric="curvature")
    """

    C: float | str = "auto"
    loss: str = "hinge"
    metric: str = "plain"
    _: KW_ONLY
    support: float | None = None
    fit_to: str = "labels"
    class_weight: Any = None
    smoothing: float | None = None
    epsilon: float = 0.1
    damping: float | None = None
    sample_weight: Any = None
    low_memory: bool = False
    gap: float = 1e-6
    seed: int = 0

    State: ClassVar[type[DualState]] = DualState
    kind: ClassVar[Kind] = "share"
    has_surrogate: ClassVar[bool] = True
    reads_readout: ClassVar[bool] = True
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        self._check_family()
        if self.C != "auto" and not _is_positive(self.C):
            raise ValueError(f'`C` must be a positive number, or "auto"; it is {self.C!r}')
        if not _is_positive(self.gap):
            raise ValueError(f"`gap` must be a positive number; it is {self.gap!r}")
        if self.support is not None and not (_is_positive(self.support) and self.support <= 1):
            raise ValueError(f"`support` must be a share above 0, up to 1; it is {self.support!r}")
        if self.support is not None and self.C != "auto":
            raise ValueError(f"`support` asks for C to be found, and C={self.C!r} gives it: leave one of them out")
        for name in ("C", "support", "gap", "smoothing", "epsilon", "damping"):  # numpy's numbers, too
            value = getattr(self, name)
            if isinstance(value, Real) and not isinstance(value, (int, float)):
                object.__setattr__(self, name, float(value))
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            raise ValueError(f"`seed` must be a whole number; it is {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "class_weight", class_weights(self.class_weight))
        object.__setattr__(self, "sample_weight", sample_weights(self.sample_weight))

    def _check_family(self) -> None:
        for name, known in (("loss", LOSSES), ("metric", tuple(METRICS)), ("fit_to", ("labels", "predictions"))):
            if getattr(self, name) not in known:
                listed = ", ".join(map(repr, known[:-1]))
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose from {listed} and {known[-1]!r}")
        if self.smoothing is not None and self.loss != "smooth-hinge":
            raise ValueError(f"`smoothing` is of loss='smooth-hinge', and the loss is {self.loss!r}")
        if self.epsilon != type(self).epsilon and self.loss != "epsilon":
            raise ValueError(f"`epsilon` is of loss='epsilon', and the loss is {self.loss!r}")
        if self.support is not None and self.loss in DENSE:
            raise ValueError(f"`support` asks for a share; loss={self.loss!r} makes all samples support samples")
        if self.low_memory and (self.loss, self.metric) != ("hinge", "plain"):
            raise ValueError("`low_memory` is of loss='hinge' with metric='plain'")
        if self.damping is not None and self.metric == "plain":
            raise ValueError("`damping` is of metric='whitened' or 'curvature', and the metric is 'plain'")
        for name in ("smoothing", "epsilon", "damping"):
            value = getattr(self, name)
            if value is not None and not _is_positive(value) and not (name == "epsilon" and value == 0):
                raise ValueError(f"`{name}` must be a positive number; it is {value!r}")

    def __repr__(self) -> str:
        """Name C, gap and seed, and what else is not at its default; of sample weights only that there are some."""
        named = [f.name for f in fields(self) if f.name in ("loss", "metric") and getattr(self, f.name) != f.default]
        words = {name: repr(getattr(self, name)) for name in ("C", *named, *self._set(), "gap", "seed")}
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
        setting = self.setting(task, train, positions)
        curve = self._chosen(setting, task, train, positions, held_out) if self.C == "auto" else None
        solution = setting.solve(float(self.C) if curve is None else curve.C[curve.chosen], self.gap)
        taking_part = setting.weights > 0
        if task.problem == "classification":
            counts = torch.bincount(setting.targets[taking_part], minlength=setting.num_classes)
        else:
            counts = torch.full((setting.num_classes,), int(taking_part.sum()))
        state = DualState.of(solution, positions, counts, setting.metric)
        names = ("C", "gap", "status", "distance", "epochs", "regime", "primal", "dual", "free", "bound")
        certificate = {name: getattr(solution, name) for name in (*names, "seconds", "regime_seconds")}
        certificate |= {
            "asked_gap": self.gap,
            "support": len(state.support),
            "support_share": len(state.support) / int(taking_part.sum()),
        }
        if self.metric != "plain":
            certificate["damping"] = setting.metric.damping
        if curve is not None:
            certificate |= {"reachable_support": list(curve.reachable_support), "curve": curve.describe()}
        return state, certificate

    def setting(self, task: Task, train: Table, positions: Int[Tensor, " train"]) -> Setting:
        """Gather what is fitted: rows, what they are fitted to, their weights, and the metric.

        Raises:
            ValueError: the loss does not go with the task's problem, or weights with its samples.
        """
        refused = {"classification": LOSSES[6:], "multi-label": LOSSES[5:], "regression": LOSSES[:5]}[task.problem]
        if self.loss in refused:
            known = ", ".join(repr(loss) for loss in LOSSES if loss not in refused)
            raise ValueError(f"loss={self.loss!r} does not go with a {task.problem} task: give one of {known}")
        given = None if self.sample_weight is None else torch.tensor(self.sample_weight, dtype=torch.float64)
        if given is not None and len(given) != len(train):
            raise ValueError(f"`sample_weight` holds {len(given)} weights for {len(train)} training samples")
        if len(positions) == len(train):
            features, outputs = train.values, train.outputs
        else:
            features, outputs, _, _ = train.rows(positions)
        targets = self._fitted_targets(task, train.targets[positions], outputs)
        weights, num_classes = self._weights(targets, None if given is None else given[positions], train.num_classes)
        return Setting(
            features,
            targets,
            weights,
            num_classes,
            self.seed,
            self.low_memory,
            task.problem,
            self.loss,
            self.smoothing,
            self.epsilon,
            self._metric(task, features, outputs),
        )

    def _weights(self, targets: Tensor, given: Tensor | None, num_columns: int) -> tuple[Tensor, int]:
        """Return the factor of each sample's C, and the number of output columns."""
        if targets.is_floating_point():
            if self.class_weight is not None:
                raise ValueError("`class_weight` weighs the classes of a classification, and this task has none")
            return torch.ones(len(targets), dtype=torch.float64) if given is None else given, num_columns
        if self.fit_to == "predictions" and len(targets.unique()) == 1:
            raise ValueError(
                f'fit_to="predictions": the network predicts class {int(targets[0])} for all {len(targets)} training '
                'samples, so there is nothing to fit; use fit_to="labels"'
            )
        by_class = self.class_weight
        if isinstance(by_class, tuple) and isinstance(by_class[0], tuple):
            by_class = dict(by_class)
        num_classes = max(2, num_columns)
        return torch.from_numpy(row_weights(targets.numpy(), num_classes, given, by_class)), num_classes

    def _metric(self, task: Task, features: Tensor, outputs: Tensor) -> Metric:
        damping = METRICS[self.metric] if self.damping is None else self.damping
        if self.metric == "plain":
            return PLAIN
        if self.metric == "whitened":
            return whitened(features, damping)
        if task.problem == "regression":
            raise ValueError("metric='curvature' is of class probabilities; a regression has 'plain' and 'whitened'")
        logits = task.logits(outputs.double()) / TEMPERATURE
        return curvature(features, logits.softmax(1) if task.problem == "classification" else logits.sigmoid(), damping)

    def _fitted_targets(self, task: Task, labels: Tensor, outputs: Float[Tensor, "row cls"]) -> Tensor:
        if self.fit_to == "labels":
            return labels
        if task.problem == "classification":
            return class_logits(outputs).argmax(1)
        return outputs if task.problem == "regression" else (outputs > 0).to(outputs.dtype)

    def _chosen(
        self, setting: Setting, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None
    ) -> Curve:
        """Choose C, on what is held out or else on training samples that are set aside."""
        held = None if held_out is None else held_rows(held_out, task)
        if self.support is not None:
            return by_support(setting, self.support, held)
        if held is None:
            aside = set_aside(setting.targets, setting.weights, self.seed)
            held = held_rows(HeldOut(train, positions[aside]), task)
            setting = setting._replace(weights=setting.weights.index_fill(0, aside, 0.0))
        return by_fidelity(setting, held)

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
        products = self.products(state, test.values, train)
        if products is not None:
            return products.mul_(self.bias_shares(state, test, train))
        alpha = state.coefficients(train.index).to(test.values.dtype)
        total = test.values.new_zeros(len(test.values), len(train.index))
        for column in (test.directions != 0).any(0).nonzero().flatten().tolist():
            near = state.kernel_times(test.values, column) @ train.values.to(test.values.dtype).T
            total += near.mul_(test.directions[:, column, None].to(near.dtype)).mul_(alpha[:, column])
        return total

    def products(
        self, state: DualState, values: Float[Tensor, "test unit"], train: Rows
    ) -> Float[Tensor, "test train"] | None:
        if state.metric.by_class:
            return None
        return state.kernel_times(values, 0) @ train.values.to(values.dtype).T

    def bias_shares(self, state: DualState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        dtype = test.values.dtype
        return test.directions.to(dtype) @ state.coefficients(train.index).to(dtype).T

    def bias(self, state: DualState, test: Prepared) -> Float[Tensor, " test"]:
        dtype = test.values.dtype
        return (test.directions.double() @ state.bias).to(dtype)

    def self_scores(self, state: DualState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        """Return alpha_{i,y_i} f_iᵀ A⁻¹ f_i: the share of the logit of the class it was fitted to; of |alpha| all."""
        alpha = state.coefficients(train.index).to(train.values.dtype)
        alpha = self._own(alpha, train) if train.targets.ndim == 1 else alpha.abs()
        total = train.values.new_zeros(len(train.index))
        for column in range(alpha.shape[1]) if state.metric.by_class else [0]:
            norms = (state.kernel_times(train.values, column) * train.values).sum(1)
            total += norms * (alpha[:, column] if state.metric.by_class else alpha.sum(1))
        return total

    def importances(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return alpha_{i,y_i}, from 0 (no support sample) to C_i (at the bound), y_i the class it was fitted to.

        Where samples are fitted to numbers or several labels, the sum of |alpha| over them.
        """
        alpha = state.coefficients(train.index).to(train.values.dtype)
        return self._own(alpha, train).sum(1) if train.targets.ndim == 1 else alpha.abs().sum(1)

    def _own(self, alpha: Float[Tensor, "train cls"], train: Rows) -> Float[Tensor, "train cls"]:
        """Keep the dual variable of the class each sample was fitted to, and set the others to zero."""
        fitted = train.targets if self.fit_to == "labels" else class_logits(train.outputs).argmax(1)
        return torch.zeros_like(alpha).scatter(1, fitted[:, None], alpha.gather(1, fitted[:, None]))

    def slacks(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return the loss of the surrogate for each sample's label y_i, e.g. the hinge loss.

        That is max_c([c ≠ y_i] + logit_c(x_i)) − logit_{y_i}(x_i). Classes are those that samples were fitted to, and
        y_i. The hinge is 0 where the surrogate keeps the label's margin, above 1 where it predicts another class. A
        label that no sample was fitted to has the logit 0, with which the surrogate starts.
        """
        logits, labels = self.logits(state, train.values).double(), train.targets
        loss = named(self.loss, smoothing=self.smoothing, epsilon=self.epsilon)
        if labels.is_floating_point():
            loss = LabelLoss(loss) if isinstance(loss, SimplexLoss) else loss
            return loss.value(logits, labels.double()).to(train.values.dtype)
        if isinstance(loss, DeviationLoss):
            return loss.value(logits, F.one_hot(labels, logits.shape[1]).double()).to(train.values.dtype)
        far = -1e30 * torch.ones((), dtype=logits.dtype)  # a finite number, which sorts like −∞
        known = torch.where(state.class_counts > 0, logits, far).scatter(
            1, labels[:, None], logits.gather(1, labels[:, None])
        )
        return loss.value(known, labels).to(train.values.dtype)

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
