"""Where a result came from, so that its samples can be looked at; never saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualview.engine.batches import Inputs, map_tensors, take_rows
from dualview.engine.datasets import Samples
from dualview.engine.isolation import untouched
from dualview.engine.pictures import Picture, picture_of
from dualview.engine.task import Task


@dataclass(frozen=True, eq=False)
class Source:
    """The task, the test inputs, and the training samples as far as they can be had.

    Attributes:
        task: with its readout resolved.
        test: test inputs as they were explained, or the data set they come from.
        train: the training set, where there is one.
        thumbnails: training position → stored picture, for results opened without a training set.
    """

    task: Task
    test: Inputs | Samples | None = None
    train: Samples | None = None
    thumbnails: Mapping[int, np.ndarray] = field(default_factory=dict)

    def test_picture(self, row: int) -> Picture:
        """Show the test sample in this row of the explained inputs."""
        if self.test is None:
            return Picture(None, "input not kept")
        if isinstance(self.test, Samples):
            return picture_of(sample_input(self.task, self.test, row), self.task.display)
        return picture_of(_single(self.test, row), self.task.display)

    def train_picture(self, position: int) -> Picture:
        """Show the training sample at this position: from the data set, else its stored thumbnail."""
        if self.train is not None:
            return picture_of(sample_input(self.task, self.train, position), self.task.display)
        if position in self.thumbnails:
            return Picture(self.thumbnails[position], None)
        return Picture(None, "give train= to see it")


def sample_input(task: Task, samples: Samples, position: int) -> Any:
    """Return one sample's input, as the model sees it but without the batch axis."""
    with untouched():
        inputs, _ = task.split(samples.batch([position]))
    return _single(inputs, 0)


def _single(inputs: Inputs, row: int) -> Any:
    return map_tensors(lambda tensor: tensor[0] if tensor.ndim else tensor, take_rows(inputs, row, row + 1))
