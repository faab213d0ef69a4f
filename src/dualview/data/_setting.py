"""What a surrogate is fitted to, and how: all but C."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from dualview.engine.labels import Problem
from dualview.solvers import DualSolution, Metric, crammer_singer, dual
from dualview.solvers.metrics import plain

PLAIN = plain()


class Setting(NamedTuple):
    """What is fitted, but for C.

    Attributes:
        features: "train unit".
        targets: "train" classes.
        weights: "train" factors of C; rows of weight zero take no part.
        num_classes: output columns.
        seed: of the solver.
        low_memory: see `solvers.crammer_singer`.
        problem: what the targets are.
        loss: see `solvers.dual`, as the next three.
        smoothing: of the smooth hinge.
        epsilon: of the epsilon-insensitive loss.
        metric: of the weights.
    """

    features: Float[Tensor, "train unit"]
    targets: Int[Tensor, " train"] | Float[Tensor, "train output"]
    weights: Float[Tensor, " train"]
    num_classes: int
    seed: int
    low_memory: bool
    problem: Problem = "classification"
    loss: str = "hinge"
    smoothing: float | None = None
    epsilon: float = 0.1
    metric: Metric = PLAIN

    @property
    def by_path(self) -> bool:
        """Whether the solver of the hinge between classes serves, which goes along a path of C."""
        return self.loss == "hinge" and self.problem == "classification" and not self.metric.by_class

    def solve(self, C: float, gap: float) -> DualSolution:
        """Solve for one C."""
        if self.by_path and self.metric.factors is None:
            return crammer_singer(
                self.features,
                self.targets,
                C=C,
                gap=gap,
                seed=self.seed,
                num_classes=self.num_classes,
                sample_weight=self.weights,
                low_memory=self.low_memory,
            )
        return dual(
            self.features,
            self.targets,
            loss=self.loss,
            C=C,
            metric=self.metric,
            gap=gap,
            smoothing=self.smoothing,
            epsilon=self.epsilon,
            num_classes=None if self.targets.is_floating_point() else self.num_classes,
            sample_weight=self.weights,
        )
