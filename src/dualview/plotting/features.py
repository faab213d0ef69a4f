"""The features of a prediction: samples beside the heat maps of their relevance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dualview._display import shows
from dualview.engine.pictures import Picture
from dualview.engine.propagation.account import Account
from dualview.features._attribution import FeatureAttribution
from dualview.plotting.columns import columns_figure
from dualview.plotting.explained import NO_SOURCE, check_length, check_rows, source_shown
from dualview.plotting.heatmap import Heated, Scale, part_of
from dualview.plotting.series import is_series, series_figure
from dualview.plotting.split import split_figure
from dualview.plotting.words import explained_title, output_phrase, percent, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_BARS = 64  # numbers of a row that are told as columns; longer rows are series


class Own(NamedTuple):
    """A sample's relevance for the network's own output.

    Attributes:
        heated: sample and map.
        scale: of this map alone.
        words: what the map adds up to, after its subject.
        name: which input, where the model takes several.
        heading: what the map is.
    """

    heated: Heated
    scale: Scale
    words: str
    name: str | None = None
    heading: str = "Its relevance"


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
    form: str = "auto",
    names: Sequence[str] | None = None,
    k: int = 12,
) -> Figure:
    """Draw samples with their scores: images beside heat maps, columns as bars, series as lines.

    Every map is on a scale of its own. Scores that are sums of terms (`Taylor`) are drawn term by term on images
    and columns; of several inputs name one.

    Args:
        attribution: what `attribute` returned.
        test: row of the attribution, or several, one block each.
        input: whose relevance is drawn, where the model takes several floating-point inputs; all by default.
        display: one sample's input → image or text, in place of the task's. A map is laid over an
            image of its own proportions, otherwise it stands alone.
        class_names: a name per output column, in place of the task's.
        true_targets: "test", the true labels as output columns, where they are known: one for each
            row of the attribution.
        form: "maps", "bars" or "lines"; "auto" takes bars for a row of at most 64 numbers, lines for few
            long channels, else maps. Bars and lines show one sample.
        names: of columns (bars) or channels (lines).
        k: columns drawn as bars of their own, by the size of their scores.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        IndexError: the attribution has no such row.
        ValueError: no row at all, `true_targets` of another length, `input` is not among the model's, an
            unknown `form`, or scores of several outputs.
    """
    from dualview.plotting.map_layout import draw_featured
    from dualview.plotting.style import plain_style

    rows = torch.as_tensor(test).reshape(-1).tolist()
    check_rows(rows, len(attribution))
    if attribution.outputs:
        raise ValueError(f"scores of {attribution.measured} are several: draw attribution.of_output(0), and so on")
    check_length("true_targets", true_targets, len(attribution), "rows in the attribution")
    class_names = attribution.class_names if class_names is None else class_names
    values = attribution.values
    chosen = _form(form, attribution, input)
    if chosen != "maps" and len(rows) > 1:
        raise ValueError(f"form={chosen!r} draws one sample, and `test` names {len(rows)}")
    if chosen != "maps":
        row = rows[0] % len(attribution)
        true = None if true_targets is None else int(true_targets[row])
        draw = partial(columns_figure, k=k) if chosen == "bars" else series_figure
        return draw(attribution, row, input=input, names=names, class_names=class_names, true_target=true)
    if attribution.split and (isinstance(values, Tensor) or input is not None):
        return split_figure(attribution, rows, input, display, class_names, true_targets)
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


def _form(form: str, attribution: FeatureAttribution, input: str | None) -> str:
    """Return how scores are drawn, by their shape where the user does not say."""
    if form not in ("auto", "maps", "bars", "lines"):
        raise ValueError(f"`form` is {form!r}; choose from 'auto', 'maps', 'bars' and 'lines'")
    if form != "auto":
        return form
    if isinstance(attribution.values, dict):
        return "maps"
    shape = part_of(attribution.values, input).shape[1:]
    if len(shape) >= 1 and max(shape) == math.prod(shape):
        return "bars" if math.prod(shape) <= MOST_BARS else "lines"
    return "lines" if is_series(shape) else "maps"


def own_relevance(attribution: FeatureAttribution, row: int, picture: Picture, name: str | None) -> Own:
    """Gather one sample's relevance, on a scale of its own, and say what its map adds up to."""
    values = part_of(attribution.values, name)[row]
    heated = Heated.of(values, picture)
    words = f"sums to {signed(float(values.sum()))}"
    if attribution.change is not None:
        words += f", of a change from the baseline of {signed(float(attribution.change[row]))}"
    if attribution.kind != "share":
        words = f"shows {'similarities' if attribution.kind == 'similarity' else 'effects'}, which do not add up"
    elif attribution.account is not None:
        absorbed = absorbed_share(attribution.account, torch.tensor([row]))
        words += f" of {signed(float(attribution.account.seed[row]))}; operations absorbed {absorbed}"
    scale = Scale.of([heated.values], lower_is_better=attribution.lower_is_better)
    return Own(heated, scale, words, name, "Its relevance" if attribution.account is not None else "Its scores")


def absorbed_share(account: Account, samples: Tensor) -> str:
    """Write which share of these samples' relevance operations absorbed."""
    share = account.of_samples(samples).absorbed_share
    return percent(share) if math.isfinite(share) else "an unknown share"


def _picture(
    attribution: FeatureAttribution, row: int, name: str | None, display: Callable[[Any], Any] | None
) -> Picture:
    source = attribution.source
    return NO_SOURCE if source is None else source_shown(source, display, name).test_picture(row)
