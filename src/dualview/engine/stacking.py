"""Samples made one batch, and what is said of those that make none."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from dualview.engine.batches import named_fields

SHOWN = 5  # positions in an error, where they do not follow each other


def collate_samples(samples: list, positions: Sequence[int] | None = None) -> Any:
    """Collate samples as torch does, and dataclass instances field by field.

    Args:
        samples: as the data set gives them.
        positions: where they stand in it, for errors; places in the batch by default.

    Raises:
        ValueError: the samples are of different sizes.
        TypeError: they hold what cannot be stacked.
    """
    positions = range(len(samples)) if positions is None else positions
    first = samples[0]
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        columns = _stacked([named_fields(sample) for sample in samples], positions)
        batch = copy.copy(first)  # not made anew: its __init__ may check that it holds one sample
        for key, column in columns.items():
            object.__setattr__(batch, key, column)
        return batch
    return _stacked(samples, positions)


def _stacked(samples: list, positions: Sequence[int]) -> Any:
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError, AttributeError) as error:  # in a worker process torch asks numbers for a size
        told = _refusal(error, samples, positions)
        if told is None:  # such as no memory, or several devices
            raise
        raise told from error


def _refusal(error: Exception, samples: list, positions: Sequence[int]) -> Exception | None:
    """Return what to say of samples that torch does not stack; None where its own error serves."""
    if isinstance(error, RuntimeError) and "size" in str(error):
        return ValueError(
            "samples of different sizes cannot be stacked into a batch: give a DataLoader with your collate_fn (its "
            "order and batch size are not used)"
        )
    found = str(error).rpartition("found ")[2]
    if any(str(type(part)) == found and _is_picture(part) for _, part in _leaves(samples[0])):
        return TypeError(
            f"samples that hold {found} make no batch: give transform= of dualview.fit, a function that makes a tensor "
            "of such an input (torchvision.transforms.ToTensor(), say), or a DataLoader with your collate_fn"
        )
    for position, sample in zip(positions, samples, strict=True):
        for place, part in _leaves(sample):
            if part is None:
                where = f" at {place}" if place else ""
                return TypeError(
                    f"sample {position} holds None{where}, of which no batch is made: give a number or tensor there, "
                    "or a DataLoader with your collate_fn"
                )
    return None if isinstance(error, RuntimeError) else TypeError(f"{_named(positions)} no batch: {error}")


def _is_picture(part: Any) -> bool:
    """Tell what numpy can read, such as a PIL image."""
    return hasattr(part, "__array_interface__") or hasattr(part, "__array__")


def _leaves(sample: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a sample holds, each with its place in it: "[0]", "['label']"."""
    if isinstance(sample, Mapping):
        for key, part in sample.items():
            yield from _leaves(part, f"{place}[{key!r}]")
    elif isinstance(sample, (tuple, list)):
        for k, part in enumerate(sample):
            yield from _leaves(part, f"{place}[{k}]")
    elif not isinstance(sample, Tensor):
        yield place, sample


def _named(positions: Sequence[int]) -> str:
    if len(positions) == 1:
        return f"sample {positions[0]} makes"
    if list(positions) == list(range(positions[0], positions[-1] + 1)):
        return f"samples {positions[0]} to {positions[-1]} make"
    more = ", ..." if len(positions) > SHOWN else ""
    return f"samples {', '.join(map(str, positions[:SHOWN]))}{more} make"
