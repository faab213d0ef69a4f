"""The choice of C: fidelity and support share against it, the chosen value marked."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dualview._display import shows
from dualview.data._curve import Curve
from dualview.plotting.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dualview.plotting.style import Sheet

WIDTH, PANEL = 6.4, 1.55
LEFT, RIGHT = 0.85, 0.3  # beside the panels
BETWEEN, BELOW = 0.62, 0.72  # room for a panel's heading, and for the axis below the last


class Panel(NamedTuple):
    """One quantity against C.

    Attributes:
        heading: what it is.
        values: one for each C, shares.
        errors: their standard errors, or None.
        colour: of the line.
        wanted: a share that was asked for, or None.
    """

    heading: str
    values: tuple[float, ...]
    errors: tuple[float, ...] | None
    colour: str
    wanted: float | None = None


@shows(Curve)
def curve_figure(curve: Curve) -> Figure:
    """Draw support share, and fidelity where it was measured, against C on a logarithmic axis.

    Bars are one standard error of each share. The value that was chosen is marked in both panels.

    Args:
        curve: `explainer.curve`.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.
    """
    from dualview.plotting.layout import MARGIN, draw_notes, heading_of, note_lines, notes_height
    from dualview.plotting.style import TEXT, TITLE, Sheet, line_height, plain_style

    panels = _panels(curve)
    heading = heading_of(title_of(curve), sentence_of(curve), WIDTH)
    notes = note_lines([] if curve.fidelity is None else [BARS] if curve.by == "support" else [BARS + PAIRED], WIDTH)
    below = BELOW + notes_height(notes)
    with plain_style():
        sheet = Sheet(WIDTH, MARGIN + heading.height + len(panels) * (PANEL + BETWEEN) - 0.3 + below)
        for row, line in enumerate(heading.title):
            sheet.text(MARGIN, MARGIN + row * line_height(TITLE), line, size=TITLE, weight="bold")
        y = MARGIN + len(heading.title) * line_height(TITLE) + 0.03
        for row, line in enumerate(heading.subtitle):
            sheet.text(MARGIN, y + row * line_height(TEXT), line)
        y = MARGIN + heading.height + 0.1
        for panel in panels:
            axes = _draw(sheet, y, curve, panel)
            y += BETWEEN + PANEL
            if panel is not panels[-1]:
                axes.tick_params(labelbottom=False)
        sheet.text(LEFT + (WIDTH - LEFT - RIGHT) / 2, y - BETWEEN + 0.56, "C", ha="center", weight="bold")
        draw_notes(sheet, notes)
    return sheet.figure


BARS = "Bars: one standard error of each share."
PAIRED = (
    " Two values of C mostly differ from the network on the same samples, so "
    "that their difference is known better than either: that is what the choice goes by."
)


def title_of(curve: Curve) -> str:
    """Say what was chosen, and for what."""
    purpose = "its fidelity" if curve.by == "fidelity" else "its support"
    return f"C = {curve.C[curve.chosen]:.3g}, chosen for {purpose}"


def sentence_of(curve: Curve) -> str:
    """Say by what rule."""
    if curve.by == "support":
        assert curve.asked_support is not None
        asked = percent(curve.asked_support)
        return f"Of the values solved for, its support share is the nearest to the {asked} asked for."
    return "Of the values about as faithful as the best, it leaves the fewest support samples."


def _panels(curve: Curve) -> list[Panel]:
    from dualview.plotting.style import AGAINST, FOR

    support = Panel(
        "Support: share of the samples with a score", curve.support_share, None, AGAINST, curve.asked_support
    )
    if curve.fidelity is None:
        return [support]
    samples = f"{curve.num_held_out:,}".replace(",", "\u202f")
    heading = f"Fidelity: the network’s prediction, on {samples} held‑out samples"
    return [Panel(heading, curve.fidelity, curve.fidelity_error, FOR), support]


def _draw(sheet: Sheet, y: float, curve: Curve, panel: Panel) -> Axes:
    """Draw one panel below its heading; y is the heading's top."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullLocator

    from dualview.plotting.style import INK, LINE, PAPER, QUIET, SMALL, TEXT, TRACK, font, line_height

    sheet.text(LEFT, y, panel.heading, size=TEXT, color=panel.colour, weight="bold")
    axes = sheet.axes(LEFT, y + line_height(TEXT) + 0.08, WIDTH - LEFT - RIGHT, PANEL)
    axes.set_xscale("log")
    axes.set_xlim(curve.C[0] / 1.6, curve.C[-1] * 1.6)
    chosen = curve.C[curve.chosen]
    axes.axvline(chosen, color=LINE, linewidth=6, alpha=0.45, zorder=0)
    if panel.wanted is not None:
        axes.axhline(panel.wanted, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(curve.C, panel.values, color=panel.colour, linewidth=1.6, marker="o", markersize=4, zorder=2)
    if panel.errors is not None:
        axes.errorbar(curve.C, panel.values, panel.errors, fmt="none", ecolor=panel.colour, elinewidth=1, capsize=2.5)
    axes.plot(
        [chosen], [panel.values[curve.chosen]],
        marker="o", markersize=9, color=PAPER, markeredgecolor=INK, markeredgewidth=2, linestyle="none", zorder=3,
    )  # fmt: skip
    at_the_end = curve.chosen == len(curve) - 1  # where a label beside it would leave the figure
    value = panel.values[curve.chosen]
    above = -16 if panel.errors is None and value > 0.9 else 8  # below, where the heading is near
    axes.annotate(
        percent(value), (chosen, value), (-10 if at_the_end else 10, above),
        textcoords="offset points", ha="right" if at_the_end else "left",
        fontproperties=font(TEXT, "bold"), color=INK,
    )  # fmt: skip
    axes.margins(y=0.2)
    if panel.errors is None:
        axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks([share for share in axes.get_yticks() if 0 <= share <= 1 and share >= axes.get_ylim()[0]])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}\u202f%")
    if curve.C[-1] >= 10 * curve.C[0]:
        axes.xaxis.set_major_locator(LogLocator(10, numticks=12))
        axes.xaxis.set_major_formatter(LogFormatterSciNotation(10))
    else:  # perhaps not one power of ten among them
        axes.set_xticks(curve.C, [f"{C:.3g}" for C in curve.C])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=TRACK, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=QUIET, color=LINE, labelcolor=QUIET)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_fontproperties(font(SMALL))
    return axes
