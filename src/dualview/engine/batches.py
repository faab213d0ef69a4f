"""One batch: what of it goes into the model, what are its labels, how many samples it holds."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BATCH_BYTES = 16 * 2**20
TARGET_KEYS = ("labels", "label", "targets", "target", "y")

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[Any, Any]


def split_batch(batch: Any) -> tuple[Inputs, Any]:
    """Split a batch into model inputs and labels; the default of `Task.split`.

    A tuple or list ends with the labels. A dict, dataclass or named tuple has them under one of
    `labels`, `label`, `targets`, `target`, `y`; its other entries are keyword arguments.
    """
    fields = named_fields(batch)
    if fields is None:
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise TypeError(
                f"a batch of type {type(batch).__name__} does not say which part are the labels: "
                "give split=, a function batch → (inputs, targets)"
            )
        *inputs, targets = batch
        return (inputs[0] if len(inputs) == 1 else tuple(inputs)), targets
    keys = [key for key in TARGET_KEYS if key in fields]
    if len(keys) != 1:
        found = "none" if not keys else " and ".join(map(repr, keys))
        raise ValueError(
            f"a batch with the entries {', '.join(map(repr, fields))} must hold its labels under exactly one of "
            f"{', '.join(map(repr, TARGET_KEYS))} (found: {found}); "
            "or give split=, a function batch → (inputs, targets)"
        )
    targets = fields[keys[0]]
    inputs = {key: value for key, value in fields.items() if key != keys[0]}
    if isinstance(batch, tuple):  # a named tuple is called by position, as its author would
        values = tuple(inputs.values())
        return (values[0] if len(values) == 1 else values), targets
    return inputs, targets


def named_fields(value: Any) -> dict[str, Any] | None:
    """Return the named entries of a mapping, a dataclass instance or a labelled named tuple; else None."""
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = dict(zip(value._fields, value, strict=True))  # type: ignore[attr-defined]
        return fields if any(key in fields for key in TARGET_KEYS) else None
    return None


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply a function to every tensor of the inputs, keeping their structure."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(map_tensors(function, part) for part in inputs)
    if isinstance(inputs, Mapping):
        return {key: map_tensors(function, part) for key, part in inputs.items()}
    return inputs


def tensors_in(inputs: Any) -> dict[str, Tensor]:
    """Return the tensors of the inputs by their place: "" for a lone tensor, else "0", "mask", "0.x"."""
    found: dict[str, Tensor] = {}

    def visit(part: Any, place: str) -> None:
        if isinstance(part, Tensor):
            found[place] = part
        elif isinstance(part, (tuple, list)):
            for k, item in enumerate(part):
                visit(item, f"{place}.{k}" if place else str(k))
        elif isinstance(part, Mapping):
            for key, item in part.items():
                visit(item, f"{place}.{key}" if place else str(key))

    visit(inputs, "")
    return found


def with_parts(inputs: Any, parts: Mapping[Any, Tensor], place: str = "") -> Any:
    """Return the inputs with some of their tensors replaced, by their place as in `tensors_in`."""
    if isinstance(inputs, Tensor):
        return parts.get(place, inputs)
    head = f"{place}." if place else ""
    if isinstance(inputs, (tuple, list)):
        return tuple(with_parts(part, parts, f"{head}{k}") for k, part in enumerate(inputs))
    if isinstance(inputs, Mapping):
        return {key: with_parts(part, parts, f"{head}{key}") for key, part in inputs.items()}
    return inputs


def as_inputs(inputs: Any) -> Any:
    """Accept what a user calls inputs: a tensor, an array, a tuple or a mapping of them; leave the rest as it is."""
    if isinstance(inputs, Tensor):
        return inputs
    if isinstance(inputs, tuple):
        return tuple(as_inputs(part) for part in inputs)
    if isinstance(inputs, Mapping):
        return {key: as_inputs(part) for key, part in inputs.items()}
    if hasattr(inputs, "__array__"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes
            tensor = torch.as_tensor(np.asarray(inputs, order="C"))
        return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor
    return inputs


def how_to_batch(inputs: Any, *, alone: bool = True) -> str:
    """Say how what is no batch becomes one, as the end of an error; "" where it looks like a batch.

    Args:
        inputs: as the user gave them.
        alone: whether the model takes a lone tensor.
    """
    collate = "torch.utils.data.default_collate({0}), or your loader's collate_fn({0})"
    if isinstance(inputs, list) and inputs:
        if alone and all(isinstance(part, Tensor) for part in inputs):
            return "; a list of samples becomes a batch by torch.stack(inputs)"
        if all(isinstance(part, (tuple, list, Mapping)) for part in inputs):
            return f"; a list of samples becomes a batch by {collate.format('inputs')}"
    if isinstance(inputs, str):
        return f"; make a sample of the text, as your data set does, and a batch of it: {collate.format('[sample]')}"
    parts = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
    if isinstance(parts, (tuple, list)) and not all(isinstance(part, Tensor) for part in map(as_inputs, parts)):
        return f"; a sample of a data set becomes a batch by {collate.format('[sample]')}"
    return ""


def num_rows(inputs: Inputs) -> int:
    """Return how many samples the inputs hold: the common first axis of their tensors."""
    sizes = {place: tensor.shape[0] for place, tensor in tensors_in(inputs).items() if tensor.ndim}
    if not sizes:
        raise TypeError(f"`inputs` of type {type(inputs).__name__} hold no tensor with a sample axis")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the parts of `inputs` hold different numbers of samples: {sizes}")
    return next(iter(sizes.values()))


def batch_size_for(inputs: Inputs, max_bytes: int = BATCH_BYTES) -> int:
    """Choose how many samples make a batch of about so many bytes of inputs (16 MiB): between 1 and 256."""
    rows = max(1, num_rows(inputs))
    per_sample = sum(tensor.nbytes for tensor in tensors_in(inputs).values()) / rows
    return max(1, min(256, int(max_bytes // max(1, per_sample))))


def take_rows(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Return the samples from `start` to `stop` of the inputs."""
    return map_tensors(lambda tensor: tensor[start:stop] if tensor.ndim else tensor, inputs)


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model on inputs: a tuple by position, a dict by name, anything else as it is.

    A dict with a single entry that the model's `forward` does not name is given by position.
    """
    args, kwargs = arguments(model, inputs)
    return model(*args, **kwargs)


def arguments(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what `call_model` calls the model with, by position and by name."""
    if isinstance(inputs, dict):
        if len(inputs) == 1 and not _accepts(model, next(iter(inputs))):
            return tuple(inputs.values()), {}
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _accepts(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def part_with_logits(output: Any) -> Any:
    """Return where logits stand in what a model returned, whatever stands there; without such a part, all of it."""
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if getattr(output, "logits", None) is not None:
        return output.logits  # type: ignore[union-attr]
    if isinstance(output, (tuple, list)) and output:
        return output[0]
    return output


def logits_of(output: Any, rows: int) -> Tensor:
    """Find the logits "row cls" in what a model returned: a tensor, `.logits`, or the first of a tuple."""
    found = part_with_logits(output)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise TypeError(
            f"the model returned {type(output).__name__}; expected logits: a float tensor, an object with `.logits`, "
            "or a tuple that starts with them"
        )
    if rows == 1 and found.ndim < 2:  # a squeeze() in the model drops the axis of a lone sample too
        found = found.reshape(1, -1)
    if found.ndim == 0 or found.shape[0] != rows:
        raise ValueError(f"the model returned logits of shape {tuple(found.shape)} for {rows} samples")
    flat = found.reshape(rows, -1)
    if found.ndim > 2 and flat.shape[1] != max(found.shape[1:]):
        raise ValueError(
            f"the model returned logits of shape {tuple(found.shape)}; "
            "expected one row of classes per sample, (row, class)"
        )
    return flat
