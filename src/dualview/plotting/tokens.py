"""The tokens of a text as bars in reading order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dualview.engine.batches import tensors_in
from dualview.features._attribution import FeatureAttribution
from dualview.plotting.columns import inputs_of, scored_place, sums_sentence
from dualview.plotting.heatmap import part_of
from dualview.plotting.words import count, explained_title, feature_sentence, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TOKENS = 180  # that are drawn; of a longer text those with the largest scores
COLUMN = 20  # tokens below each other, as long as that makes no more than MOST_COLUMNS
MOST_COLUMNS = 3
NOT_IDS = ("mask", "type_ids", "position_ids")  # how whole numbers for each token end that say nothing of its word
PADDING = "attention_mask"

Names = Sequence[str] | Callable[[int], str]


class Tokens(NamedTuple):
    """What is known of one sample's tokens.

    Attributes:
        ids: "token".
        padding: "token", whether it is padding.
    """

    ids: Tensor
    padding: Tensor


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
    padding = torch.zeros(len(scores), dtype=torch.bool) if known is None else known.padding
    labels = _labels(names, None if known is None else known.ids.tolist(), padding)
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


def tokens_of(attribution: FeatureAttribution, row: int, input: str | None) -> Tokens | None:
    """Return one sample's token ids and padding; None where the scores are not those of token ids at hand."""
    given = inputs_of(attribution, row)
    shape = part_of(attribution.values, input).shape[1:]
    if given is None or len(shape) != (1 if attribution.site is None else 2):
        return None
    ids = {
        place: part[0]
        for place, part in tensors_in(given).items()
        if not part.is_floating_point() and part.dtype != torch.bool and part.shape[1:] == shape[:1]
    }
    if attribution.site is None:
        place = scored_place(attribution, given, input)
    else:
        place = next((place for place in ids if not place.endswith(NOT_IDS)), None)
    if place not in ids:
        return None
    masks = [part[0] for name, part in tensors_in(given).items() if name.split(".")[-1] == PADDING]
    known = [mask for mask in masks if mask.shape == shape[:1]]
    padding = known[0] == 0 if known else torch.zeros(shape[:1], dtype=torch.bool)
    return Tokens(ids[place].cpu(), padding.cpu())


def _labels(names: Names | None, ids: Sequence[int] | None, padding: Tensor) -> list[str]:
    """Return what stands beside each token's bar."""
    if callable(names):
        if ids is None:
            raise ValueError(
                "`names` is a function, and the sample's token ids are not at hand (a loaded result has no source): "
                "give a list of strings"
            )
        return [_visible(names(number)) for number in ids]
    if names is None:
        return [f"token {place}" for place in range(len(padding))] if ids is None else [str(number) for number in ids]
    there = (~padding).nonzero().flatten().tolist()
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
