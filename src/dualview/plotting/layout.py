"""Where everything stands in a figure of neighbours; all lengths are inches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dualview.engine.pictures import Picture
from dualview.plotting.explained import Explained, Neighbour, value_limits
from dualview.plotting.style import (
    AGAINST,
    FOR,
    INK,
    LINE,
    QUIET,
    SMALL,
    TEXT,
    TITLE,
    TRACK,
    Sheet,
    font,
    line_height,
    shorten,
    wrap,
)
from dualview.plotting.tiles import draw_sample
from dualview.plotting.words import signed

MARGIN, GUTTER = 0.3, 0.45
TEST_SIDE, TILE_SIDE, WORDS_SIDE, TILE_GAP = 1.9, 1.05, 1.5, 0.22
ROOM_BELOW = 0.08  # between a tile and its bar, a bar and its words
BAR = 0.05
BETWEEN = 0.35  # two blocks
NOTES_ABOVE = 0.1
MIN_COLUMNS, MAX_COLUMNS = 4, 6
MARK = "Dashed frame: the training label is not the explained class."
STRETCHED = "Contrast stretched: values lie outside [0, 1]; give display= to undo a normalisation."
BARS = "Bars: the sample’s values, all on one scale; light bars behind: the test sample’s."


class Block(NamedTuple):
    """One test sample of a figure.

    Attributes:
        shown: the samples.
        title: which prediction this is.
        subtitle: what its scores are.
        sides: what proponents and what opponents do.
    """

    shown: Explained
    title: str
    subtitle: str
    sides: tuple[str, str]

    @property
    def neighbours(self) -> list[Neighbour]:
        return [*self.shown.proponents, *self.shown.opponents]

    @property
    def pictures(self) -> list[Picture]:
        return [self.shown.picture, *(neighbour.picture for neighbour in self.neighbours)]


class Heading(NamedTuple):
    """Title and subtitle, broken into lines."""

    title: list[str]
    subtitle: list[str]

    @property
    def height(self) -> float:
        return len(self.title) * line_height(TITLE) + 0.03 + len(self.subtitle) * line_height(TEXT) + 0.16


class _Group(NamedTuple):
    """The training samples of one sign, ready to be placed."""

    heading: list[str]
    colour: str
    side: float
    rows: list[list[Neighbour]]
    captions: list[list[list[str]]]  # row, tile, line; the score is not among them

    @property
    def height(self) -> float:
        heading = len(self.heading) * line_height(TEXT) + 0.05
        return heading + sum(self.row_height(captions) for captions in self.captions)

    def row_height(self, captions: list[list[str]]) -> float:
        """Return the height of one row of tiles, with the bars and words below them."""
        return self.side + ROOM_BELOW + captions_height(captions) + 0.14


def draw_blocks(blocks: list[Block], notes: Sequence[str] = ()) -> Figure:
    """Lay the blocks below each other on a sheet that is just large enough, with these notes after their own."""
    columns = columns_for(max(max(len(block.shown.proponents), len(block.shown.opponents)) for block in blocks))
    side = tile_side([picture for block in blocks for picture in block.pictures])
    right = columns * (side + TILE_GAP) - TILE_GAP
    width = MARGIN + TEST_SIDE + GUTTER + right + MARGIN
    placed = [
        (block, heading_of(block.title, block.subtitle, width), _groups(block, right, columns, side))
        for block in blocks
    ]
    lines = note_lines([*_notes(blocks), *notes], width)
    heights = [_block_height(heading, groups) for _, heading, groups in placed]
    sheet = Sheet(width, 2 * MARGIN + sum(heights) + BETWEEN * (len(blocks) - 1) + notes_height(lines))
    y = MARGIN
    for parts, height in zip(placed, heights, strict=True):
        if parts is not placed[0]:
            rule(sheet, y - BETWEEN / 2)
        _draw_block(sheet, y, *parts)
        y += height + BETWEEN
    draw_notes(sheet, lines)
    return sheet.figure


def columns_for(num_tiles: int) -> int:
    """Return how many tiles stand beside each other, so that the rows are about equally long."""
    return max(MIN_COLUMNS, math.ceil(num_tiles / max(1, math.ceil(num_tiles / MAX_COLUMNS))))


def tile_side(pictures: Sequence[Picture]) -> float:
    """Return the side of tiles: they are larger where all that they hold is words."""
    drawn = any(picture.image is not None or picture.values is not None for picture in pictures)
    return TILE_SIDE if drawn else WORDS_SIDE


def heading_of(title: str, subtitle: str, width: float) -> Heading:
    """Break title and subtitle into lines for a figure of this width."""
    room = width - 2 * MARGIN
    return Heading(wrap(title, room, TITLE, 2, "bold"), wrap(subtitle, room, TEXT, 5))


def note_lines(notes: list[str], width: float) -> list[str]:
    """Break the notes at the foot of a figure of this width into lines."""
    return [line for note in notes for line in wrap(note, width - 2 * MARGIN, SMALL, 3)]


def notes_height(lines: list[str]) -> float:
    """Return the height of the notes with the space above them."""
    return len(lines) * line_height(SMALL) + NOTES_ABOVE if lines else 0.0


def draw_notes(sheet: Sheet, lines: list[str]) -> None:
    """Write the notes at the foot of the sheet."""
    y = sheet.height - MARGIN - notes_height(lines) + NOTES_ABOVE
    for line in lines:
        sheet.text(MARGIN, y, line, size=SMALL, color=QUIET)
        y += line_height(SMALL)


def _groups(block: Block, width: float, columns: int, side: float) -> list[_Group]:
    found = []
    for word, does, colour, members in (
        ("Proponents", block.sides[0], FOR, block.shown.proponents),
        ("Opponents", block.sides[1], AGAINST, block.shown.opponents),
    ):
        text = f"{word}: {does}" if members else f"No {word.lower()}: no score of that sign"
        rows = [members[at : at + columns] for at in range(0, len(members), columns)]
        captions = [[caption_of(member, side) for member in row] for row in rows]
        found.append(_Group(wrap(text, width, TEXT, 2, "bold"), colour, side, rows, captions))
    return found


def caption_of(neighbour: Neighbour, side: float) -> list[str]:
    """Return the lines below a tile of this side: label, position and name; the score is not among them."""
    lines = wrap(neighbour.caption, side, TEXT, 2)
    lines.append(f"train {neighbour.train_index}")
    if neighbour.name is not None:
        lines.append(shorten(neighbour.name, side, SMALL))
    return lines


def _block_height(heading: Heading, groups: list[_Group]) -> float:
    left = line_height(TEXT) + 0.05 + TEST_SIDE
    return heading.height + max(left, sum(group.height for group in groups))


def _draw_block(sheet: Sheet, y: float, block: Block, heading: Heading, groups: list[_Group]) -> None:
    draw_heading(sheet, y, heading)
    y += heading.height
    limits = value_limits(block.pictures)
    sheet.text(MARGIN, y, f"Test {block.shown.test_index}", weight="bold")
    draw_sample(sheet, block.shown.picture, MARGIN, y + line_height(TEXT) + 0.05, TEST_SIDE, limits=limits)
    largest = max((abs(neighbour.score) for neighbour in block.neighbours), default=1.0)
    for group in groups:
        _draw_group(sheet, y, group, block, limits, largest)
        y += group.height


def draw_heading(sheet: Sheet, y: float, heading: Heading) -> None:
    """Write title and subtitle below each other."""
    for line in heading.title:
        sheet.text(MARGIN, y, line, size=TITLE, weight="bold")
        y += line_height(TITLE)
    y += 0.03
    for line in heading.subtitle:
        sheet.text(MARGIN, y, line, color=QUIET)
        y += line_height(TEXT)


def _draw_group(
    sheet: Sheet, y: float, group: _Group, block: Block, limits: tuple[float, float], largest: float
) -> None:
    left = MARGIN + TEST_SIDE + GUTTER
    for line in group.heading:
        sheet.text(left, y, line, color=group.colour if group.rows else QUIET, weight="bold")
        y += line_height(TEXT)
    y += 0.05
    for row, captions in zip(group.rows, group.captions, strict=True):
        for column, (neighbour, caption) in enumerate(zip(row, captions, strict=True)):
            x = left + column * (group.side + TILE_GAP)
            draw_sample(
                sheet, neighbour.picture, x, y, group.side,
                limits=limits, beside=block.shown.picture.values, dashed=neighbour.differs,
            )  # fmt: skip
            share = abs(neighbour.score) / largest
            draw_caption(
                sheet, x, y + group.side + ROOM_BELOW, neighbour, caption,
                side=group.side, colour=group.colour, share=share,
            )  # fmt: skip
        y += group.row_height(captions)


def captions_height(captions: list[list[str]]) -> float:
    """Return the height of the bars and words below a row of tiles."""
    lines = 1 + max(len(caption) for caption in captions)
    return BAR + ROOM_BELOW + lines * line_height(TEXT)


def draw_caption(
    sheet: Sheet, x: float, y: float, neighbour: Neighbour, caption: list[str], *, side: float, colour: str,
    share: float,
) -> None:  # fmt: skip
    """Draw what stands below a tile: a bar, the share of the tile's side that is the score's, and the words."""
    for bar, tone in ((side, TRACK), (side * share, colour)):
        sheet.box(x, y, bar, BAR, tone)
    y += BAR + ROOM_BELOW
    sheet.text(x, y, signed(neighbour.score), color=colour, weight="bold")
    for number, line in enumerate(caption, start=1):
        is_name = neighbour.name is not None and number == len(caption)
        tone = INK if number <= len(caption) - (2 if neighbour.name is not None else 1) else QUIET
        sheet.text(x, y + number * line_height(TEXT), line, size=SMALL if is_name else TEXT, color=tone)


def _notes(blocks: list[Block]) -> list[str]:
    """Explain what a reader of this very figure meets, and nothing else."""
    neighbours = [neighbour for block in blocks for neighbour in block.neighbours]
    marks = [MARK] if any(neighbour.differs for neighbour in neighbours) else []
    return marks + picture_notes([picture for block in blocks for picture in block.pictures], BARS)


def picture_notes(pictures: Sequence[Picture], bars: str) -> list[str]:
    """Say how these pictures are to be read: `bars` where numbers are drawn, and whether contrast was stretched."""
    found = [bars] if any(picture.image is None and picture.values is not None for picture in pictures) else []
    return found + ([STRETCHED] if any(picture.stretched for picture in pictures) else [])


def rule(sheet: Sheet, y: float) -> None:
    """Draw a line across the sheet, between two blocks."""
    sheet.box(MARGIN, y, sheet.width - 2 * MARGIN, 0.012, LINE)


def quiet(axes: Axes, *shown: str) -> None:
    """Leave an axes only these sides, and draw them and their ticks in grey."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in shown)
        spine.set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=QUIET)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_fontproperties(font(SMALL))


def draw_lines(sheet: Sheet, x: float, middle: float, lines: Sequence[str], side: str = "left") -> None:
    """Write small lines below each other, centred at a height."""
    for at, line in enumerate(lines):
        y = middle + (at - len(lines) / 2) * line_height(SMALL) + 0.02  # letters stand low in their box
        sheet.text(x, y, line, size=SMALL, ha=side)
