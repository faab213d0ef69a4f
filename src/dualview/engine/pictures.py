"""One sample's input as something to look at: an image, a row of numbers, or words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualview.engine.batches import tensors_in

THUMBNAIL_SIDE = 96
MAX_VALUES = 512
_PIL_MODES = {"P": "RGBA", "PA": "RGBA", "LA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB"}  # no plain colours
HALF_STEP = 0.5 / 255  # de-normalised floats leave [0, 1] by rounding alone


class Picture(NamedTuple):
    """What a person sees of a sample.

    Attributes:
        image: uint8 array, H×W×3 or H×W×4, or H×W for grey; None where there is no image.
        text: words in its place, or None.
        stretched: whether values outside the usual ranges were stretched to black and white.
        values: the numbers of a sample that is one row of them, such as a table's; `text` tells the first.
    """

    image: np.ndarray | None
    text: str | None
    stretched: bool = False
    values: np.ndarray | None = None


def picture_of(sample: Any, display: Callable[[Any], Any] | None = None) -> Picture:
    """Show one sample's input: as `display` says, else by its shape.

    (C, H, W) with 1, 3 or 4 channels and (H, W) are images: uint8 as it is, floats within [0, 1]
    as brightness, other ranges stretched from their least to their largest value; a fourth channel
    is opacity and never stretched. Up to 512 floats in a row are kept as numbers. Everything else
    becomes words. A dict or tuple of one tensor is shown as that tensor.

    Raises:
        TypeError: `display` returned neither an image nor text.
    """
    shown = sample if display is None else display(sample)
    if isinstance(shown, Picture):
        return shown
    if isinstance(shown, str):
        return Picture(None, shown)
    parts = tensors_in(shown)
    only = next(iter(parts.values())) if len(parts) == 1 else shown
    array = _array(only)
    if array is not None:
        image, stretched = _bytes(array)
        return Picture(image, None, stretched)
    if display is not None:
        raise TypeError(
            f"`display` returned {_describe(shown)}; expected an image (H×W, H×W×3 or H×W×4 array, or a C×H×W tensor) "
            "or text"
        )
    return Picture(None, _describe(only), values=_row_of_numbers(only))


def thumbnail(image: np.ndarray, side: int = THUMBNAIL_SIDE) -> np.ndarray:
    """Shrink an image by averaging whole blocks until neither side is longer than `side`."""
    factor = -(-max(image.shape[:2]) // side)
    if factor <= 1:
        return image
    down, across = (min(factor, length) for length in image.shape[:2])  # a thin strip keeps one line
    height, width = image.shape[0] // down, image.shape[1] // across
    blocks = image[: height * down, : width * across].reshape(height, down, width, across, *image.shape[2:])
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def _array(value: Any) -> np.ndarray | None:
    """Return an H×W, H×W×3 or H×W×4 array where the value is an image, else None."""
    if isinstance(value, Tensor):
        tensor = value.detach().to("cpu")
        if tensor.is_complex() or tensor.numel() == 0:
            return None
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # numpy arrays and PIL images
        if getattr(value, "mode", None) in _PIL_MODES:
            value = value.convert(_PIL_MODES[value.mode])
        array = np.asarray(value)
    else:
        return None
    if array.ndim == 3:
        channels_first, channels_last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
        if channels_first and (isinstance(value, Tensor) or not channels_last):
            array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    return array if is_image and min(array.shape[:2]) > 1 and array.dtype.kind in "buif" else None


def _row_of_numbers(value: Any) -> np.ndarray | None:
    """Return a float tensor's values where all but one of its axes have length one, else None."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not 2 <= value.numel() <= MAX_VALUES:
        return None
    return value.detach().cpu().double().flatten().numpy() if max(value.shape) == value.numel() else None


def _bytes(array: np.ndarray) -> tuple[np.ndarray, bool]:
    if array.dtype == np.uint8:
        return array, False
    if array.dtype == bool:
        return array.astype(np.uint8) * 255, False
    values = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    colours = values[..., :3] if values.ndim == 3 else values
    low, high = float(colours.min()), float(colours.max())
    if array.dtype.kind in "ui" and low >= 0 and values.max() <= 255:
        return values.astype(np.uint8), False
    stretched = low < -HALF_STEP or high > 1 + HALF_STEP
    if stretched:
        colours[...] = (colours - low) / ((high - low) or 1.0)
    return (values.clip(0, 1) * 255).round().astype(np.uint8), stretched


def _describe(sample: Any) -> str:
    """Return a few lines of words for a sample that is no image."""
    parts = tensors_in(sample)
    if not parts:
        return str(sample)[:200]
    lines = []
    for place, tensor in parts.items():
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        head = f"{place}: " if place else ""
        if tensor.ndim == 1 and len(tensor) <= 64:
            shown = torch.as_tensor(tensor).tolist()
            values = ", ".join(f"{v:.3g}" for v in shown[:8]) + (", …" if len(shown) > 8 else "")
            lines.append(f"{head}{values}")
        else:
            lines.append(f"{head}{shape} {str(tensor.dtype).removeprefix('torch.')}")
    return "\n".join(lines)
