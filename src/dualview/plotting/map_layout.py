"""Where everything stands in figures of heat maps; all lengths are inches."""

from __future__ import annotations

import math
from typing import NamedTuple

from matplotlib.figure import Figure

from dualview.plotting.explained import value_limits
from dualview.plotting.features import Featured
from dualview.plotting.heatmap import Heated, Scale
from dualview.plotting.layout import (
    BETWEEN,
    GUTTER,
    MARGIN,
    MARK,
    ROOM_BELOW,
    STRETCHED,
    TEST_SIDE,
    TILE_GAP,
    WORDS_SIDE,
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
from dualview.plotting.relation import Own, Pair, Related, Side
from dualview.plotting.style import AGAINST, FOR, QUIET, SMALL, TEXT, Sheet, line_height, text_width, wrap
from dualview.plotting.tiles import SCALE_HEIGHT, draw_map, draw_sample, draw_scale

MAX_COLUMNS = 4  # of one sign, beside each other
TILE_SIDES = {2: 1.9, 4: 1.4}  # most columns of both signs together → side; 1.1 for more
MIN_SIDE, SCALE_WIDTH = 2.3, 3.4
LINE_ABOVE = line_height(TEXT) + 0.05  # a line of words above a tile
HEADINGS = ("Relevance on the training sample", "Relevance on the test sample")
PIXELS = "Relevance per pixel"
FEATURES = "Relevance per feature"
POINTED = "Pointed ends of a scale: a few values lie beyond and have the colour of the end."
ROWS = "Bars: the sample’s values. Coloured bars: relevance of each feature, on the scale given; light bars behind: the values."  # noqa: E501
BENEATH = "Beneath a map, in grey: the sample."


class _Column(NamedTuple):
    """The pairs of one sign, ready to be placed."""

    side: Side
    colour: str
    left: float
    heading: list[str]
    bands: list[list[Pair]]
    captions: list[list[list[str]]]  # band, tile, line


def draw_related(shown: Related) -> Figure:
    """Lay out a test sample, its own map, and its pairs on a sheet that is just large enough."""
    counts = [math.ceil(len(side.pairs) / math.ceil(len(side.pairs) / MAX_COLUMNS)) for side in shown.sides]
    tile = next((side for most, side in TILE_SIDES.items() if sum(counts) <= most), 1.1)
    if not all(_seen(heated) for heated in _heats(shown)):
        tile = max(tile, WORDS_SIDE)
    widths = [max(MIN_SIDE, count * (tile + TILE_GAP) - TILE_GAP) for count in counts]
    right = max(SCALE_WIDTH, sum(widths) + GUTTER * (len(widths) - 1))
    width = MARGIN + TEST_SIDE + GUTTER + right + MARGIN
    heading = heading_of(shown.title, shown.subtitle, width)
    notes = note_lines(_notes([shown.own], shown), width)
    columns = _columns(shown, counts, widths, tile)
    heights = [_band_height(columns, band, tile) for band in range(max((len(c.bands) for c in columns), default=0))]
    above = max((len(column.heading) for column in columns), default=0) * line_height(TEXT) + 0.05
    unit = wrap(f"{_quantity(shown.scale)}: {shown.unit}", right, TEXT, 2)
    scale = len(unit) * line_height(TEXT) + 0.04 + SCALE_HEIGHT if columns else 0.0
    body = max(_own_height(shown.own), above + sum(heights) + scale)
    sheet = Sheet(width, 2 * MARGIN + heading.height + body + 0.15 + notes_height(notes))
    draw_heading(sheet, MARGIN, heading)
    top = MARGIN + heading.height
    _draw_own(sheet, MARGIN, top, shown)
    for column in columns:
        for number, line in enumerate(column.heading):
            sheet.text(column.left, top + number * line_height(TEXT), line, color=column.colour, weight="bold")
    y = top + above
    for band, height in enumerate(heights):
        _draw_band(sheet, y, shown, columns, band, tile)
        y += height
    if columns:
        _draw_unit(sheet, MARGIN + TEST_SIDE + GUTTER, y, unit, SCALE_WIDTH, shown.scale)
    draw_notes(sheet, notes)
    return sheet.figure
