"""Contenders × metrics × cases: what each measured, as one table."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualview._display import png
from dualview.engine.progress import announce
from dualview.errors import NonFiniteError
from dualview.evaluation._kept import key_of, load_kept, save_kept
from dualview.evaluation._table import COLUMNS, COSTS, Cost, Line
from dualview.evaluation._time_limit import TimeLimitReached, time_limit
from dualview.evaluation.cases import Case
from dualview.evaluation.contenders import Best, Contender
from dualview.evaluation.metrics import Inapplicable, Judged, Metric, choose


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
        """Return the lines as rows of a table, each with what its contender cost on that case."""
        nothing = dict.fromkeys(COSTS)
        return [line.row() | (nothing if cost is None else cost.row()) for line, cost in self._with_costs()]

    def _with_costs(self) -> list[tuple[Line, Cost | None]]:
        """Return each line with its contender's cost on its case; None where it has none."""
        costs = {(cost.data, cost.variant, cost.contender): cost for cost in self.costs}
        return [(line, costs.get((line.data, line.variant, line.contender))) for line in self.lines]

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
        writer.writerow((*COLUMNS, *COSTS))
        for row in self.rows():
            writer.writerow(["" if value is None or value != value else value for value in row.values()])
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return the table in Markdown, notes numbered below it."""
        notes: dict[str, int] = {}
        shown = [
            {
                "data": line.data,
                "variant": line.variant,
                **line.short(notes),
                "seconds": "" if cost is None else cost.short,
            }
            for line, cost in self._with_costs()
        ]
        head = list(shown[0]) if shown else []
        table = [head, ["---"] * len(head), *(list(row.values()) for row in shown)]
        below = [f"[{number}] {note}  " for note, number in notes.items()]
        return "\n".join(["| " + " | ".join(cells) + " |" for cells in table] + ["", *below]) + "\n"


def judge(
    contenders: Sequence[Contender | Best],
    metrics: Sequence[Metric],
    cases: Iterable[Callable[[], Case]],
    *,
    limit: float | None = None,
    keep: Path | None = None,
    progress: bool = True,
) -> Judgement:
    """Measure every contender by every metric on the cases with the flaw that the metric needs.

    A contender that refuses a case has lines without a number there, which say why. Where one is the best of several,
    all linear datamodelling scores leave out the subsets it was chosen on.

    Args:
        contenders: what is judged.
        metrics: what by.
        cases: each one made when its turn comes; a metric is taken on those of its variant.
        limit: seconds for a contender's scores on a case, and for each metric on them; what takes longer is stopped,
            has a line that says so, and is not tried on the data's other variants (a metric that trains networks:
            not for other contenders). None: no limit.
        keep: folder in which each contender's part is kept when it is done, and found by the same call of the same
            code; a killed run goes on where it was. Built-in cases only.
        progress: say what is being done.

    Raises:
        ValueError: two cases or two contenders have the same name; `keep` for a case that nothing identifies; a limit
            that cannot be kept.
    """
    with time_limit(limit):  # refused here, before it could pass for a contender's refusal
        pass
    lines: list[Line] = []
    costs: list[Cost] = []
    seen: set[tuple[str, str]] = set()
    stopped = _Stopped()
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
            path = None if keep is None else keep / f"{_key(case, one, wanted, limit)}.json"
            found = None if path is None else load_kept(path)
            if found is None:
                announce(f"{case.name}, {case.variant}: {one.name}", progress)
                found = _judged(case, one, wanted, limit, stopped)
                if path is not None:
                    save_kept(path, *found)
            stopped.note(found[0])
            lines += found[0]
            costs += found[1]
    return Judgement(tuple(lines), tuple(costs))


SCORES_STOPPED, METRIC_STOPPED = "making its scores was stopped", "it was stopped"


class _Stopped:
    """What took longer than the limit."""

    def __init__(self) -> None:
        self._scores: dict[tuple[str, str], str] = {}
        self._metrics: dict[tuple[str, str, str], str] = {}

    def note(self, lines: Iterable[Line]) -> None:
        """Remember what was stopped."""
        for line in lines:
            if line.why_not.startswith(SCORES_STOPPED):
                self._scores.setdefault((line.data, line.contender), f"{line.why_not} on {line.variant}")
            elif line.why_not.startswith(METRIC_STOPPED):
                self._metrics.setdefault((line.data, line.variant, line.metric), f"{line.why_not} for {line.contender}")

    def scores(self, case: Case, contender: Contender) -> str | None:
        """Return what is known of a contender's scores on another variant."""
        return self._scores.get((case.name, contender.name))

    def metric(self, case: Case, metric: Metric) -> str | None:
        """Return what is known of a metric that trains networks, which takes as long for every contender."""
        return self._metrics.get((case.name, case.variant, metric.name)) if metric.retrains else None


def _key(case: Case, contender: Contender, metrics: Sequence[Metric], limit: float | None) -> str:
    if case.identity is None:
        raise ValueError(f"`keep`: {case.name} is no built-in case, and nothing tells it from another of that name")
    bank = case.num_subsets, case.num_seeds, case.reserved
    return key_of(case.name, case.variant, case.identity, bank, contender, [metric.name for metric in metrics], limit)


def _judged(
    case: Case, contender: Contender, metrics: Sequence[Metric], limit: float | None, stopped: _Stopped
) -> tuple[list[Line], list[Cost]]:
    """Measure one contender on one case."""
    judged = Judged(case, contender)
    refused = stopped.scores(case, contender)
    if refused is None:
        try:
            with time_limit(limit):
                judged.scores  # noqa: B018  # made here, so that their time is known
        except ValueError as refusal:  # it is not made for these data; the table says why, and goes on
            refused = str(refusal)
        except TimeLimitReached as end:
            refused = f"{SCORES_STOPPED} {end}"
    if refused is not None:
        return [Line(case.name, case.variant, metric.name, contender.name, None, refused) for metric in metrics], []
    cost = judged.seconds["scores"]
    lines, measuring = [], 0.0
    for metric in metrics:
        started, scoring = time.perf_counter(), sum(judged.seconds.values())
        lines.append(_line(judged, metric, limit, stopped.metric(case, metric)))
        if not metric.retrains:
            measuring += time.perf_counter() - started - (sum(judged.seconds.values()) - scoring)
    fitted = judged.fitted
    return lines, [
        Cost(
            case.name,
            case.variant,
            contender.name,
            fitted.seconds,
            cost - fitted.seconds,
            judged.passes["fit"],
            judged.passes["explain"],
            len(case.test_targets),
            fitted.num_bytes(),
            measuring,
        )
    ]


def _line(judged: Judged, metric: Metric, limit: float | None, known: str | None) -> Line:
    place = judged.case.name, judged.case.variant, metric.name, judged.contender.name
    if known is not None:
        return Line(*place, None, known)
    try:
        with time_limit(limit):
            return Line(*place, metric.measure(judged))
    except Inapplicable as reason:
        return Line(*place, None, str(reason))
    except NonFiniteError as error:
        return Line(*place, None, f"undefined: {error}")
    except TimeLimitReached as end:
        return Line(*place, None, f"{METRIC_STOPPED} {end}")
