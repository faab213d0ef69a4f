"""Results of methods that answer with training samples in an order, instead of a score for each."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from dualview._display import png
from dualview.data._ranking import Ranking
from dualview.engine.files import load_tensors, save_tensors
from dualview.engine.frames import imported_pandas
from dualview.engine.source import Source
from dualview.errors import DamagedFile

if TYPE_CHECKING:
    import pandas

_RESULT = "Selection"
_PER_TEST = ("num_support", "test_index", "targets", "predicted")
_TENSORS = ("train_index", "row_start", "train_targets", *_PER_TEST)


@dataclass(frozen=True, eq=False)
class Selection:
    """Training samples in an order, for each test sample.

    Those of test row t stand at row_start[t] to row_start[t + 1] of `train_index` and of every column (compressed
    sparse rows); `ranking(t)` takes them out.

    Attributes:
        train_index: "entry" positions in the training set.
        row_start: "test+1".
        columns: name → "entry", what is known of each.
        by: what the order is.
        num_support: "test", how many training samples could have been selected.
        ended: for each test sample, why there are no more, or none.
        num_train: number of training samples.
        test_index: "test", rows of the explained inputs.
        targets: "test", the output column each row was explained for.
        predicted: "test", the network's predictions.
        train_targets: "train", training labels as output columns.
        method: how the method was set, as Python prints it.
        names: a name per training sample, or None.
        class_names: a name per output column, or None.
        version: of dualview.
        source: the task and samples behind it; not saved.
    """

    train_index: Int[Tensor, " entry"]
    row_start: Int[Tensor, " row_start"]
    columns: dict[str, Tensor]
    by: str
    num_support: Int[Tensor, " test"]
    ended: tuple[str, ...]
    num_train: int
    test_index: Int[Tensor, " test"]
    targets: Int[Tensor, " test"]
    predicted: Int[Tensor, " test"]
    train_targets: Int[Tensor, " train"]
    method: str
    names: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    version: str = ""
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.test_index)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Selection:
        """Return the same result for some of its test rows; an integer keeps one row."""
        index = torch.arange(len(self))[rows].reshape(-1)
        counts = self.counts[index]
        row_start = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        entries = (self.row_start[index] - row_start[:-1]).repeat_interleave(counts) + torch.arange(int(counts.sum()))
        return dataclasses.replace(
            self,
            train_index=self.train_index[entries],
            row_start=row_start,
            columns={name: column[entries] for name, column in self.columns.items()},
            ended=tuple(self.ended[row] for row in index.tolist()),
            **{name: getattr(self, name)[index] for name in _PER_TEST},
        )

    def __repr__(self) -> str:
        counts, empty = self.counts, int((self.counts == 0).sum())
        lengths = f"{int(counts.min())} to {int(counts.max())}" if len(self) else "no"
        return (
            f"Selection({len(self)} test × {self.num_train} train, {lengths} samples each"
            f"{f', none for {empty}' if empty else ''}, {self.by}; columns {', '.join(self.columns)}; {self.method})"
        )

    def _repr_png_(self) -> bytes | None:
        """Show the selection of the first row in a notebook, where `dualview.plot` was imported."""
        return png(self)

    @property
    def counts(self) -> Int[Tensor, " test"]:
        """How many training samples were selected for each test sample."""
        return self.row_start.diff()

    def entry_rows(self) -> Int[Tensor, " entry"]:
        """Return the row of each entry."""
        return torch.arange(len(self)).repeat_interleave(self.counts)

    def places(self) -> Int[Tensor, " entry"]:
        """Return the place of each entry in the order of its row, from 0."""
        return torch.arange(len(self.train_index)) - self.row_start[self.entry_rows()]

    def ranking(self, test: int = 0) -> Ranking:
        """Return what was selected for one test row, in order.

        Raises:
            IndexError: there is no such row.
        """
        one = self[test]
        names = None if self.names is None else [self.names[int(position)] for position in one.train_index]
        return Ranking(
            one.train_index, one.columns, self.by, self.num_train, names,
            what=f"Training samples selected for test {int(one.test_index)}", of="train",
            class_names=self.class_names, source=self.source,
        )  # fmt: skip

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one line per selected sample, in order within each test row.

        Columns: test, place, train, the columns of values, target, predicted, train_target, and where known
        train_name, target_name, train_target_name.
        """
        pandas = imported_pandas()
        rows, train = self.entry_rows(), self.train_index
        frame = pandas.DataFrame(
            {
                "test": self.test_index[rows].numpy(),
                "place": self.places().numpy(),
                "train": train.numpy(),
                **{name: column.numpy() for name, column in self.columns.items()},
                "target": self.targets[rows].numpy(),
                "predicted": self.predicted[rows].numpy(),
                "train_target": self.train_targets[train].numpy(),
            }
        )
        if self.names is not None:
            frame["train_name"] = [self.names[position] for position in train.tolist()]
        if self.class_names is not None:
            for column in ("target", "train_target"):
                frame[f"{column}_name"] = [self.class_names[c] for c in frame[column]]
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save everything but `source` as one safetensors file."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {f"columns.{name}": column for name, column in self.columns.items()}
        left_out = (*_TENSORS, "columns", "source")
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        for name in ("names", "class_names"):
            facts[name] = None if facts[name] is None else list(facts[name])
        save_tensors(path, tensors, {"result": _RESULT, "columns": list(self.columns), "facts": facts})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Load what `save` wrote; it has no source, so pictures need one.

        Raises:
            DamagedFile: the file is truncated, altered, or holds something else.
        """
        tensors, info = load_tensors(path)
        if not isinstance(info, dict) or info.get("result") != _RESULT:
            raise DamagedFile(f"{path} holds no Selection")
        facts = info["facts"] | {"ended": tuple(info["facts"]["ended"])}
        columns = {name: tensors[f"columns.{name}"] for name in info["columns"]}
        return cls(**{name: tensors[name] for name in _TENSORS}, columns=columns, **facts)
