"""Where everything stands in figures of heat maps; all lengths are inches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from dualview.plotting.explained import value_limits
from dualview.plotting.features import Featured, Own
from dualview.plotting.heatmap import Heated, Scale
from dualview.plotting.layout import (
    BARS,
    BETWEEN,
    GUTTER,
    MARGIN,
    MARK,
    ROOM_BELOW,
    STRETCHED,
    TEST_SIDE,
    TILE_GAP,
    WORDS_SIDE,
    Heading,
    caption_of,
    captions_height,
    draw_caption,
    draw_heading,
    draw_notes,
    heading_of,
    note_lines,
    notes_height,
    rule,
)
from dualview.plotting.relation import Pair, Related, Side
from dualview.plotting.style import AGAINST, FOR, QUIET, SMALL, TEXT, Sheet, line_height, wrap
from dualview.plotting.tiles import NAMED, SCALE_HEIGHT, draw_map, draw_sample, draw_scale

MAX_COLUMNS = 4  # pairs of one sign beside each other
TILE_SIDES = {2: 1.9, 4: 1.4, 2 * MAX_COLUMNS: 1.1}  # at most so many columns of both signs: side of a tile
MIN_WIDTH, SCALE_WIDTH = 2.3, 3.4  # of one sign, whose heading is words; of the scale of all pairs
LINE = line_height(TEXT)
HEADED = LINE + 0.05  # a line of words above a tile
OWN = TEST_SIDE + ROOM_BELOW + SCALE_HEIGHT + 0.06  # a sample's own map with its scale
ON_TRAIN, ON_TEST = "Relevance on the training sample", "Relevance on the test sample"
POINTED = "Pointed ends of a scale: a few values lie beyond and have the colour of the end."
BENEATH = "Grey beneath a map: the sample itself."
COLOURLESS = (
    "Printed without colour, both ends of a scale look alike: then only the signs of the numbers tell which it is."
)
ROWS = "Coloured bars: the relevance of each value, on the scale given; light bars behind them: the values themselves."


class _Group(NamedTuple):
    """The pairs of one sign, ready to be placed."""

    heading: list[str]
    colour: str
    left: float
    bands: list[list[Pair]]  # rows of at most MAX_COLUMNS pairs
    captions: list[list[list[str]]]  # band, tile, line


def draw_related(shown: Related) -> Figure:
    """Lay out a test sample, its own map and its pairs on a sheet that is just large enough."""
    counts = [math.ceil(len(side.pairs) / math.ceil(len(side.pairs) / MAX_COLUMNS)) for side in shown.sides]
    tile = next(side for most, side in TILE_SIDES.items() if sum(counts) <= most)
    if not all(_is_drawn(heated) for heated in _heats(shown)):
        tile = max(tile, WORDS_SIDE)
    groups, x = list[_Group](), MARGIN + TEST_SIDE + GUTTER
    for side, count in zip(shown.sides, counts, strict=True):
        width = max(MIN_WIDTH, count * (tile + TILE_GAP) - TILE_GAP)
        groups.append(_group(side, x, width, count, tile))
        x += width + GUTTER
    right = max(x - GUTTER, MARGIN + TEST_SIDE + GUTTER + SCALE_WIDTH)
    heading = heading_of(shown.title, shown.subtitle, right + MARGIN)
    marks = [MARK] if any(pair.neighbour.differs for pair in _pairs(shown)) else []
    marks += [BARS] if shown.own.heated.picture.values is not None else []
    notes = [*marks, *_notes(_heats(shown), [shown.own.scale, shown.scale]), *shown.notes]
    notes = note_lines(notes, right + MARGIN)
    named = _named(_heats(shown))
    bands = [_band_height(groups, band, tile, named) for band in range(max((len(g.bands) for g in groups), default=0))]
    above = max((len(group.heading) for group in groups), default=0) * LINE + 0.05
    has_scale = any(pair.on_train.values is not None for pair in _pairs(shown))
    unit = wrap(shown.unit, right - MARGIN - TEST_SIDE - GUTTER, TEXT, 2) if has_scale else []
    beside = above + sum(bands) + (len(unit) * LINE + 0.04 + SCALE_HEIGHT if has_scale else 0.0)
    own = OWN + _named([shown.own.heated])
    left = HEADED + TEST_SIDE + 0.14 + HEADED + own + len(_own_words(shown)) * line_height(SMALL)
    body = max(left, beside)
    sheet = Sheet(right + MARGIN, 2 * MARGIN + heading.height + body + 0.1 + notes_height(notes))
    draw_heading(sheet, MARGIN, heading)
    y = MARGIN + heading.height
    _draw_test(sheet, y, shown)
    for group in groups:
        _write(sheet, group.left, y, group.heading, color=group.colour, weight="bold")
    y += above
    for band, height in enumerate(bands):
        _draw_band(sheet, y, shown, groups, band, tile, named)
        y += height
    if has_scale:
        _write(sheet, groups[0].left, y, unit)
        draw_scale(sheet, groups[0].left, y + len(unit) * LINE + 0.04, SCALE_WIDTH, shown.scale)
    draw_notes(sheet, notes)
    return sheet.figure


def draw_featured(blocks: Sequence[Featured], others: Sequence[str]) -> Figure:
    """Lay out samples beside their maps, a block each, on a sheet that is just large enough; `others` are notes."""
    panels = max(len(block.owns) for block in blocks)
    width = 2 * MARGIN + panels * (2 * TEST_SIDE + TILE_GAP) + (panels - 1) * GUTTER
    headings = [heading_of(block.title, block.subtitle, width) for block in blocks]
    heats = [own.heated for block in blocks for own in block.owns]
    scales = [own.scale for block in blocks for own in block.owns]
    notes = note_lines([*_notes(heats, scales), *others], width)
    heights = [heading.height + HEADED + OWN + _named(heats) for heading in headings]
    height = 2 * MARGIN + sum(heights) + BETWEEN * (len(blocks) - 1) + 0.1 + notes_height(notes)
    sheet, y = Sheet(width, height), MARGIN
    for block, heading, height in zip(blocks, headings, heights, strict=True):
        if block is not blocks[0]:
            rule(sheet, y - BETWEEN / 2)
        _draw_featured(sheet, y, block, heading)
        y += height + BETWEEN
    draw_notes(sheet, notes)
    return sheet.figure


def _draw_featured(sheet: Sheet, y: float, block: Featured, heading: Heading) -> None:
    draw_heading(sheet, y, heading)
    y += heading.height
    for number, own in enumerate(block.owns):
        x = MARGIN + number * (2 * TEST_SIDE + TILE_GAP + GUTTER)
        name = f"Test {block.test_index}" + (f", input {own.name}" if own.name else "")
        _write(sheet, x, y, wrap(name, TEST_SIDE, TEXT, 1, "bold"), weight="bold")
        draw_sample(sheet, own.heated.picture, x, y + HEADED, TEST_SIDE)
        words = wrap(f"The map {own.words}.", TEST_SIDE, SMALL, 3)
        _write(sheet, x, y + HEADED + TEST_SIDE + ROOM_BELOW, words, SMALL, color=QUIET)
        x += TEST_SIDE + TILE_GAP
        sheet.text(x, y, own.heading, weight="bold")
        _draw_own(sheet, x, y + HEADED, own)


def _draw_test(sheet: Sheet, y: float, shown: Related) -> None:
    """Draw the test sample above its own map, at the left."""
    picture = shown.own.heated.picture
    limits = value_limits([picture, *(pair.neighbour.picture for pair in _pairs(shown))])
    sheet.text(MARGIN, y, f"Test {shown.test_index}", weight="bold")
    draw_sample(sheet, picture, MARGIN, y + HEADED, TEST_SIDE, limits=limits)
    y += HEADED + TEST_SIDE + 0.14
    sheet.text(MARGIN, y, "Its own relevance", weight="bold")
    _draw_own(sheet, MARGIN, y + HEADED, shown.own)
    own = OWN + _named([shown.own.heated])
    _write(sheet, MARGIN, y + HEADED + own, _own_words(shown), SMALL, color=QUIET)


def _own_words(shown: Related) -> list[str]:
    return wrap(f"{shown.own_unit}: {shown.own.words}.", TEST_SIDE, SMALL, 8)


def _draw_own(sheet: Sheet, x: float, y: float, own: Own) -> None:
    """Draw a sample's own map with its scale."""
    draw_map(sheet, own.heated, x, y, TEST_SIDE, own.scale)
    if own.heated.values is not None and own.heated.values.any():  # of zeros alone a scale would make up its ends
        below = y + TEST_SIDE + _named([own.heated]) + ROOM_BELOW
        draw_scale(sheet, x, below, TEST_SIDE, own.scale)


def _group(side: Side, left: float, width: float, count: int, tile: float) -> _Group:
    bands = [side.pairs[at : at + count] for at in range(0, len(side.pairs), count)]
    captions = [[caption_of(pair.neighbour, tile) for pair in band] for band in bands]
    colour = FOR if side.word == "Proponents" else AGAINST
    return _Group(wrap(f"{side.word}: {side.does}", width, TEXT, 2, "bold"), colour, left, bands, captions)


def _band_height(groups: list[_Group], band: int, tile: float, named: float) -> float:
    words = max(captions_height(group.captions[band]) for group in groups if band < len(group.bands))
    return 3 * tile + 2 * (ROOM_BELOW + HEADED + named) + ROOM_BELOW + words + 0.2


def _draw_band(
    sheet: Sheet, y: float, shown: Related, groups: list[_Group], band: int, tile: float, named: float
) -> None:
    """Draw the training samples of a band, their maps below them, the maps on the test sample below those."""
    there = [group for group in groups if band < len(group.bands)]
    limits = value_limits([shown.own.heated.picture, *(pair.neighbour.picture for pair in _pairs(shown))])
    largest = max(abs(pair.neighbour.score) for pair in _pairs(shown))
    train_y = y + tile + ROOM_BELOW + HEADED
    test_y = train_y + tile + named + ROOM_BELOW + HEADED
    for top, words in ((train_y, ON_TRAIN), (test_y, ON_TEST)):
        sheet.text(there[0].left, top - HEADED, words, color=QUIET)
    for group in there:
        for column, (pair, caption) in enumerate(zip(group.bands[band], group.captions[band], strict=True)):
            x, member = group.left + column * (tile + TILE_GAP), pair.neighbour
            draw_sample(
                sheet, member.picture, x, y, tile,
                limits=limits, beside=shown.own.heated.picture.values, dashed=member.differs,
            )  # fmt: skip
            draw_map(sheet, pair.on_train, x, train_y, tile, shown.scale)
            draw_map(sheet, pair.on_test, x, test_y, tile, shown.scale)
            share = abs(member.score) / largest
            draw_caption(
                sheet, x, test_y + tile + named + ROOM_BELOW, member, caption,
                side=tile, colour=group.colour, share=share,
            )  # fmt: skip


def _pairs(shown: Related) -> list[Pair]:
    return [pair for side in shown.sides for pair in side.pairs]


def _heats(shown: Related) -> list[Heated]:
    return [shown.own.heated, *(heated for pair in _pairs(shown) for heated in (pair.on_train, pair.on_test))]


def _notes(heats: Sequence[Heated], scales: Sequence[Scale]) -> list[str]:
    """Explain what a reader of this very figure meets, and nothing else."""
    found = []
    if any(heated.is_laid_over for heated in heats):
        found.append(BENEATH)
    if any(heated.values is not None and heated.values.ndim == 2 for heated in heats):
        found.append(COLOURLESS)
    if any(heated.values is not None and heated.values.ndim == 1 for heated in heats):
        found.append(ROWS)
    if any(scale.pointed for scale in scales):
        found.append(POINTED)
    if any(heated.picture.stretched for heated in heats):
        found.append(STRETCHED)
    return found


def _named(heats: Sequence[Heated]) -> float:
    """Return the room below maps for naming the places of rows of numbers."""
    return NAMED if any(heated.values is not None and heated.values.ndim == 1 for heated in heats) else 0.0


def _is_drawn(heated: Heated) -> bool:
    return heated.values is not None and (heated.picture.image is not None or heated.picture.values is not None)


def _write(sheet: Sheet, x: float, y: float, lines: Sequence[str], size: float = TEXT, **style: str) -> None:
    for number, line in enumerate(lines):
        sheet.text(x, y + number * line_height(size), line, size=size, **style)
