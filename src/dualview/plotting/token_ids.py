"""The token ids behind scores: which of the inputs holds them, and what of them is padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dualview.engine.batches import Inputs, map_tensors, tensors_in
from dualview.engine.datasets import Samples
from dualview.features._attribution import FeatureAttribution
from dualview.plotting.columns import inputs_of, scored_place
from dualview.plotting.heatmap import part_of

NOT_IDS = ("mask", "type_ids", "position_ids")  # how whole numbers for each token end that say nothing of its word
IDS, PADDING = "input_ids", "attention_mask"
READ_AT_ONCE = 64  # samples, in search of one as long as the scores


class Tokens(NamedTuple):
    """What is known of one sample's tokens.

    Attributes:
        numbers: "token", what the input holds at each; None where that cannot be told.
        padding: "token", whether it is padding.
        are_ids: whether `numbers` are the ids, which a function can name.
        of_text: whether the scores are those of a text's tokens, on its ids or behind them.
        ids_in: the place of the ids in the inputs; None where that cannot be told.
        missing: why there are no ids to be named, as the end of a sentence.
        uneven: what to say of a sample whose scores are more than its tokens; "" where they are not.
    """

    numbers: Tensor | None
    padding: Tensor
    are_ids: bool = False
    of_text: bool = False
    ids_in: str | None = None
    missing: str = ""
    uneven: str = ""


def tokens_of(attribution: FeatureAttribution, row: int, input: str | None) -> Tokens:
    """Return what is known of the tokens that one sample's scores belong to."""
    values = part_of(attribution.values, input)[row].detach().cpu()
    length = len(values) if values.ndim else 0
    padding = torch.zeros(length, dtype=torch.bool)
    alone = inputs_of(attribution, row)
    if alone is None:
        return Tokens(None, padding, missing="the sample's token ids are not at hand (a loaded result has no source)")
    if values.ndim != (1 if attribution.site is None else 2):
        return Tokens(None, padding, missing="its scores are shaped neither like token ids nor like an embedding")
    given = _as_padded(attribution, row, alone, length, input)
    parts = {place: part[0].cpu() for place, part in tensors_in(given).items() if part.ndim > 1}
    short = length
    if attribution.source is not None and isinstance(attribution.source.test, Samples):  # whose batches are padded
        short = max((len(part) for part in parts.values() if _is_row(part) and len(part) <= length), default=length)
    whole = {place: part for place, part in parts.items() if _is_row(part) and len(part) == short}
    ids = _ids_in(attribution, parts, whole, length)
    place = ids if attribution.site is not None else scored_place(attribution, given, input)
    numbers = None if place is None else whole.get(place)
    scores = values.reshape(length, -1)
    if short == length:
        padding = _padding(parts, place, scores, next((p[0] for q, p in tensors_in(alone).items() if q == ids), None))
    missing = ""
    if ids is None:
        listed = f"those of whole numbers are {', '.join(map(repr, whole))}" if whole else "none holds whole numbers"
        missing = f"which input holds the token ids cannot be told ({listed}); a baseline that names it would tell"
    elif place != ids:
        missing = f"the scores are not those of the token ids, {ids!r}"
    known = Tokens(numbers, padding, place == ids, ids is not None and numbers is not None, ids, missing)
    return known if short == length or numbers is None else _lengthened(known, parts, scores)


def _is_row(part: Tensor) -> bool:
    """Tell whole numbers, one a token, from what else a model takes."""
    return part.ndim == 1 and not part.is_floating_point() and not part.is_complex() and part.dtype != torch.bool


def _ids_in(
    attribution: FeatureAttribution, parts: Mapping[str, Tensor], whole: Mapping[str, Tensor], length: int
) -> str | None:
    """Return the place of the token ids: the baseline's, one of the usual name, or the only one that can be."""
    able = [place for place in whole if not place.endswith(NOT_IDS)]
    baseline = attribution.baseline or ""
    named = [place for place in able if f"{{{place!r}: " in baseline or f", {place!r}: " in baseline]
    usual = [place for place in able if place.split(".")[-1] == IDS]
    for found in (named, usual):
        if len(found) == 1:
            return found[0]
    measured = any(  # beside measurements, whole numbers are more likely dates or codes
        part.is_floating_point()
        and not place.endswith(NOT_IDS)
        and (length in part.shape or any(len(other) != length for other in whole.values()))
        for place, part in parts.items()
    )
    return able[0] if len(able) == 1 and not measured else None


def _as_padded(attribution: FeatureAttribution, row: int, alone: Inputs, length: int, input: str | None) -> Inputs:
    """Return one sample's inputs as a batch of one, padded as beside another that is as long as the scores."""
    source = attribution.source
    if source is None or not isinstance(source.test, Samples):
        return alone
    lengths = {place: part.shape[1] for place, part in tensors_in(alone).items() if part.ndim > 1 and _is_row(part[0])}
    if attribution.site is None:
        scored = scored_place(attribution, alone, input)
        lengths = {place: tokens for place, tokens in lengths.items() if place == scored}
    if not lengths or max(lengths.values()) >= length:
        return alone
    for start in range(0, len(attribution), READ_AT_ONCE):
        others = [k for k in range(start, min(start + READ_AT_ONCE, len(attribution))) if k != row]
        together = source.test_inputs([row, *others])
        found = tensors_in(together)
        if any(place in found and found[place].shape[1] == length for place in lengths):
            return map_tensors(lambda part: part[:1] if part.ndim else part, together)
    return alone


def _padding(parts: Mapping[str, Tensor], place: str | None, scores: Tensor, alone: Tensor | None) -> Tensor:
    """Return which tokens are padding: by the mask, else where the sample alone has none and the scores are zero."""
    nobody = torch.zeros(len(scores), dtype=torch.bool)
    for name, part in parts.items():
        if name.split(".")[-1] == PADDING and part.shape == nobody.shape:
            return part == 0
    silent = ~scores.bool().any(1)
    for name, part in parts.items():  # by position masks have no name; segments of a text begin with 0
        if name.split(".")[-1].isdigit() and name != place and part.shape == nobody.shape:
            absent = part == 0
            falling = bool((absent | (part == 1)).all()) and not bool(absent[0]) and bool((part.diff() <= 0).all())
            if falling and bool(silent[absent].all()):
                return absent
    numbers = None if place is None else parts.get(place)
    if alone is None or numbers is None or len(alone) >= len(numbers):
        return nobody
    alone = alone.cpu()
    for kept in (slice(None, len(alone)), slice(len(numbers) - len(alone), None)):
        absent = ~nobody
        absent[kept] = False
        if torch.equal(numbers[kept], alone) and bool(silent[absent].all()):
            return absent
    return nobody


def _lengthened(known: Tokens, parts: Mapping[str, Tensor], scores: Tensor) -> Tokens:
    """Lay a sample's tokens at the front of its scores where the rest are padding; else say that it cannot be told."""
    numbers = known.numbers
    assert numbers is not None
    short, extra = len(numbers), len(scores) - len(numbers)
    mask = next((part != 0 for name, part in parts.items() if name.split(".")[-1] == PADDING), None)
    own = torch.zeros(short, dtype=torch.bool) if mask is None or mask.shape != numbers.shape else ~mask
    on_right = bool(own[-1]) and not bool(own[0])  # the sample is padded alone, too
    front_silent = not bool(scores[:extra].any())  # then the padding may be in front
    if on_right or (not bool(scores[short:].any()) and not front_silent):
        longer = torch.cat([numbers, numbers.new_zeros(extra)])
        return known._replace(numbers=longer, padding=torch.cat([own, torch.ones(extra, dtype=torch.bool)]))
    uneven = f"the sample alone has {short} tokens and {len(scores)} scores (padded batches have different lengths)"
    return known._replace(numbers=None, are_ids=False, missing=uneven, uneven=uneven)
