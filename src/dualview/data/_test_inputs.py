"""What a user gives to be explained: inputs, checked against what training looked like, and targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dualview.engine.batches import Inputs, as_inputs, num_rows, tensors_in
from dualview.engine.datasets import as_samples, check_inputs, input_batches, is_data_set
from dualview.engine.labels import columns_of, targets_of
from dualview.engine.task import Task


def without_labels(inputs: Any, task: Task, spec: dict[str, dict], num_classes: int) -> Any:
    """Accept a labelled batch too: where the parts are not those of training, its labels are split off."""
    given = as_inputs(inputs)
    if set(tensors_in(given)) == set(spec):
        return given
    try:
        split, labels = task.split(given)
        targets_of(labels, task.problem, num_classes, task.classes)
    except (TypeError, ValueError):
        return given
    return as_inputs(split) if set(tensors_in(as_inputs(split))) == set(spec) else given


def target_columns(targets: Any, given: Any, task: Task, num_classes: int) -> Int[Tensor, " test"]:
    """Return the targets, one for each test sample or one for all, as output columns."""
    num_test = len(as_samples(given, name="inputs")) if is_data_set(given) else num_rows(as_inputs(given))
    if np.ndim(targets) == 0:
        targets = [targets.item() if hasattr(targets, "item") else targets] * num_test
    columns = columns_of(targets, num_classes, task.classes, names=task.class_names)
    if len(columns) != num_test:
        raise ValueError(f"`targets` hold {len(columns)} labels for {num_test} test samples")
    return columns


def batches_of(
    given: Any, task: Task, spec: dict[str, dict], batch_size: int | None
) -> Iterator[tuple[Inputs, Int[Tensor, " row"]]]:
    """Yield batches of test inputs and their positions.

    Raises:
        ValueError: inputs of another form than in training.
    """
    _, batches = input_batches(given, task.split, batch_size)
    if not is_data_set(given):
        check_inputs(given, spec)  # before the first batch is run
    start = 0
    for part in batches:
        check_inputs(part, spec)
        stop = start + num_rows(part)
        yield part, torch.arange(start, stop)
        start = stop
