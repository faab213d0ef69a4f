"""The relation figure: which features of which training samples speak to which features of a test sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dualview._display import shows
from dualview.plotting.explained import Neighbour, check_length, check_target, neighbour, source_shown
from dualview.plotting.features import Own, absorbed_share, own_relevance
from dualview.plotting.heatmap import Heated, Scale, heat, part_of
from dualview.plotting.words import brief_phrase, explained_title, output_phrase, percent, side_phrases
from dualview.relations.render import Maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pair(NamedTuple):
    """A training sample with the two maps of its pair."""

    neighbour: Neighbour
    on_train: Heated
    on_test: Heated


class Side(NamedTuple):
    """Proponents or opponents, strongest first."""

    word: str
    does: str
    pairs: list[Pair]


class Related(NamedTuple):
    """What there is to show of one test sample's rendered pairs.

    Attributes:
        title: which prediction this is.
        subtitle: what scores and maps are.
        test_index: row of the relation.
        own: the test sample with its own relevance.
        own_unit: what that speaks to.
        sides: those that have pairs.
        scale: of all maps of pairs.
        unit: what is on that scale.
        notes: what was absorbed, and what is not drawn.
    """

    title: str
    subtitle: str
    test_index: int
    own: Own
    own_unit: str
    sides: list[Side]
    scale: Scale
    unit: str
    notes: list[str]


@shows(Maps)
def relation_figure(
    maps: Maps,
    test: int | None = None,
    *,
    k: int = 4,
    input: str | None = None,
    display: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    true_target: int | None = None,
) -> Figure:
    """Draw a test sample beside its proponents and opponents, with the relation's heat maps on both samples.

    Each training sample stands above two maps of its pair, one on itself and one on the test sample;
    either's sum, and what operations absorbed on the way, is the score below. All maps of pairs share
    one scale. The test sample's own relevance, of the network's output and not of the surrogate's, has
    a scale of its own. Rows of numbers become bars.

    Args:
        maps: what `render` returned.
        test: row of the relation; the first that was rendered by default.
        k: training samples of each sign, the strongest that were rendered.
        input: whose relevance is drawn, where the model takes several floating-point inputs.
        display: one sample's input → image or text, in place of the task's. A map is laid over an
            image of its own proportions, otherwise it stands alone.
        class_names: a name per output column, in place of the task's.
        names: a name per training sample, in place of the explainer's.
        true_target: the true label as an output column, where it is known.

    Returns:
        A figure that pyplot does not know: notebooks show it, `savefig` writes it.

    Raises:
        IndexError: the row was not rendered.
        TypeError: `true_target` is no whole number.
        ValueError: `input` is not among the model's, `names` are not as many as training samples, or
            `true_target` is no output column.
    """
    from dualview.plotting.map_layout import draw_related
    from dualview.plotting.style import plain_style

    row = maps.test_rows[0] if test is None else test
    if row not in maps.test_rows:
        raise IndexError(f"`test` is {test}; rendered are the rows {', '.join(map(str, maps.test_rows))}")
    if k < 1:
        raise ValueError(f"`k` must be at least 1; it is {k}")
    explainer = maps.relation.explainer
    check_length("names", names, len(explainer.table), "training samples")
    true_target = None if true_target is None else check_target("true_target", true_target, explainer.num_classes)
    class_names = explainer.task.class_names if class_names is None else class_names
    names = explainer.names if names is None else names
    shown = _related(maps.of_test(row), row, k, input, display, class_names, names, true_target)
    with plain_style():
        return draw_related(shown)


def _related(
    maps: Maps,
    row: int,
    k: int,
    name: str | None,
    display: Callable[[Any], Any] | None,
    class_names: Sequence[str] | None,
    names: Sequence[str] | None,
    true_target: int | None,
) -> Related:
    """Gather what there is to show of one test row."""
    own, target = maps.own, int(maps.own.targets[0])
    source = source_shown(maps.relation.source, display, name)
    on_train, on_test = part_of(maps.train, name), part_of(maps.test, name)
    picture = source.test_picture(row)
    labels = maps.relation.explainer.table.targets

    def pair(place: int) -> Pair:
        position = int(maps.train_index[place])
        beside = source.train_picture(position)
        found = neighbour(
            position, float(maps.scores[place]), int(labels[position]), target, beside, class_names, names
        )
        return Pair(found, Heated.of(on_train[place], beside), Heated.of(on_test[place], picture))

    members, notes = _strongest(maps, k)
    sides = [
        Side(word, does, [pair(place) for place in places])
        for word, does, places in zip(("Proponents", "Opponents"), side_phrases(own), members, strict=True)
        if places
    ]
    drawn = [*members[0], *members[1]]
    lies = "The maps show where on either sample it lies."
    if isinstance(maps.test, dict) and len(maps.test) > 1:
        lies = f"The maps show where in input “{name}” of either sample it lies."
        notes = [*_carried(maps, drawn, str(name)), *notes]
    one = "Each score is" if maps.unit is None else f"Each score is unit {maps.unit}’s part of"
    return Related(
        explained_title(int(own.predicted[0]), target, true_target, class_names),
        f"{one} a training sample’s share of the surrogate’s {output_phrase(own, target, class_names)}. {lies}",
        row,
        own_relevance(own, 0, picture, name),
        f"For the network’s {brief_phrase(own, target, class_names)}",
        sides,
        _scale(maps, drawn, name),
        f"Relevance, in shares of the surrogate’s {brief_phrase(own, target, class_names)}",
        [*_absorbed(maps, drawn), *notes],
    )


def _scale(maps: Maps, places: list[int], name: str | None) -> Scale:
    """Return the one scale of these pairs' maps on all inputs: an input that carries next to nothing stays pale."""
    inputs = [*maps.test] if isinstance(maps.test, dict) else [None]
    parts = [part_of(side, each) for side in (maps.train, maps.test) for each in inputs]
    shared = Scale.of(
        [heat(part[place]) for part in parts for place in places], lower_is_better=maps.own.lower_is_better
    )
    sides = part_of(maps.train, name), part_of(maps.test, name)
    return shared.drawing([heat(side[place]) for side in sides for place in places])


def _carried(maps: Maps, places: list[int], name: str) -> list[str]:
    """Say which share of the scores lies in the input that is drawn, where the model takes several."""
    if not places:
        return []
    ranges = []
    for side, where in ((maps.train, "training samples"), (maps.test, "test sample")):
        sums = part_of(side, name)[places].double().flatten(1).sum(1)
        shares = sums / maps.scores[places].double()
        ranges.append(f"between {percent(float(shares.min()))} and {percent(float(shares.max()))} on the {where}")
    return [f"Of each score, input “{name}” carries {' and '.join(ranges)}. All inputs share the scale."]


def _absorbed(maps: Maps, places: list[int]) -> list[str]:
    """Say what is missing in the maps of these pairs."""
    if not places:
        return []
    drawn = torch.tensor(places)
    on_train, on_test = absorbed_share(maps.train_account, drawn), absorbed_share(maps.test_account, drawn)
    apart = f"{on_train} on the way to the training samples and {on_test} on the way to the test sample"
    on_the_way = f"{on_test} on the way to either sample" if on_train == on_test else apart
    return [f"{maps.method}. Of the scores, operations absorbed {on_the_way}, which is not in the maps."]


def _strongest(maps: Maps, k: int) -> tuple[tuple[list[int], list[int]], list[str]]:
    """Return the places of the k strongest proponents and opponents, and say what is left out."""
    strength = maps.scores * (-1.0 if maps.own.lower_is_better else 1.0)
    order = strength.argsort(descending=True, stable=True)
    proponents = order[strength[order] > 0].tolist()
    order = strength.argsort(stable=True)
    opponents = order[strength[order] < 0].tolist()
    notes = []
    for word, places in (("proponents", proponents), ("opponents", opponents)):
        if not places:
            notes.append(f"There are no {word} among the rendered pairs.")
        elif len(places) > k:
            notes.append(f"Drawn are the {k} strongest of {len(places)} rendered {word}.")
    zero = len(maps) - len(proponents) - len(opponents)
    if zero:
        notes.append(f"Not drawn: {zero} rendered pair{'s' if zero > 1 else ''} with score 0.")
    return (proponents[:k], opponents[:k]), notes
