"""Recorded samples as numbers: a block of them (`Rows`) and all of a data set's (`Table`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.ops.layout import Layout, plain

if TYPE_CHECKING:
    from dualview.engine.datasets import Samples
    from dualview.engine.replay import Batch, Replay


class Rows(NamedTuple):
    """A block of samples, as numbers.

    Attributes:
        values: what was recorded of each sample, e.g. the features its readout sees.
        outputs: the network's raw outputs, one column a class.
        targets: labels as output columns, int64; of a regression or multi-label task's training samples
            numbers, "row output", in the dtype of the outputs.
        index: position of each sample in its data set; never trust a loader's order.
    """

    values: Float[Tensor, "row unit"]
    outputs: Float[Tensor, "row cls"]
    targets: Int[Tensor, " row"] | Float[Tensor, "row output"]
    index: Int[Tensor, " row"]


class Table:
    """All recorded rows of a data set, in data-set order, held in consecutive parts.

    In memory there is one part; from a store each part is a memory-mapped shard, so that a table
    larger than memory can be walked in blocks. Part k holds the rows that follow those of part
    k - 1, and row r of the table is sample r of the data set.

    Args:
        parts: consecutive blocks of rows; their `index` must count 0, 1, 2, ... without a hole.
        layout: what the numbers of a row are; one part without a name where it is not given.
        replay: the samples themselves, where they are at hand.

    Attributes:
        shown: the samples, for pictures alone; a pickled table leaves them out.
    """

    def __init__(self, parts: Sequence[Rows], layout: Layout = (), replay: Replay | None = None) -> None:
        if not parts:
            raise ValueError("a table needs at least one row; the data set is empty")
        lengths = [len(part.index) for part in parts]
        self.parts = tuple(parts)
        self.layout = layout or (plain("", parts[0].values.shape[1]),)
        self.replay = replay
        self.shown: Samples | None = None
        self._starts = [0]
        for part, length in zip(parts, lengths, strict=True):
            first = self._starts[-1]
            if length == 0 or not torch.equal(part.index, torch.arange(first, first + length)):
                raise ValueError(f"rows of a table must count on from {first}; a part holds other positions")
            self._starts.append(first + length)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"shown": None}

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def width(self) -> int:
        """Units per row."""
        return self.parts[0].values.shape[1]

    @property
    def num_classes(self) -> int:
        """Output columns of the network."""
        return self.parts[0].outputs.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].values.dtype

    @property
    def targets(self) -> Int[Tensor, " train"] | Float[Tensor, "train output"]:
        return torch.cat([part.targets for part in self.parts])

    @property
    def outputs(self) -> Float[Tensor, "train cls"]:
        return torch.cat([part.outputs for part in self.parts])

    @property
    def values(self) -> Float[Tensor, "train unit"]:
        """All rows as one tensor; a copy unless the table has a single part."""
        return self.parts[0].values if len(self.parts) == 1 else torch.cat([part.values for part in self.parts])

    def batches(self, index: Int[Tensor, " row"]) -> Iterator[Batch]:
        """Walk the samples at these positions as the model takes them.

        Raises:
            ValueError: only their rows are at hand.
        """
        if self.replay is None:
            raise ValueError(
                "this needs the training samples themselves, to run the model on them again, and a store keeps only "
                "their rows: give train= to dualview.open"
            )
        return self.replay.batches(index)

    def rows(self, index: Int[Tensor, " row"]) -> Rows:
        """Gather the rows at these positions, in the order given; a position may come several times."""
        index = torch.as_tensor(index, dtype=torch.int64)
        if bool(((index < 0) | (index >= len(self))).any()):
            raise IndexError(f"`index` holds positions outside 0 to {len(self) - 1}")
        if len(self.parts) == 1:
            part = self.parts[0]
            return Rows(part.values[index], part.outputs[index], part.targets[index], index)
        starts = torch.tensor(self._starts[1:])
        part_of = torch.searchsorted(starts, index, right=True)
        first = self.parts[0]
        values = first.values.new_empty(len(index), first.values.shape[1])
        outputs = first.outputs.new_empty(len(index), first.outputs.shape[1])
        targets = first.targets.new_empty(len(index), *first.targets.shape[1:])
        for k in part_of.unique().tolist():
            here = part_of == k
            local = index[here] - self._starts[k]
            part = self.parts[k]
            values[here], outputs[here], targets[here] = part.values[local], part.outputs[local], part.targets[local]
        return Rows(values, outputs, targets, index)

    def blocks(self, block_size: int, index: Int[Tensor, " row"] | None = None) -> Iterator[Rows]:
        """Walk the rows (or those at `index`, in that order) in blocks of at most `block_size`."""
        index = torch.arange(len(self)) if index is None else index
        for start in range(0, len(index), block_size):
            yield self.rows(index[start : start + block_size])


def join_rows(blocks: Sequence[Rows]) -> Rows:
    """Put blocks of rows behind each other."""
    return blocks[0] if len(blocks) == 1 else Rows(*(torch.cat(column) for column in zip(*blocks, strict=True)))
