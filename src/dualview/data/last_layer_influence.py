"""LastLayerInfluence: influence functions of the readout alone, with its exact Gauss-Newton matrix.

Source: Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017 (arXiv 1703.04730).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from dualview.data._gradients import check_cross_entropy
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data.forward_influence import ForwardInfluence, ForwardState, residuals
from dualview.engine.batches import Inputs
from dualview.engine.outputs import Kind
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task, class_logits

MOST_WEIGHTS = 4096  # of the readout, of which one matrix is made; beyond that one for each class


@dataclass(frozen=True)
class LastLayerInfluence(DataMethod):
    """Estimate the effect of including each training sample on the readout's weights, all else held fixed.

        score(x, i) = (v ⊗ [f(x), 1])ᵀ (H + λI)⁻¹ ((e_{y_i} − p_i) ⊗ [f_i, 1])/n,

    H = (1/n) Σ_j (diag(p_j) − p_j p_jᵀ) ⊗ [f_j, 1][f_j, 1]ᵀ, v the gradient of the measured output with respect to the
    logits, in units of the measured output. It is `ForwardInfluence` with the readout's input as it is, at
    temperature 1. Self-influence is what including a sample takes from its own loss.

    Args:
        damping: λ, as a multiple of H's mean diagonal.
        curvature: "full" is H; "blocks" its blocks by class, as in `ops.curvature`; "auto" takes H of up to 4,096
            weights, else blocks.

    Example:
        >>> method = LastLayerInfluence(damping=0.01)
    """

    damping: float = 0.1
    curvature: str = "auto"

    State: ClassVar[type[ForwardState]] = ForwardState
    kind: ClassVar[Kind] = "effect"
    reads_loss: ClassVar[bool] = True
    inverts_curvature: ClassVar[bool] = True
    reads_readout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.curvature not in ("auto", "full", "blocks"):
            raise ValueError(f"`curvature` is {self.curvature!r}; choose from 'auto', 'full' and 'blocks'")
        _ = self._influence()  # refuses a damping that is no positive number

    def _influence(self, units_per_sample: float = 1.0, curvature: str = "full") -> ForwardInfluence:
        return ForwardInfluence(1, self.damping / units_per_sample, 1.0, curvature, scaled=False, constant=1.0)

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return self._influence().representations(task, probe)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[ForwardState, dict[str, Any]]:
        check_cross_entropy(task, train, "LastLayerInfluence")
        units, columns = train.width + 1, max(2, train.num_classes)
        form = self.curvature if self.curvature != "auto" else "full" if units * columns <= MOST_WEIGHTS else "blocks"
        return self._influence(units / len(positions), form).fit(task, train, positions, held_out)

    def prepare(self, state: ForwardState, task: Task, test: Rows, train: Table) -> Prepared:
        return self._influence().prepare(state, task, test, train)

    def score(self, state: ForwardState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return self._influence().score(state, test, train)

    def decompose(
        self, state: ForwardState, test: Prepared, train: Rows
    ) -> tuple[Float[Tensor, "test train"], Float[Tensor, "test train"]]:
        """Return v_c (e_{y_i} − p_i)_c/n and f_iᵀ (H_c + λI)⁻¹ f, c the only class that the measured output reads."""
        if len(state.units) != test.directions.shape[1]:
            raise TypeError(f"{self!r} couples the classes: its scores are products with curvature='blocks' alone")
        if bool(((test.directions != 0).sum(1) != 1).any()):
            raise TypeError("scores are products of two factors where one logit is measured: output=dv.logit")
        phi, alpha = pad(train.values, (0, 1), value=1.0), self._alpha(state, train)
        phi = phi @ state.basis if len(state.basis) else phi
        solved = test.values.unflatten(1, (len(state.units), -1)).sum(1) / test.directions.sum(1, keepdim=True)
        return test.directions @ alpha.T, solved @ phi.T

    def importances(self, state: ForwardState, train: Rows) -> Float[Tensor, " train"]:
        """Return the residual 1 − p of each sample's own class, over n."""
        return self._alpha(state, train).gather(1, train.targets[:, None]).squeeze(1)

    def _alpha(self, state: ForwardState, train: Rows) -> Float[Tensor, "train cls"]:
        """Return (e_{y_i} − p_i)/n."""
        return (residuals(class_logits(train.outputs), train.targets) * state.share).to(train.values.dtype)

    def self_scores(self, state: ForwardState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return self._influence().self_scores(state, train, table)
