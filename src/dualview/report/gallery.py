"""The lower part of a page: explained predictions, and training samples that may be mislabelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from dualview.data._attribution import DataAttribution
from dualview.data._explainer import Explainer
from dualview.data._ranking import Ranking
from dualview.engine.datasets import Samples
from dualview.engine.source import Source
from dualview.engine.tables import Table
from dualview.engine.task import class_logits
from dualview.features.lrp import LRP
from dualview.plotting.explained import Explained, Neighbour, explained, value_limits
from dualview.plotting.words import (
    brief_phrase,
    carried_phrase,
    class_word,
    grouped,
    number,
    side_phrases,
    sides_of,
    signed,
    summand,
)
from dualview.relations.render import Maps
from dualview.report.facts import percent, predictions_of
from dualview.report.images import Shown, shown
from dualview.report.maps import PredictionMaps, prediction_maps, rendered

TEST_SIDE, TRAIN_SIDE = 192, 108  # pixels
TEST_WORDS, TRAIN_WORDS = 1200, 280  # characters


class Tile(NamedTuple):
    """A training sample below an explained prediction; `place` counts proponents and opponents alike, from 0."""

    place: int
    picture: Shown
    score: str
    length: float  # of its bar, in percent of the longest
    label: str
    train_index: int
    name: str | None
    differs: bool
    network: str | None  # what the network predicts for it, where that is not its label


class Side(NamedTuple):
    """Proponents or opponents: what they do, the strongest of them, and how much those carry."""

    word: str
    does: str
    tiles: list[Tile]
    carried: str


class Step(NamedTuple):
    """One part of the surrogate's output, drawn from where the last one ended; places in percent."""

    word: str
    value: str
    tone: str
    left: float
    width: float


class Prediction(NamedTuple):
    """One explained prediction."""

    position: int
    wrong: bool
    predicted: str
    true: str
    picture: Shown
    stretched: bool
    facts: list[tuple[str, str]]
    surrogate: str
    agrees: bool
    output: str
    steps: list[Step]
    sides: list[Side]
    maps: PredictionMaps | None


class Suspect(NamedTuple):
    """A training sample that may carry a wrong label."""

    rank: int
    picture: Shown
    train_index: int
    name: str | None
    label: str
    network: str
    differs: bool
    slack: str
    length: float
    loss: str


def choose(table: Table, errors: Ranking, num_errors: int, num_correct: int) -> list[int]:
    """Return the positions to explain: the worst errors first, then correct ones, evenly spaced."""
    right = (predictions_of(table) == table.targets).nonzero().squeeze(1)
    taken = min(num_correct, len(right))
    spaced = [int(right[(2 * step + 1) * len(right) // (2 * taken)]) for step in range(taken)]
    return [*errors.index[:num_errors].tolist(), *spaced]


def predictions(
    explainer: Explainer, samples: Samples, table: Table, positions: Sequence[int], k: int, rule: LRP | None
) -> list[Prediction]:
    """Explain the samples at these positions for what the network predicts of them; without a rule, without maps."""
    if not positions:
        return []
    chosen = Samples(Subset(samples.dataset, list(positions)), samples.collate)
    attribution = explainer.explain(chosen)
    surrogate = explainer.surrogate_logits(chosen) if explainer.fidelity else None
    losses, confidences = _measured(explainer, table, positions)
    network = predictions_of(explainer.table)
    looked = [explained(attribution, row, k) for row in range(len(positions))]
    maps = {} if rule is None else rendered(explainer, chosen, looked, rule)
    return [
        _prediction(
            attribution, row, position, looked[row], maps.get(row),
            true=int(table.targets[position]), loss=float(losses[row]), confidence=float(confidences[row]),
            surrogate=None if surrogate is None else surrogate[row], network=network,
        )
        for row, position in enumerate(positions)
    ]  # fmt: skip


def _measured(explainer: Explainer, table: Table, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the loss and the predicted class's probability of each of these samples."""
    rows = table.rows(torch.tensor(list(positions)))
    logits = class_logits(rows.outputs)
    with torch.no_grad():
        losses = explainer.task.losses(logits, rows.targets, one_logit=rows.outputs.shape[1] == 1)
    return losses, logits.softmax(1).amax(1)


def _prediction(
    attribution: DataAttribution,
    row: int,
    position: int,
    sample: Explained,
    maps: Maps | None,
    *,
    true: int,
    loss: float,
    confidence: float,
    surrogate: Tensor | None,
    network: Tensor,
) -> Prediction:
    names = attribution.class_names
    limits = value_limits([sample.picture, *(member.picture for member in (*sample.proponents, *sample.opponents))])
    facts = [("Confidence", percent(confidence)), ("Loss", number(loss))]
    said, agrees = "", True
    if surrogate is not None:
        choice = int(surrogate.argmax())
        agrees = choice == int(attribution.predicted[row])
        said = f"The surrogate predicts {class_word(choice, names)}" + (" too." if agrees else ", not the same.")
    return Prediction(
        position,
        true != int(attribution.predicted[row]),
        sample.predicted,
        class_word(true, names),
        shown(sample.picture, f"sample {position} of the data set", TEST_SIDE, TEST_WORDS, limits),
        sample.picture.stretched,
        facts,
        said,
        agrees,
        brief_phrase(attribution, sample.target, names),
        _steps(attribution, row) if attribution.kind == "share" else [],
        _sides(attribution, row, sample, network, limits),
        None if maps is None else prediction_maps(maps, sample, position, limits),
    )


def _steps(attribution: DataAttribution, row: int) -> list[Step]:
    """Split the surrogate's output into bias, proponents and opponents, each drawn from where the last one ended."""
    parts = [("bias", float(attribution.bias[row]), "plain")]
    for word, tone, scores in zip(
        ("proponents", "opponents"), ("for", "against"), sides_of(attribution, row), strict=True
    ):
        parts.append((f"{grouped(len(scores))} {word}", float(scores.sum()), tone))
    ends = [0.0]
    for _, value, _ in parts:
        ends.append(ends[-1] + value)
    spans = [*zip(ends[:-1], ends[1:], strict=True), (0.0, ends[-1])]
    parts.append(("together", ends[-1], "total"))
    low, high = min(ends), max(ends)
    scale = 100 / ((high - low) or 1.0)
    return [
        Step(
            word,
            summand(value, ends[-1]),
            tone,
            (min(span) - low) * scale,
            abs(span[1] - span[0]) * scale,
        )
        for (word, value, tone), span in zip(parts, spans, strict=True)
    ]


def _sides(
    attribution: DataAttribution, row: int, sample: Explained, network: Tensor, limits: tuple[float, float]
) -> list[Side]:
    largest = max((abs(member.score) for member in (*sample.proponents, *sample.opponents)), default=1.0)
    (raises, lowers), (proponents, opponents) = side_phrases(attribution), sides_of(attribution, row)
    sides = []
    for word, does, members, all_of_them, first in (
        ("Proponents", raises, sample.proponents, proponents, 0),
        ("Opponents", lowers, sample.opponents, opponents, len(sample.proponents)),
    ):
        tiles = [
            _tile(place, member, network, attribution, largest, limits)
            for place, member in enumerate(members, start=first)
        ]
        carried = carried_phrase([member.score for member in members], all_of_them, attribution.kind)
        sides.append(Side(word, does, tiles, carried))
    return sides


def _tile(
    place: int,
    member: Neighbour,
    network: Tensor,
    attribution: DataAttribution,
    largest: float,
    limits: tuple[float, float],
) -> Tile:
    says = int(network[member.train_index])
    return Tile(
        place,
        shown(
            member.picture,
            f"training sample {member.train_index}, label {member.label}",
            TRAIN_SIDE,
            TRAIN_WORDS,
            limits,
        ),
        signed(member.score),
        100 * abs(member.score) / largest,
        member.caption,
        member.train_index,
        member.name,
        member.differs,
        None if says == member.target else class_word(says, attribution.class_names),
    )


def suspects(explainer: Explainer, top: int) -> list[Suspect]:
    """Show the training samples whose label the surrogate contradicts most, highest slack first."""
    ranking = explainer.suspects(top)
    names = explainer.task.class_names
    source = Source(explainer.task, None, explainer.samples, explainer.thumbnails)
    positions = ranking.index.tolist()
    pictures = [source.train_picture(position) for position in positions]
    limits = value_limits(pictures)
    slacks, labels, predicted, losses = (
        ranking.columns[name].tolist() for name in ("slack", "target", "predicted", "loss")
    )
    largest = max(slacks, default=0.0) or 1.0
    return [
        Suspect(
            rank + 1,
            shown(pictures[rank], f"training sample {position}", TRAIN_SIDE, TRAIN_WORDS, limits),
            position,
            None if ranking.names is None else ranking.names[rank],
            class_word(labels[rank], names),
            class_word(predicted[rank], names),
            labels[rank] != predicted[rank],
            number(slacks[rank]),
            100 * slacks[rank] / largest,
            number(losses[rank]),
        )
        for rank, position in enumerate(positions)
    ]
