"""From samples to rows: one pass of the model over a data set, in batches and in data-set order."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from tqdm.auto import tqdm

from dualview.engine.batches import Inputs, num_rows
from dualview.engine.datasets import Samples, input_spec, merge_specs
from dualview.engine.fingerprint import hash_bytes
from dualview.engine.isolation import untouched
from dualview.engine.labels import targets_of
from dualview.engine.progress import announce, progress_bar
from dualview.engine.shards import RowSpec
from dualview.engine.site import Site, module_at, watch
from dualview.engine.tables import Rows, Table, join_rows
from dualview.engine.task import Task
from dualview.errors import NonFiniteError
from dualview.ops.layout import Layout, plain

MAX_IN_MEMORY = 2 * 2**30  # bytes of one column of a data set's rows


class Recorded(NamedTuple):
    """What one batch gave.

    Attributes:
        values: "row unit", where the model stands.
        raw: "row cls", the network's raw outputs.
        targets: "row", the output columns that the values speak of, where they were asked for.
    """

    values: Tensor
    raw: Tensor
    targets: Tensor | None


class Plan(ABC):
    """How a representation is recorded with one model; made on some of its samples.

    Attributes:
        layout: what the numbers of a row are.
        coverage: parameter or site → how it is recorded.
        rows_at_once: samples that `finish` should see together, where they are at hand.
        noun: what the numbers are called.
        of_target: whether rows depend on the target.
    """

    layout: Layout
    coverage: Mapping[str, str]
    rows_at_once: int = 1
    noun: ClassVar[str] = "features"
    of_target: bool = False

    @property
    def recorded_layout(self) -> Layout:
        """What `record` gives, before it is finished."""
        return self.layout

    @abstractmethod
    def record(self, inputs: Inputs, targets: Tensor | None) -> Recorded:
        """Run the model on one batch; missing targets are the network's own predictions where they are needed."""

    def finish(self, values: Tensor) -> Tensor:
        """Turn what `record` gave, of one batch or several, into rows of the layout."""
        return values


class Representation(ABC):
    """What is recorded of a sample."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the fields that decide what is recorded, as JSON values; they key the store."""

    @abstractmethod
    def plan(self, task: Task, inputs: Inputs) -> Plan:
        """Look at what the model does with a few samples, and settle how to record them."""


class Sides(NamedTuple):
    """What a method records of training and of test samples."""

    train: Representation
    test: Representation


@dataclass(frozen=True)
class Activations(Representation):
    """The activations at one or several sites, each flattened to one vector a sample.

    Attributes:
        sites: where.
        pooled: whether maps over positions ("row channel height width") are averaged over these first.
    """

    sites: tuple[Site, ...]
    pooled: bool = False

    def describe(self) -> dict[str, Any]:
        return {"representation": "Activations", "sites": [list(site) for site in self.sites], "pooled": self.pooled}

    def plan(self, task: Task, inputs: Inputs) -> Plan:
        with untouched(task.model):
            seen, _ = _seen(task, self, inputs)
        layout = tuple(plain(site.module, flat.shape[1]) for site, flat in zip(self.sites, seen, strict=True))
        return _ActivationPlan(task, self, layout, {site.module: f"its {site.side}" for site in self.sites})


@dataclass(frozen=True)
class _ActivationPlan(Plan):
    task: Task
    representation: Activations
    layout: Layout
    coverage: Mapping[str, str]

    def record(self, inputs: Inputs, targets: Tensor | None) -> Recorded:
        seen, raw = _seen(self.task, self.representation, inputs)
        for part, flat in zip(self.layout, seen, strict=True):
            if flat.shape[1] != part.width:
                raise ValueError(
                    f"what enters or leaves {part.name!r} holds {flat.shape[1]} numbers a sample in this batch, and "
                    f"held {part.width} for the first samples: pad all inputs alike, average over positions "
                    "(pooled=True), or record other sites"
                )
        return Recorded(seen[0] if len(seen) == 1 else torch.cat(seen, dim=1), raw, targets)


@dataclass(frozen=True)
class Outputs(Representation):
    """The network's outputs alone."""

    def describe(self) -> dict[str, Any]:
        return {"representation": "Outputs"}

    def plan(self, task: Task, inputs: Inputs) -> Plan:
        return _OutputPlan(task)


@dataclass(frozen=True)
class _OutputPlan(Plan):
    task: Task
    layout: Layout = ()
    coverage: Mapping[str, str] = field(default_factory=dict)

    def record(self, inputs: Inputs, targets: Tensor | None) -> Recorded:
        raw = self.task.forward(inputs)
        return Recorded(raw.new_empty(len(raw), 0), raw, targets)


def _seen(task: Task, representation: Activations, inputs: Inputs) -> tuple[list[Tensor], Tensor]:
    """Run the model; return what passed each site, one row a sample, and the raw outputs."""
    rows = num_rows(inputs)
    made_at = None if not isinstance(task.readout, Site) else task.readout._replace(side="output")
    with ExitStack() as stack:
        watched = [stack.enter_context(watch(task.model, site)) for site in representation.sites]
        checked = made_at is not None and task.readout in representation.sites
        made = stack.enter_context(watch(task.model, made_at)) if checked and made_at is not None else None
        raw = task.forward(inputs)
        seen = [one.take(site) for one, site in zip(watched, representation.sites, strict=True)]
        if made is not None and made_at is not None:
            _check_readout(made_at, made.take(made_at), raw)
    by_site = zip(seen, representation.sites, strict=True)
    if not representation.pooled:
        return [_one_row_each(part, site, rows).reshape(rows, -1) for part, site in by_site], raw
    return [
        _averaged(_one_row_each(part, site, rows), module_at(task.model, site.module)) for part, site in by_site
    ], raw


def _averaged(seen: Tensor, module: nn.Module) -> Tensor:
    """Average over positions: they come last at maps "row channel height width", and before the units elsewhere."""
    if seen.ndim < 3:
        return seen
    maps = isinstance(module, _ConvNd) or seen.ndim > 3 and not isinstance(module, nn.Linear)
    return seen.flatten(2).mean(2) if maps else seen.flatten(1, -2).mean(1)


def _one_row_each(seen: Tensor, site: Site, rows: int) -> Tensor:
    if rows == 1 and seen.ndim == 1:  # a squeeze() in the model drops the axis of a lone sample too
        seen = seen[None]
    if seen.ndim == 0 or seen.shape[0] != rows:
        raise ValueError(
            f"the {site.side} of {site.module!r} has shape {tuple(seen.shape)} for {rows} samples; "
            "expected one row a sample"
        )
    return seen


def _check_readout(site: Site, made: Tensor, raw: Tensor) -> None:
    same = made.numel() == raw.numel() and (made.reshape(raw.shape) == raw) | (
        made.reshape(raw.shape).isnan() & raw.isnan()
    )
    if not torch.as_tensor(same).all():
        raise ValueError(
            f"readout={site.module!r} does not make the model's output for these samples: what it returns is "
            "changed afterwards (a clamp, a mask?). Wrap the model so that it returns this layer's output"
        )


def _room(column: Tensor, rows: int) -> Tensor:
    """Return an empty column for so many rows: in memory, or where it is too large in a file that goes with it."""
    shape = (rows, *column.shape[1:])
    if rows * column[0].nbytes <= MAX_IN_MEMORY:
        return column.new_empty(shape)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the name and the handle
        return torch.from_numpy(np.memmap(file, dtype=column[:0].numpy().dtype, mode="w+", shape=shape))


def recorded_as(representation: Representation, plan: Plan) -> dict[str, Any]:
    """Return what keys recorded rows, as JSON values: what was asked for, and what of it the plan found to record.

    Which parameters take part, and by which factors, follows from the model as it stands, e.g. from what is frozen;
    projected rows do not show it.
    """
    layout = json.dumps([list(part) for part in plan.recorded_layout])
    return representation.describe() | {"rows": hash_bytes(layout)}


def record_rows(task: Task, plan: Plan, inputs: Inputs, targets: Tensor | None, index: Tensor) -> Rows:
    """Record one batch, but for what the plan has still to `finish`; missing targets are the network's predictions.

    Values of half-precision models are upcast to float32; double-precision models keep float64.

    Raises:
        NonFiniteError: a value or output is NaN or infinite; it names the samples.
    """
    try:
        with untouched(task.model):
            values, raw, spoken_of = plan.record(inputs, targets)
    except NonFiniteError as error:  # by its place in the batch
        raise _non_finite(f"outputs, or {plan.noun}", index[list(error.index)], index) from error
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    values, raw = (part.detach().to("cpu", dtype) for part in (values, raw))
    finite = values.isfinite().all(1) & raw.isfinite().all(1)
    if not bool(finite.all()):
        raise _non_finite("outputs" if values[~finite].isfinite().all() else plan.noun, index[~finite], index)
    if targets is None:
        targets = spoken_of.cpu() if spoken_of is not None else task.predicted(raw)
    elif targets.is_floating_point():
        targets = targets.to(dtype)
    return Rows(values, raw, targets, index)


def _non_finite(what: str, bad: Tensor, index: Tensor) -> NonFiniteError:
    return NonFiniteError(
        f"sample {bad[0]} has NaN or infinite {what} ({len(bad)} of the {len(index)} samples in its batch): "
        "mend or leave out these inputs",
        tuple(bad.tolist()),
    )


def finished(plan: Plan, blocks: Iterable[Rows]) -> Iterator[Rows]:
    """Turn what was recorded of consecutive batches into finished rows, as many at once as the plan asks for."""
    held: list[Rows] = []
    for rows in blocks:
        held.append(rows)
        if sum(len(part.index) for part in held) >= plan.rows_at_once:
            whole, held = join_rows(held), []
            yield whole._replace(values=plan.finish(whole.values))
    if held:
        whole = join_rows(held)
        yield whole._replace(values=plan.finish(whole.values))


@dataclass
class Recorder:
    """Record a data set, batch by batch, in data-set order.

    Attributes:
        task: with its readout resolved.
        samples: the data set.
        plan: what is recorded, and how.
        num_classes: columns of the network's output, one logit counting as two.
        batch_size: samples per forward pass.
        name: what errors call the data set.
        spec: what the inputs seen so far look like; see `input_spec`.
    """

    task: Task
    samples: Samples
    plan: Plan
    num_classes: int
    batch_size: int
    name: str = "train"
    spec: dict[str, dict] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` is {self.batch_size}; expected at least 1")

    def batches(self, start: int, stop: int) -> Iterator[Rows]:
        """Walk the recorded rows of the samples from `start` to `stop`, batch by batch or several at once."""
        return finished(self.plan, self._run(start, stop))

    def _run(self, start: int, stop: int) -> Iterator[Rows]:
        for chunk, batch in self.samples.batches(range(start, stop), self.batch_size):
            inputs, labels = self.task.split(batch)
            self.spec = merge_specs(self.spec, input_spec(inputs))
            try:
                targets = targets_of(labels, self.task.problem, self.num_classes, self.task.classes, start=chunk[0])
                yield record_rows(self.task, self.plan, inputs, targets, torch.tensor(chunk))
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
                    block = Rows(*(_room(column, stop - start) for column in rows))
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
        spec = RowSpec.of(first, self.plan.layout)
        where = (
            "in memory" if total * first.values.nbytes <= MAX_IN_MEMORY else "in a temporary file: give store= to keep"
        )
        announce(f"recording `{name}`, {spec.describe(total)}, {where}", progress)
        with progress_bar(total, enabled=progress) as bar:
            return Table([self.rows(0, total, bar)], self.plan.layout)
