"""The figures of the page, drawn from its tables."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dualview as dv
from benchmarks.full.rows import Row, judgement
from dualview.plotting.layout import MARGIN, draw_heading, heading_of, quiet
from dualview.plotting.style import LINE, QUIET, SMALL, TRACK, Sheet, font, line_height, plain_style

WIDTH, PANEL_WIDTH, PANEL_HEIGHT, LEFT, GAP, LEGEND = 9.6, 3.55, 2.3, 0.65, 0.55, 0.75
COLOURS = ("#0b5fa5", "#b4460f", "#2e7d4f", "#8a5fae", "#a08020", "#c04f86", "#3a9a9a", "#777777", "#1c1c1c", "#d98c5f")
MARKS = "osD^vP*Xh8"


def ranks(rows: Sequence[Row]) -> Figure:
    """Draw mean rank against run time."""
    return dv.plot(judgement(rows), kind="ranks")


def metric(rows: Sequence[Row]) -> Figure:
    """Draw one metric, a panel for each task, with intervals."""
    return dv.plot(judgement(row._replace(notes="") for row in rows if row.measured))


def panels(title: str, subtitle: str, names: Sequence[str], draw: Callable[[Axes, str], Any]) -> Figure:
    """Draw a panel for each task, two beside each other, and one legend for all."""
    heading = heading_of(title, subtitle, WIDTH)
    num_rows = math.ceil(len(names) / 2)
    with plain_style():
        top = MARGIN + heading.height + 0.1
        sheet = Sheet(WIDTH, top + num_rows * (PANEL_HEIGHT + 0.95) + LEGEND)
        draw_heading(sheet, MARGIN, heading)
        for place, name in enumerate(names):
            x = LEFT + (place % 2) * (PANEL_WIDTH + GAP + LEFT)
            y = top + (place // 2) * (PANEL_HEIGHT + 0.95)
            sheet.text(x, y, name, weight="bold")
            axes = sheet.axes(x, y + line_height(9.5) + 0.06, PANEL_WIDTH, PANEL_HEIGHT)
            draw(axes, name)
            _finish(axes)
        handles, labels = sheet.figure.axes[0].get_legend_handles_labels()
        sheet.figure.legend(
            handles,
            labels,
            loc="lower center",
            ncols=3,
            frameon=False,
            prop=font(SMALL),
            bbox_to_anchor=(0.5, 0.01),
        )
    return sheet.figure


def _finish(axes: Axes) -> None:
    axes.grid(axis="y", color=TRACK, linewidth=0.8)
    axes.set_axisbelow(True)
    quiet(axes, "left", "bottom")
    axes.tick_params(which="minor", color=LINE, labelcolor=QUIET)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontproperties(font(SMALL))


def _lines(axes: Axes, table: Sequence[dict[str, str]], task: str, setting: str, x: str) -> None:
    """Draw a task's linear datamodelling scores against a column, a line a method, of one colour in all panels."""
    names = list(dict.fromkeys(row["method"] for row in table))
    for place, name in enumerate(names):
        found = [row for row in table if row["method"] == name and row["task"] == task]
        if not found:
            continue
        colour = COLOURS[place % len(COLOURS)]
        value, low, high = ([float(row[key]) for row in found] for key in ("lds", "low", "high"))
        if not found[0][setting] and x == setting:
            axes.axhline(value[0], color=colour, linewidth=1.2, linestyle=(0, (4, 3)), label=name)
            continue
        across = [float(row[x]) for row in found]
        axes.plot(
            across, value, color=colour, marker=MARKS[place % len(MARKS)], markersize=4.5, linewidth=1.4, label=name
        )
        if x == setting:
            axes.fill_between(across, low, high, color=colour, alpha=0.12, linewidth=0)
        else:
            errors = [[v - end for v, end in zip(value, low, strict=True)]]
            errors.append([end - v for v, end in zip(value, high, strict=True)])
            axes.errorbar(across, value, errors, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2)
        for row, a, v in zip(found, across, value, strict=True):
            if row.get("default") == "True":
                axes.plot([a], [v], "o", markersize=10, markerfacecolor="none", markeredgecolor=colour, zorder=4)
    axes.set_ylabel("LDS")


def damping(path: Path) -> Figure:
    """Draw linear datamodelling scores over damping."""
    words = "Linear datamodelling score over damping; bands: 95\u202f% intervals; rings: defaults; dashed: random."
    return _scores(path, "damping", "damping", "Damping", words, "damping, × the mean diagonal")


def penalty(path: Path) -> Figure:
    """Draw linear datamodelling scores over C."""
    words = (
        "Linear datamodelling score of DualView's family over C; bands: 95\u202f% intervals; dashed: methods without C."
    )
    return _scores(path, "C", "C", "What C does", words, "C")


def sparsity(path: Path) -> Figure:
    """Draw linear datamodelling scores against the share of scores that are zero."""
    words = (
        "Linear datamodelling score against sparsity; along a line C grows from 1e−6 to 1; bars: 95\u202f% intervals."
    )
    return _scores(path, "C", "zeros", "What sparsity costs", words, "share of scores that are zero")


def _scores(path: Path, setting: str, x: str, title: str, words: str, label: str) -> Figure:
    """Draw a table's linear datamodelling scores against a column; a setting stands on a logarithmic axis."""
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))

    def draw(axes: Axes, task: str) -> None:
        _lines(axes, table, task, setting, x)
        axes.set_xlabel(label)
        if x == setting:
            axes.set_xscale("log")
        else:
            axes.set_xlim(-0.03, 1.03)

    return panels(title, words, list(dict.fromkeys(row["task"] for row in table)), draw)
