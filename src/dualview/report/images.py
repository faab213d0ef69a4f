"""Pictures of samples inside a page: encoded into it, or drawn as a path."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image  # comes with matplotlib, which cannot do without it

from dualview.engine.pictures import Picture, thumbnail
from dualview.plotting.heatmap import Heated, Scale

PIXELS_VISIBLE_BELOW = 100
JPEG_QUALITY = 88
STRIP_WIDTH, STRIP_HEIGHT = 100, 60


class Shown(NamedTuple):
    """A sample as a page shows it: exactly one of the first three is set.

    Attributes:
        uri: an image.
        strip: a path of bars in a box of STRIP_WIDTH × STRIP_HEIGHT.
        words: text.
        alt: what a screen reader says.
        pixelated: whether the image is so small that its pixels should stay visible.
        against: bars of a heat map that speak against the prediction; those of `strip` speak for it.
    """

    uri: str | None
    strip: str | None
    words: str | None
    alt: str
    pixelated: bool = False
    against: str | None = None


def shown(picture: Picture, alt: str, side: int, length: int, limits: tuple[float, float]) -> Shown:
    """Prepare a picture for a page.

    Args:
        picture: what is seen of the sample.
        alt: what the sample is.
        side: longest side of an image in pixels; larger ones are shrunk.
        length: most characters of text; longer ones are cut.
        limits: least and largest value on the scale of bars.
    """
    if picture.image is not None:
        return _embedded(picture.image, alt, side)
    if picture.values is not None:
        return Shown(None, bars(picture.values, limits), None, f"{alt}: {picture.text}")
    return _written(picture.text or "nothing to show", alt, length)


def shown_map(heated: Heated, scale: Scale, alt: str, side: int, length: int) -> Shown:
    """Prepare a heat map for a page: an image over a faint one of the sample, or bars from zero.

    Args:
        heated: relevance and sample.
        scale: what colours and lengths mean.
        alt: what the map is.
        side: longest side of an image in pixels; larger ones are shrunk.
        length: most characters of text, where there is no picture of it.
    """
    values = heated.values
    if values is None:
        return _written(f"No map: relevance of {heated.words}", alt, length)
    if values.ndim == 2:
        return _embedded(scale.paint(values, heated.picture), alt, side)
    ends = (-scale.limit, scale.limit)
    above, below = bars(values.clip(min=0), ends), bars(values.clip(max=0), ends)
    favourable, adverse = (below, above) if scale.flipped else (above, below)
    return Shown(None, favourable, None, alt, against=adverse)


def _embedded(image: np.ndarray, alt: str, side: int) -> Shown:
    small = max(image.shape[:2]) < PIXELS_VISIBLE_BELOW
    photograph = not small and image.shape[2:] == (3,)
    return Shown(data_uri(thumbnail(image, side), photograph), None, None, alt, small)


def _written(words: str, alt: str, length: int) -> Shown:
    return Shown(None, None, words if len(words) <= length else words[:length].rstrip() + "…", alt)


def figure_uri(figure: Figure) -> str:
    """Encode a figure as a link that holds it, sharp on screens with two pixels a point."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * figure.dpi)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def data_uri(image: np.ndarray, photograph: bool = False) -> str:
    """Encode a uint8 image (H×W, H×W×3 or H×W×4) as a link that holds it; equal images give equal links.

    PNG keeps every pixel; a photograph becomes JPEG, a fifth as long. JPEG knows no transparency.
    """
    buffer = io.BytesIO()
    if photograph:
        Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    else:
        Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def bars(values: np.ndarray, limits: tuple[float, float]) -> str:
    """Draw numbers as bars from zero: an SVG path in a box of STRIP_WIDTH × STRIP_HEIGHT, y downward."""
    low, high = limits
    scale = STRIP_HEIGHT / (high - low)
    zero, step = high * scale, STRIP_WIDTH / len(values)
    parts = []
    for number, value in enumerate(np.nan_to_num(values, posinf=high, neginf=low).clip(low, high)):
        if value == 0:
            continue
        left, width, top = (number + 0.15) * step, 0.7 * step, (high - value) * scale
        parts.append(f"M{left:.2f} {zero:.2f}h{width:.2f}V{top:.2f}h{-width:.2f}z")
    return "".join(parts)
