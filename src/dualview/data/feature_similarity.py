"""FeatureSimilarity: how near samples are in the network's features.

The baselines of Hanawa, Yokoi, Hara and Inui, "Evaluation of Similarity-based Explanations", ICLR 2021
(arXiv 2006.04528).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import BLOCK
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.engine.batches import Inputs
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind
from dualview.engine.record import Activations, Sides
from dualview.engine.site import Site
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.similarity import METRICS, self_similarities, similarities, spread


class Spread(NamedTuple):
    """What a fit leaves.

    Attributes:
        positions: "train" positions that are scored.
        scale: the root mean squared distance of two of them; 1 where no distances are taken.
    """

    positions: Int[Tensor, " train"]
    scale: Float[Tensor, ""]


@dataclass(frozen=True)
class FeatureSimilarity(DataMethod):
    """Compare what enters one layer for the test sample with what enters it for each training sample.

        score(x, i) = ⟨f, f_i⟩,   ⟨f, f_i⟩/(‖f‖ ‖f_i‖)   or   1/(1 + ‖f − f_i‖/s),

    s the root mean squared distance of two training samples.

    Larger is nearer, whatever is measured of the prediction. Self-influence is a sample's score for itself: ‖f_i‖²,
    or 1.

    Args:
        metric: "dot"; "cosine", 0 where a vector is zero; or "euclidean".
        site: name of the layer; by default the readout.
        pooled: whether maps over positions are averaged over these first.

    Example:
        >>> method = FeatureSimilarity("cosine")
    """

    metric: str = "dot"
    site: str | None = None
    _: KW_ONLY
    pooled: bool = False

    State: ClassVar[type[Spread]] = Spread
    kind: ClassVar[Kind] = "similarity"
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        check_metric(self.metric)

    @property
    def reads_readout(self) -> bool:  # type: ignore[override]
        """Where no site is named."""
        return self.site is None

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        site = task.readout if self.site is None else Site(self.site, "input")
        if not isinstance(site, Site):
            raise ValueError("the task's readout is not resolved yet; use dualview.fit")
        names = [name for name, _ in task.model.named_modules(remove_duplicate=False)]
        if site.module not in names:
            listed = ", ".join(map(repr, filter(None, names)))
            raise ValueError(
                f"site={self.site!r} is not a module of {type(task.model).__name__}. Modules are: {listed}"
            )
        features = Activations((site,), self.pooled)
        return Sides(features, features)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Spread, dict[str, Any]]:
        scale = 1.0
        if self.metric == "euclidean":
            scale = spread([rows.values for rows in train.blocks(BLOCK, positions)])
        return Spread(positions, torch.tensor(scale, dtype=torch.float64)), {}

    def score(self, state: Spread, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        scale = state.scale.to(test.values.dtype)
        return similarities(self.metric, test.values / scale, train.values / scale)

    def self_scores(self, state: Spread, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return self_similarities(self.metric, train.values)


def check_metric(metric: Any) -> None:
    """Refuse a name that is no metric."""
    if metric not in METRICS:
        raise ValueError(f"`metric` is {metric!r}; choose from {', '.join(map(repr, METRICS))}")
