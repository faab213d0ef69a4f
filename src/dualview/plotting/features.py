"""The features of a prediction: samples beside the heat maps of their relevance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dualview._display import shows
from dualview.engine.pictures import Picture
from dualview.engine.propagation.account import Account
from dualview.features._attribution import FeatureAttribution
from dualview.plotting.explained import NO_SOURCE, check_length, check_rows, source_shown
from dualview.plotting.heatmap import Heated, Scale, part_of
from dualview.plotting.words import explained_title, output_phrase, percent, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Own(NamedTuple):
    """A sample's relevance for the network's own output.

    Attributes:
        heated: sample and map.
        scale: of this map alone.
        words: what the map adds up to, after its subject.
        name: which input, where the model takes several.
    """

    heated: Heated
    scale: Scale
    words: str
    name: str | None = None


class Featured(NamedTuple):
    """One sample with the map of each input that is drawn."""

    title: str
    subtitle: str
    test_index: int
    owns: list[Own]


@shows(FeatureAttribution)
def features(
    attribution: FeatureAttribution,
    test: int | Sequence[int] | Tensor = 0,
    *,
    input: str | None = None,
    display: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    true_targets: Sequence[int] | Tensor | None = None,
) -> Figure:
    """Draw samples beside the heat maps of their relevance, each on a scale of its own.

    Args:
        attribution: what `attribute` returned.
        test: row of the attribution, or several, one block each.
        input: whose relevance is drawn, where the model takes several floating-point inputs; all by default.
        display: one sample's input → image or text, in place of the task's. A map is laid over an
            image of its own proportions, otherwise it stands alone.
        class_names: a name per output column, in place of the task's.
        true_targets: "test", the true labels as output columns, where they are known: one for each
            row of the attribution.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        IndexError: the attribution has no such row.
        ValueError: no row at all, `true_targets` of another length, or `input` is not among the model's.
    """
    from dualview.plotting.map_layout import draw_featured
    from dualview.plotting.style import plain_style

    rows = torch.as_tensor(test).reshape(-1).tolist()
    check_rows(rows, len(attribution))
    check_length("true_targets", true_targets, len(attribution), "rows in the attribution")
    class_names = attribution.class_names if class_names is None else class_names
    values = attribution.values
    inputs: list[str | None] = [input] if isinstance(values, Tensor) or input is not None else [*values]
    blocks = []
    for row in rows:
        target, true = int(attribution.targets[row]), None if true_targets is None else int(true_targets[row])
        title = explained_title(int(attribution.predicted[row]), target, true, class_names)
        subtitle = f"{attribution.method}, of the network’s {output_phrase(attribution, target, class_names)}."
        place = row % len(attribution)
        owns = [own_relevance(attribution, place, _picture(attribution, place, name, display), name) for name in inputs]
        blocks.append(Featured(title, subtitle, place, owns))
    with plain_style():
        return draw_featured(blocks)


def own_relevance(attribution: FeatureAttribution, row: int, picture: Picture, name: str | None) -> Own:
    """Gather one sample's relevance, on a scale of its own, and say what its map adds up to."""
    values = part_of(attribution.values, name)[row]
    heated = Heated.of(values, picture)
    words = f"sums to {signed(float(values.sum()))}"
    if attribution.account is not None:
        absorbed = absorbed_share(attribution.account, torch.tensor([row]))
        words += f" of {signed(float(attribution.account.seed[row]))}; operations absorbed {absorbed}"
    return Own(heated, Scale.of([heated.values], lower_is_better=attribution.lower_is_better), words, name)


def absorbed_share(account: Account, samples: Tensor) -> str:
    """Write which share of these samples' relevance operations absorbed."""
    share = account.of_samples(samples).absorbed_share
    return percent(share) if math.isfinite(share) else "an unknown share"


def _picture(
    attribution: FeatureAttribution, row: int, name: str | None, display: Callable[[Any], Any] | None
) -> Picture:
    source = attribution.source
    return NO_SOURCE if source is None else source_shown(source, display, name).test_picture(row)
