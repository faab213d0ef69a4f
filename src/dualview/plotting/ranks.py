"""Which contender is how good for what time: mean rank against run time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dualview.evaluation.judgement import Judgement
from dualview.plotting.words import count, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RANKS_WIDTH, RANKS_HEIGHT, LEFT, RIGHT, BELOW = 7.6, 3.0, 0.6, 0.4, 0.6
LABEL, AWAY, NEAR = 2.6, 0.13, 0.07  # labels are broken at this width, which fits twice; their distance from dots
FASTEST = 1e-3  # seconds; what takes less is drawn there
Spot = tuple[float, float]  # across and down
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Ranked(NamedTuple):
    """One contender: its mean rank, the seconds of its fits and explanations (at least FASTEST), its label's lines."""

    rank: float
    seconds: float
    label: list[str]


def rank_figure(judgement: Judgement) -> Figure:
    """Draw each contender's mean rank, the best at the top, against its run time on a logarithmic axis.

    Run time is that of fits and explanations, summed over the cases.

    Args:
        judgement: what `judge` returned.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        ValueError: no metric compares two contenders whose run time is known.
    """
    from dualview.plotting.layout import MARGIN, draw_heading, draw_lines, draw_notes, heading_of, notes_height
    from dualview.plotting.style import FOR, LINE, PAPER, SMALL, TEXT, Sheet, line_height, plain_style, wrap

    ranked, subtitle, said = _ranked(judgement)
    heading = heading_of("Mean rank against run time", subtitle, RANKS_WIDTH)
    notes = [line for note in said for line in wrap(note, RANKS_WIDTH - 2 * MARGIN, SMALL, len(note))]
    logs = [math.log10(one.seconds) for one in ranked]
    low, (top_rank, worst) = math.floor(min(logs)), _ends([one.rank for one in ranked])
    high = math.ceil(max(*logs, low + 0.1))
    dots = [
        ((log - low) / (high - low), (one.rank - top_rank) / (worst - top_rank))
        for one, log in zip(ranked, logs, strict=True)
    ]
    labels = [one.label for one in ranked]
    width, height = RANKS_WIDTH - LEFT - RIGHT, max(RANKS_HEIGHT, 0.2 * sum(map(len, labels)))
    while (places := _placed(dots, labels, width, height)) is None:
        height *= 1.15  # twice the height of all labels is enough: there is room beside every dot then
    with plain_style():
        top = MARGIN + heading.height + line_height(TEXT) + 0.08
        sheet = Sheet(RANKS_WIDTH, top + height + BELOW + notes_height(notes) + MARGIN)
        draw_heading(sheet, MARGIN, heading)
        sheet.text(LEFT, MARGIN + heading.height, "Mean rank, 1 is best", weight="bold")
        axes = sheet.axes(LEFT, top, width, height)
        style = {"color": FOR, "markeredgecolor": PAPER, "markersize": 7.5, "zorder": 3, "clip_on": False}
        axes.plot([one.seconds for one in ranked], [one.rank for one in ranked], "o", **style)
        _finish_ranks(axes, low, high, top_rank, worst)
        for (x, y), label, (left, up, right, down) in zip(dots, labels, places, strict=True):
            (side, near), middle = ("left", left) if left > x * width else ("right", right), (up + down) / 2
            if abs(middle - y * height) > 1e-9:  # lead from the dot to its label
                ends = [x, near / width], [1 - y, 1 - middle / height]
                axes.plot(*ends, transform=axes.transAxes, color=LINE, linewidth=0.9, zorder=1)
            draw_lines(sheet, LEFT + near, top + middle, label, side)
        sheet.text(LEFT + width / 2, top + height + 0.36, "Run time, fits and explanations", ha="center", weight="bold")
        draw_notes(sheet, notes)
    return sheet.figure


def _ranked(judgement: Judgement) -> tuple[list[Ranked], str, list[str]]:
    """Return the contenders that can be drawn, the best first; over what their ranks are means; and notes."""
    from dualview.plotting.style import SMALL, wrap

    ranks, seconds = judgement.ranks(), dict[str, float]()
    for cost in judgement.costs:
        seconds[cost.contender] = seconds.get(cost.contender, 0.0) + cost.fit_seconds + cost.explain_seconds
    names = sorted(ranks.keys() & seconds, key=lambda name: (ranks[name][0], seconds[name], name))
    if not names:
        raise ValueError("nothing to rank: no metric with a better way compares two contenders of known run time")
    least, most = (end(ranks[name][1] for name in names) for end in (min, max))
    ranked = []
    for name in names:
        label = f"{name} ({ranks[name][1]} of {most})" if ranks[name][1] < most else name
        ranked.append(Ranked(ranks[name][0], max(seconds[name], FASTEST), wrap(label, LABEL, SMALL, len(label))))
    over = count(most, "comparison") if least == most else f"{least} to {most} comparisons"
    missing = {
        "No comparison with others": [x for x in dict.fromkeys(y.contender for y in judgement.lines) if x not in ranks],
        "No run time": [name for name in ranks if name not in seconds],
        f"Faster than {number(FASTEST, 1)}\u202fs, drawn there": [name for name in names if seconds[name] < FASTEST],
    }
    notes = [f"{why}: {'; '.join(found)}." for why, found in missing.items() if found]
    if least < most:
        notes.append("In brackets: in how many of them it has a part; metrics that do not apply to it are left out.")
    return ranked, f"Each rank is the mean over {over}; a comparison is a metric on a case.", notes


def _placed(dots: Sequence[Spot], labels: Sequence[list[str]], width: float, height: float) -> list[Box] | None:
    """Place each label beside its dot (a share of the axes), as near to its height as is free; None without room."""
    from dualview.plotting.style import SMALL, line_height, text_width

    step = line_height(SMALL) / 2
    shifts = sorted((step * at for at in range(-int(height / step), int(height / step) + 1)), key=abs)
    spots = [(x * width, y * height) for x, y in dots]
    far = math.inf
    walls = [(-far, -far, 0.0, far), (width, -far, far, far), (-far, -far, far, 0.0), (-far, height, far, far)]
    taken = [*walls, *((x - NEAR, y - NEAR, x + NEAR, y + NEAR) for x, y in spots)]
    for (x, y), label in zip(spots, labels, strict=True):
        wide, tall = max(text_width(line, SMALL) for line in label), len(label) * line_height(SMALL) + 0.04
        corners = [(left, y + shift - tall / 2) for shift in shifts for left in (x + AWAY, x - AWAY - wide)]
        options = [(left, top, left + wide, top + tall) for left, top in corners]
        free = [box for box in options if not any(_overlap(box, other) for other in taken)]
        if not free:
            return None
        taken.append(free[0])
    return taken[-len(dots) :]


def _overlap(one: Box, other: Box) -> bool:
    across = one[0] < other[2] + 0.05 and other[0] < one[2] + 0.05  # words beside each other need a gap
    return across and one[1] < other[3] and other[1] < one[3]


def _ends(ranks: Sequence[float]) -> tuple[float, float]:
    """Return where the axis of ranks begins and ends: half a rank beyond the whole ranks around all."""
    return math.floor(min(ranks)) - 0.5, math.ceil(max(ranks)) + 0.5


def _finish_ranks(axes: Axes, low: int, high: int, top_rank: float, worst: float) -> None:
    """Set the scales: whole decades of seconds, and ranks downwards."""
    from dualview.plotting.layout import quiet
    from dualview.plotting.style import TRACK

    axes.set_xscale("log")
    axes.set_xlim(10.0**low, 10.0**high)
    axes.set_ylim(worst, top_rank)
    decades = [10.0**at for at in range(low, high + 1, math.ceil((high - low) / 7))]
    axes.set_xticks(decades, [f"{number(value, 1)}\u202fs" for value in decades])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(math.ceil(top_rank), math.ceil(worst)))
    axes.grid(axis="y", color=TRACK, linewidth=0.8)
    axes.set_axisbelow(True)
    quiet(axes, "left", "bottom")
