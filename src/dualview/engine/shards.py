"""Shards: consecutive rows of a data set, one memory-mapped safetensors file each."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch

from dualview.engine.files import hash_file, plain_tensors, write_atomically
from dualview.engine.tables import Rows
from dualview.ops.layout import Layout

_FIELDS = ("values", "outputs", "targets")  # the index follows from the shard's first row


class RowSpec(NamedTuple):
    """What one row holds.

    Attributes:
        width: units of `Rows.values`.
        num_classes: columns of `Rows.outputs`.
        dtype: of values, outputs, and targets that are numbers; labels are int64.
        num_targets: columns of targets that are numbers; 0 for labels.
        layout: what the numbers of a row are.
    """

    width: int
    num_classes: int
    dtype: torch.dtype = torch.float32
    num_targets: int = 0
    layout: Layout = ()

    @classmethod
    def of(cls, rows: Rows, layout: Layout = ()) -> RowSpec:
        """Return what these rows hold."""
        num_targets = rows.targets.shape[1] if rows.targets.is_floating_point() else 0
        return cls(rows.values.shape[1], rows.outputs.shape[1], rows.values.dtype, num_targets, layout)

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        target_bytes = self.num_targets * self.dtype.itemsize or torch.int64.itemsize
        return (self.width + self.num_classes) * self.dtype.itemsize + target_bytes

    @property
    def dtype_name(self) -> str:
        """The dtype as JSON keeps it."""
        return str(self.dtype).removeprefix("torch.")

    def describe(self, num_rows: int) -> str:
        """Say what this many rows take: rows × width × bytes, and the sum."""
        size, unit = float(num_rows * self.row_bytes), "B"
        for larger in ("kB", "MB", "GB", "TB"):
            if size < 1000:
                break
            size, unit = size / 1000, larger
        return (
            f"{num_rows:,} rows × ({self.width:,} features + {self.num_classes:,} outputs) × "
            f"{self.dtype.itemsize} bytes = {size:.3g} {unit}"
        )

    def check(self, rows: Rows, start: int, stop: int) -> None:
        """Raise ValueError unless `rows` are rows start, ..., stop - 1 of this kind."""
        found = (tuple(rows.values.shape), tuple(rows.outputs.shape), tuple(rows.targets.shape))
        length = stop - start
        labels = (length, self.num_targets) if self.num_targets else (length,)
        if found != ((length, self.width), (length, self.num_classes), labels):
            raise ValueError(
                f"expected values (row {length}, unit {self.width}), outputs (row {length}, class {self.num_classes}) "
                f"and targets {labels} for rows {start} to {stop - 1}, got {', '.join(map(str, found))}"
            )
        dtypes = (rows.values.dtype, rows.outputs.dtype, rows.targets.dtype)
        of_targets = self.dtype if self.num_targets else torch.int64
        if dtypes != (self.dtype, self.dtype, of_targets):
            raise ValueError(f"expected values and outputs in {self.dtype} and targets in {of_targets}, got {dtypes}")
        if not torch.equal(rows.index.cpu(), torch.arange(start, stop)):
            raise ValueError(f"expected rows {start} to {stop - 1} in data-set order, got other positions")


class Shard(NamedTuple):
    """One shard, as the manifest knows it.

    Attributes:
        file: name within the folder.
        first: position in the data set of its first row.
        num_rows: how many rows it holds.
        num_bytes: size of the file.
        checksum: hash of the file's bytes.
        data: fingerprint of the data set's samples that it was recorded from.
    """

    file: str
    first: int
    num_rows: int
    num_bytes: int
    checksum: str
    data: str

    @property
    def stop(self) -> int:
        """Position in the data set just after its last row."""
        return self.first + self.num_rows


def write_shard(folder: Path, number: int, rows: Rows, data: str) -> Shard:
    """Write rows as one shard, atomically; the same rows give the same bytes.

    The name says how many rows there are, so that a last shard which is extended never overwrites the
    one that the manifest still lists.
    """
    path = folder / f"shard-{number:05d}-{len(rows.index)}.safetensors"
    content = safetensors.torch.save(plain_tensors({name: getattr(rows, name) for name in _FIELDS}))
    write_atomically(path, content)
    return Shard(path.name, int(rows.index[0]), len(rows.index), len(content), hash_file(path), data)


def read_shard(folder: Path, shard: Shard) -> Rows:
    """Map a shard's file: its pages are read when used, and writing to the tensors leaves the file alone."""
    with safetensors.safe_open(folder / shard.file, framework="pt") as file:
        values, outputs, targets = (file.get_tensor(name) for name in _FIELDS)
    return Rows(values, outputs, targets, torch.arange(shard.first, shard.stop))


def find_damage(folder: Path, shard: Shard, checksum: bool = True) -> str | None:
    """Say what is wrong with a shard's file, or None; without `checksum` only its size is looked at."""
    path = folder / shard.file
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != shard.num_bytes:
        return f"has {path.stat().st_size:,} bytes instead of {shard.num_bytes:,}"
    if checksum and hash_file(path) != shard.checksum:
        return "was altered: its checksum differs"
    return None


def remove_unlisted(folder: Path, shards: Iterable[Shard]) -> None:
    """Remove shard files that no manifest lists: extended since, or written just before a kill."""
    listed = {shard.file for shard in shards}
    for path in folder.glob("shard-*.safetensors"):
        if path.name not in listed:
            with suppress(PermissionError):  # Windows holds a file that is mapped; the next recording removes it
                path.unlink()
