"""A series as lines before the colours of their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dualview.features._attribution import FeatureAttribution
from dualview.plotting.columns import input_of, sums_sentence
from dualview.plotting.explained import check_length
from dualview.plotting.heatmap import AGAINST_TONE, FOR_TONE, Scale, part_of
from dualview.plotting.words import explained_title, feature_sentence, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dualview.plotting.style import Sheet

WIDTH, PANEL, BARS, GAP, NAMES = 7.2, 1.15, 0.22, 0.3, 0.55
MAX_CHANNELS = 8


def series_figure(
    attribution: FeatureAttribution,
    row: int,
    *,
    input: str | None,
    names: Sequence[str] | None,
    class_names: Sequence[str] | None,
    true_target: int | None,
    notes: Sequence[str],
) -> Figure:
    """Draw one sample's channels as lines, the score of each time step as the colour behind; see `features`."""
    from dualview.plotting.layout import MARGIN, draw_heading, draw_notes, heading_of, note_lines, notes_height
    from dualview.plotting.style import QUIET, SMALL, TEXT, Sheet, line_height, plain_style, shorten
    from dualview.plotting.tiles import SCALE_HEIGHT, draw_scale

    scores = _lines(part_of(attribution.values, input)[row].detach().cpu().double().numpy())
    check_length("names", names, len(scores), "channels")
    own_input = input_of(attribution, row, input)
    if own_input is not None and own_input.shape[-1] != scores.shape[1]:
        own_input = None  # a data set may pad a sample alone less than beside others
    given = None if own_input is None else _lines(own_input.detach().cpu().double().numpy())
    scale = Scale.of([scores], lower_is_better=attribution.lower_is_better)
    target = int(attribution.targets[row])
    width = MARGIN + NAMES + WIDTH + MARGIN
    title = explained_title(int(attribution.predicted[row]), target, true_target, class_names)
    subtitle = f"{feature_sentence(attribution, target, class_names)} Test {row}."
    heading = heading_of(title, subtitle, width)
    sums = sums_sentence(attribution, row, part_of(attribution.values, input)[row])
    colours = "Colour behind a line: the score of that time step; below: the scores as bars."
    lines = note_lines([sums, colours, *notes], width)
    each = line_height(SMALL) + 0.02 + PANEL + 0.03 + BARS + GAP
    body = len(scores) * each + 0.25 + SCALE_HEIGHT
    with plain_style():
        sheet = Sheet(width, 2 * MARGIN + heading.height + body + notes_height(lines))
        draw_heading(sheet, MARGIN, heading)
        y = MARGIN + heading.height
        for channel, line in enumerate(scores):
            name = f"channel {channel}" if names is None else str(names[channel])
            if len(scores) > 1 or names is not None:
                sheet.text(MARGIN + NAMES, y - 0.02, shorten(name, WIDTH, SMALL), size=SMALL, color=QUIET)
            y += line_height(SMALL) + 0.02
            _draw_channel(sheet, y, line, None if given is None else given[channel if len(given) > 1 else 0], scale)
            y += PANEL + 0.03 + BARS + GAP
        for step in np.linspace(0, scores.shape[1] - 1, min(6, scores.shape[1])).round().astype(int):
            at = MARGIN + NAMES + WIDTH * (step + 0.5) / scores.shape[1]
            sheet.text(at, y - GAP + 0.04, str(step), size=SMALL, color=QUIET, ha="center")
        if scores.any():  # of zeros alone a scale would make up its ends
            sheet.text(MARGIN + NAMES, y, "score of a step", size=TEXT, color=QUIET)
            draw_scale(sheet, MARGIN + NAMES + 1.4, y + 0.03, 2.6, scale)
        draw_notes(sheet, lines)
    return sheet.figure


def _draw_channel(sheet: Sheet, y: float, line: np.ndarray, own: np.ndarray | None, scale: Scale) -> None:
    """Draw one channel as a line before the colours of its scores, and these as bars below."""
    from dualview.plotting.layout import MARGIN
    from dualview.plotting.style import INK, LINE, QUIET, SMALL

    axes, steps = sheet.axes(MARGIN + NAMES, y, WIDTH, PANEL), np.arange(len(line))
    axes.imshow(scale.paint(line[None]), extent=(-0.5, len(line) - 0.5, 0, 1), aspect="auto", alpha=0.55)
    if own is not None:
        low, high = float(own.min()), float(own.max())
        spread = (high - low) or 1.0
        axes.plot(steps, 0.08 + 0.84 * (own - low) / spread, color=INK, linewidth=1.1)
        for value, at in ((high, y + 0.08 * PANEL), (low, y + 0.92 * PANEL)):
            edge = MARGIN + NAMES - 0.06
            sheet.text(edge, at - 0.06, number(value), size=SMALL, color=QUIET, ha="right")
    axes.set(xlim=(-0.5, len(line) - 0.5), ylim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set(color=LINE, linewidth=0.6)
    below = sheet.axes(MARGIN + NAMES, y + PANEL + 0.03, WIDTH, BARS)
    tones = np.where((line > 0)[:, None] != scale.flipped, FOR_TONE, AGAINST_TONE) / 255
    below.bar(steps, line, width=1.0, color=tones.tolist(), linewidth=0)
    below.axhline(0, color=QUIET, linewidth=0.4)
    below.set(xlim=(-0.5, len(line) - 0.5), ylim=(-scale.limit, scale.limit), xticks=[], yticks=[])
    below.set_axis_off()


def is_series(shape: Sequence[int]) -> bool:
    """Tell a sample of few long channels from a picture."""
    return len(shape) == 2 and shape[0] <= MAX_CHANNELS and shape[1] >= 16 and shape[1] >= 4 * shape[0]


def _lines(values: np.ndarray) -> np.ndarray:
    return values.reshape(1, -1) if values.ndim == 1 else values.reshape(values.shape[-2], values.shape[-1])
