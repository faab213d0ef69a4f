"""What there is to show of one explained prediction: pictures, words and numbers, not yet drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from operator import index
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dualview.data._attribution import DataAttribution, Ranked
from dualview.engine.batches import tensors_in
from dualview.engine.pictures import Picture, picture_of
from dualview.engine.source import Source
from dualview.plotting.words import class_caption, class_word

NO_SOURCE = Picture(None, "no picture: a loaded result has no source")


class Neighbour(NamedTuple):
    """A training sample beside a test sample.

    Attributes:
        train_index: its position in the training set.
        score: in units of the measured output.
        target: its training label, an output column.
        label: the same in words.
        caption: the same below its picture.
        name: its name, or None.
        differs: whether its label is not the explained class.
        picture: what is seen of it.
    """

    train_index: int
    score: float
    target: int
    label: str
    caption: str
    name: str | None
    differs: bool
    picture: Picture


class Explained(NamedTuple):
    """A test sample with its strongest training samples.

    Attributes:
        test_index: its row among the explained inputs.
        target: the explained output column.
        explained: the same in words.
        predicted: what the network predicts, in words.
        picture: what is seen of it.
        proponents: strongest first; fewer than asked where fewer have a score of that sign.
        opponents: strongest first.
    """

    test_index: int
    target: int
    explained: str
    predicted: str
    picture: Picture
    proponents: list[Neighbour]
    opponents: list[Neighbour]


def explained(
    attribution: DataAttribution,
    row: int,
    k: int,
    *,
    display: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Explained:
    """Gather what there is to show of one row; what is not given is taken from the attribution.

    Raises:
        ValueError: labels are no classes.
    """
    if attribution.train_targets.ndim > 1:
        raise ValueError("neighbours are drawn with their classes, and these labels are numbers or several a sample")
    class_names = attribution.class_names if class_names is None else class_names
    names = attribution.names if names is None else names
    source = attribution.source
    if source is not None and display is not None:
        source = dataclasses.replace(source, task=dataclasses.replace(source.task, display=display))
    target, test_index = int(attribution.targets[row]), int(attribution.test_index[row])
    top = attribution[row].top(k if attribution.top_k is None else min(k, attribution.top_k))

    def side(ranked: Ranked) -> list[Neighbour]:
        return [
            neighbour(
                position,
                score,
                int(attribution.train_targets[position]),
                target,
                NO_SOURCE if source is None else source.train_picture(position),
                class_names,
                names,
            )  # fmt: skip
            for position, score in zip(ranked.train_index[0].tolist(), ranked.scores[0].tolist(), strict=True)
            if position >= 0
        ]

    return Explained(
        test_index,
        target,
        class_word(target, class_names),
        class_word(int(attribution.predicted[row]), class_names),
        NO_SOURCE if source is None else source.test_picture(test_index),
        side(top.proponents),
        side(top.opponents),
    )


def neighbour(
    position: int,
    score: float,
    label: int,
    target: int,
    picture: Picture,
    class_names: Sequence[str] | None,
    names: Sequence[str] | None,
) -> Neighbour:
    """Put a training sample into words: its label, and whether it is the explained class `target`."""
    return Neighbour(
        position,
        score,
        label,
        class_word(label, class_names),
        class_caption(label, class_names),
        None if names is None else " ".join(str(names[position]).split()),
        label != target,
        picture,
    )


def source_shown(source: Source, display: Callable[[Any], Any] | None, name: str | None = None) -> Source:
    """Return the source with samples shown by `display`, else by the task's, else by their one relevant input.

    Args:
        source: the samples.
        display: one sample's input → image or text.
        name: which input, where the model takes several floating-point inputs.
    """
    display = display or source.task.display or partial(_floating_part, name=name)
    return dataclasses.replace(source, task=dataclasses.replace(source.task, display=display))


def _floating_part(sample: Any, name: str | None) -> Picture:
    parts = {place: part for place, part in tensors_in(sample).items() if part.is_floating_point()}
    if name is None and len(parts) == 1:
        return picture_of(next(iter(parts.values())))
    return picture_of(parts.get(name, sample) if name is not None else sample)


def value_limits(pictures: Sequence[Picture]) -> tuple[float, float]:
    """Return one scale, lowest and highest, for the numbers of several samples; it always includes zero."""
    rows = [picture.values[np.isfinite(picture.values)] for picture in pictures if picture.values is not None]
    values = np.concatenate([np.zeros(1), *rows])
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1.0


def check_rows(rows: Sequence[int], num_rows: int) -> None:
    """Refuse rows that a result does not have, and no row at all."""
    if not rows:
        raise ValueError("`test` is empty; expected a row of the attribution, or several")
    for row in rows:
        if not -num_rows <= row < num_rows:
            raise IndexError(f"`test` is {row}; rows of the attribution go from 0 to {num_rows - 1}")


def check_target(name: str, given: Any, num_classes: int) -> int:
    """Return a label as an output column; refuse what is none."""
    try:
        column = index(given)
    except TypeError:
        raise TypeError(
            f"`{name}` must be an output column, a whole number from 0 to {num_classes - 1}; it is {given!r}"
        ) from None
    if not 0 <= column < num_classes:
        raise ValueError(f"`{name}` is {column}; output columns go from 0 to {num_classes - 1}")
    return column


def check_length(name: str, given: Sequence[Any] | Tensor | None, expected: int, of_what: str) -> None:
    """Refuse a list that is not as long as what it names."""
    if given is not None and len(given) != expected:
        raise ValueError(f"`{name}` holds {len(given)} entries; there are {expected} {of_what}")
