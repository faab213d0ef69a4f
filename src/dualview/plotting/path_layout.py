"""Where everything stands in a figure of a path of training samples; all lengths are inches."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from dualview.engine.pictures import Picture
from dualview.plotting.explained import Neighbour, value_limits
from dualview.plotting.layout import (
    BARS,
    MARGIN,
    ROOM_BELOW,
    TEST_SIDE,
    TILE_GAP,
    draw_heading,
    draw_notes,
    heading_of,
    note_lines,
    notes_height,
    picture_notes,
    tile_side,
)
from dualview.plotting.style import FOR, INK, QUIET, SMALL, TEXT, TRACK, Sheet, line_height, shorten, wrap
from dualview.plotting.tiles import draw_sample
from dualview.plotting.words import number

ENDS = ("globally important", "locally similar")
LEGEND = "Marks: where a number stands between the smallest and the largest of those shown."
GUTTER = 1.0  # holds the names of the numbers
TRACK_HEIGHT, MARK_SIDE = 0.04, 0.1
ROW = line_height(SMALL) + MARK_SIDE + 0.08  # a number with its track
ARROW = 0.16
MIN_TILES = 4  # that the sheet has room for: its title must not be squeezed


class Path(NamedTuple):
    """A test sample with the training samples that are drawn beside it.

    Attributes:
        test_index: its row among the explained inputs.
        picture: what is seen of it.
        members: in their order; none of an empty path.
        columns: name → their numbers.
        ended: why there are no more, or none.
    """

    test_index: int
    picture: Picture
    members: list[Neighbour]
    columns: dict[str, list[float]]
    ended: str

    @property
    def pictures(self) -> list[Picture]:
        return [self.picture, *(member.picture for member in self.members)]


def draw_path(path: Path, title: str, subtitle: str) -> Figure:
    """Lay a path out on a sheet that is just large enough."""
    side = tile_side(path.pictures)
    left, right = MARGIN + TEST_SIDE + GUTTER, max(MIN_TILES, len(path.members)) * (side + TILE_GAP) - TILE_GAP
    width = left + right + MARGIN
    heading, notes = heading_of(title, subtitle, width), note_lines(_notes(path), width)
    captions = [_caption(member, side) for member in path.members]
    below = max(map(len, captions), default=0) * line_height(TEXT) + 0.04 + len(path.columns) * ROW
    arrow_at = line_height(TEXT) + 0.05 + side + ROOM_BELOW + below
    panel = max(line_height(TEXT) + 0.05 + TEST_SIDE, arrow_at + ARROW + line_height(TEXT) if path.members else 0)
    sheet = Sheet(width, 2 * MARGIN + heading.height + panel + notes_height(notes))
    draw_heading(sheet, MARGIN, heading)
    top, limits = MARGIN + heading.height, value_limits(path.pictures)
    sheet.text(MARGIN, top, f"Test {path.test_index}", weight="bold")
    y = top + line_height(TEXT) + 0.05
    draw_sample(sheet, path.picture, MARGIN, y, TEST_SIDE, limits=limits)
    if not path.members:
        for place, line in enumerate(wrap(f"{path.ended[0].upper()}{path.ended[1:]}.", right, TEXT, 6)):
            sheet.text(left, y + place * line_height(TEXT), line, color=QUIET)
        return sheet.figure
    for place, (member, caption) in enumerate(zip(path.members, captions, strict=True)):
        x = left + place * (side + TILE_GAP)
        draw_sample(sheet, member.picture, x, y, side, limits=limits, beside=path.picture.values)
        for row, line in enumerate(caption):
            size, tone = (SMALL, QUIET) if row else (TEXT, INK)
            sheet.text(x, y + side + ROOM_BELOW + row * line_height(TEXT), line, size=size, color=tone)
    y += side + ROOM_BELOW + max(map(len, captions)) * line_height(TEXT) + 0.04
    for name, values in path.columns.items():
        sheet.text(left - 0.12, y, shorten(name, GUTTER - 0.2, SMALL), size=SMALL, color=QUIET, ha="right")
        _draw_numbers(sheet, left, y, side, values)
        y += ROW
    if len(path.members) > 1:
        _draw_arrow(sheet, left, top + arrow_at, len(path.members) * (side + TILE_GAP) - TILE_GAP)
    draw_notes(sheet, notes)
    return sheet.figure


def _notes(path: Path) -> list[str]:
    return ([LEGEND] if len(path.members) > 1 else []) + picture_notes(path.pictures, BARS)


def _caption(member: Neighbour, side: float) -> list[str]:
    lines = [f"train {member.train_index}"]
    return lines if member.name is None else [*lines, shorten(member.name, side, SMALL)]


def _draw_numbers(sheet: Sheet, x: float, y: float, side: float, values: list[float]) -> None:
    """Write a number below each tile, with its mark on a track."""
    least, span = min(values), max(values) - min(values)
    for value in values:
        sheet.text(x, y, number(value), size=SMALL)
        if span:
            track = y + line_height(SMALL) + 0.01
            sheet.box(x, track + (MARK_SIDE - TRACK_HEIGHT) / 2, side, TRACK_HEIGHT, TRACK)
            sheet.box(x + (value - least) / span * (side - MARK_SIDE), track, MARK_SIDE, MARK_SIDE, FOR)
        x += side + TILE_GAP


def _draw_arrow(sheet: Sheet, x: float, y: float, width: float) -> None:
    """Draw the way from one end of a path to the other, and name both."""
    start, stop = ((at / sheet.width, 1 - (y + ARROW / 2) / sheet.height) for at in (x, x + width))
    arrow = FancyArrowPatch(start, stop, shrinkA=0, shrinkB=0, arrowstyle="-|>", mutation_scale=9, color=QUIET)
    arrow.set_transform(sheet.figure.transFigure)
    sheet.figure.add_artist(arrow)
    sheet.text(x, y + ARROW, ENDS[0], size=SMALL, color=QUIET)
    sheet.text(x + width, y + ARROW, ENDS[1], size=SMALL, color=QUIET, ha="right")
