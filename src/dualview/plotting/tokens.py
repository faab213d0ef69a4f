"""The tokens of a text as bars in reading order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dualview.features._attribution import FeatureAttribution
from dualview.plotting.columns import sums_sentence
from dualview.plotting.heatmap import part_of
from dualview.plotting.token_ids import Tokens, tokens_of
from dualview.plotting.words import count, explained_title, feature_sentence, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TOKENS = 180  # that are drawn; of a longer text those with the largest scores
COLUMN = 20  # tokens below each other, as long as that makes no more than MOST_COLUMNS
MOST_COLUMNS = 3

Names = Sequence[str] | Callable[[int], str]


def tokens_figure(
    attribution: FeatureAttribution,
    row: int,
    *,
    input: str | None,
    names: Names | None,
    class_names: Sequence[str] | None,
    true_target: int | None,
    notes: Sequence[str],
) -> Figure:
    """Draw one sample's score of each token as a bar, in reading order; see `features`."""
    from dualview.plotting.bars import Bar, Panel, draw_bars
    from dualview.plotting.style import AGAINST, FOR, QUIET, plain_style

    values = part_of(attribution.values, input)[row].detach().double()
    if values.ndim not in (1, 2):
        shape = "×".join(map(str, values.shape)) or "one number"
        raise ValueError(
            f"form='tokens' draws a number or a row of numbers a token; a sample's scores here are {shape}"
        )
    known = tokens_of(attribution, row, input)
    scores = values.reshape(len(values), -1).sum(1)
    padding, labels = known.padding, _labels(names, known)
    there = (~padding).nonzero().flatten()
    strongest = scores[there].abs().argsort(descending=True, stable=True)
    drawn, rest = there[strongest[:MOST_TOKENS].sort().values], there[strongest[MOST_TOKENS:]]
    shares = attribution.kind == "share"
    facts = [sums_sentence(attribution, row, values)]
    for word, others in (("padding token", padding.nonzero().flatten()), ("token", rest)):
        if len(others):
            total = f", which sum to {signed(float(scores[others].sum()))}" if shares else ""
            size = "" if word == "padding token" else " with smaller scores"
            facts.append(f"Not drawn: {count(len(others), word)}{size}{total}.")
    if known.uneven and names is None:
        facts.append(f"No words: {known.uneven}.")
    if callable(names) and not known.are_ids:
        facts.append(f"Beside the bars: this input’s own numbers; the words are those of “{known.ids_in}”.")
    target = int(attribution.targets[row])
    panel = Panel(
        explained_title(int(attribution.predicted[row]), target, true_target, class_names),
        f"{feature_sentence(attribution, target, class_names)} Test {row}; {_what(values.shape, shares)}",
        [Bar(labels[place], "", (float(scores[place]),)) for place in drawn.tolist()],
        {"score": QUIET},
        [(fact, QUIET) for fact in facts],
        notes,
    )
    tones = (AGAINST, FOR) if attribution.lower_is_better else (FOR, AGAINST)
    columns = min(MOST_COLUMNS, math.ceil(len(drawn) / COLUMN)) or 1
    with plain_style():
        return draw_bars(panel, tones, columns)


def _labels(names: Names | None, known: Tokens) -> list[str]:
    """Return what stands beside each token's bar."""
    padding, numbers = known.padding, known.numbers
    there = (~padding).nonzero().flatten().tolist()
    if callable(names) and (known.uneven or not known.of_text):
        raise ValueError(f"`names` is a function, and {known.missing}: give a list of strings")
    if names is None or callable(names):
        if numbers is None:
            return [f"token {place}" for place in range(len(padding))]
        labels = [str(number) for number in numbers.tolist()]
        if callable(names) and known.are_ids:
            for place in there:
                labels[place] = _visible(names(int(numbers[place])))
        return labels
    if len(names) not in (len(padding), len(there)):
        without = f", {len(there)} without padding" if len(there) < len(padding) else ""
        raise ValueError(f"`names` holds {len(names)} entries; there are {len(padding)} tokens{without}")
    if len(names) == len(padding):
        return [_visible(name) for name in names]
    labels = [""] * len(padding)
    for place, name in zip(there, names, strict=True):
        labels[place] = _visible(name)
    return labels


def _visible(name: str) -> str:
    """Write a token on one line; one of spaces only as Python prints it."""
    return " ".join(str(name).split()) or repr(name)


def _what(shape: Sequence[int], shares: bool) -> str:
    """Say what a bar is."""
    if len(shape) < 2:
        return "a bar for each token."
    numbers = math.prod(shape[1:])
    adds = "so that the bars add up to what all scores do" if shares else "though such scores are not made to be summed"
    return f"each bar is the sum over a token’s {numbers} numbers, {adds}."
