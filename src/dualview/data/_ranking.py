"""Samples of one data set in an order that matters, with columns of values."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Int
from torch import Tensor

from dualview._display import png
from dualview.engine.frames import imported_pandas
from dualview.engine.source import Source

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Ranking:
    """Samples of one data set, most noteworthy first.

    Attributes:
        index: "row" positions in the data set.
        columns: name → "row" values in the same order.
        by: the column that made the order, and its direction.
        num_samples: size of the data set they were taken from.
        names: a name per row, or None.
        what: what these samples are, as the heading of a figure says it; empty: nothing but samples.
        of: the set that the positions are of: "train", the training set, or "data", another one.
        class_names: a name per output column, or None.
        source: the task and samples behind it; not saved.
    """

    index: Int[Tensor, " row"]
    columns: dict[str, Tensor]
    by: str
    num_samples: int
    names: Sequence[str] | None = None
    what: str = ""
    of: Literal["train", "data"] = "data"
    class_names: Sequence[str] | None = None
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"Ranking({len(self)} of {self.num_samples} samples, by {self.by}; columns {', '.join(self.columns)})"

    def _repr_png_(self) -> bytes | None:
        """Show the first samples in a notebook, where `dualview.plot` was imported."""
        return png(self)

    def rows(self) -> list[dict[str, int | float | str]]:
        """Return one dict a sample."""
        table = {"index": self.index.tolist(), **{name: column.tolist() for name, column in self.columns.items()}}
        if self.names is not None:
            table["name"] = list(self.names)
        return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]

    def head(self, k: int) -> Ranking:
        """Return the first k."""
        columns = {name: column[:k] for name, column in self.columns.items()}
        names = None if self.names is None else self.names[:k]
        return dataclasses.replace(self, index=self.index[:k], columns=columns, names=names)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the same as a pandas table."""
        pandas = imported_pandas()
        return pandas.DataFrame(
            self.rows(), columns=["index", *self.columns, *(["name"] if self.names is not None else [])]
        )

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as a CSV file with a header."""
        fields = ["index", *self.columns, *(["name"] if self.names is not None else [])]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(self.rows())
