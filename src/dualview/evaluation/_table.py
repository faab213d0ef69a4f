"""One contender by one metric on one case, and what it cost there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dualview.evaluation._estimate import Estimate

COLUMNS = ("data", "variant", "metric", "contender", "value", "low", "high", "chance", "samples", "better", "notes")
COSTS = ("fit_seconds", "explain_seconds", "forward", "backward", "bytes")
_BETTER = {True: "higher", False: "lower", None: ""}


@dataclass(frozen=True)
class Line:
    """One contender by one metric on one case.

    Attributes:
        data: name of the case.
        variant: its flaw.
        metric: name of the metric.
        contender: name of the contender.
        estimate: what was measured; None where the metric does not apply.
        why_not: the reason then.
    """

    data: str
    variant: str
    metric: str
    contender: str
    estimate: Estimate | None
    why_not: str = ""

    def row(self) -> dict[str, Any]:
        """Return the line as one row of a table, COLUMNS in order."""
        if self.estimate is None:
            values: list[Any] = [math.nan, math.nan, math.nan, None, 0, "", self.why_not]
        else:
            found = self.estimate
            better, notes = _BETTER[found.higher_is_better], "; ".join(found.notes)
            values = [found.mean, found.low, found.high, found.chance, found.num_samples, better, notes]
        return dict(zip(COLUMNS, [self.data, self.variant, self.metric, self.contender, *values], strict=True))

    def short(self, notes: dict[str, int]) -> dict[str, str]:
        """Return the line in words for people; its notes become numbers, and are added to `notes` where new."""
        said = (self.why_not,) if self.estimate is None else self.estimate.notes
        marks = " ".join(f"[{notes.setdefault(note, len(notes) + 1)}]" for note in said)
        names = ("mean", "95 % interval", "chance", "better", "over")
        cells = dict(zip(names, _cells(self.estimate), strict=True))
        return {"metric": self.metric, "contender": self.contender, **cells, "notes": marks}


@dataclass(frozen=True)
class Cost:
    """What a contender cost on one case.

    Attributes:
        data: name of the case.
        variant: its flaw.
        contender: name of the contender.
        fit_seconds: seeing the training set, recording included.
        explain_seconds: scoring all test samples for their predicted classes.
        fit_passes: samples that went forward and backward through the network meanwhile.
        explain_passes: the same in the explanation.
        num_test: how many test samples there are.
        num_bytes: kept between fit and explanation.
        metric_seconds: what the metrics took themselves, without the scores they asked for; those that retrain
            are left out.
    """

    data: str
    variant: str
    contender: str
    fit_seconds: float
    explain_seconds: float
    fit_passes: tuple[int, int]
    explain_passes: tuple[int, int]
    num_test: int
    num_bytes: int
    metric_seconds: float

    @property
    def short(self) -> str:
        """Seconds of fit and explanation, in words for people."""
        return f"{self.fit_seconds:.2g} + {self.explain_seconds:.2g}"

    def row(self) -> dict[str, Any]:
        """Return the cost as the end of a table's row, COSTS in order."""
        passes = [fit + explain for fit, explain in zip(self.fit_passes, self.explain_passes, strict=True)]
        values = [round(self.fit_seconds, 4), round(self.explain_seconds, 4), *passes, self.num_bytes]
        return dict(zip(COSTS, values, strict=True))


def _cells(found: Estimate | None) -> tuple[str, ...]:
    if found is None:
        return "does not apply", "", "", "", ""
    interval = "" if math.isnan(found.low) else f"({found.low:.3f} to {found.high:.3f})"
    chance = "" if found.chance is None else f"{found.chance:.3f}"
    mean = "undefined" if math.isnan(found.mean) else f"{found.mean:.3f}"
    return mean, interval, chance, _BETTER[found.higher_is_better], f"{found.num_samples} {found.over}"
