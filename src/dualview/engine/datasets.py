"""The user's data set, read in its own order: map-style data sets, tensors and DataLoaders."""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from dualview.engine.batches import (
    BATCH_BYTES,
    Inputs,
    as_inputs,
    batch_size_for,
    how_to_batch,
    named_fields,
    num_rows,
    take_rows,
    tensors_in,
)
from dualview.engine.stacking import collate_samples
from dualview.errors import AugmentationWarning

log = logging.getLogger("dualview")


@dataclass(frozen=True, eq=False)
class Samples:
    """A map-style data set with the way its samples become batches.

    Attributes:
        dataset: anything with `__len__` and `__getitem__`.
        collate: samples → batch.
        num_workers: processes that read.
    """

    dataset: Any
    collate: Callable[[list], Any]
    num_workers: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, positions: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], Any]]:
        """Read the samples at these positions, in this order, in batches of at most `batch_size`."""
        chunks = [list(positions[k : k + batch_size]) for k in range(0, len(positions), batch_size)]
        if type(self.dataset) is TensorDataset and self.collate is collate_samples:  # the same batches, all at once
            yield from ((chunk, [tensor[chunk] for tensor in self.dataset.tensors]) for chunk in chunks)
            return
        loader = DataLoader(
            _Numbered(self.dataset),
            batch_sampler=chunks,
            collate_fn=partial(_collated, self.collate),
            num_workers=self.num_workers if len(chunks) > 1 else 0,
            generator=torch.Generator(),
        )
        yield from zip(chunks, loader, strict=True)

    def sample(self, position: int) -> Any:
        """Read one sample, as the data set gives it."""
        return self.dataset[position]

    def batch(self, positions: Sequence[int]) -> Any:
        """Read a few samples as one batch, in this process."""
        return _collated(self.collate, [(int(position), self.dataset[int(position)]) for position in positions])


def _collated(collate: Callable[[list], Any], numbered: list[tuple[int, Any]]) -> Any:
    """Make a batch of samples, each with its position, which is for errors only."""
    positions, samples = zip(*numbered, strict=True)
    return collate_samples(list(samples), positions) if collate is collate_samples else collate(list(samples))


class _Numbered(Dataset):
    """Any indexable object as a data set of (position, sample), so that a loader takes it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        return position, self.dataset[position]


class _Transformed(Dataset):
    """A data set without a transform of its own, whose samples' inputs pass through one."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Any]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        sample = self.dataset[position]
        if not isinstance(sample, tuple) or len(sample) != 2:
            raise TypeError(
                f"transform= needs a data set with a `transform` attribute, or samples (input, label); "
                f"sample {position} is a {type(sample).__name__}"
            )
        return self.transform(sample[0]), sample[1]


def as_samples(data: Any, *, name: str = "train", transform: Callable[[Any], Any] | None = None) -> Samples:
    """Accept a map-style data set, a tuple of tensors or arrays (inputs..., labels), or a DataLoader.

    A DataLoader gives its data set, collate function and workers; its order, shuffling and batch
    size are not used. `transform` replaces the data set's own `transform` (on a shallow copy), or
    is applied to the inputs of a data set that has none.

    Raises:
        TypeError: an iterable data set, or something that cannot be indexed.
        ValueError: an empty data set, or a DataLoader that reads a part of its data set or does not
            make batches from samples.
    """
    collate, workers = collate_samples, 0
    if isinstance(data, Samples):
        if transform is None:
            return data
        return dataclasses.replace(data, dataset=_with_transform(data.dataset, transform))
    if isinstance(data, DataLoader):
        _check_loader(data, name)
        if data.collate_fn is not default_collate:
            collate = data.collate_fn
        workers, data = data.num_workers, data.dataset
    if isinstance(data, IterableDataset) or (hasattr(data, "__iter__") and not hasattr(data, "__getitem__")):
        raise TypeError(_iterable_message(name))
    if isinstance(data, tuple) and any(hasattr(part, "__array__") for part in data):
        data = _tensor_dataset(data, name)
    if isinstance(data, Mapping) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise TypeError(
            f"`{name}` must be a map-style data set (with __len__ and __getitem__), a tuple of tensors "
            f"(inputs, labels) or a DataLoader; it is {type(data).__name__}"
        )
    if len(data) == 0:
        raise ValueError(f"`{name}` is an empty data set")
    if transform is not None:
        data = _with_transform(data, transform)
    return Samples(data, collate, workers)


def is_data_set(inputs: Any) -> bool:
    """Tell a data set or DataLoader from one batch of inputs."""
    if isinstance(inputs, (Dataset, DataLoader, Samples)):
        return True
    is_batch = isinstance(inputs, (Tensor, tuple, list, str, Mapping)) or hasattr(inputs, "__array__")
    return not is_batch and hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")


def input_batches(
    inputs: Any, split: Callable[[Any], tuple[Any, Any]], batch_size: int | None = None, max_bytes: int = BATCH_BYTES
) -> tuple[int, Iterator[Inputs]]:
    """Return how many samples there are, and their inputs batch by batch, in their own order.

    Args:
        inputs: a batch as the model takes it, or a data set or DataLoader.
        split: batch of a data set → (inputs, targets).
        batch_size: samples a batch; None takes as many as make about `max_bytes` of inputs.
        max_bytes: see there.
    """
    if batch_size is not None and (batch_size != int(batch_size) or batch_size < 1):
        raise ValueError(f"`batch_size` is {batch_size}; expected a whole number of at least 1")
    if is_data_set(inputs):
        samples = as_samples(inputs, name="inputs")
        size = batch_size or batch_size_for(split(samples.batch([0]))[0], max_bytes)
        return len(samples), (split(batch)[0] for _, batch in samples.batches(range(len(samples)), size))
    given = as_inputs(inputs)
    if not tensors_in(given):
        raise TypeError(
            f"`inputs` hold no tensor; expected a batch of inputs as the model takes it, a data set or a DataLoader; "
            f"got {type(inputs).__name__}{how_to_batch(inputs)}"
        )
    total = num_rows(given)
    if total == 0:
        raise ValueError("`inputs` hold no samples")
    size = batch_size or batch_size_for(given, max_bytes)
    return total, (take_rows(given, start, start + size) for start in range(0, total, size))


def warn_if_augmented(samples: Samples, *, name: str = "train") -> None:
    """Read a few samples twice and warn where the reads differ."""
    differs = (p for p in _spread(len(samples)) if not _same(samples.batch([p]), samples.batch([p])))
    changed = next(differs, None)
    if changed is not None:
        warnings.warn(
            f"two reads of `{name}` sample {changed} differ: the data set augments. Attribution needs the view "
            "that the model is evaluated on: give transform=, the evaluation transform, or an un-augmented data set",
            AugmentationWarning,
            stacklevel=4,
        )


def input_spec(inputs: Any) -> dict[str, dict]:
    """Describe inputs for later checks: per tensor its dtype and the shape of one sample."""
    return {
        place: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape[1:])}
        for place, tensor in tensors_in(inputs).items()
    }


def spec_of(samples: Samples, split: Callable[[Any], tuple[Any, Any]]) -> dict[str, dict]:
    """Describe a data set's inputs from some evenly spaced samples read one by one; shapes may vary."""
    spec: dict[str, dict] | None = None
    for position in _spread(len(samples)):
        spec = merge_specs(spec, input_spec(split(samples.batch([position]))[0]))
    assert spec is not None
    return spec


def merge_specs(known: dict[str, dict] | None, new: dict[str, dict]) -> dict[str, dict]:
    """Join the descriptions of two batches; a shape that varies between them becomes None."""
    if known is None:
        return new
    return {
        place: entry if known.get(place, entry)["shape"] == entry["shape"] else {**entry, "shape": None}
        for place, entry in new.items()
    }


def check_inputs(inputs: Any, spec: dict[str, dict]) -> None:
    """Refuse inputs whose parts or shapes are not those of the training samples."""
    came = input_spec(inputs)
    if set(came) != set(spec):
        raise ValueError(
            f"`inputs` have the parts {sorted(came)}; the training samples have {sorted(spec)}"
            f"{how_to_batch(inputs, alone=set(spec) == {''})}"
        )
    for place, entry in spec.items():
        part = f"`inputs`[{place!r}]" if place else "`inputs`"
        kinds = {entry["dtype"], came[place]["dtype"]}
        if len(kinds) > 1 and kinds <= {"float64", "float32", "float16", "bfloat16"}:
            raise ValueError(
                f"{part} are {came[place]['dtype']}; the training samples were {entry['dtype']}: convert them with "
                f".to(torch.{entry['dtype']})"
            )
        if entry["shape"] is None or came[place]["shape"] == entry["shape"]:
            continue
        expected, shape = ", ".join(["test", *map(str, entry["shape"])]), tensors_in(inputs)[place].shape
        hint = "; for a single sample give inputs[None]" if list(shape) == entry["shape"] else ""
        raise ValueError(f"{part} has shape {tuple(shape)}; expected ({expected}) as in training{hint}")


def _tensor_dataset(parts: tuple, name: str) -> TensorDataset | list:
    if len(parts) < 2:
        raise TypeError(f"`{name}` is a tuple of one tensor; expected (inputs, labels)")
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise ValueError(f"the tensors of `{name}` hold different numbers of samples: {lengths}")
    arrays = [part if isinstance(part, Tensor) else np.asarray(part) for part in parts]
    columns: list[Any] = [array if _is_words(array) else as_inputs(array) for array in arrays]
    if any(map(_is_words, columns)):
        return list(zip(*columns, strict=True))  # labels that are words stay words until classes= maps them
    return TensorDataset(*columns)


def _is_words(array: Tensor | np.ndarray) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "OUS"


def _check_loader(loader: DataLoader, name: str) -> None:
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(_iterable_message(name))
    if loader.batch_sampler is None:
        raise ValueError(
            f"`{name}` is a DataLoader with batch_size=None, which does not make batches from samples: give its data "
            "set, whose items must be single samples, or a DataLoader with a batch size"
        )
    if isinstance(getattr(loader.batch_sampler, "sampler", None), SubsetRandomSampler):
        raise ValueError(
            f"`{name}` is a DataLoader whose SubsetRandomSampler reads a part of its data set, and samplers are not "
            "used here: give torch.utils.data.Subset(dataset, indices) instead"
        )


def _with_transform(dataset: Any, transform: Callable[[Any], Any]) -> Any:
    """Return a shallow copy of a data set with its `transform` replaced, looking through subsets.

    Where there is none to replace, the inputs of its samples pass through it.
    """
    replaced = copy.copy(dataset)
    if hasattr(dataset, "transform"):
        replaced.transform = transform
        if getattr(dataset, "transforms", None) is not None:  # torchvision's pair of both, which wins over `transform`
            replaced.transforms = _Pair(transform, getattr(dataset, "target_transform", None))
    elif isinstance(dataset, Subset):
        replaced.dataset = _with_transform(dataset.dataset, transform)
    elif isinstance(dataset, ConcatDataset):
        replaced.datasets = [_with_transform(part, transform) for part in dataset.datasets]
    else:
        return _Transformed(dataset, transform)
    return replaced


@dataclass(frozen=True)
class _Pair:
    transform: Callable[[Any], Any]
    target_transform: Callable[[Any], Any] | None

    def __call__(self, sample: Any, target: Any) -> tuple[Any, Any]:
        return self.transform(sample), target if self.target_transform is None else self.target_transform(target)


def _same(first: Any, second: Any) -> bool:
    fields_a, fields_b = named_fields(first), named_fields(second)
    if fields_a is not None and fields_b is not None:
        return fields_a.keys() == fields_b.keys() and all(_same(fields_a[key], fields_b[key]) for key in fields_a)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and first.dtype == second.dtype and _same_bytes(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    if type(first).__eq__ is object.__eq__:  # it cannot be compared
        return True
    return bool(first == second)


def _same_bytes(first: Tensor, second: Tensor) -> bool:
    return bool(((first == second) | ((first != first) & (second != second))).all())


def _spread(total: int, count: int = 8) -> list[int]:
    """Return at most `count` evenly spaced positions, the first and the last among them."""
    return sorted({round(k * (total - 1) / (count - 1)) for k in range(count)})


def _iterable_message(name: str) -> str:
    return (
        f"`{name}` is an iterable data set: its samples have no positions to attribute to. Give a map-style data set "
        "(with __len__ and __getitem__), e.g. list(dataset) where it fits into memory"
    )
