"""Bars of named things, each a sum of signed terms; all lengths are inches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from dualview.plotting.layout import MARGIN, draw_heading, draw_notes, heading_of, note_lines, notes_height
from dualview.plotting.style import LINE, QUIET, SMALL, TEXT, Sheet, line_height, shorten, text_width, wrap
from dualview.plotting.words import signed

ROOM = 3.6  # of the bars
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


def draw_bars(panel: Panel, tones: tuple[str, str]) -> Figure:
    """Lay the bars out on a sheet that is just large enough; `tones` are those of a rise and of a fall."""
    names = min(NAMES, max((text_width(bar.name, TEXT) for bar in panel.bars), default=0.5))
    values = min(VALUES, max((text_width(bar.value, SMALL) for bar in panel.bars), default=0.0))
    left = MARGIN + names + (0.12 + values if values else 0.0) + 0.15
    width = left + ROOM + 0.1 + SCORES + MARGIN
    heading = heading_of(panel.title, panel.subtitle, width)
    several = len(panel.terms) > 1
    legend = _legend_lines(panel.terms, width - 2 * MARGIN) if several else []
    facts = [(line, tone) for words, tone in panel.facts for line in wrap(words, width - 2 * MARGIN, TEXT, 3)]
    notes = note_lines(list(panel.notes), width)
    above = heading.height + len(legend) * line_height(SMALL) + (0.08 if legend else 0.0)
    below = (0.12 if facts else 0.0) + len(facts) * line_height(TEXT)
    sheet = Sheet(width, 2 * MARGIN + above + len(panel.bars) * ROW + below + notes_height(notes))
    draw_heading(sheet, MARGIN, heading)
    _draw_legend(sheet, MARGIN + heading.height, legend, panel.terms)
    y = MARGIN + above
    low = min((sum(min(0.0, term) for term in bar.terms) for bar in panel.bars), default=0.0)
    high = max((sum(max(0.0, term) for term in bar.terms) for bar in panel.bars), default=0.0)
    unit = ROOM / ((high - low) or 1.0)
    zero = left - low * unit
    sheet.box(zero - 0.004, y, 0.008, len(panel.bars) * ROW, LINE)
    colours = list(panel.terms.values())
    for bar in panel.bars:
        top = y + (ROW - BAR) / 2
        sheet.text(MARGIN + names, y + 0.04, shorten(bar.name, names, TEXT), ha="right")
        sheet.text(left - 0.15, y + 0.05, shorten(bar.value, VALUES, SMALL), size=SMALL, color=QUIET, ha="right")
        ends = [zero, zero]  # where the next segment of a fall and of a rise begins
        for colour, term in zip(colours, bar.terms, strict=True):
            length, rises = abs(term) * unit, term > 0
            start = ends[rises] if rises else ends[rises] - length
            tone = colour if several else tones[0 if rises else 1]
            sheet.box(start, top, length, BAR, tone)
            ends[rises] += length if rises else -length
        sheet.text(left + ROOM + 0.1 + SCORES, y + 0.04, signed(bar.score), ha="right")
        y += ROW
    y += 0.12
    for line, tone in facts:
        sheet.text(MARGIN, y, line, color=tone)
        y += line_height(TEXT)
    draw_notes(sheet, notes)
    return sheet.figure


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
