"""InputSimilarity: how near samples are before the network sees them, or as another encoder sees them.

The input baselines of Hanawa, Yokoi, Hara and Inui, "Evaluation of Similarity-based Explanations", ICLR 2021
(arXiv 2006.04528).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data.feature_similarity import FeatureSimilarity, Spread, check_metric
from dualview.engine.batches import Inputs
from dualview.engine.fingerprint import callable_fingerprint
from dualview.engine.inputs import InputNumbers
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task


@dataclass(frozen=True)
class InputSimilarity(DataMethod):
    """Compare the test sample's inputs, or their embedding, with those of each training sample.

    Scores and self-influence are those of `FeatureSimilarity`, on all numbers of the inputs behind each other: a
    tensor, or a tuple or dict of them. The network has no say: what it explains as well as a method, needs no method.

    Args:
        metric: as for `FeatureSimilarity`.
        encoder: a function or module that makes "row dim" of a batch of inputs, to compare embeddings instead. It is
            part of the store's key, by its code or weights; `dualview.open` needs the method again.

    Example:
        >>> method = InputSimilarity("euclidean")
    """

    metric: str = "dot"
    _: KW_ONLY
    encoder: Any = None  # a stored fit knows it by its fingerprint

    State: ClassVar[type[Spread]] = Spread
    kind: ClassVar[Kind] = "similarity"
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if not (self.encoder is None or callable(self.encoder) or isinstance(self.encoder, str)):
            raise TypeError(f"`encoder` must be a function or module, inputs → (row, dim); it is {self.encoder!r}")

    def __repr__(self) -> str:
        known = isinstance(self.encoder, str)
        name = self.encoder if known else getattr(self.encoder, "__name__", type(self.encoder).__name__)
        return f"InputSimilarity({self.metric!r}{'' if self.encoder is None else f', encoder={name}'})"

    def describe(self) -> dict[str, Any]:
        encoder = callable_fingerprint(self.encoder) if callable(self.encoder) else self.encoder
        return super().describe() | {"encoder": encoder}

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        if isinstance(self.encoder, str):
            raise ValueError(
                "a store keeps no encoder, only what it made of the training inputs: give "
                f"method=InputSimilarity({self.metric!r}, encoder=...) to dualview.open"
            )
        numbers = InputNumbers(self.encoder)
        return Sides(numbers, numbers)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Spread, dict[str, Any]]:
        return FeatureSimilarity(self.metric).fit(task, train, positions)

    def score(self, state: Spread, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return FeatureSimilarity(self.metric).score(state, test, train)

    def self_scores(self, state: Spread, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return FeatureSimilarity(self.metric).self_scores(state, train, table)
