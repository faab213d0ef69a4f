"""Relevance as colours: orange against, paper at zero, blue for; both alike in lightness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dualview.engine.pictures import MAX_VALUES, Picture
from dualview.plotting.words import signed

FOR_TONE, AGAINST_TONE = np.array([0x0B, 0x5F, 0xA5]), np.array([0xB4, 0x46, 0x0F])  # as the scores: `style`
PAPER_TONE = np.array([255, 255, 255])
PICTURE_DEPTH = 0.25  # how far the picture below a map darkens the paper
WITHIN = 0.99  # of the non-zero values have colours of their own; few and large ones would leave the rest pale
NUM_STRONGEST = 3  # entries named below a row of numbers
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709


def heat(relevance: Tensor | Mapping[str, Tensor], name: str | None = None) -> np.ndarray | None:
    """Return one sample's relevance as it is drawn: H×W, a row of numbers, or None where it is neither.

    Colours (the first axis, or a last one of 1, 3 or 4) are summed, so the sum stays the same.

    Args:
        relevance: of one sample, without the batch axis; one tensor for each input of a model with several.
        name: which input, where there are several.

    Raises:
        ValueError: there are several inputs and `name` is none of them.
    """
    values = part_of(relevance, name).detach().cpu().double().numpy()
    if values.size == max(values.shape, default=0) and 2 <= values.size <= MAX_VALUES:
        return values.reshape(-1)
    if values.ndim == 3:
        colours_last = values.shape[0] not in (1, 3, 4) and values.shape[2] in (1, 3, 4)
        values = values.sum(2 if colours_last else 0)
    return values if values.ndim == 2 and min(values.shape) > 1 else None


def part_of(features: Tensor | Mapping[str, Tensor], name: str | None = None) -> Tensor:
    """Return what belongs to one input of the model.

    Raises:
        ValueError: there are several and `name` is none of them, or there is one and it has another name.
    """
    parts = {"": features} if isinstance(features, Tensor) else dict(features)
    if name is None and len(parts) == 1:
        return next(iter(parts.values()))
    if name not in parts:
        names = ", ".join(repr(known) for known in parts if known)
        raise ValueError(f"`input` is {name!r}; expected one of {names}" if names else
                         f"`input` is {name!r}; the model takes one input, so leave it out")  # fmt: skip
    return parts[name]


def limit(maps: Sequence[np.ndarray]) -> float:
    """Return the end of the scale from −limit to +limit that several maps share; above zero.

    Of pixels that are not zero 99 % lie within it; where others exceed it, the scale has pointed ends.
    Rows of numbers lie within it altogether, since bars end at their axis.
    """
    ends = [float(np.abs(values).max()) for values in maps if values.ndim == 1]
    pixels = np.concatenate([np.zeros(0), *(np.abs(values).ravel() for values in maps if values.ndim > 1)])
    if pixels.any():
        ends.append(float(np.quantile(pixels[pixels > 0], WITHIN, method="higher")))
    return max(ends, default=0.0) or 1.0


def strongest_of(values: np.ndarray, count: int) -> list[str]:
    """Name the entries of a row of numbers that relevance is largest on."""
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    return [f"value {entry} ({signed(float(values[entry]), 2)})" for entry in order]


def coloured(values: np.ndarray, limit: float, picture: Picture | None = None) -> np.ndarray:
    """Colour an H×W map: "height width 3" uint8; values beyond ±limit have the colours of the ends.

    Zero is paper, or a faint grey version of the sample's picture where its proportions are those of
    the map; towards ±limit the colour of the sign covers it. The result is as large as the larger of
    map and picture.
    """
    below = None if picture is None else _faint(picture, values.shape)
    if below is None:
        below = np.ones(values.shape)
    height, width = (max(sides) for sides in zip(values.shape, below.shape, strict=True))
    strength = (_scaled(values, height, width) / limit).clip(-1, 1)[..., None]
    paper = _scaled(below, height, width)[..., None] * PAPER_TONE
    tone = np.where(strength > 0, FOR_TONE, AGAINST_TONE)
    return (paper + np.abs(strength) * (tone - paper)).round().astype(np.uint8)


class Scale(NamedTuple):
    """What colours, or lengths of bars, mean in several maps.

    Attributes:
        limit: both ends, −limit and +limit.
        pointed: whether values lie beyond them.
        flipped: whether less is better (a loss), so that negative values are blue.
        bars: whether the maps are rows of numbers.
    """

    limit: float
    pointed: bool
    flipped: bool
    bars: bool

    @classmethod
    def of(cls, maps: Sequence[np.ndarray | None], *, lower_is_better: bool = False) -> Scale:
        """Return the scale that these maps share."""
        drawn = [values for values in maps if values is not None]
        return cls(limit(drawn), False, lower_is_better, False).drawing(drawn)

    def drawing(self, maps: Sequence[np.ndarray | None]) -> Scale:
        """Return this scale where only some of the maps that share it are drawn."""
        drawn = [values for values in maps if values is not None]
        beyond = any(bool((np.abs(values) > self.limit).any()) for values in drawn)
        return self._replace(pointed=beyond, bars=any(values.ndim == 1 for values in drawn))

    def paint(self, values: np.ndarray, picture: Picture | None = None) -> np.ndarray:
        """Colour a map on this scale, as `coloured` does."""
        return coloured(-values if self.flipped else values, self.limit, picture)

    def strip(self, steps: int = 255) -> np.ndarray:
        """Return the scale itself as a picture, "1 steps 3" uint8, from −limit to +limit."""
        values = np.linspace(-self.limit, self.limit, steps)[None]
        return self.paint(np.sign(values) * self.limit if self.bars else values)


class Heated(NamedTuple):
    """A sample's relevance, ready to be drawn.

    Attributes:
        picture: what is seen of the sample.
        values: H×W, a row of numbers, or None.
        words: what is said in their place.
    """

    picture: Picture
    values: np.ndarray | None
    words: str

    @property
    def is_laid_over(self) -> bool:
        """Whether the sample's picture is seen beneath the map."""
        return self.values is not None and self.values.ndim == 2 and _faint(self.picture, self.values.shape) is not None

    @classmethod
    def of(cls, relevance: Tensor, picture: Picture) -> Heated:
        """Gather what there is to show of one sample's relevance."""
        shape = "×".join(map(str, relevance.shape)) or "one number"
        return cls(
            picture, heat(relevance), f"{shape}, which has no picture; it sums to {signed(float(relevance.sum()))}"
        )


def _faint(picture: Picture, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return brightness H×W near 1, or None where the picture's proportions are not the map's."""
    image = picture.image
    if image is None or abs(image.shape[1] - shape[1] * image.shape[0] / shape[0]) > 1:
        return None
    grey = (image if image.ndim == 2 else image[..., :3] @ LUMINANCE) / 255
    if image.ndim == 3 and image.shape[2] == 4:
        grey = 1 - (1 - grey) * image[..., 3] / 255  # on paper
    return 1 - PICTURE_DEPTH * (1 - grey)


def _scaled(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Enlarge an array by repeating its nearest value."""
    down = np.arange(height) * values.shape[0] // height
    across = np.arange(width) * values.shape[1] // width
    return values[down][:, across]
