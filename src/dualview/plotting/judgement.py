"""The field at a glance: what each contender measured, and its mean rank against its run time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dualview._display import shows
from dualview.evaluation._estimate import Estimate
from dualview.evaluation.judgement import Judgement, Line
from dualview.plotting.ranks import rank_figure
from dualview.plotting.words import MINUS, count, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dualview.plotting.style import Sheet

WIDTH, COLUMNS = 6.4, 3  # a sheet's least width; panels beside each other at most
PANEL, GAP, AXIS, BETWEEN = 1.75, 0.3, 0.3, 0.22  # a panel's least width, the gap beside it, its axis, and below
NAME, MARKS, BESIDE, INDENT = 2.75, 0.8, 0.08, 0.32  # names and marks are broken at these; beside a panel, a number


@shows(Judgement)
def judgement_figure(judgement: Judgement, kind: str = "metrics") -> Figure:
    """Draw a judgement.

    Args:
        judgement: what `judge` returned.
        kind: "metrics", see `metrics_figure`, or "ranks", see `rank_figure`.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        ValueError: there is no such kind, or nothing to draw.
    """
    draw = {"metrics": metrics_figure, "ranks": rank_figure}
    if kind not in draw:
        raise ValueError(f"`kind` is {kind!r}; expected 'metrics' or 'ranks'")
    return draw[kind](judgement)


# ── what each measured ───────────────────────────────────────────────────────────────────────────


class Panel(NamedTuple):
    """One metric on one case: contender → what was measured, and → numbers of its notes, broken into lines."""

    lines: dict[str, Line]
    marks: dict[str, list[str]]
    heading: list[tuple[str, str]]  # words and weight


class Grid(NamedTuple):
    """Where rows and panels stand."""

    names: dict[str, list[str]]  # contender → its name, broken into lines
    rows: dict[str, tuple[float, float]]  # contender → top and bottom of its row, from the top of a panel
    left: float  # of the first panel
    panel: float  # width
    cell: float  # width of a panel with its marks and the gap beside it
    height: float  # of a panel
    columns: int


def metrics_figure(judgement: Judgement) -> Figure:
    """Draw a panel for each metric on each case: a row a contender, its mean as a dot, its 95 % interval as a bar.

    Panels stand in the order in which they were measured, each on a scale of its own; a dashed line
    marks chance. What is undefined or does not apply is said in its row, and every note is written
    at the foot.

    Args:
        judgement: what `judge` returned.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        ValueError: nothing was measured.
    """
    from dualview.plotting.layout import MARGIN, draw_heading, heading_of
    from dualview.plotting.style import QUIET, SMALL, Sheet, line_height, plain_style, wrap

    if not judgement.lines:
        raise ValueError("the judgement holds no lines: no metric was taken on any case")
    panels, grid, notes = _arranged(judgement.lines)
    width = grid.left + grid.columns * grid.cell - GAP + MARGIN
    heading = heading_of(*_words(judgement.lines), width)
    foot = [wrap(note, width - 2 * MARGIN - INDENT, SMALL, len(note)) for note in notes]
    rows = [panels[at : at + grid.columns] for at in range(0, len(panels), grid.columns)]
    above = [max(len(panel.heading) for panel in row) * line_height(SMALL) + 0.06 for row in rows]
    below = grid.height + AXIS + BETWEEN
    with plain_style():
        height = heading.height + sum(above) + len(rows) * below + sum(map(len, foot)) * line_height(SMALL)
        sheet = Sheet(width, 2 * MARGIN + height)
        draw_heading(sheet, MARGIN, heading)
        y = MARGIN + heading.height
        for row, room in zip(rows, above, strict=True):
            _draw_row(sheet, y, row, grid, room)
            y += room + below
        for place, lines in enumerate(foot, start=1):
            sheet.text(MARGIN, y, str(place), size=SMALL, color=QUIET)
            for line in lines:
                sheet.text(MARGIN + INDENT, y, line, size=SMALL, color=QUIET)
                y += line_height(SMALL)
    return sheet.figure


def _words(lines: Sequence[Line]) -> tuple[str, str]:
    """Say what stands in the figure, and how this very figure is read."""
    found = [line.estimate for line in lines if line.estimate is not None]
    legend = ["Dots: means", "bars: 95\u202f% intervals"]
    if any(math.isfinite(one.mean) and not _is_told(one) for one in found):
        legend.append("hollow: no interval can be told")
    if any(one.chance is not None for one in found):
        legend.append("dashed lines: chance")
    if any(_notes(line) for line in lines):
        legend.append("numbers: notes, at the foot")
    counted = {"contender": "contender", "metric": "metric", "data": "data set"}
    title = ", ".join(count(len({getattr(line, name) for line in lines}), word) for name, word in counted.items())
    return title, "; ".join(legend) + "."


def _arranged(lines: Sequence[Line]) -> tuple[list[Panel], Grid, list[str]]:
    """Return the panels, where they stand, and the notes in the order in which the panels name them."""
    from dualview.plotting.layout import MARGIN
    from dualview.plotting.style import SMALL, line_height, text_width, wrap

    groups: dict[tuple[str, str, str, int], dict[str, Line]] = {}
    seen = Counter[tuple[str, str, str, str]]()
    for line in lines:
        place = line.data, line.variant, line.metric
        seen[*place, line.contender] += 1  # two cases may have one name, and neither may hide the other
        groups.setdefault((*place, seen[*place, line.contender]), {})[line.contender] = line
    names = {line.contender: wrap(line.contender, NAME, SMALL, len(line.contender)) for line in lines}
    notes: dict[str, int] = {}
    marks: list[dict[str, list[str]]] = []
    for group in groups.values():
        said = {name: _notes(group[name]) for name in names if name in group}
        numbers = {name: [str(notes.setdefault(note, len(notes) + 1)) for note in said[name]] for name in said}
        marks.append({name: wrap(", ".join(found), MARKS, SMALL, 1 + len(found)) for name, found in numbers.items()})
    left = MARGIN + max(text_width(words, SMALL) for name in names.values() for words in name) + BESIDE
    gutter = max((text_width(m, SMALL) + BESIDE for one in marks for ms in one.values() for m in ms), default=0.0)
    columns = min(COLUMNS, len(groups))
    panel = max(PANEL, (WIDTH - left - MARGIN + GAP) / columns - GAP - gutter)
    rows, bottom = dict[str, tuple[float, float]](), 0.0
    for name in names:
        top, num_lines = bottom, max(len(one[name]) for one in (names, *marks) if name in one)
        bottom += num_lines * line_height(SMALL) + 0.05
        rows[name] = top, bottom
    room = panel + gutter
    panels = [Panel(g, m, _heading([*g.values()], room)) for g, m in zip(groups.values(), marks, strict=True)]
    return panels, Grid(names, rows, left, panel, room + GAP, bottom, columns), list(notes)


def _notes(line: Line) -> list[str]:
    return [note for note in ([line.why_not] if line.estimate is None else line.estimate.notes) if note.strip()]


def _heading(lines: Sequence[Line], width: float) -> list[tuple[str, str]]:
    """Say above a panel which metric and case it is, which way is better, and what chance is."""
    from dualview.plotting.style import SMALL, wrap

    found = [line.estimate for line in lines if line.estimate is not None]
    ways = {True: "higher is better", False: "lower is better", None: "neither way is better"}
    reading = [ways[way] for way in dict.fromkeys(one.higher_is_better for one in found)]
    if chances := sorted(one.chance for one in found if one.chance is not None):
        reading.append("chance " + " to ".join(dict.fromkeys(number(end) for end in (chances[0], chances[-1]))))
    case = f"{lines[0].data}, {lines[0].variant}"
    said = (lines[0].metric, "bold"), (case, "normal"), (", ".join(reading), "normal")
    return [(part, weight) for words, weight in said for part in wrap(words, width, SMALL, 1 + len(words), weight)]


def _is_told(found: Estimate) -> bool:
    return math.isfinite(found.low) and math.isfinite(found.high)


def _draw_row(sheet: Sheet, y: float, panels: Sequence[Panel], grid: Grid, room: float) -> None:
    """Draw panels beside each other, the contenders' names at their left; y is the top of the headings."""
    from dualview.plotting.layout import MARGIN, draw_lines
    from dualview.plotting.style import SMALL, TRACK, line_height

    band = grid.left + len(panels) * grid.cell - GAP - MARGIN + 2 * BESIDE
    for place, (name, (top, bottom)) in enumerate(grid.rows.items()):
        if place % 2 == 0:
            sheet.box(MARGIN - BESIDE, y + room + top, band, bottom - top, TRACK)
        draw_lines(sheet, MARGIN, y + room + (top + bottom) / 2, grid.names[name])
    for column, panel in enumerate(panels):
        x = grid.left + column * grid.cell
        for at, (words, weight) in enumerate(panel.heading):
            sheet.text(x, y + at * line_height(SMALL), words, size=SMALL, weight=weight)
        _draw_panel(sheet, x, y + room, panel, grid)


def _draw_panel(sheet: Sheet, x: float, y: float, panel: Panel, grid: Grid) -> None:
    """Draw one panel's rows, in inches downwards; (x, y) is its top left corner."""
    from dualview.plotting.layout import draw_lines
    from dualview.plotting.style import FOR, PAPER, QUIET

    axes = sheet.axes(x, y, grid.panel, grid.height)
    axes.set_ylim(grid.height, 0)
    shown: list[float] = []
    for name, (top, bottom) in grid.rows.items():
        middle = (top + bottom) / 2
        draw_lines(sheet, x + grid.panel + BESIDE, y + middle, panel.marks.get(name, []))
        line = panel.lines.get(name)
        found = None if line is None else line.estimate
        if found is None or not math.isfinite(found.mean):
            words = "not measured" if line is None else "does not apply" if found is None else number(found.mean)
            draw_lines(sheet, x + BESIDE, y + middle, [words])
            continue
        if found.chance is not None:
            axes.plot([found.chance] * 2, [top, bottom], color=QUIET, linewidth=1, linestyle=(0, (3, 2)))
        if _is_told(found):
            axes.plot([found.low, found.high], [middle] * 2, color=FOR, linewidth=1.8, solid_capstyle="butt")
        fill = FOR if _is_told(found) else PAPER
        axes.plot([found.mean], [middle], "o", markersize=5.5, color=fill, markeredgecolor=FOR, markeredgewidth=1.4)
        shown += [x for x in (found.mean, found.low, found.high, found.chance) if x is not None and math.isfinite(x)]
    axes.set_zorder(2)  # the bands lie on the sheet, below
    axes.patch.set_visible(False)
    _finish_panel(axes, shown)


def _finish_panel(axes: Axes, shown: Sequence[float]) -> None:
    """Give a panel an axis that holds what it shows; where that is nothing, none."""
    from matplotlib.ticker import MaxNLocator

    from dualview.plotting.layout import quiet

    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", MINUS))
    if shown:
        room = 0.08 * (max(shown) - min(shown)) or 0.1 * max(1.0, abs(shown[0]))
        axes.set_xlim(min(shown) - room, max(shown) + room)
    else:
        axes.set_xticks([])
    axes.set_yticks([])
    quiet(axes, "bottom")
