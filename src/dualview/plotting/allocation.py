"""Who gets what of which effect: a method's scores by the kind of effect they come from, and three principles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dualview._display import shows
from dualview.features._allocation import Allocation
from dualview.plotting.explained import check_length, check_rows
from dualview.plotting.words import MINUS, class_phrase, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@shows(Allocation)
def allocation_figure(
    allocation: Allocation,
    test: int = 0,
    *,
    k: int = 10,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw each player's score as a bar of the kinds of effects that it comes from, and which principles are kept.

    Args:
        allocation: what `Taylor.allocation` returned.
        test: row.
        k: players drawn, by the size of their scores; the others are one bar.
        names: a name per player.
        class_names: a name per output column.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        IndexError: there is no such row.
        ValueError: another number of names than players.
    """
    from dualview.plotting.bars import Bar, Panel, draw_bars, palette
    from dualview.plotting.style import AGAINST, FOR, INK, QUIET, plain_style

    check_rows([test], len(allocation))
    check_length("names", names, allocation.scores.shape[1], "players")
    kinds = {name: part[test] for name, part in allocation.by_kind().items() if bool(part[test].any())}
    order = torch.argsort(allocation.scores[test].abs(), descending=True, stable=True)
    bars = [
        Bar(
            f"player {player}" if names is None else str(names[player]),
            "",
            tuple(float(part[player]) for part in kinds.values()),
        )
        for player in order[:k].tolist()
    ]
    if len(order) > k:
        bars.append(Bar(f"{len(order) - k} others", "", tuple(float(part[order[k:]].sum()) for part in kinds.values())))
    facts = []
    for one in allocation.principles(test):
        unknown = math.isnan(one.missed)
        verdict = "unknown" if unknown else "kept" if one.kept else "missed"
        amount = f" {'to' if one.kept else 'by'} {percent(one.missed)}" if math.isfinite(one.missed) else ""
        words = f"{one.name[0].upper()}{one.name[1:]}: {verdict}{amount} ({one.meaning})"
        facts.append((words.replace("-", MINUS), INK if one.kept else QUIET if unknown else AGAINST))
    apart = float(allocation.fidelity[test, 1])
    left = f"not expressed by them: {percent(apart)} of the scores" if math.isfinite(apart) else "the scores are zero"
    facts.append((f"Weights {allocation.how}; {left}.", QUIET))
    phrase = class_phrase(int(allocation.targets[test]), class_names)
    effects = "derivatives" if allocation.family == "derivatives" else "differences between coalitions"
    panel = Panel(
        "Where the scores come from",
        f"{allocation.method}: {allocation.measured.replace('_', ' ')} of {phrase}, test {test}. Effects by {effects} "
        f"from the baseline {allocation.baseline}.",
        bars,
        palette(list(kinds)),
        facts,
        [],
    )
    with plain_style():
        return draw_bars(panel, (FOR, AGAINST))
