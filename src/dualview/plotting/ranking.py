"""A ranking of samples as tiles to look at, each with its label and with what the network predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from dualview._display import shows
from dualview.data._ranking import Ranking
from dualview.engine.pictures import Picture
from dualview.plotting.explained import check_length, source_shown
from dualview.plotting.words import class_word, count, number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dualview.plotting.ranking_layout import Tile

NO_SOURCE = Picture(None, "no picture: this ranking has no source")
NONE = "There are none."
OTHERWISE = "Bold and orange: the network predicts another class than the label."
CONFIDENCE = "Confidence: the probability of the predicted class."
NOT_NUMBERS = ("target", "predicted", "confidence")  # columns that stand below a tile in words of their own
WORDS = {"self_influence": "self-influence"}


@shows(Ranking)
def ranking_figure(
    ranking: Ranking,
    *,
    k: int = 12,
    columns: int | None = None,
    display: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw the first samples of a ranking in their order, row by row.

    Below each tile stand the sample's position and name, its label and what the network predicts, the number that made
    the order, and the network's confidence, each where the ranking knows it. A prediction of another class than the
    label is bold and orange.

    Args:
        ranking: what `suspects` or `errors` returned, or one of yours; it has pictures where it has a source:
            `dataclasses.replace(ranking, source=explainer.source_of(inputs))`.
        k: samples to draw at most.
        columns: tiles beside each other; by default 4 to 6.
        display: one sample's input → image or text, in place of the task's.
        class_names: a name per output column, in place of the task's.
        names: a name per sample of the whole data set, in place of the ranking's.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        TypeError: `k` or `columns` is no whole number.
        ValueError: `k` or `columns` is below 1, there are not as many names as samples, or a class that is drawn
            has no name.
    """
    from dualview.plotting.ranking_layout import draw_ranking
    from dualview.plotting.style import plain_style

    for name, value, what in (("k", k, "samples to draw at most"), ("columns", columns, "tiles beside each other")):
        if value is not None and not isinstance(value, SupportsIndex):
            raise TypeError(f"`{name}` is {value!r}; expected a whole number, {what}")
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is {value}; expected 1 or more")
    check_length("names", names, ranking.num_samples, "samples in the data set")
    if names is not None:
        ranking = dataclasses.replace(ranking, names=[names[position] for position in ranking.index.tolist()])
    if class_names is not None:
        ranking = dataclasses.replace(ranking, class_names=class_names)
    shown = ranking.head(k)
    _check_class_names(shown)
    pictures = _pictures(shown, display)
    tiles = [_tile(shown, row, picture) for row, picture in zip(shown.rows(), pictures, strict=True)]
    notes = [OTHERWISE] if any(tile.differs for tile in tiles) else []
    notes += [CONFIDENCE] if tiles and "confidence" in shown.columns else []
    with plain_style():
        return draw_ranking(tiles, columns, _title(ranking), _sentence(ranking, len(tiles)), notes)


def _check_class_names(shown: Ranking) -> None:
    """Refuse class names that do not reach a class that is drawn."""
    answers = [row[name] for row in shown.rows() for name in ("target", "predicted") if name in shown.columns]
    last = max((answer for answer in answers if isinstance(answer, int)), default=-1)
    if shown.class_names is not None and last >= len(shown.class_names):
        raise ValueError(
            f"`class_names` holds {len(shown.class_names)} entries; a sample that is drawn has "
            f"output column {last}: give a name for each output column"
        )


def _title(ranking: Ranking) -> str:
    """Say what the ranking is, and what made its order: one of its columns, or what `by` says in words."""
    what = ranking.what or ("Training samples" if ranking.of == "train" else "Samples")
    return f"{what}, by {_word(ranking.by)}" if ranking.by in ranking.columns else f"{what}, {ranking.by}"


def _sentence(ranking: Ranking, num_shown: int) -> str:
    if not len(ranking):
        return NONE
    samples = count(len(ranking), "training sample" if ranking.of == "train" else "sample")
    first = "The first" if num_shown == 1 else f"The first {num_shown}"
    cut = f"{first} of {samples}" if num_shown < len(ranking) else samples
    return f"{cut}." if len(ranking) == ranking.num_samples else f"{cut}; the whole set holds {ranking.num_samples}."


def _pictures(ranking: Ranking, display: Callable[[Any], Any] | None) -> list[Picture]:
    """Show each sample, or say why it cannot be shown."""
    positions = ranking.index.tolist()
    if ranking.source is None:
        return [NO_SOURCE] * len(positions)
    source = source_shown(ranking.source, display)
    if ranking.of == "train":
        return [source.train_picture(position) for position in positions]
    return [source.test_picture(position) for position in positions]


def _tile(ranking: Ranking, row: dict[str, Any], picture: Picture) -> Tile:
    """Put one row of a ranking into words."""
    from dualview.plotting.ranking_layout import Tile

    label, predicted = (
        None if name not in ranking.columns else f"{word} {_answer(row[name], ranking.class_names)}"
        for name, word in (("target", "label"), ("predicted", "predicted"))
    )
    one = ranking.by in ranking.columns  # an order that no column made is told by all of them
    numbers = [name for name in ([ranking.by] if one else ranking.columns) if name not in NOT_NUMBERS]
    said = [f"{_word(name)} {_number(row[name])}" for name in numbers]
    said += [f"confidence {percent(row['confidence'])}"] if "confidence" in ranking.columns else []
    classes = all(isinstance(row.get(name), int) for name in ("target", "predicted"))
    return Tile(
        f"{'train' if ranking.of == 'train' else 'sample'} {row['index']}",
        None if ranking.names is None else " ".join(str(row["name"]).split()),
        picture,
        label,
        predicted,
        classes and row["target"] != row["predicted"],
        said,
    )


def _answer(value: int | float, class_names: Sequence[str] | None) -> str:
    """Write a label or a prediction: a class by its name, a number as it is."""
    return class_word(value, class_names) if isinstance(value, int) else number(value)


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else number(value)


def _word(column: str) -> str:
    return WORDS.get(column, column.replace("_", " "))
