"""The neighbours of a prediction: the training samples that speak most for it and against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dualview._display import shows
from dualview.data._attribution import DataAttribution
from dualview.plotting.explained import check_length, check_rows, explained
from dualview.plotting.words import carried_sentence, explained_title, others_note, score_sentence, side_phrases

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@shows(DataAttribution)
def neighbours(
    attribution: DataAttribution,
    test: int | Sequence[int] | Tensor | None = None,
    *,
    k: int = 5,
    display: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    true_targets: Sequence[int] | Tensor | None = None,
) -> Figure:
    """Draw test samples beside their k strongest proponents and opponents.

    Each training sample stands with its score, its label and its position in the training set; above them stands how
    much of the sum of all proponents, and of all opponents, the drawn ones carry, where such sums mean something. A
    bar shows the score's size beside the largest drawn for that test sample. A dashed frame marks
    training samples whose label is not the explained class. Samples that are no images appear as
    bars (a row of numbers, all on one scale) or as words.

    Args:
        attribution: what `explain` returned. A loaded one has no pictures until it gets a source:
            `dataclasses.replace(attribution, source=explainer.source_of(inputs))`.
        test: row of the attribution, or several, one block each; the first by default.
        k: training samples of each sign; fewer are drawn where fewer have a score of that sign,
            or a running top k kept fewer.
        display: one sample's input → image or text, in place of the task's.
        class_names: a name per output column, in place of the task's.
        names: a name per training sample, in place of the explainer's.
        true_targets: "test", the true labels as output columns, where they are known: one for each
            row of the attribution.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        IndexError: the attribution has no such row.
        ValueError: no row at all, or a list that is not as long as what it names.
    """
    from dualview.plotting.layout import Block, draw_blocks
    from dualview.plotting.style import plain_style

    rows = torch.as_tensor(0 if test is None else test).reshape(-1).tolist()
    check_rows(rows, len(attribution))
    check_length("true_targets", true_targets, len(attribution), "rows in the attribution")
    check_length("names", names, attribution.num_train, "training samples")
    class_names = attribution.class_names if class_names is None else class_names
    blocks = []
    for row in rows:
        shown = explained(attribution, row, k, display=display, class_names=class_names, names=names)
        true = None if true_targets is None else int(true_targets[row])
        title = explained_title(int(attribution.predicted[row]), shown.target, true, class_names)
        drawn = [[member.score for member in side] for side in (shown.proponents, shown.opponents)]
        subtitle = f"{score_sentence(attribution, row, class_names)} {carried_sentence(attribution, row, drawn)}"
        blocks.append(Block(shown, title, subtitle, side_phrases(attribution)))
    with plain_style():
        return draw_blocks(blocks, others_note(test, len(attribution), several=True))
