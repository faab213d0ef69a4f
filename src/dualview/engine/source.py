"""Where a result came from, so that its samples can be looked at; never saved with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from dualview.engine.batches import Inputs, as_inputs, map_tensors, take_rows
from dualview.engine.datasets import Samples, as_samples, is_data_set
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

    @classmethod
    def of(cls, task: Task, inputs: Any) -> Source:
        """Return the source of a result for these inputs: a batch, a data set or a DataLoader."""
        return cls(task, as_samples(inputs, name="inputs") if is_data_set(inputs) else as_inputs(inputs))

    def of_test(self, index: Tensor) -> Source:
        """Return the source of a result for some of the test samples only."""
        if isinstance(self.test, Samples):
            return replace(self, test=replace(self.test, dataset=Subset(self.test.dataset, index.tolist())))
        taken = None if self.test is None else map_tensors(lambda x: x[index] if x.ndim else x, self.test)
        return replace(self, test=taken)

    def test_inputs(self, rows: Sequence[int]) -> Inputs:
        """Return the inputs in these rows of what was explained, as one batch."""
        if self.test is None:
            raise ValueError("the test inputs were not kept with this result: make it again from its inputs")
        return inputs_at(self.task, self.test, rows)

    def train_inputs(self, positions: Sequence[int]) -> Inputs:
        """Return the inputs of the training samples at these positions, as one batch."""
        if self.train is None:
            raise ValueError("this needs the training samples themselves: give train= to dualview.open")
        return inputs_at(self.task, self.train, positions)

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
    return _single(inputs_at(task, samples, [position]), 0)


def inputs_at(task: Task, data: Inputs | Samples, positions: Sequence[int]) -> Inputs:
    """Return the inputs of some samples as one batch."""
    if isinstance(data, Samples):
        with untouched():  # reading an augmenting data set draws from global random states
            return task.split(data.batch(positions))[0]
    index = torch.as_tensor(positions)
    return map_tensors(lambda tensor: tensor[index] if tensor.ndim else tensor, data)


def _single(inputs: Inputs, row: int) -> Any:
    return map_tensors(lambda tensor: tensor[0] if tensor.ndim else tensor, take_rows(inputs, row, row + 1))
