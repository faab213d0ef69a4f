"""The relation between training samples, test samples and units, factored and never built whole.

The surrogate's logit of class c for a test sample x is

    logit_c(x) = bias_c + Σ_{i,k} alpha_ic f_k(x_i) f_k(x);

for an output with gradient v at the network's logits, alpha_i is Σ_c v_c alpha_ic. The tensor
"test train unit" under the sum is held as its factors: features of both sides, and alpha.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._dual_state import DualState
from dualview.data._explainer import TRAIN_BLOCK, Explainer
from dualview.data._method import Prepared
from dualview.data._topk import RunningTop
from dualview.data.dualview import DualView
from dualview.data.representer_points import RepresenterPoints
from dualview.engine.isolation import without_autocast
from dualview.engine.source import Source
from dualview.engine.tables import Rows

Side = Literal["test", "train"]


@dataclass(frozen=True, eq=False)
class Relation:
    """Which units of which training sample speak to which units of each test sample.

    Every number is in units of the measured output; positive speaks for a larger one. Sums over
    units give `by_train`, sums over training samples give `by_unit`, and either one's sum plus
    `bias` is the surrogate's output (`surrogate_outputs`).

    Attributes:
        explainer: the fitted surrogate, which holds the training side.
        test: features "test unit" of the test samples and directions "test cls" of what is measured.
        targets: "test" output columns.
        predicted: "test" the network's predictions.
        source: the samples behind it.
    """

    explainer: Explainer
    test: Prepared
    targets: Int[Tensor, " test"]
    predicted: Int[Tensor, " test"]
    source: Source

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        state = self._state
        return (
            f"Relation({len(self)} test × {len(self.explainer.table)} train ({len(state.support)} support) × "
            f"{state.weights.shape[1]} units, of {self.explainer.task.measured})"
        )

    @property
    @without_autocast
    def bias(self) -> Float[Tensor, " test"]:
        """The part of each surrogate output that belongs to no pair and no unit."""
        return self.explainer.method.bias(self._state, self.test)

    @property
    @without_autocast
    def surrogate_outputs(self) -> Float[Tensor, " test"]:
        """The surrogate's measured output, v·(surrogate logits), bias included."""
        logits = self.test.values.double() @ self._state.weights.T + self._state.bias
        return (self.test.directions.double() * logits).sum(1).to(self.test.values.dtype)

    @without_autocast
    def by_train(self) -> Float[Tensor, "test train"]:
        """Return each training sample's share of each test sample's output, dense."""
        whole = self.test.values.new_zeros(len(self), len(self.explainer.table))
        for train in self._train_blocks():
            whole[:, train.index] = self.explainer.method.score(self._state, self.test, train)
        return whole

    @without_autocast
    def by_unit(self, *, side: Side = "test") -> Float[Tensor, "test unit"]:
        """Return each unit's share of each test sample's output.

        In the plain feature space the shares seen from the test side and from the training side are
        the same: both are Σ_i alpha_i f_k(x_i) f_k(x). Under a metric A they are Σ_i alpha_i (A⁻¹ f(x_i))_k f_k(x) on
        the test side, and Σ_i alpha_i f_k(x_i) (A⁻¹ f(x))_k on the training side. Either way they add up to the same.

        Args:
            side: on which sample the units are counted.
        """
        _check_side(side)
        if side == "test":
            combined = (self.test.directions.double() @ self._state.weights).to(self.test.values.dtype)
            return combined * self.test.values
        sums = self._state.sums()
        if not self._state.metric.by_class:
            combined = (self.test.directions.double() @ sums).to(self.test.values.dtype)
            return combined * self._state.kernel_times(self.test.values, 0)
        return self._over_classes(self.test.values, self.test.directions[:, None] * sums.T)

    @without_autocast
    def pair(self, test: int, train: int) -> Float[Tensor, " unit"]:
        """Return each unit's share of one pair's score, alpha_i f_k(x_i) f_k(x).

        Args:
            test: row of the explained inputs.
            train: position in the training set.
        """
        self._check_position("test", test, len(self))
        self._check_position("train", train, len(self.explainer.table))
        gradients, features = self.factors(torch.tensor([test]), torch.tensor([train]))
        return gradients[0] * features[0]

    @without_autocast
    def factors(
        self, test: Int[Tensor, " pair"], train: Int[Tensor, " pair"], *, side: Side = "test"
    ) -> tuple[Float[Tensor, "pair unit"], Float[Tensor, "pair unit"]]:
        """Return each pair's unit shares as two factors: what speaks to a side's features, and these features.

        Args:
            test: rows of the explained inputs.
            train: positions in the training set, one for each row.
            side: whose features stand apart.

        Returns:
            relevance per activation on that side, alpha_i f_k of the other sample; and f_k of that side.
        """
        _check_side(side)
        rows = self.explainer.table.rows(train)
        tests = self.test.rows(test)
        on_test, on_train = tests.values, rows.values.to(tests.values.dtype)
        near, far = (on_test, on_train) if side == "test" else (on_train, on_test)
        weights = tests.directions * self._state.coefficients(rows.index)
        return self._over_classes(far, weights[:, None].expand(-1, far.shape[1], -1)), near

    def _over_classes(self, values: Tensor, weights: Float[Tensor, "pair unit cls"]) -> Float[Tensor, "pair unit"]:
        """Return Σ_c weights_kc (A_c⁻¹ f)_k for each pair and unit k."""
        state = self._state
        if not state.metric.by_class:
            return state.kernel_times(values, 0) * weights.sum(2).to(values.dtype)
        total = torch.zeros_like(values)
        for column in range(weights.shape[2]):
            total += state.kernel_times(values, column) * weights[:, :, column].to(values.dtype)
        return total

    @without_autocast
    def strongest(self, test: Int[Tensor, " row"], k: int) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """Return the pairs of these test rows with their k strongest proponents, then opponents, as two indices.

        Rows with fewer scores of a sign have fewer pairs.
        """
        if k < 1:
            raise ValueError(f"`k` must be at least 1; it is {k}")
        tests = self.test.rows(test)
        kept = RunningTop(len(test), k, self.test.values.dtype)
        for train in self._train_blocks():
            scores = self.explainer.method.score(self._state, tests, train)
            kept.add(slice(0, len(test)), scores, scores, train.index)
        _, index, _ = kept.result()  # positive scores, then negative ones
        if getattr(self.explainer.task.single_output, "lower_is_better", False):
            index = index.roll(k, dims=1)
        row, entry = (index >= 0).nonzero(as_tuple=True)
        return test[row], index[row, entry]

    def _train_blocks(self) -> Iterator[Rows]:
        return self.explainer.table.blocks(TRAIN_BLOCK, self._state.support)

    @property
    def _state(self) -> DualState:
        return self.explainer.state

    def _check_position(self, name: str, position: int, size: int) -> None:
        if not 0 <= position < size:
            raise IndexError(f"`{name}` is {position}; positions go from 0 to {size - 1}")


@without_autocast
def relate(explainer: Explainer, inputs: Any, targets: Any = None) -> Relation:
    """Relate test samples to the training samples and units that make their surrogate outputs.

    Args:
        explainer: a fitted DualView or RepresenterPoints.
        inputs: as for `explainer.explain`.
        targets: label of the class to explain; the network's predictions by default.

    Returns:
        The factored relation. It holds the test features; training features stay in the table.

    Raises:
        TypeError: the explainer's method is not a sum over pairs and units.
    """
    if not isinstance(explainer.method, (DualView, RepresenterPoints)):
        raise TypeError(
            f"a relation needs a fitted DualView; this explainer holds {explainer.method!r}. "
            "RepresenterPoints will do as well"
        )
    rows = explainer.rows(inputs, targets)
    prepared = explainer.method.prepare(explainer.state, explainer.task, rows, explainer.table)
    return Relation(explainer, prepared, rows.targets, explainer.predictions(rows), explainer.source_of(inputs))


def _check_side(side: str) -> None:
    if side not in ("test", "train"):
        raise ValueError(f"`side` is {side!r}; expected 'test' or 'train'")
