"""Heat maps of a page: where the scores of an explained prediction's neighbours lie, on both samples."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dualview.data._explainer import Explainer
from dualview.data.dualview import DualView
from dualview.engine.batches import Inputs
from dualview.engine.datasets import Samples
from dualview.engine.pictures import Picture
from dualview.engine.propagation.account import Account
from dualview.engine.propagation.trace import trace
from dualview.engine.source import inputs_at
from dualview.errors import DualViewWarning, NonFiniteError
from dualview.features.lrp import LRP
from dualview.plotting.explained import Explained, Neighbour
from dualview.plotting.heatmap import NUM_STRONGEST, Heated, Scale, heat, strongest_of
from dualview.plotting.words import decimals, signed, signed_to
from dualview.relations.relation import relate
from dualview.relations.render import Features, Maps, maps_of
from dualview.report.facts import percent
from dualview.report.images import Shown, data_uri, shown, shown_map

FLAT, DENSE = LRP("epsilon-plus-flat"), LRP("epsilon")
EVEN = 1e-5  # of the largest relevance: far above the rounding of sums that should be equal
SIDE, WORDS = 192, 400  # pixels, characters
WORTH_SAYING = 1e-3  # of a score: when operations absorbed less on the way, nothing is said
STEPS = 63  # of the scale's picture
WRITER = 5  # calls from `maps_of` up to the user's line: rendered, gallery.predictions, write_report and it

RuleChoice = LRP | None | Literal["auto"]


class Heat(NamedTuple):
    """Relevance on one sample, and where the rest of what it explains went.

    Attributes:
        parts: (name of the input with its map's sum, "" where there is but one; its map).
        total: what reached the inputs.
        absorbed: what operations kept, or "" where that is next to nothing.
        strongest: the entries of a row of numbers that have most of it.
    """

    parts: list[tuple[str, Shown]]
    total: str
    absorbed: str
    strongest: list[str]


class Bar(NamedTuple):
    """The scale of maps: a picture of it, its ends, and of what one entry is."""

    uri: str
    low: str
    high: str
    entry: str


class PairMaps(NamedTuple):
    """A neighbour's score, drawn on both samples."""

    train_index: int
    score: str
    tone: str
    picture: Shown
    on_test: Heat
    on_train: Heat


class PredictionMaps(NamedTuple):
    """All maps of one explained prediction.

    Attributes:
        own: the sample's own relevance for the network's output, on the scale `own_bar`.
        pairs: one for each neighbour, proponents first, on the scale `bar`.
    """

    own: Heat
    own_bar: Bar | None
    pairs: list[PairMaps]
    bar: Bar | None


# ── which rule ───────────────────────────────────────────────────────────────────────────────────


def settled(
    explainer: Explainer, samples: Samples, positions: Sequence[int], rule: RuleChoice
) -> tuple[LRP | None, str | None]:
    """Return the rule of the page's maps; where "auto" finds that there can be none, say why, and warn."""
    if rule != "auto":
        return rule, None
    if not positions:
        return None, None
    chosen, reason = None, None
    if not isinstance(explainer.method, DualView):
        reason = f"they need a fitted DualView; this page is about {explainer.method!r}."
    elif explainer.samples is None:
        reason = "they need the training samples themselves: give train= to dualview.open."
    else:
        chosen, reason = _fitting(explainer, inputs_at(explainer.task, samples, positions[:1]))
    if reason is not None:
        warnings.warn(f"the page has no heat maps: {reason}", DualViewWarning, stacklevel=3)
    return chosen, reason


def _fitting(explainer: Explainer, inputs: Inputs) -> tuple[LRP | None, str | None]:
    """Return the rule that suits the network, or in a sentence why relevance cannot pass it.

    Flat shares relevance evenly among the inputs that a unit of the first layer sees. Where each sees
    all of them, as in a dense layer, such a map is the same everywhere and says nothing. One such input
    among several is enough for plain epsilon to stand in, with biases in the denominators: without
    them, sums near zero make maps explode.

    Args:
        explainer: whose network it is.
        inputs: one sample, which the network has read before.
    """
    try:
        # Neither the data set nor the relation takes part, so what fails is the rule on this network: an operation
        # without one, half precision, no floating-point input, or no layer that sees the input.
        passed = trace(explainer.task.model, inputs, FLAT.composite())
        relevance = passed.propagate(gradient=torch.ones_like(passed.logits)).inputs.values()
    except NonFiniteError:
        raise
    except (NotImplementedError, TypeError, ValueError) as error:
        return None, re.split(r"\.\s", str(error), maxsplit=1)[0].rstrip(".") + "."
    return (DENSE if any(_is_even(part) for part in relevance) else FLAT), None


def _is_even(relevance: Tensor) -> bool:
    """Return whether a map is the same everywhere; a single value, or no relevance at all, tells nothing."""
    largest = relevance.abs().max()
    return relevance.numel() > 1 and bool(largest > 0) and bool(relevance.max() - relevance.min() <= EVEN * largest)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def rendered(explainer: Explainer, samples: Samples, shown: Sequence[Explained], rule: LRP) -> dict[int, Maps]:
    """Render the pairs of all these samples with their neighbours at once.

    Returns:
        row of `samples` → maps of its pairs, proponents first; rows without neighbours are missing.
    """
    pairs = [(row, member.train_index) for row, sample in enumerate(shown) for member in _members(sample)]
    if not pairs:
        return {}
    test, train = zip(*pairs, strict=True)
    maps = maps_of(relate(explainer, samples), rule, test, train, stacklevel=WRITER)
    return {row: maps.of_test(row) for row in maps.test_rows}


def prediction_maps(maps: Maps, sample: Explained, position: int, limits: tuple[float, float]) -> PredictionMaps:
    """Prepare one sample's maps for a page.

    Args:
        maps: of its pairs with its neighbours, proponents first.
        sample: what there is to show of it.
        position: its place in the data set.
        limits: least and largest value on the scale of bars that show samples.
    """
    name, account = f"sample {position}", maps.own.account
    assert account is not None  # LRP keeps books
    own, output = _parts(maps.own.values, 0), float(account.seed[0])
    own_scale = _scale([own], maps)
    on_test, on_train = ([_parts(side, pair) for pair in range(len(maps))] for side in (maps.test, maps.train))
    scale = _scale(on_test + on_train, maps)
    kept_on_test, kept_on_train = _absorbed(maps.test_account), _absorbed(maps.train_account)
    pairs = []
    for pair, (member, score) in enumerate(zip(_members(sample), maps.scores.tolist(), strict=True)):
        beside = f"training sample {member.train_index}"
        of_test, of_train = f"{name}, paired with {beside}", f"{beside}, paired with {name}"
        pairs.append(
            PairMaps(
                member.train_index,
                signed(score),
                "for" if (score > 0) != scale.flipped else "against",
                shown(member.picture, f"{beside}, label {member.label}", SIDE, WORDS, limits),
                _heat(on_test[pair], scale, sample.picture, of_test, score, kept_on_test[pair]),
                _heat(on_train[pair], scale, member.picture, of_train, score, kept_on_train[pair]),
            )
        )
    whole = _heat(own, own_scale, sample.picture, f"{name}, for the network’s output", output, _absorbed(account)[0])
    return PredictionMaps(whole, _bar([own], own_scale), pairs, _bar(on_test + on_train, scale))


def _members(sample: Explained) -> list[Neighbour]:
    return [*sample.proponents, *sample.opponents]


def _parts(features: Features, row: int) -> dict[str, Tensor]:
    """Return one sample's relevance, by the place of the input."""
    parts = {"": features} if isinstance(features, Tensor) else features
    return {name: part[row] for name, part in parts.items()}


def _scale(samples: Iterable[dict[str, Tensor]], maps: Maps) -> Scale:
    """Return the one scale that the maps of these samples share."""
    values = [heat(part) for parts in samples for part in parts.values()]
    return Scale.of(values, lower_is_better=maps.own.lower_is_better)


def _absorbed(account: Account) -> list[float]:
    """Return what operations kept, sample by sample; NaN where that is not known."""
    by_sample = account.of_samples(torch.arange(len(account.seed)))
    kept = torch.zeros_like(by_sample.seed, dtype=torch.float64)
    return sum((entry.amount.double() for entry in by_sample.absorbed), kept).tolist()


def _heat(
    parts: dict[str, Tensor], scale: Scale, picture: Picture, whose: str, explained: float, absorbed: float
) -> Heat:
    """Draw one sample's relevance, and say how it adds up to what is explained."""
    totals = {name: float(part.double().sum()) for name, part in parts.items()}
    drawn, strongest = [], []
    for name, part in parts.items():
        heated = Heated.of(part, picture)
        alt = f"heat map of {whose}{f', input {name}' if name else ''}: sums to {signed(totals[name])}"
        if heated.values is not None and heated.values.ndim == 1:
            strongest = strongest_of(heated.values, NUM_STRONGEST)
            alt += f"; most on {', '.join(strongest)}"
        carries = f"{name}: {_part_of(explained, totals[name])}" if name else ""
        drawn.append((carries, shown_map(heated, scale, alt, SIDE, WORDS)))
    return Heat(drawn, _part_of(explained, sum(totals.values())), _kept(absorbed, explained), strongest)


def _part_of(whole: float, part: float) -> str:
    """Write a part with the decimals of its whole, so that a reader can add parts up; tiny ones with their own."""
    places = decimals(whole)
    alike = 1e-4 <= abs(whole) < 1e6 and abs(part) >= 10.0**-places
    return signed_to(part, places) if alike else signed(part, 2)


def _kept(absorbed: float, explained: float) -> str:
    """Say what operations kept, where that is worth a word."""
    if math.isnan(absorbed):
        return "an unknown part"
    little = absorbed == 0 or abs(absorbed) < WORTH_SAYING * abs(explained)
    return "" if little else f"{_part_of(explained, absorbed)} ({percent(abs(absorbed), abs(explained))})"


def _bar(samples: Iterable[dict[str, Tensor]], scale: Scale) -> Bar | None:
    """Show the scale, unless nothing is drawn on it."""
    if all(heat(part) is None for parts in samples for part in parts.values()):
        return None
    beyond = ("≤\u202f", "≥\u202f") if scale.pointed else ("", "")
    low, high = (f"{word}{signed(sign * scale.limit, 2)}" for word, sign in zip(beyond, (-1, 1), strict=True))
    return Bar(data_uri(scale.strip(STEPS)), low, high, "value" if scale.bars else "pixel")
