"""The look of every figure: a sheet measured in inches, with its own type and colours.

Nothing here reads or writes matplotlib's global settings, and pyplot is never involved: a figure
looks the same whatever style its user has set, and leaves that style alone.
"""

from __future__ import annotations

import io
import re
from functools import lru_cache
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

DPI = 100
FAMILY = "DejaVu Sans"  # comes with matplotlib, so a figure is the same everywhere
INK, QUIET, LINE, TRACK, PAPER = "#1c1c1c", "#5c5c5c", "#b9b9b9", "#ececec", "#ffffff"
FOR, AGAINST = "#0b5fa5", "#b4460f"  # blue and orange: apart for every kind of colour blindness; signs say it too
TITLE, TEXT, SMALL = 12.0, 9.5, 8.5  # points
LEADING = 1.35
SLACK = 1.04  # the drawn text is hinted and may be a little wider than measured


class SelfShowing(Figure):
    """A figure that a notebook shows although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


class Sheet:
    """A figure in inches, from its top left corner; draw on it inside `plain_style`.

    Args:
        width: inches.
        height: inches.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = SelfShowing(figsize=(width, height), dpi=DPI, facecolor=PAPER)
        FigureCanvasAgg(self.figure)

    def text(self, x: float, y: float, words: str, *, size: float = TEXT, **style: Any) -> Text:
        """Write one line whose top left corner is at (x, y); no character has a special meaning."""
        style = {"color": INK, "va": "top", "ha": "left", **style}
        weight = style.pop("weight", "normal")
        return self.figure.text(
            x / self.width, 1 - y / self.height, words, fontproperties=font(size, weight), parse_math=False, **style
        )

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes whose top left corner is at (x, y)."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Fill a rectangle whose top left corner is at (x, y)."""
        corner = (x / self.width, 1 - (y + height) / self.height)
        size = (width / self.width, height / self.height)
        self.figure.add_artist(
            Rectangle(corner, *size, transform=self.figure.transFigure, facecolor=colour, linewidth=0)
        )


def plain_style() -> Any:
    """Return a context in which matplotlib's settings are its own defaults; the user's come back after."""
    return matplotlib.style.context("default")


@lru_cache
def font(size: float, weight: str = "normal") -> FontProperties:
    """Return the one typeface in a size (points) and weight."""
    return FontProperties(family=[FAMILY], size=size, weight=weight)


def line_height(size: float) -> float:
    """Return the distance of two lines in inches."""
    return size * LEADING / 72


def text_width(words: str, size: float, weight: str = "normal") -> float:
    """Return the width of one line in inches."""
    width, _, _ = text_to_path.get_text_width_height_descent(words, font(size, weight), ismath=False)
    return SLACK * width / 72


def shorten(words: str, room: float, size: float, weight: str = "normal") -> str:
    """Cut words that are wider than `room` inches, ending them with an ellipsis."""
    if text_width(words, size, weight) <= room:
        return words
    low, high = 0, len(words)  # characters that fit, and that do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = text_width(words[:middle].rstrip() + "…", size, weight) <= room
        low, high = (middle, high) if fits else (low, middle)
    return words[:low].rstrip() + "…"


def wrap(words: str, room: float, size: float, max_lines: int, weight: str = "normal") -> list[str]:
    """Break words into at most `max_lines` lines of at most `room` inches; what does not fit is cut."""
    lines: list[str] = []
    for paragraph in words.splitlines():
        rest = " ".join(re.split(r"[ \t]+", paragraph.strip()))  # other spaces are there to be kept together
        while rest:
            if len(lines) == max_lines:
                return [*lines[:-1], shorten(f"{lines[-1]} {rest}…", room, size, weight)]
            head = _first_line(rest, room, size, weight)
            lines.append(head)
            rest = rest[len(head) :].lstrip()
    return lines


def _first_line(words: str, room: float, size: float, weight: str) -> str:
    """Take as many whole words as fit; of a word wider than a line, as many characters."""
    head = ""
    for word in words.split(" "):
        longer = f"{head} {word}".strip()
        if text_width(longer, size, weight) > room:
            break
        head = longer
    if head:
        return head
    count = 1
    while count < len(words) and text_width(words[: count + 1], size, weight) <= room:
        count += 1
    return words[:count]
