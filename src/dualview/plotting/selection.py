"""A selection of training samples in their order: the path from globally important to locally similar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dualview._display import shows
from dualview.data._selection import Selection
from dualview.plotting.explained import NO_SOURCE, check_length, check_rows, neighbour, source_shown
from dualview.plotting.words import class_phrase, explained_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@shows(Selection)
def selection_figure(
    selection: Selection,
    test: int = 0,
    *,
    k: int = 6,
    display: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    true_target: int | None = None,
) -> Figure:
    """Draw a test sample beside the training samples that were selected for it, in their order.

    Below each tile stand its position in the training set and its numbers, each with a mark on a track from the
    smallest to the largest that is drawn. Of a longer path `k` samples are drawn, evenly spaced, both ends among them.
    An empty path says why it is empty.

    Args:
        selection: what `select` returned. A loaded one has no pictures until it gets a source:
            `dataclasses.replace(selection, source=explainer.source_of(inputs))`.
        test: row of the selection.
        k: training samples to draw at most, 2 or more.
        display: one sample's input → image or text, in place of the task's.
        class_names: a name per output column, in place of the task's.
        names: a name per training sample, in place of the explainer's.
        true_target: the true label as an output column, where it is known.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        IndexError: the selection has no such row.
        ValueError: `k` is below 2, or a list is not as long as what it names.
    """
    from dualview.plotting.path_layout import Path, draw_path
    from dualview.plotting.style import plain_style

    check_rows([test], len(selection))
    check_length("names", names, selection.num_train, "training samples")
    if k < 2:
        raise ValueError(f"`k` is {k}; expected 2 or more: a path has two ends")
    class_names = selection.class_names if class_names is None else class_names
    one = selection[test]
    target, length = int(one.targets), len(one.train_index)
    shown = torch.arange(length) if length <= k else torch.linspace(0, length - 1, k).round().long()
    source = None if one.source is None else source_shown(one.source, display)
    members = [
        neighbour(
            position,
            0.0,
            int(one.train_targets[position]),
            target,
            NO_SOURCE if source is None else source.train_picture(position),
            class_names,
            one.names if names is None else names,
        )  # fmt: skip
        for position in one.train_index[shown].tolist()
    ]
    path = Path(
        int(one.test_index),
        NO_SOURCE if source is None else source.test_picture(int(one.test_index)),
        members,
        {name: column[shown].tolist() for name, column in one.columns.items()},
        one.ended[0],
    )
    title = explained_title(int(one.predicted), target, true_target, class_names)
    with plain_style():
        return draw_path(path, title, _sentence(one, len(shown), class_names))


def _sentence(one: Selection, num_shown: int, class_names: Sequence[str] | None) -> str:
    length, phrase = len(one.train_index), class_phrase(int(one.targets), class_names)
    if not length:
        return f"Explained for {phrase}: nothing was selected."
    cut = f"; {num_shown} of the {length} are shown, evenly spaced, both ends among them" if num_shown < length else ""
    return (
        f"Training samples of {phrase}, {one.by}: a path of {length} from a support set of {int(one.num_support)}{cut}."
    )
