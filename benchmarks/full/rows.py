"""What `dualview evaluate --csv` wrote, read back: one row for each contender, metric, data set and variant."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from dualview.evaluation._estimate import Estimate
from dualview.evaluation._table import Cost, Line
from dualview.evaluation.judgement import Judgement

NAN = math.nan
HIGHER = {"higher": True, "lower": False, "": None}


class Row(NamedTuple):
    """One row of the table; what was not measured is NaN."""

    data: str
    variant: str
    metric: str
    contender: str
    value: float
    low: float
    high: float
    chance: float
    samples: int
    better: str
    notes: str
    fit_seconds: float
    explain_seconds: float
    forward: float
    backward: float
    bytes: float

    @property
    def measured(self) -> bool:
        return not math.isnan(self.value)

    @property
    def seconds(self) -> float:
        return self.fit_seconds + self.explain_seconds

    @property
    def good(self) -> float:
        """The value, turned so that more is better."""
        return -self.value if self.better == "lower" else self.value

    @property
    def stopped(self) -> bool:
        return not self.measured and "stopped after" in self.notes


def read(*paths: Path) -> list[Row]:
    """Return the rows of tables."""
    rows = []
    for path in paths:
        with path.open(newline="") as file:
            for cells in csv.DictReader(file):
                words = {name: cells[name] for name in ("data", "variant", "metric", "contender", "better", "notes")}
                numbers = {name: float(cells[name] or NAN) for name in Row._fields if name not in (*words, "samples")}
                rows.append(Row(**words, **numbers, samples=int(cells["samples"])))
    return rows


def judgement(rows: Iterable[Row]) -> Judgement:
    """Return the rows as the judgement they were written from, as far as figures need it: means for single values."""
    lines, costs = [], {}
    for row in rows:
        found = None
        if row.samples:
            values = torch.full((row.samples,), row.value, dtype=torch.float64)
            chance = None if math.isnan(row.chance) else row.chance
            notes = tuple(note for note in row.notes.split("; ") if note)
            found = Estimate(row.metric, values, row.low, row.high, HIGHER[row.better], chance=chance, notes=notes)
        lines.append(Line(*row[:4], found, "" if found else row.notes))
        if not math.isnan(row.seconds):
            key = row.data, row.variant, row.contender
            passes = (int(row.forward), int(row.backward))
            cost = Cost(*key, row.fit_seconds, row.explain_seconds, passes, (0, 0), 0, int(row.bytes), 0.0)
            costs.setdefault(key, cost)  # of the first run
    return Judgement(tuple(lines), tuple(costs.values()))
