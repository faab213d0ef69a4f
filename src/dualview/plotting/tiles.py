"""Drawing one sample: an image, bars, or words, in a square of the sheet."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

from dualview.engine.pictures import Picture
from dualview.plotting.explained import value_limits
from dualview.plotting.heatmap import Heated, Scale, strongest_of
from dualview.plotting.style import AGAINST, FOR, INK, LINE, QUIET, SMALL, Sheet, line_height, wrap
from dualview.plotting.words import signed

NEAREST_BELOW = 100  # shorter sides are drawn with their pixels visible
FRAME_GAP = 0.045  # inches between a picture and the dashed frame around it
CHECKS = 8
CHECK_TONES = (226, 250)
BARS, TEST_BARS, VALUES_BEHIND = "#4a4a4a", "#a8a8a8", "#dedede"
SCALE = 0.12
SCALE_HEIGHT = SCALE + 0.03 + 2 * line_height(SMALL)
NUM_TICKS, NUM_WIDE_TICKS, WIDE = 5, 3, 100  # places numbered below a row; of rows so long that numbers are wide
NAMED_LINES = 2
NAMED = 0.02 + (1 + NAMED_LINES) * line_height(SMALL)  # inches below a row: numbers of places, and the strongest


def draw_sample(
    sheet: Sheet,
    picture: Picture,
    x: float,
    y: float,
    side: float,
    *,
    limits: tuple[float, float] | None = None,
    beside: np.ndarray | None = None,
    dashed: bool = False,
) -> None:
    """Draw what is seen of a sample in a square of `side` inches.

    Args:
        sheet: what it is drawn on.
        picture: what is drawn.
        x: inches from the left.
        y: inches from the top.
        side: inches.
        limits: least and largest value on the scale of bars; by default this sample's own.
        beside: values of another sample, drawn behind the bars.
        dashed: whether the frame is dashed and dark.
    """
    axes = sheet.axes(x, y, side, side)
    if picture.image is not None:
        _image(axes, picture.image)
    elif picture.values is not None:
        _bars(axes, picture.values, limits or value_limits([picture]), beside)
    else:
        axes.set(xlim=(0, 1), ylim=(0, 1))
        _words(sheet, picture.text or "nothing to show", x, y, side)
    _close(axes)
    if dashed:
        _frame(axes, INK, 1.2, FRAME_GAP / side)


def draw_map(sheet: Sheet, heated: Heated, x: float, y: float, side: float, scale: Scale) -> None:
    """Draw a sample's relevance in a square of `side` inches: colours over its picture, bars, or words.

    Below bars, `NAMED` inches more say which place is which.
    """
    axes = sheet.axes(x, y, side, side)
    if heated.values is None:
        axes.set(xlim=(0, 1), ylim=(0, 1))
        _words(sheet, f"No map: relevance of {heated.words}", x, y, side)
    elif heated.values.ndim == 1:
        _relevance_bars(axes, heated.values, heated.picture.values, scale)
        _name_places(sheet, heated.values, x, y + side + 0.02, side)
    else:
        _image(axes, scale.paint(heated.values, heated.picture))
    _close(axes)


def draw_scale(sheet: Sheet, x: float, y: float, width: float, scale: Scale) -> None:
    """Draw a scale with its ends, in numbers and in words, `SCALE_HEIGHT` inches high."""
    point = SCALE / 2 if scale.pointed else 0.0
    strip = scale.strip()
    axes = sheet.axes(x, y, width, SCALE)
    axes.imshow(strip, extent=(point, width - point, 0, SCALE), interpolation="nearest", aspect="auto")
    for tip, base, tone in ((0.0, point, strip[0, 0]), (width, width - point, strip[0, -1])):
        corners = [(tip, SCALE / 2), (base, 0.0), (base, SCALE)]
        axes.add_patch(Polygon(corners, facecolor=tone / 255, linewidth=0))
    axes.set(xlim=(0, width), ylim=(0, SCALE))
    axes.set_axis_off()
    tones = ("blue", "orange") if scale.flipped else ("orange", "blue")
    below = y + SCALE + 0.03
    for place, at, end, word in (
        ("left", x, -scale.limit, f"{tones[0]} lowers it"),
        ("right", x + width, scale.limit, f"{tones[1]} raises it"),
    ):
        sheet.text(at, below, signed(end), size=SMALL, ha=place)
        sheet.text(at, below + line_height(SMALL), word, size=SMALL, color=QUIET, ha=place)
    sheet.text(x + width / 2, below, "0", size=SMALL, ha="center")


def _close(axes: Axes) -> None:
    """Leave only a thin frame around what was drawn."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    _frame(axes, LINE, 0.6, 0.0)


def _frame(axes: Axes, colour: str, width: float, gap: float) -> None:
    """Draw a frame around the axes; one that stands apart from them is dashed."""
    style = (0, (3, 2)) if gap else "-"
    box = Rectangle((-gap, -gap), 1 + 2 * gap, 1 + 2 * gap, transform=axes.transAxes, fill=False, clip_on=False)
    box.set(edgecolor=colour, linewidth=width, linestyle=style)
    axes.add_patch(box)


def _image(axes: Axes, image: np.ndarray) -> None:
    """Draw an image in the middle of a square, without distorting it; transparency shows a light checker."""
    height, width = image.shape[:2]
    side = max(height, width)
    extent = (-width / 2, width / 2, -height / 2, height / 2)
    smooth = "nearest" if side < NEAREST_BELOW else "antialiased"
    if image.ndim == 3 and image.shape[2] == 4:
        tones = np.indices((CHECKS, CHECKS)).sum(0) % 2
        checker = np.take(np.array(CHECK_TONES, np.uint8), tones)
        axes.imshow(checker, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest")
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation=smooth)
    axes.set(xlim=(-side / 2, side / 2), ylim=(-side / 2, side / 2), aspect="auto")


def _bars(axes: Axes, values: np.ndarray, limits: tuple[float, float], beside: np.ndarray | None) -> None:
    places = np.arange(len(values))
    if beside is not None and len(beside) == len(values):
        axes.bar(places, beside, width=1.0, color=TEST_BARS, alpha=0.55, linewidth=0)
    axes.bar(places, values, width=0.45 if len(values) <= 64 else 0.8, color=BARS, linewidth=0)
    axes.axhline(0, color=QUIET, linewidth=0.5)
    margin = 0.06 * (limits[1] - limits[0])
    axes.set(xlim=(-0.8, len(values) - 0.2), ylim=(limits[0] - margin, limits[1] + margin))


def _relevance_bars(axes: Axes, values: np.ndarray, behind: np.ndarray | None, scale: Scale) -> None:
    """Draw relevance as bars in the colours of their signs, before the sample's values on a scale of their own."""
    places = np.arange(len(values))
    if behind is not None and len(behind) == len(values) and np.abs(behind).max() > 0:
        axes.bar(places, behind * scale.limit / np.abs(behind).max(), width=1.0, color=VALUES_BEHIND, linewidth=0)
    tones = np.where((values > 0) != scale.flipped, FOR, AGAINST)
    axes.bar(places, values, width=0.45 if len(values) <= 64 else 0.8, color=tones, linewidth=0)
    axes.axhline(0, color=QUIET, linewidth=0.5)
    axes.set(xlim=(-0.8, len(values) - 0.2), ylim=(-1.06 * scale.limit, 1.06 * scale.limit))


def _name_places(sheet: Sheet, values: np.ndarray, x: float, y: float, side: float) -> None:
    """Number a few places below a row's bars, and name the strongest."""
    count = min(len(values), NUM_TICKS if len(values) <= WIDE else NUM_WIDE_TICKS)
    for place in np.linspace(0, len(values) - 1, count).round().astype(int):
        at = x + side * (place + 0.8) / (len(values) + 0.6)  # as the limits of the axes have it
        sheet.text(at, y, str(place), size=SMALL, color=QUIET, ha="center")
    for number, line in enumerate(wrap(f"most on {strongest_of(values, 1)[0]}", side, SMALL, NAMED_LINES), start=1):
        sheet.text(x, y + number * line_height(SMALL), line, size=SMALL, color=QUIET)


def _words(sheet: Sheet, words: str, x: float, y: float, side: float) -> None:
    step, inset = line_height(SMALL), 0.06
    lines = wrap(textwrap.dedent(words), side - 2 * inset, SMALL, int((side - 2 * inset) / step))
    for number, line in enumerate(lines):
        sheet.text(x + inset, y + inset + number * step, line, size=SMALL, color=QUIET)
