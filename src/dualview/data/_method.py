"""What a data method is: which rows it needs, how it is fitted, how it scores one block of pairs."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from dualview.engine.batches import Inputs
from dualview.engine.fingerprint import callable_fingerprint
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.errors import StoreError
from dualview.ops.layout import Layout

if TYPE_CHECKING:
    from dualview.data._selection import Selection


class Prepared(NamedTuple):
    """A block of test samples, ready to be scored.

    Attributes:
        values: what was recorded of them, "test unit".
        directions: gradient of each one's measured output with respect to its class logits, "test cls".
        layout: what the numbers of a training row are.
    """

    values: Float[Tensor, "test unit"]
    directions: Float[Tensor, "test cls"]
    layout: Layout = ()

    def rows(self, index: Int[Tensor, " row"] | slice) -> Prepared:
        """Return some of the samples."""
        return Prepared(self.values[index], self.directions[index], self.layout)


class HeldOut(NamedTuple):
    """Samples that a fit must not learn from; a method may choose its settings on them.

    Attributes:
        table: where they are recorded.
        positions: their rows there, rising; None: all.
    """

    table: Table
    positions: Int[Tensor, " row"] | None = None


class DataMethod(ABC):
    """Attribute predictions to training samples. Subclasses are frozen dataclasses; fields are hyper-parameters.

    A fitted state is a NamedTuple of tensors, so that it can be stored, with its JSON facts beside it.

    Attributes:
        State: the NamedTuple that a fit returns.
        kind: of its scores.
        has_surrogate: whether it explains a surrogate of the network, whose `logits` can be compared with it.
        reads_readout: whether it needs the network's last linear layer to be known.
        reads_loss: whether its fit rests on the task's loss, although recorded rows do not.
        inverts_curvature: whether self-influence is g_iᵀ H⁻¹ g_i / n, g_i the gradient of the sample's loss and H a
            damped curvature, at least to first order.
        problems: what the labels of its tasks may be.
    """

    State: ClassVar[type[Any]]
    kind: ClassVar[Kind]
    has_surrogate: ClassVar[bool] = False
    reads_readout: ClassVar[bool] = False
    reads_loss: ClassVar[bool] = False
    inverts_curvature: ClassVar[bool] = False
    problems: ClassVar[tuple[Problem, ...]] = ("classification",)

    @abstractmethod
    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        """Name what is recorded of training and of test samples.

        Args:
            task: the model, its readout resolved where the method reads it.
            probe: a few training inputs, where the method looks at what the model does with them. What it then
                finds must follow from model and fields alone, since a stored fit is opened with other inputs.
        """

    @abstractmethod
    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Fit on the rows of `train` at `positions`.

        Args:
            task: the model and what is measured of it.
            train: the recorded training set.
            positions: the rows to fit on, rising.
            held_out: samples to choose settings on, where the user gave some.

        Returns:
            state: a NamedTuple of tensors.
            certificate: JSON facts on how well the fit succeeded, e.g. its duality gap; under "curve" what
                was seen while a setting was chosen (`Curve.describe`).
        """

    def state_from(self, tensors: dict[str, Tensor]) -> Any:
        """Rebuild the state from its tensors by name."""
        return self.State(**{name: tensors[name] for name in self.State._fields})

    def scored(self, state: Any) -> Int[Tensor, " train"]:
        """Return the training positions that can have a score other than zero, rising; the state's by default."""
        return state.positions

    def known_classes(self, state: Any, train: Table, positions: Int[Tensor, " train"]) -> Int[Tensor, " cls"]:
        """Return the output columns that this fit can explain, rising: by default those with samples at `positions`."""
        return train.targets[positions].unique()

    def prepare(self, state: Any, task: Task, test: Rows, train: Table) -> Prepared:
        """Do what is needed once per block of test samples: nothing by default."""
        return Prepared(test.values, test.outputs, train.layout)

    @abstractmethod
    def score(self, state: Any, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        """Score one block of pairs. Positive speaks for a larger measured output."""

    @abstractmethod
    def self_scores(self, state: Any, train: Rows, table: Table) -> Float[Tensor, " train"]:
        """Score some rows of the table for themselves; the higher, the more the fit rests on the sample itself.

        For shares it is the score for the logit of the class it was fitted to; for effects what including the
        sample takes from its own loss.
        """

    def joint_scores(
        self, state: Any, test: Prepared, group: Int[Tensor, " member"], train: Table
    ) -> Float[Tensor, " test"] | None:
        """Return the effect of including a group of scored samples together; None where only single ones are known."""
        return None

    def noise(
        self, state: Any, test: Prepared, train: Rows, scores: Float[Tensor, "test train"]
    ) -> Float[Tensor, "test train"] | None:
        """Return the standard error of a block of scores over random projections; None where nothing is projected."""
        return None

    def importances(self, state: Any, train: Rows) -> Float[Tensor, " train"]:
        """Return each training sample's weight in every explanation, whatever the test sample."""
        raise TypeError(f"{type(self).__name__} has no global importance")

    def slacks(self, state: Any, train: Rows) -> Float[Tensor, " train"]:
        """Return how far the fit contradicts each sample's label; 0 where it does not."""
        raise TypeError(f"{type(self).__name__} has no slack; rank by another column")

    def products(
        self, state: Any, values: Float[Tensor, "test unit"], train: Rows
    ) -> Float[Tensor, "test train"] | None:
        """Return the class-free factor of the scores, where they are `products` × `bias_shares`; else None."""
        return None

    def decompose(
        self, state: Any, test: Prepared, train: Rows
    ) -> tuple[Float[Tensor, "test train"], Float[Tensor, "test train"]]:
        """Return two factors of the scores: global importance for the explained output, and local kernel.

        The importance of a training sample depends on the test sample only through the output that is explained.
        """
        kernel = self.products(state, test.values, train)
        if kernel is None:
            raise TypeError(f"scores of {self!r} are no global importance times a local kernel")
        return self.bias_shares(state, test, train).expand_as(kernel), kernel

    def select(self, state: Any, task: Task, test: Rows, train: Table) -> Selection:
        """Answer with ordered training samples instead of a score for each."""
        raise TypeError(f"{type(self).__name__} scores samples and selects none: use explain(inputs)")

    def solve(self, state: Any, vectors: Float[Tensor, "k param"], train: Table) -> Float[Tensor, "k param"]:
        """Multiply dense gradients, as `ops.gradients.dense` lays them out, by the inverse of the damped curvature."""
        raise TypeError(f"{type(self).__name__} inverts no curvature of parameters")

    def bias(self, state: Any, test: Prepared) -> Float[Tensor, " test"]:
        """Return the part of the explained output that belongs to no pair; zero by default."""
        return test.values.new_zeros(len(test.values))

    def bias_shares(self, state: Any, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        """Return each training sample's part of the bias; zero by default, and then one number for all."""
        return test.values.new_zeros(1, 1).expand(len(test.values), len(train.index))

    def logits(self, state: Any, values: Float[Tensor, "test unit"]) -> Float[Tensor, "test cls"]:
        """Return the surrogate's logits, bias included, where the method has a surrogate."""
        raise TypeError(f"{type(self).__name__} has no surrogate of the network")

    def check_targets(self, state: Any, targets: Int[Tensor, " test"], task: Task, *, given: bool) -> None:
        """Refuse targets that this fit cannot explain. By default it can explain every one."""

    def resolved(self, task: Task) -> dict[str, Any]:
        """Return what a fit takes from the task, besides the recorded rows, as JSON values; they key it too."""
        return {"loss": callable_fingerprint(task.training_loss)} if self.reads_loss else {}

    def describe(self) -> dict[str, Any]:
        """Return the method's name and fields as JSON values; they key the stored fit."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"method": type(self).__name__, **{name: _plain(value) for name, value in fields.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, DataMethod):
        return value.describe()
    return value.item() if isinstance(value, np.generic) else value


def as_method(given: Any) -> DataMethod:
    """Return a method, from itself or from what `describe` made of it.

    Raises:
        StoreError: it describes a method that this version does not have.
        TypeError: it is neither.
    """
    import dualview.data as view

    if isinstance(given, DataMethod):
        return given
    if not isinstance(given, Mapping) or "method" not in given:
        raise TypeError(f"expected a data method such as DualView(); it is {given!r}")
    fields = dict(given)
    name = fields.pop("method")
    kind = getattr(view, name, None) if name in view.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, DataMethod)):
        raise StoreError(f"a stored fit is of method {name!r}, which this version of dualview does not know")
    return kind(**fields)


def joined(inner: Any, **more: Tensor) -> Any:
    """Return a state that holds another method's fields, and some more."""
    fields = inner._asdict() | more
    return namedtuple("Joined", fields)(**fields)


def inner_state(method: DataMethod, state: Any) -> Any:
    """Return the state of the method that a joined one holds."""
    return method.State(*(getattr(state, name) for name in method.State._fields))
