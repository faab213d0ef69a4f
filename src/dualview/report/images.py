"""Pictures of samples inside a page: encoded into it, or drawn as a path."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image  # comes with matplotlib, which cannot do without it

from dualview.engine.pictures import Picture, thumbnail

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
    """

    uri: str | None
    strip: str | None
    words: str | None
    alt: str
    pixelated: bool = False


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
        small = max(picture.image.shape[:2]) < PIXELS_VISIBLE_BELOW
        photograph = not small and picture.image.shape[2:] == (3,)
        return Shown(data_uri(thumbnail(picture.image, side), photograph), None, None, alt, small)
    if picture.values is not None:
        return Shown(None, bars(picture.values, limits), None, f"{alt}: {picture.text}")
    words = picture.text or "nothing to show"
    return Shown(None, None, words if len(words) <= length else words[:length].rstrip() + "…", alt)


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
        left, width, top = (number + 0.15) * step, 0.7 * step, (high - value) * scale
        parts.append(f"M{left:.2f} {zero:.2f}h{width:.2f}V{top:.2f}h{-width:.2f}z")
    return "".join(parts)
