"""Where everything stands in a figure of a ranking; all lengths are inches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from dualview.engine.pictures import Picture
from dualview.plotting.explained import value_limits
from dualview.plotting.layout import (
    MARGIN,
    MIN_COLUMNS,
    ROOM_BELOW,
    TILE_GAP,
    WORDS_SIDE,
    columns_for,
    draw_heading,
    draw_notes,
    heading_of,
    note_lines,
    notes_height,
    picture_notes,
)
from dualview.plotting.style import AGAINST, INK, QUIET, SMALL, TEXT, Sheet, line_height, wrap
from dualview.plotting.tiles import draw_sample

SIDE = WORDS_SIDE  # of images as well: a class name and a number have to stand below them
BARS = "Bars: the sample’s values, all on one scale."
BETWEEN_ROWS = 0.2
MAX_LINES = 2  # of a name or a class


class Tile(NamedTuple):
    """One sample of a ranking, in words.

    Attributes:
        position: which sample it is.
        name: its name, or None.
        picture: what is seen of it.
        label: its label, or None where that is not known.
        predicted: what the network predicts, or None.
        differs: whether that is another class than the label.
        numbers: what made the order, and what else is known.
    """

    position: str
    name: str | None
    picture: Picture
    label: str | None
    predicted: str | None
    differs: bool
    numbers: list[str]


class _Part(NamedTuple):
    """Lines of one look below a tile."""

    lines: list[str]
    size: float
    colour: str
    weight: str = "normal"

    @property
    def height(self) -> float:
        return len(self.lines) * line_height(self.size)


def draw_ranking(tiles: Sequence[Tile], columns: int | None, title: str, subtitle: str, notes: Sequence[str]) -> Figure:
    """Lay the tiles out row by row, on a sheet that is just large enough."""
    columns = columns or columns_for(len(tiles))
    width = 2 * MARGIN + max(MIN_COLUMNS, min(columns, len(tiles))) * (SIDE + TILE_GAP) - TILE_GAP
    heading = heading_of(title, subtitle, width)
    pictures = [tile.picture for tile in tiles]
    foot = note_lines([*notes, *picture_notes(pictures, BARS)], width)
    rows = [[(tile, _parts(tile)) for tile in tiles[at : at + columns]] for at in range(0, len(tiles), columns)]
    heights = [_part_heights([parts for _, parts in row]) for row in rows]
    body = sum(SIDE + ROOM_BELOW + sum(below) + BETWEEN_ROWS for below in heights)
    sheet = Sheet(width, 2 * MARGIN + heading.height + body + notes_height(foot))
    draw_heading(sheet, MARGIN, heading)
    y, limits = MARGIN + heading.height, value_limits(pictures)
    for row, below in zip(rows, heights, strict=True):
        for column, (tile, parts) in enumerate(row):
            x = MARGIN + column * (SIDE + TILE_GAP)
            draw_sample(sheet, tile.picture, x, y, SIDE, limits=limits)
            _draw_parts(sheet, x, y + SIDE + ROOM_BELOW, parts, below)
        y += SIDE + ROOM_BELOW + sum(below) + BETWEEN_ROWS
    draw_notes(sheet, foot)
    return sheet.figure


def _parts(tile: Tile) -> list[_Part]:
    """Break what stands below a tile into lines."""
    weight = "bold" if tile.differs else "normal"

    def lines(words: str | None, size: float, weight: str = "normal", most: int = MAX_LINES) -> list[str]:
        return [] if words is None else wrap(words, SIDE, size, most, weight)

    return [
        _Part(lines(tile.position, TEXT, most=1), TEXT, QUIET),
        _Part(lines(tile.name, SMALL), SMALL, QUIET),
        _Part(lines(tile.label, TEXT), TEXT, INK),
        _Part(lines(tile.predicted, TEXT, weight), TEXT, AGAINST if tile.differs else INK, weight),
        _Part([line for words in tile.numbers for line in lines(words, SMALL)], SMALL, QUIET),
    ]


def _part_heights(tiles: Sequence[list[_Part]]) -> list[float]:
    """Return the heights of the parts below a row of tiles: what is alike stands at one height."""
    return [max(part.height for part in parts) for parts in zip(*tiles, strict=True)]


def _draw_parts(sheet: Sheet, x: float, y: float, parts: list[_Part], heights: list[float]) -> None:
    for part, height in zip(parts, heights, strict=True):
        for place, line in enumerate(part.lines):
            at = y + place * line_height(part.size)
            sheet.text(x, at, line, size=part.size, color=part.colour, weight=part.weight)
        y += height
