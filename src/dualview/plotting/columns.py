"""The columns of a table's row as bars, strongest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualview.engine.batches import Inputs, tensors_in
from dualview.features._attribution import FeatureAttribution
from dualview.plotting.explained import check_length
from dualview.plotting.heatmap import part_of
from dualview.plotting.words import completeness_phrase, explained_title, feature_sentence, number, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TERMS = 7  # that have colours of their own


def columns_figure(
    attribution: FeatureAttribution,
    row: int,
    *,
    k: int,
    input: str | None,
    names: Sequence[str] | None,
    class_names: Sequence[str] | None,
    true_target: int | None,
    notes: Sequence[str],
) -> Figure:
    """Draw one sample's scores as bars with the columns' names and values; see `features`."""
    from dualview.plotting.bars import Bar, Panel, draw_bars, palette
    from dualview.plotting.style import AGAINST, FOR, QUIET, plain_style

    values = part_of(attribution.values, input)[row].reshape(-1)
    check_length("names", names, len(values), "columns")
    terms = {name: part[row].reshape(-1) for name, part in terms_of(attribution, input).items()} or {"score": values}
    given = input_of(attribution, row, input)
    given = given.reshape(-1) if given is not None and given.numel() == len(values) else None
    order = torch.argsort(values.abs(), descending=True, stable=True)
    shown = order[:k].tolist()
    bars = [
        Bar(
            f"column {place}" if names is None else str(names[place]),
            "" if given is None else _value(given[place]),
            tuple(float(part[place]) for part in terms.values()),
        )
        for place in shown
    ]
    rest = order[k:]
    facts = [(sums_sentence(attribution, row, values), QUIET)]
    if len(rest) and attribution.kind != "share":
        facts.append((f"{len(rest)} smaller ones are not drawn.", QUIET))
    elif len(rest):
        bars.append(Bar(f"{len(rest)} others", "", tuple(float(part[rest].sum()) for part in terms.values())))
    target = int(attribution.targets[row])
    tones = (AGAINST, FOR) if attribution.lower_is_better else (FOR, AGAINST)
    panel = Panel(
        explained_title(int(attribution.predicted[row]), target, true_target, class_names),
        f"{feature_sentence(attribution, target, class_names)} "
        f"Test {row}; {'small numbers: the input’s values' if given is not None else 'columns by their place'}.",
        bars,
        palette(list(terms)),
        facts,
        notes,
    )
    with plain_style():
        return draw_bars(panel, tones)


def _value(value: Tensor) -> str:
    return number(float(value)) if value.is_floating_point() else str(int(value))


def sums_sentence(attribution: FeatureAttribution, row: int, values: Tensor) -> str:
    """Say what one sample's scores, of all inputs or of the one that is drawn, add up to."""
    if not bool(values.any()):
        return "All scores are zero."
    if attribution.kind != "share":
        return f"{'Similarities' if attribution.kind == 'similarity' else 'Effects'} do not add up."
    total = signed(float(values.sum()))
    if not isinstance(attribution.values, dict):
        return f"The scores sum to {total}{completeness_phrase(attribution, row)}."
    change = attribution.change
    whole = "" if change is None else f", of a change from the baseline of {signed(float(change[row]))}"
    return f"The scores of this input sum to {total}{whole}."


def terms_of(attribution: FeatureAttribution, input: str | None) -> dict[str, Tensor]:
    """Return the terms of one input's scores by their names in words, the last ones together if they are many."""
    terms = {word(name): part_of(part, input) for name, part in attribution.split.items()}
    if len(terms) <= MOST_TERMS:
        return terms
    names = list(terms)
    further = torch.stack([terms[name] for name in names[MOST_TERMS - 1 :]]).sum(0)
    return {**{name: terms[name] for name in names[: MOST_TERMS - 1]}, "further terms": further}


def word(name: str) -> str:
    """Write a term's name as words."""
    return {"first_order": "own, first order", "higher_order": "own, higher orders"}.get(name, name.replace("_", " "))


def input_of(attribution: FeatureAttribution, row: int, input: str | None) -> Tensor | None:
    """Return the input of one sample that the scores belong to, without the batch axis, where it is at hand."""
    given = inputs_of(attribution, row)
    if given is None or attribution.site is not None:
        return None
    place = scored_place(attribution, given, input)
    return None if place is None else tensors_in(given)[place][0]


def inputs_of(attribution: FeatureAttribution, row: int) -> Inputs | None:
    """Return one sample's inputs as a batch of one, where they are at hand."""
    if attribution.source is None or attribution.source.test is None:
        return None
    return attribution.source.test_inputs([row])


def scored_place(attribution: FeatureAttribution, given: Inputs, input: str | None) -> str | None:
    """Return the place of the input that the scores belong to, None where that cannot be told."""
    parts = tensors_in(given)
    if input in parts:
        return input
    if attribution.players is not None and len(attribution.players.masks) == 1:
        (place,) = attribution.players.masks  # a baseline may name token ids, and nothing but them
        return place if place in parts else None
    return next((place for place, part in parts.items() if part.is_floating_point()), None)
