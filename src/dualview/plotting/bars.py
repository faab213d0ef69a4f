"""Bars of named things, each a sum of signed terms; all lengths are inches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from dualview.plotting.layout import MARGIN, draw_heading, draw_notes, heading_of, note_lines, notes_height
from dualview.plotting.style import LINE, QUIET, SMALL, TEXT, Sheet, line_height, shorten, text_width, wrap
from dualview.plotting.words import signed

ROOM, NARROW = 3.6, 1.25  # of the bars; of those that stand in several columns
GUTTER = 0.3  # between columns
NAMES, VALUES, SCORES = 2.2, 1.0, 0.75  # most room of names, of values, and of the scores at the right
ROW, BAR = 0.25, 0.15
PALETTE = ("#0b5fa5", "#e08a1e", "#3f9c77", "#9a62a8", "#7d7d7d", "#c2b280", "#555555")
LEFT_OVER = ("not expressed", "remainder", "beyond", "further terms")
CHIP = 0.11


class Bar(NamedTuple):
    """One named thing.

    Attributes:
        name: what it is.
        value: its own value in words, or "".
        terms: what its score is the sum of.
    """

    name: str
    value: str
    terms: tuple[float, ...]

    @property
    def score(self) -> float:
        """The sum of its terms."""
        return sum(self.terms, 0.0)


class Panel(NamedTuple):
    """What a figure of bars says.

    Attributes:
        title: which prediction.
        subtitle: what a score is.
        bars: from top to bottom.
        terms: name → colour, in the order of each bar's terms; of a single term the sign colours it.
        facts: (text, colour) lines below the bars.
        notes: at the foot.
    """

    title: str
    subtitle: str
    bars: Sequence[Bar]
    terms: Mapping[str, str]
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]


class _Column(NamedTuple):
    """What every column of bars has: room for names and for values, where its bars begin, and their scale."""

    names: float
    left: float
    room: float
    zero: float
    unit: float

    @property
    def width(self) -> float:
        return self.left + self.room + 0.1 + SCORES


def draw_bars(panel: Panel, tones: tuple[str, str], columns: int = 1) -> Figure:
    """Lay the bars out on a sheet that is just large enough.

    Args:
        panel: what is drawn.
        tones: of a rise and of a fall.
        columns: read from top to bottom and then from left to right; all are on one scale.
    """
    column = _column(panel.bars, NARROW if columns > 1 else ROOM)
    width = 2 * MARGIN + columns * (column.width + GUTTER) - GUTTER
    heading = heading_of(panel.title, panel.subtitle, width)
    several = len(panel.terms) > 1
    legend = _legend_lines(panel.terms, width - 2 * MARGIN) if several else []
    facts = [(line, tone) for words, tone in panel.facts for line in wrap(words, width - 2 * MARGIN, TEXT, 3)]
    notes = note_lines(list(panel.notes), width)
    above = heading.height + len(legend) * line_height(SMALL) + (0.08 if legend else 0.0)
    below = (0.12 if facts else 0.0) + len(facts) * line_height(TEXT)
    rows = math.ceil(len(panel.bars) / columns) or 1
    sheet = Sheet(width, 2 * MARGIN + above + rows * ROW + below + notes_height(notes))
    draw_heading(sheet, MARGIN, heading)
    _draw_legend(sheet, MARGIN + heading.height, legend, panel.terms)
    y = MARGIN + above
    colours = [*panel.terms.values()] if several else []
    for first in range(0, len(panel.bars), rows):
        x, members = MARGIN + first // rows * (column.width + GUTTER), panel.bars[first : first + rows]
        sheet.box(x + column.left + column.zero - 0.004, y, 0.008, len(members) * ROW, LINE)
        for number, bar in enumerate(members):
            _draw_bar(sheet, x, y + number * ROW, bar, column, colours, tones)
    y += rows * ROW + 0.12
    for line, tone in facts:
        sheet.text(MARGIN, y, line, color=tone)
        y += line_height(TEXT)
    draw_notes(sheet, notes)
    return sheet.figure


def _column(bars: Sequence[Bar], room: float) -> _Column:
    names = min(NAMES, max((text_width(bar.name, TEXT) for bar in bars), default=0.5))
    values = min(VALUES, max((text_width(bar.value, SMALL) for bar in bars), default=0.0))
    low = min((sum(min(0.0, term) for term in bar.terms) for bar in bars), default=0.0)
    high = max((sum(max(0.0, term) for term in bar.terms) for bar in bars), default=0.0)
    unit = room / ((high - low) or 1.0)
    return _Column(names, names + (0.12 + values if values else 0.0) + 0.15, room, -low * unit, unit)


def _draw_bar(
    sheet: Sheet, x: float, y: float, bar: Bar, column: _Column, colours: Sequence[str], tones: tuple[str, str]
) -> None:
    """Draw one row: name, value, the terms as segments in these colours (without: by their signs), and the score."""
    left, zero = x + column.left, x + column.left + column.zero
    sheet.text(x + column.names, y + 0.04, shorten(bar.name, column.names, TEXT), ha="right")
    sheet.text(left - 0.15, y + 0.05, shorten(bar.value, VALUES, SMALL), size=SMALL, color=QUIET, ha="right")
    ends = [zero, zero]  # where the next segment of a fall and of a rise begins
    for place, term in enumerate(bar.terms):
        length, rises = abs(term) * column.unit, term > 0
        start = ends[rises] if rises else ends[rises] - length
        tone = colours[place] if colours else tones[0 if rises else 1]
        sheet.box(start, y + (ROW - BAR) / 2, length, BAR, tone)
        ends[rises] += length if rises else -length
    sheet.text(left + column.room + 0.1 + SCORES, y + 0.04, signed(bar.score), ha="right")


def palette(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each term; what is left over is grey."""
    colours = dict(zip(names, PALETTE, strict=False))
    return {name: "#b9b9b9" if name in LEFT_OVER else colours[name] for name in names}


def _legend_lines(terms: Mapping[str, str], room: float) -> list[list[str]]:
    lines, used = [[]], 0.0
    for name in terms:
        wide = CHIP + 0.06 + text_width(name, SMALL) + 0.2
        if lines[-1] and used + wide > room:
            lines.append([])
            used = 0.0
        lines[-1].append(name)
        used += wide
    return lines


def _draw_legend(sheet: Sheet, y: float, lines: Sequence[Sequence[str]], terms: Mapping[str, str]) -> None:
    for number, line in enumerate(lines):
        x, top = MARGIN, y + number * line_height(SMALL)
        for name in line:
            sheet.box(x, top + 0.02, CHIP, CHIP, terms[name])
            sheet.text(x + CHIP + 0.06, top, name, size=SMALL)
            x += CHIP + 0.06 + text_width(name, SMALL) + 0.2
