"""RepresenterPoints: the readout fitted anew under an L2 penalty, as a sum over training samples.

Source: Yeh, Kim, Yen and Ravikumar, "Representer Point Selection for Explaining Deep Neural Networks", NeurIPS 2018
(arXiv 1811.09720). Independent implementation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from dualview.data._dual_state import DualState
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive
from dualview.data.dualview import DualView
from dualview.engine.batches import Inputs
from dualview.engine.outputs import Kind
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.errors import DualViewWarning
from dualview.solvers import Metric
from dualview.solvers.hessian import gather, logits
from dualview.solvers.losses import SimplexLoss
from dualview.solvers.newton import Newton, Problem

SOFTMAX = SimplexLoss(order=1.0)
TOLERANCE = 1e-24  # of ½‖gradient‖² relative to the objective; the last step goes beyond
MAX_STEPS = 200
SERVED_ROWS = 64  # samples on which scores are added up in their own precision
SERVED_GAP = 0.01
FIT_TO = ("outputs", "labels")


@dataclass(frozen=True)
class RepresenterPoints(DataMethod):
    """Explain a classifier by its last layer, fitted anew so that its weights are a sum over training samples.

    Where (1/n) Σ_i CE(W [f_i, 1], t_i) + l2 ‖W‖² is least, its gradient vanishes, and

        W_c = Σ_i alpha_ic [f_i, 1],   alpha_ic = (t_ic − p_ic)/(2 l2 n),   logit_c(x) = Σ_i alpha_ic (⟨f_i, f⟩ + 1),

    p_i the softmax of W [f_i, 1]. A sample's score for class c is alpha_ic ⟨f_i, f⟩ and its share of the bias alpha_ic,
    in units of the surrogate's logit. Any other output is explained through its gradient at the network's logits.
    Self-influence is the share of the logit of the own label, importance half the sum of |alpha_i| over the classes.

    Args:
        l2: weight of the penalty, which is on the bias too. Smaller ones leave the network's probabilities nearer.
        fit_to: t_i, "outputs" (the network's probabilities), so that the surrogate mimics the network, or "labels".

    Example:
        >>> method = RepresenterPoints()
    """

    l2: float = 0.003
    fit_to: str = "outputs"

    State: ClassVar[type[DualState]] = DualState
    kind: ClassVar[Kind] = "share"
    has_surrogate: ClassVar[bool] = True
    reads_readout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "l2", positive(self.l2, "l2"))
        if self.fit_to not in FIT_TO:
            raise ValueError(f"`fit_to` is {self.fit_to!r}; choose from {' and '.join(map(repr, FIT_TO))}")

    @property
    def _on_rows(self) -> DualView:
        """What reads the dual variables, once they are there: those of the softmax loss with C = 1/(2 l2 n)."""
        return DualView(1.0, "softmax")

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return self._on_rows.representations(task, probe)

    # ── fitting ──────────────────────────────────────────────────────────────────────────────────

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[DualState, dict[str, Any]]:
        rows = train.rows(positions)
        features = rows.values.double()  # in single precision Newton steps may stop short of the identity
        network = task.logits(rows.outputs.double()).softmax(1)
        num_rows, num_classes = network.shape
        targets = network if self.fit_to == "outputs" else one_hot(rows.targets, num_classes).double()
        cost = 1 / (2 * self.l2 * num_rows)
        problem = Problem(features, targets, torch.full((num_rows,), cost, dtype=torch.float64), SOFTMAX, Metric())
        newton = Newton(problem, num_classes)
        ending = newton.minimise(SOFTMAX, 0.0, TOLERANCE, MAX_STEPS)
        alpha = cost * newton.residual
        weights = gather(features, alpha)
        facts: dict[str, Any] = _facts(logits(features, weights), logits(features, newton.weights), network)
        facts |= {"served_gap": _served_gap(rows.values, alpha, logits(features, weights))}
        facts |= {"gradient_norm": 2 * self.l2 * float((newton.weights - weights).norm())}
        facts |= {"C": cost, "status": "converged" if ending == "reached" else ending, "steps": newton.steps}
        if facts["status"] != "converged":
            warnings.warn(
                f"the fit ended before its gradient vanished: shares miss the fitted logits by up to "
                f"{facts['identity_gap']:.1e}. Give a larger l2, or features of a smaller scale",
                DualViewWarning,
                stacklevel=3,
            )
        if facts["served_gap"] > SERVED_GAP:
            warnings.warn(
                f"in {rows.values.dtype} scores miss the logit that they add up to by {facts['served_gap']:.1%} of its "
                "spread: features are too large beside l2. Normalise them, give a larger l2, or a float64 model",
                DualViewWarning,
                stacklevel=3,
            )
        state = DualState(
            support=positions,
            row_start=torch.arange(num_rows + 1) * num_classes,
            entry_class=torch.arange(num_classes).repeat(num_rows),
            entry_value=alpha.flatten(),
            weights=weights[:, :-1].contiguous(),
            bias=weights[:, -1].contiguous(),
            class_counts=torch.full((num_classes,), num_rows),
            metric_factors=alpha.new_zeros(0, 0, 0),
        )
        return state, facts

    def scored(self, state: DualState) -> Int[Tensor, " train"]:
        return state.support

    def known_classes(self, state: DualState, train: Table, positions: Int[Tensor, " train"]) -> Int[Tensor, " cls"]:
        """Return all: a class without samples has a logit too, and each sample a share of it."""
        return self._on_rows.known_classes(state, train, positions)

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────

    def prepare(self, state: DualState, task: Task, test: Rows, train: Table) -> Prepared:
        return self._on_rows.prepare(state, task, test, train)

    def score(self, state: DualState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return self._on_rows.score(state, test, train)

    def products(
        self, state: DualState, values: Float[Tensor, "test unit"], train: Rows
    ) -> Float[Tensor, "test train"]:
        return values @ train.values.to(values.dtype).T

    def self_scores(self, state: DualState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return self._on_rows.self_scores(state, train, table)

    def importances(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return ½ Σ_c |alpha_ic|: fitted to labels, the dual variable of the own one."""
        return state.coefficients(train.index).abs().sum(1).to(train.values.dtype) / 2

    def slacks(self, state: DualState, train: Rows) -> Float[Tensor, " train"]:
        """Return the surrogate's cross-entropy for the label."""
        return self._on_rows.slacks(state, train)

    def bias(self, state: DualState, test: Prepared) -> Float[Tensor, " test"]:
        return self._on_rows.bias(state, test)

    def bias_shares(self, state: DualState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return self._on_rows.bias_shares(state, test, train)

    def logits(self, state: DualState, values: Float[Tensor, "test unit"]) -> Float[Tensor, "test cls"]:
        return self._on_rows.logits(state, values)


def _served_gap(features: Tensor, alpha: Tensor, whole: Float[Tensor, "row cls"]) -> float:
    """Return the largest miss of sums of scores as they are given, over the spread of the logits, on some samples."""
    some = slice(None, None, max(1, len(features) // SERVED_ROWS))
    found = ((features[some] @ features.T) @ alpha.to(features.dtype)).double() + alpha.sum(0)
    return float((found - whole[some]).abs().max() / whole.std().clamp(min=1e-12))


def _facts(
    surrogate: Float[Tensor, "row cls"], fitted: Float[Tensor, "row cls"], network: Float[Tensor, "row cls"]
) -> dict[str, float]:
    """Compare logits that are sums over samples with those of the fitted weights, and with the network's probabilities.

    Returns:
        identity_gap: largest difference of the two logits.
        probability_l1, probability_pearson: mean absolute difference from, and correlation with, the network.
    """
    probabilities = surrogate.softmax(1)
    both = torch.stack([probabilities.flatten(), network.flatten()])
    return {
        "identity_gap": float((surrogate - fitted).abs().max()),
        "probability_l1": float((probabilities - network).abs().mean()),
        "probability_pearson": float(both.corrcoef()[0, 1]),
    }
