"""The samples behind recorded rows, for methods that must run the model on them again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

from dualview.engine.batches import Inputs
from dualview.engine.datasets import Samples
from dualview.engine.isolation import untouched
from dualview.engine.labels import targets_of
from dualview.engine.task import Task


class Batch(NamedTuple):
    """Some samples as the model takes them.

    Attributes:
        inputs: first axis "row".
        targets: as `Rows.targets`.
        index: "row" positions in the data set.
    """

    inputs: Inputs
    targets: Tensor
    index: Int[Tensor, " row"]


@dataclass(frozen=True, eq=False)
class Replay:
    """A labelled data set, batch by batch.

    Attributes:
        task: how a batch is split, and what its labels are.
        samples: the data set.
        num_classes: columns of class logits.
        batch_size: samples at once.
    """

    task: Task
    samples: Samples
    num_classes: int
    batch_size: int

    def batches(self, index: Int[Tensor, " row"]) -> Iterator[Batch]:
        """Walk the samples at these positions, in their order."""
        for some in index.split(self.batch_size):
            with untouched(self.task.model):  # reading may draw from global random states
                inputs, labels = self.task.split(self.samples.batch(some.tolist()))
            yield Batch(inputs, targets_of(labels, self.task.problem, self.num_classes, self.task.classes), some)
