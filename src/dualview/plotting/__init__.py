"""Figures of results. matplotlib is imported when something is drawn, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dualview._display import shower
from dualview.plotting.allocation import allocation_figure
from dualview.plotting.curve import curve_figure
from dualview.plotting.features import features
from dualview.plotting.judgement import judgement_figure, metrics_figure, rank_figure
from dualview.plotting.neighbours import neighbours
from dualview.plotting.ranking import ranking_figure
from dualview.plotting.relation import relation_figure
from dualview.plotting.selection import selection_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "allocation_figure",
    "curve_figure",
    "features",
    "judgement_figure",
    "metrics_figure",
    "neighbours",
    "plot",
    "rank_figure",
    "ranking_figure",
    "relation_figure",
    "selection_figure",
]


def plot(result: Any, *args: Any, **settings: Any) -> Figure:
    """Draw a result in the way that suits its type.

    Args:
        result: what a method returned. A `DataAttribution` is drawn by `neighbours`, `Maps` by
            `relation_figure`, a `FeatureAttribution` by `features`, a `Curve` by `curve_figure`,
            a `Selection` by `selection_figure`, a `Judgement` by `judgement_figure`,
            an `Allocation` by `allocation_figure`, a `Ranking` by `ranking_figure`.
        *args: as that function takes them.
        **settings: as that function takes them. Most take `test=`, a row of the result or several (the first by
            default), `k=`, how many of the strongest are drawn, and `true_targets=`, the true labels as output
            columns; `class_names=`, `names=` and `display=` replace the task's own.

    Returns:
        A figure: notebooks show it, `figure.savefig(path)` writes it. pyplot does not know it, so
        it needs no closing.

    Raises:
        TypeError: nothing draws a result of this type.

    Example:
        >>> figure = plot(explainer.explain(images), test=[0, 3], k=8, true_targets=labels)  # doctest: +SKIP
        >>> figure.savefig("why.png")  # doctest: +SKIP
    """
    return shower(result)(result, *args, **settings)
