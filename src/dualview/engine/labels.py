"""Labels as a user has them, turned into output columns of the network."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Problem = Literal["classification", "regression", "multi-label"]
"""What the labels of a task are: one class a sample, numbers to be met, or any number of classes."""


def targets_of(
    labels: Any, problem: Problem, num_columns: int, classes: Mapping[Any, int] | None = None, *, start: int = 0
) -> Int[Tensor, " row"] | Float[Tensor, "row column"]:
    """Return labels as the problem has them: output columns, or one number for each sample and output column.

    Args:
        labels: as the user has them.
        problem: what they are.
        num_columns: output columns of the network.
        classes: label → column, where labels of a classification are not columns already.
        start: position of the first label in its data set, for errors.

    Raises:
        ValueError: labels of another shape, not finite, or of a multi-label task not 0 or 1.
    """
    if problem == "classification":
        return columns_of(labels, num_columns, classes, start=start)
    try:
        numbers = (labels if isinstance(labels, Tensor) else torch.as_tensor(np.array(labels))).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`targets` such as {next(iter(labels), None)!r} are no rows of numbers") from None
    if numbers.is_complex():
        raise ValueError("`targets` are complex numbers; expected real ones")
    numbers = numbers.to(torch.float64 if numbers.dtype == torch.float64 else torch.float32)
    if numbers.ndim == 1 and num_columns == 1:
        numbers = numbers[:, None]
    if numbers.ndim != 2 or numbers.shape[1] != num_columns:
        raise ValueError(
            f"`targets` have shape {tuple(numbers.shape)}; a {problem} task of {num_columns} output columns needs "
            f"(row, {num_columns})"
        )
    bad = ~numbers.isfinite().all(1)
    if problem == "multi-label":
        bad |= ~((numbers == 0) | (numbers == 1)).all(1)
    if bool(bad.any()):
        expected = "finite numbers" if problem == "regression" else "0 or 1 for each class"
        raise ValueError(f"the targets of sample {start + int(bad.nonzero()[0])} are not {expected}")
    return numbers


def columns_of(
    labels: Any,
    num_classes: int,
    classes: Mapping[Any, int] | None = None,
    *,
    names: Sequence[Any] | None = None,
    start: int = 0,
) -> Int[Tensor, " row"]:
    """Return the output column of each label.

    Args:
        labels: a tensor, array or sequence of labels, one a sample.
        num_classes: output columns of the network.
        classes: label → column, where labels are not columns already.
        names: a name per column, each of which is a label too; `classes` go first.
        start: position of the first label in its data set, for errors.

    Raises:
        ValueError: a label is no column, or is not one label per sample.
    """
    if classes is not None:
        columns = [_look_up(label, classes, names, start + k) for k, label in enumerate(_items(labels))]
        return _checked(torch.tensor(columns, dtype=torch.int64), num_classes, start)
    if names is not None and not isinstance(labels, Tensor):
        words = _items(labels)
        if words and all(isinstance(word, str) for word in words):
            columns = [_column_named(word, names, start + k) for k, word in enumerate(words)]
            return _checked(torch.tensor(columns, dtype=torch.int64), num_classes, start)
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(np.array(labels) if hasattr(labels, "__array__") else labels)
        except (TypeError, ValueError, RuntimeError):
            first = next(iter(labels), None)
            raise ValueError(
                f"labels such as {first!r} are no output columns: give classes=, a mapping label → column"
            ) from None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.ndim != 1:
        raise ValueError(
            f"`targets` have shape {tuple(labels.shape)}; expected one label per sample, (row,). "
            'For several labels a sample give Task(problem="multi-label"); for one-hot labels, a split= that returns '
            "class indices"
        )
    if labels.is_floating_point():
        if not bool((labels == labels.round()).all()):
            raise ValueError(
                '`targets` are not whole numbers; for a task that predicts numbers give Task(problem="regression")'
            )
    elif labels.is_complex():
        raise ValueError("`targets` are complex numbers; expected class labels")
    return _checked(labels.detach().to("cpu", torch.int64), num_classes, start)


def _items(labels: Any) -> list:
    items = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return [item[0] if isinstance(item, (list, tuple)) and len(item) == 1 else item for item in items]


def _look_up(label: Any, classes: Mapping[Any, int], names: Sequence[Any] | None, position: int) -> int:
    if isinstance(label, (list, tuple)):
        raise ValueError(f"sample {position} has the labels {label!r}; expected one label per sample")
    whole = int(label) if isinstance(label, float) and label.is_integer() else label
    for key in (label, whole, str(label), str(whole)):
        if key in classes:
            return int(classes[key])
    unknown = f"label {label!r} (sample {position}) is not in classes=, which knows {_few(classes)}"
    if names is None or not isinstance(label, str):
        raise ValueError(unknown)
    try:
        return _column_named(label, names, position)
    except ValueError as error:
        raise ValueError(f"{unknown}; {error}") from None


def _column_named(word: str, names: Sequence[Any], position: int) -> int:
    """Return the one column of this name."""
    known = list(map(str, names))
    columns = [column for column, name in enumerate(known) if name == word]
    if len(columns) == 1:
        return columns[0]
    if columns:
        raise ValueError(
            f"label {word!r} (sample {position}) is the class name of {len(columns)} output columns: give one of "
            f"{_few(columns)}"
        )
    folded = {name.casefold(): name for name in known}
    near = [folded[name] for name in difflib.get_close_matches(word.casefold(), folded)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"class_names are {_few(known)}"
    raise ValueError(f"label {word!r} (sample {position}) is no class name: {hint}")


def _few(values: Collection[Any]) -> str:
    return ", ".join(map(repr, list(values)[:10])) + (", …" if len(values) > 10 else "")


def _checked(columns: Int[Tensor, " row"], num_classes: int, start: int) -> Int[Tensor, " row"]:
    outside = (columns < 0) | (columns >= num_classes)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        raise ValueError(
            f"label {int(columns[first])} (sample {start + first}) is no output column: the network has columns 0 to "
            f"{num_classes - 1}. Give classes=, a mapping label → column"
        )
    return columns
