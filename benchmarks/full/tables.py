"""The tables of the page: each task by each metric, costs, and where one contender stands."""

import math
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.full.rows import Row

PURPOSES = (  # one metric a question: what random scores cannot lead
    "lds",
    "class-detection",
    "subclass-detection",
    "shortcut-detection",
    "mixed-data-detection",
    "mislabel-detection",
)
DIRECTION = {"higher": "↑", "lower": "↓", "": ""}


def metric_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return a line for each contender and a column for each metric of one task; **bold** is the best."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    heads = {row.metric: f"{row.metric} {DIRECTION[row.better]}".strip() for row in rows if row.measured}
    best = {metric: max(goods) for metric in metrics if (goods := _goods(rows, metric))}
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.metric in heads:
            line = lines.setdefault(row.contender, {"": row.contender} | {head: "" for head in heads.values()})
            line[heads[row.metric]] = _cell(row, best)
    return [line for line in lines.values() if any(cell for head, cell in line.items() if head)]


def _goods(rows: Iterable[Row], metric: str) -> list[float]:
    return [row.good for row in rows if row.metric == metric and row.measured and row.better]


def _cell(row: Row, best: dict[str, float]) -> str:
    if row.stopped:
        return "stopped"
    if not row.measured:
        return ""
    text = f"{row.value:.3f}{'*' if 'similarities' in row.notes else ''}"
    return f"**{text}**" if best.get(row.metric) == row.good else text


def cost_rows(rows: Sequence[Row], num_train: int) -> list[dict[str, str]]:
    """Return a line for each contender: its cost on a task, median over variants (the first pays for what compiles).

    Where it was stopped on some variants, the others alone have a cost, and the line says how many they are.
    """
    costs: dict[str, dict[str, Row]] = {}
    stopped: dict[str, set[str]] = {}
    for row in rows:
        if not math.isnan(row.seconds):
            costs.setdefault(row.contender, {}).setdefault(row.variant, row)  # of the first run
        elif row.stopped:
            stopped.setdefault(row.contender, set()).add(row.variant)
    lines = []
    for name in dict.fromkeys(row.contender for row in rows):
        here = costs.get(name, {})
        tried = len(here.keys() | stopped.get(name, set()))
        if tried:
            lines.append({"": name} | _cost_cells(list(here.values()), tried, num_train))
    return lines


def _cost_cells(here: Sequence[Row], tried: int, num_train: int) -> dict[str, str]:
    """Return the medians of a contender's costs, one for each of the variants that it was not stopped on."""

    def middle(of: str, unit: float = 1.0) -> float:
        return statistics.median(getattr(row, of) for row in here) / unit

    seconds, passes, kept = "stopped", "", ""
    if here:
        seconds = f"{middle('fit_seconds'):.2g} + {middle('explain_seconds'):.2g}"
        seconds += f" ({len(here)} of {tried} variants)" if len(here) < tried else ""
        passes = " + ".join(f"{middle(way, unit=num_train):.2f}" for way in ("forward", "backward"))
        kept = f"{middle('bytes', unit=num_train):,.0f}"
    return {"seconds, fit + explain": seconds, "passes, forward + backward": passes, "bytes": kept}


def ceilings(rows: Iterable[Row]) -> list[str]:
    """Return what the notes say of noise ceilings, each once."""
    found = [note for row in rows if row.metric == "lds" for note in row.notes.split("; ") if "noise ceiling" in note]
    return list(dict.fromkeys(found))


def groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return what was measured where one way is better, by metric and task."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.measured and row.better:
            found.setdefault((row.metric, row.data), []).append(row)
    return found


def rank(row: Row, group: Iterable[Row]) -> float:
    """Return a row's place in its group, 1 for the best; equal values share the mean of their places."""
    above = sum(other.good > row.good for other in group)
    equal = sum(other.good == row.good for other in group)
    return above + (equal + 1) / 2


def standing(rows: Sequence[Row], name: str, random: str) -> list[dict[str, str]]:
    """Say for each metric and task where one contender stands: its value, its place, the best other, random scores.

    The last line has its seconds on each task and those of random scores.
    """
    lines: dict[str, dict[str, str]] = {}
    tasks = list(dict.fromkeys(row.data for row in rows))
    for (metric, task), group in groups(rows).items():
        own = next((row for row in group if row.contender == name), None)
        if own is None or len(group) < 2:
            continue
        other = max((row for row in group if row is not own), key=lambda row: row.good)
        verdict = "first" if own.good > other.good else "shared" if own.good == other.good else f"{rank(own, group):g}"
        apart = own.low > other.high or own.high < other.low
        head = f"{metric} {DIRECTION[own.better]}"
        line = lines.setdefault(head, {"": head} | dict.fromkeys(tasks, ""))
        place = f"{verdict} of {len(group)}" if verdict not in ("first", "shared") else f"{verdict}, {len(group)}"
        mark = "" if apart else " ≈"
        below = [f"; {random} {row.value:.3f}" for row in group if row.contender == random and row is not other]
        line[task] = f"{own.value:.3f} ({place}); {other.contender} {other.value:.3f}{mark}{''.join(below)}"
    return [*lines.values(), {"": "seconds"} | {task: _seconds(rows, task, name, random) for task in tasks}]


def _seconds(rows: Iterable[Row], task: str, name: str, random: str) -> str:
    """Return what a contender and random scores took on a task, where they have a cost."""
    here = [row for row in rows if row.data == task and not math.isnan(row.seconds)]
    known = {row.contender for row in here}
    labels = {name: "", random: f"{random} "}
    return "; ".join(f"{label}{median_seconds(here, one):.2g}" for one, label in labels.items() if one in known)


def summary(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, str]]:
    """Return each contender's mean rank by metric over tasks, over PURPOSES, and its seconds.

    The best first; those to whom one of PURPOSES does not apply below all others, since their means leave it out.
    """
    ranks: dict[str, dict[str, list[float]]] = {}
    for (metric, _), group in groups(rows).items():
        for row in group if len(group) > 1 else ():
            ranks.setdefault(row.contender, {}).setdefault(metric, []).append(rank(row, group))
    asked = {name: [one for metric in PURPOSES for one in found.get(metric, [])] for name, found in ranks.items()}
    mean = {name: statistics.mean(found) for name, found in asked.items() if found}
    lines = []
    whole = {name for name in mean if all(metric in ranks[name] for metric in PURPOSES)}
    for name in sorted(mean, key=lambda name: (name not in whole, mean[name])):
        line = {
            "": name,
            "all purposes": f"{mean[name]:.1f} ({len(asked[name])}{'' if name in whole else ', not all'})",
        }
        for metric in metrics:
            found = ranks[name].get(metric, [])
            line[metric] = f"{statistics.mean(found):.1f} ({len(found)})" if found else ""
        line["seconds, median of cases"] = f"{median_seconds(rows, name):.2g}"
        lines.append(line)
    return lines


def leaders(rows: Sequence[Row], metric: str, confirmation: str, always: Sequence[str]) -> list[dict[str, str]]:
    """Return the five contenders that lead by a metric, those of `always` below them, and how the order holds apart.

    The order is that of mean ranks over all tasks but the confirmation, among contenders measured on most of them.
    """
    ranks: dict[str, list[float]] = {}
    apart: dict[str, str] = {}
    values: dict[str, list[float]] = {}
    for (name, task), group in groups(rows).items():
        for row in group if name == metric else ():
            if task == confirmation:
                apart[row.contender] = f"{row.value:.3f} ({rank(row, group):g} of {len(group)})"
            else:
                ranks.setdefault(row.contender, []).append(rank(row, group))
                values.setdefault(row.contender, []).append(row.value)
    most = max(map(len, ranks.values()))
    order = sorted(
        (name for name in ranks if len(ranks[name]) > most / 2), key=lambda name: statistics.mean(ranks[name])
    )
    chosen = list(dict.fromkeys([*order[:5], *(name for name in always if name in ranks)]))
    return [
        {
            "": name,
            "mean rank": f"{statistics.mean(ranks[name]):.1f}",
            "values, least to most": f"{min(values[name]):.3f} to {max(values[name]):.3f}",
            "tasks": str(len(ranks[name])),
            confirmation: apart.get(name, ""),
            "seconds, median of cases": f"{median_seconds(rows, name):.2g}",
        }
        for name in chosen
    ]


def median_seconds(rows: Sequence[Row], name: str) -> float:
    """Return a contender's seconds for fit and explanation, the median of its cases."""
    cases: dict[tuple[str, str], float] = {}
    for row in rows:
        if row.contender == name and not math.isnan(row.seconds):
            cases.setdefault((row.data, row.variant), row.seconds)  # of the first run
    return statistics.median(cases.values())
