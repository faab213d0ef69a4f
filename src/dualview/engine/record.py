"""From samples to rows: one pass of the model over a data set, in batches and in data-set order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dualview.engine.batches import Inputs, num_rows
from dualview.engine.datasets import Samples, input_spec, merge_specs
from dualview.engine.isolation import untouched
from dualview.engine.labels import columns_of
from dualview.engine.progress import announce, progress_bar
from dualview.engine.shards import RowSpec
from dualview.engine.site import Site, watch
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task, class_logits
from dualview.errors import NonFiniteError


class Representation(ABC):
    """What is recorded of a sample."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the fields that decide what is recorded, as JSON values; they key the store."""

    @abstractmethod
    def values(self, task: Task, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Run the model once; return (values "row unit", raw outputs "row cls") where the model stands."""


@dataclass(frozen=True)
class Activation(Representation):
    """The activation at a site, flattened to one vector a sample."""

    site: Site

    def describe(self) -> dict[str, Any]:
        return {"representation": "Activation", "site": list(self.site)}

    def values(self, task: Task, inputs: Inputs) -> tuple[Tensor, Tensor]:
        rows = num_rows(inputs)
        with watch(task.model, self.site) as watched, watch(task.model, self.site._replace(side="output")) as made:
            raw = task.forward(inputs)
            seen = watched.take(self.site)
            if self.site == task.readout:
                self._check_readout(made.take(self.site._replace(side="output")), raw)
        if rows == 1 and seen.ndim == 1:  # a squeeze() in the model drops the axis of a lone sample too
            seen = seen[None]
        if seen.shape[0] != rows:
            raise ValueError(
                f"the {self.site.side} of {self.site.module!r} has shape {tuple(seen.shape)} for {rows} samples; "
                "expected one row a sample"
            )
        return seen.reshape(rows, -1), raw

    def _check_readout(self, made: Tensor, raw: Tensor) -> None:
        same = made.numel() == raw.numel() and (made.reshape(raw.shape) == raw) | (
            made.reshape(raw.shape).isnan() & raw.isnan()
        )
        if not torch.as_tensor(same).all():
            raise ValueError(
                f"readout={self.site.module!r} does not make the model's output for these samples: what it returns is "
                "changed afterwards (a clamp, a mask?). Wrap the model so that it returns this layer's output"
            )


class Sides(NamedTuple):
    """What a method records of training and of test samples."""

    train: Representation
    test: Representation


def record_rows(
    task: Task, representation: Representation, inputs: Inputs, targets: Tensor | None, index: Tensor
) -> Rows:
    """Record one batch; missing targets are the network's own predictions.

    Values of half-precision models are upcast to float32; double-precision models keep float64.

    Raises:
        NonFiniteError: a value or output is NaN or infinite; it names the samples.
    """
    with untouched(task.model):
        values, raw = representation.values(task, inputs)
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    values, raw = (part.detach().to("cpu", dtype) for part in (values, raw))
    finite = values.isfinite().all(1) & raw.isfinite().all(1)
    if not bool(finite.all()):
        bad = index[~finite].tolist()
        raise NonFiniteError(
            f"sample {bad[0]} has NaN or infinite {'features' if not values[~finite].isfinite().all() else 'outputs'}"
            f" ({len(bad)} of the {len(index)} samples in its batch): mend or leave out these inputs",
            tuple(bad),
        )
    if targets is None:
        targets = class_logits(raw).argmax(1)
    return Rows(values, raw, targets, index)


@dataclass
class Recorder:
    """Record a data set, batch by batch, in data-set order.

    Attributes:
        task: with its readout resolved.
        samples: the data set.
        representation: what is recorded.
        num_classes: columns of the network's output, one logit counting as two.
        batch_size: samples per forward pass.
        name: what errors call the data set.
        spec: what the inputs seen so far look like; see `input_spec`.
    """

    task: Task
    samples: Samples
    representation: Representation
    num_classes: int
    batch_size: int
    name: str = "train"
    spec: dict[str, dict] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` is {self.batch_size}; expected at least 1")

    def batches(self, start: int, stop: int) -> Iterator[Rows]:
        """Yield the recorded rows of the samples from `start` to `stop`, batch by batch."""
        for chunk, batch in self.samples.batches(range(start, stop), self.batch_size):
            inputs, labels = self.task.split(batch)
            self.spec = merge_specs(self.spec, input_spec(inputs))
            try:
                targets = columns_of(labels, self.num_classes, self.task.classes, start=chunk[0])
                yield record_rows(self.task, self.representation, inputs, targets, torch.tensor(chunk))
            except NonFiniteError as error:
                raise NonFiniteError(f"`{self.name}`: {error}", error.index) from None
            except ValueError as error:
                raise ValueError(f"`{self.name}`, samples {chunk[0]} to {chunk[-1]}: {error}") from error

    def rows(self, start: int, stop: int, bar: tqdm | None = None) -> Rows:
        """Record the samples from `start` to `stop` as one block."""
        block: Rows | None = None
        done = 0
        with untouched(self.task.model):  # reading an augmenting data set draws from global random states
            for rows in self.batches(start, stop):
                if block is None:
                    block = Rows(*(column.new_empty((stop - start, *column.shape[1:])) for column in rows))
                for whole, part in zip(block, rows, strict=True):
                    whole[done : done + len(part)] = part
                done += len(rows.index)
                if bar is not None:
                    bar.update(len(rows.index))
        assert block is not None and done == stop - start
        return block

    def table(self, *, progress: bool = True) -> Table:
        """Record the whole data set into memory, under a progress bar that one line on its size precedes."""
        name, total = self.name, len(self.samples)
        first = self.rows(0, 1)
        spec = RowSpec(first.values.shape[1], first.outputs.shape[1], first.values.dtype)
        announce(f"recording `{name}`, {spec.describe(total)}, in memory", progress)
        with progress_bar(total, enabled=progress) as bar:
            return Table([self.rows(0, total, bar)])
