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
from dualview.plotting.token_ids import tokens_of
from dualview.plotting.tokens import Names, tokens_figure
from dualview.plotting.words import explained_title, feature_sentence, others_note, percent, signed

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
    test: int | Sequence[int] | Tensor | None = None,
    *,
    input: str | None = None,
    display: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    true_targets: Sequence[int] | Tensor | None = None,
    form: str = "auto",
    names: Names | None = None,
    k: int = 12,
) -> Figure:
    """Draw samples with their scores: images beside heat maps, columns and tokens as bars, series as lines.

    Every map is on a scale of its own. A token's score at a site behind an embedding is the sum over its numbers
    there. Scores that are sums of terms (`Taylor`) are drawn term by term on images and columns; of several inputs
    name one.

    Args:
        attribution: what `attribute` returned.
        test: row of the attribution, or several, one block each; the first by default.
        input: whose relevance is drawn, where the model takes several floating-point inputs; all by default.
        display: one sample's input → image or text, in place of the task's. A map is laid over an
            image of its own proportions, otherwise it stands alone.
        class_names: a name per output column, in place of the task's.
        true_targets: "test", the true labels as output columns, where they are known: one for each
            row of the attribution.
        form: "maps", "bars", "lines" or "tokens"; "auto" takes tokens where the input is token ids, bars for a row of
            at most 64 numbers, lines for few long channels, else maps. All but maps show one sample.
        names: of columns (bars), channels (lines) or tokens: one for each of the sample, or a function token id → name.
            The ids are the whole numbers that the method's baseline names, else `input_ids`, else the only ones for
            each token. Padding, where `attention_mask` is 0, is not drawn and needs no names.
        k: columns drawn as bars of their own, by the size of their scores.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        IndexError: the attribution has no such row.
        TypeError: `names` is a function, and no tokens are drawn.
        ValueError: no row at all, `true_targets` of another length, `input` is not among the model's, an
            unknown `form`, scores of several outputs, several inputs for a form that draws one, or `names`
            is a function and which input holds the ids cannot be told.
    """
    from dualview.plotting.map_layout import draw_featured
    from dualview.plotting.style import plain_style

    rows = torch.as_tensor(0 if test is None else test).reshape(-1).tolist()
    check_rows(rows, len(attribution))
    if attribution.outputs:
        raise ValueError(f"scores of {attribution.measured} are several: draw attribution.of_output(0), and so on")
    check_length("true_targets", true_targets, len(attribution), "rows in the attribution")
    class_names = attribution.class_names if class_names is None else class_names
    values = attribution.values
    chosen = _form(form, attribution, input, rows[0] % len(attribution))
    others = others_note(test, len(attribution), several=chosen == "maps")
    if chosen != "maps" and len(rows) > 1:
        ways = {"bars": "a row of numbers as bars", "lines": "channels as lines", "tokens": "tokens as bars"}
        said = f"form={chosen!r}" if form != "auto" else f"form='auto' draws {ways[chosen]}, which"
        more = "" if form != "auto" else "; form='maps' draws several"
        raise ValueError(f"{said} draws one sample, and `test` names {len(rows)}{more}")
    if callable(names) and chosen != "tokens":
        raise TypeError(f"`names` is a function, which names tokens by their ids; for form={chosen!r} give strings")
    if chosen != "maps" and isinstance(values, dict) and len(values) > 1 and input is None:
        ways = " or ".join(f"input={name!r}" for name in values)
        raise ValueError(f"form={chosen!r} draws the scores of one input, and there are several: give {ways}")
    if chosen != "maps":
        row = rows[0] % len(attribution)
        draw = {"bars": partial(columns_figure, k=k), "lines": series_figure, "tokens": tokens_figure}[chosen]
        true = None if true_targets is None else int(true_targets[row])
        return draw(attribution, row, input=input, names=names, class_names=class_names, true_target=true, notes=others)
    if attribution.split and (isinstance(values, Tensor) or input is not None):
        return split_figure(attribution, rows, input, display, class_names, true_targets, others)
    inputs: list[str | None] = [input] if isinstance(values, Tensor) or input is not None else [*values]
    blocks = []
    for row in rows:
        target, true = int(attribution.targets[row]), None if true_targets is None else int(true_targets[row])
        title = explained_title(int(attribution.predicted[row]), target, true, class_names)
        subtitle = feature_sentence(attribution, target, class_names)
        place = row % len(attribution)
        owns = [own_relevance(attribution, place, _picture(attribution, place, name, display), name) for name in inputs]
        blocks.append(Featured(title, subtitle, place, owns))
    with plain_style():
        return draw_featured(blocks, others)


def _form(form: str, attribution: FeatureAttribution, input: str | None, row: int) -> str:
    """Return how scores are drawn, by their shape and input where the user does not say."""
    if form not in ("auto", "maps", "bars", "lines", "tokens"):
        raise ValueError(f"`form` is {form!r}; choose from 'auto', 'maps', 'bars', 'lines' and 'tokens'")
    if form != "auto":
        return form
    if isinstance(attribution.values, dict) and input is None:
        return "maps"
    if tokens_of(attribution, row, input).of_text:
        return "tokens"
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
    if not bool(values.any()):
        words = "is zero everywhere"
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
