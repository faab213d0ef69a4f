"""Contenders × metrics × cases: what each measured, as one table."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dualview._display import png
from dualview.engine.progress import announce
from dualview.errors import NonFiniteError
from dualview.evaluation._estimate import Estimate
from dualview.evaluation.cases import Case
from dualview.evaluation.contenders import Best, Contender
from dualview.evaluation.metrics import Inapplicable, Judged, Metric, choose

COLUMNS = ("data", "variant", "metric", "contender", "value", "low", "high", "chance", "samples", "better", "notes")
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


@dataclass(frozen=True)
class Judgement:
    """What `judge` measured.

    Attributes:
        lines: one for each contender, metric and case.
        costs: one for each contender and case.
    """

    lines: tuple[Line, ...]
    costs: tuple[Cost, ...]

    def _repr_png_(self) -> bytes | None:
        """Show the metrics in a notebook, where `dualview.plot` was imported."""
        return png(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return the lines as rows of a table."""
        return [line.row() for line in self.lines]

    def ranks(self) -> dict[str, tuple[float, int]]:
        """Return each contender's mean rank, 1 for the best, and over how many comparisons it was taken.

        A comparison is a metric on a case where one way is better; contenders with equal values share
        the mean of their ranks, and those for whom the metric does not apply take no part in it.
        """
        ranks: dict[str, list[float]] = {}
        groups: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
        for line in self.lines:
            if line.estimate is None or line.estimate.higher_is_better is None or math.isnan(line.estimate.mean):
                continue
            value = line.estimate.mean if line.estimate.higher_is_better else -line.estimate.mean
            groups.setdefault((line.data, line.variant, line.metric), []).append((line.contender, value))
        for group in groups.values():
            for name, value in group:
                above, equal = sum(v > value for _, v in group), sum(v == value for _, v in group)
                if len(group) > 1:
                    ranks.setdefault(name, []).append(above + (equal + 1) / 2)
        return {name: (sum(values) / len(values), len(values)) for name, values in ranks.items()}

    def to_csv(self) -> str:
        """Return the table as comma-separated values."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows():
            writer.writerow(["" if value is None or value != value else value for value in row.values()])
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return the table in Markdown, notes numbered below it."""
        notes: dict[str, int] = {}
        shown = [{"data": line.data, "variant": line.variant, **line.short(notes)} for line in self.lines]
        head = list(shown[0]) if shown else []
        table = [head, ["---"] * len(head), *(list(row.values()) for row in shown)]
        below = [f"[{number}] {note}  " for note, number in notes.items()]
        return "\n".join(["| " + " | ".join(cells) + " |" for cells in table] + ["", *below]) + "\n"


def judge(
    contenders: Sequence[Contender | Best],
    metrics: Sequence[Metric],
    cases: Iterable[Callable[[], Case]],
    *,
    progress: bool = True,
) -> Judgement:
    """Measure every contender by every metric on the cases with the flaw that the metric needs.

    A contender that refuses a case has lines without a number there, which say why. Where one is the best of several,
    all linear datamodelling scores leave out the subsets it was chosen on.

    Args:
        contenders: what is judged.
        metrics: what by.
        cases: each one made when its turn comes; a metric is taken on those of its variant.
        progress: say what is being done.

    Raises:
        ValueError: two cases or two contenders have the same name.
    """
    lines: list[Line] = []
    seen: set[tuple[str, ...]] = set()
    costs: list[Cost] = []
    for make in cases:
        case = make()
        names = [one.name for one in contenders if isinstance(one, Contender)]
        if (case.name, case.variant) in seen or len(set(names)) < len(names):
            raise ValueError(f"names must differ: {case.name}, {case.variant} or one of {', '.join(names)} comes twice")
        seen.add((case.name, case.variant))
        wanted = [metric for metric in metrics if metric.variant == case.variant]
        if any(metric.name == "lds" for metric in wanted) and case.retrain is not None:
            case.bank(progress)  # before any contender's time is taken
        if any(isinstance(one, Best) for one in contenders):
            case = dataclasses.replace(case, reserved=True)
        for given in contenders if wanted else ():
            one = choose(given, case) if isinstance(given, Best) else given
            announce(f"{case.name}, {case.variant}: {one.name}", progress)
            judged = Judged(case, one)
            try:
                judged.scores  # noqa: B018  # made here, so that their time is known
            except ValueError as refusal:  # it is not made for these data; the table says why, and goes on
                lines += [Line(case.name, case.variant, metric.name, one.name, None, str(refusal)) for metric in wanted]
                continue
            cost = judged.seconds["scores"]
            measuring = 0.0
            for metric in wanted:
                started, scoring = time.perf_counter(), sum(judged.seconds.values())
                lines.append(_line(judged, metric))
                if not metric.retrains:
                    measuring += time.perf_counter() - started - (sum(judged.seconds.values()) - scoring)
            fitted = judged.fitted
            costs.append(
                Cost(
                    case.name,
                    case.variant,
                    one.name,
                    fitted.seconds,
                    cost - fitted.seconds,
                    judged.passes["fit"],
                    judged.passes["explain"],
                    len(case.test_targets),
                    fitted.num_bytes(),
                    measuring,
                )
            )
    return Judgement(tuple(lines), tuple(costs))


def _line(judged: Judged, metric: Metric) -> Line:
    place = judged.case.name, judged.case.variant, metric.name, judged.contender.name
    try:
        return Line(*place, metric.measure(judged))
    except Inapplicable as reason:
        return Line(*place, None, str(reason))
    except NonFiniteError as error:
        return Line(*place, None, f"undefined: {error}")


def _cells(found: Estimate | None) -> tuple[str, ...]:
    if found is None:
        return "does not apply", "", "", "", ""
    interval = "" if math.isnan(found.low) else f"({found.low:.3f} to {found.high:.3f})"
    chance = "" if found.chance is None else f"{found.chance:.3f}"
    mean = "undefined" if math.isnan(found.mean) else f"{found.mean:.3f}"
    return mean, interval, chance, _BETTER[found.higher_is_better], f"{found.num_samples} {found.over}"
