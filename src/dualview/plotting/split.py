"""Scores that are sums of terms: a sample, its whole map, and the map of each term, on one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dualview.features._attribution import FeatureAttribution
from dualview.plotting.columns import sums_sentence, terms_of
from dualview.plotting.explained import NO_SOURCE, source_shown
from dualview.plotting.heatmap import Heated, Scale, heat, part_of
from dualview.plotting.words import explained_title, feature_sentence, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, GAP = 1.75, 0.22


def split_figure(
    attribution: FeatureAttribution,
    rows: Sequence[int],
    input: str | None,
    display: Callable[[Any], Any] | None,
    class_names: Sequence[str] | None,
    true_targets: Sequence[int] | Tensor | None,
    notes: Sequence[str],
) -> Figure:
    """Draw each sample beside its whole map and the maps of its terms; see `features`."""
    from dualview.plotting.layout import MARGIN, draw_heading, draw_notes, heading_of, note_lines, notes_height
    from dualview.plotting.style import QUIET, SMALL, TEXT, Sheet, line_height, plain_style, wrap
    from dualview.plotting.tiles import NAMED, SCALE_HEIGHT, draw_map, draw_sample, draw_scale

    values = part_of(attribution.values, input)
    terms = {"all together": values, **terms_of(attribution, input)}
    width = 2 * MARGIN + (len(terms) + 1) * (SIDE + GAP) - GAP
    source = None if attribution.source is None else source_shown(attribution.source, display, input)
    blocks = []
    for row in rows:
        row = row % len(attribution)
        target, true = int(attribution.targets[row]), None if true_targets is None else int(true_targets[row])
        title = explained_title(int(attribution.predicted[row]), target, true, class_names)
        sums = sums_sentence(attribution, row, values[row])
        words = f"{feature_sentence(attribution, target, class_names)} {sums}"
        picture = NO_SOURCE if source is None else source.test_picture(row)
        blocks.append((row, heading_of(title, words, width), picture))
    lines = note_lines(["Maps of one sample share a scale. Grey beneath a map: the sample itself.", *notes], width)
    drawn = heat(values[0])
    above, named = line_height(TEXT) + 0.05, NAMED if drawn is not None and drawn.ndim == 1 else 0.0
    below = named + line_height(SMALL) + 0.12
    each = above + SIDE + below + SCALE_HEIGHT + 0.25
    with plain_style():
        height = 2 * MARGIN + sum(heading.height + each for _, heading, _ in blocks) + notes_height(lines)
        sheet, y = Sheet(width, height), MARGIN
        for row, heading, picture in blocks:
            draw_heading(sheet, y, heading)
            y += heading.height
            heats = [Heated.of(part[row], picture) for part in terms.values()]
            scale = Scale.of([heated.values for heated in heats], lower_is_better=attribution.lower_is_better)
            sheet.text(MARGIN, y, f"Test {row}", weight="bold")
            draw_sample(sheet, picture, MARGIN, y + above, SIDE)
            for place, (name, heated) in enumerate(zip(terms, heats, strict=True), start=1):
                x = MARGIN + place * (SIDE + GAP)
                sheet.text(x, y, wrap(name, SIDE, TEXT, 1, "bold")[0], weight="bold")
                draw_map(sheet, heated, x, y + above, SIDE, scale)
                total = float(list(terms.values())[place - 1][row].sum())
                sheet.text(x, y + above + SIDE + named + 0.05, f"sums to {signed(total)}", size=SMALL, color=QUIET)
            if any(part[row].any() for part in terms.values()):  # of zeros alone a scale would make up its ends
                draw_scale(sheet, MARGIN + SIDE + GAP, y + above + SIDE + below, SIDE * 2 + GAP, scale)
            y += each
        draw_notes(sheet, lines)
    return sheet.figure
