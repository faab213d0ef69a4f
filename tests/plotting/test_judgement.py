"""The figures of a judgement: every line, chance level and note stands where it belongs, and names keep apart."""

import itertools
import math
import re

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import dualview as dv
from dualview.evaluation._estimate import Estimate
from dualview.evaluation.judgement import Cost, Judgement, Line
from dualview.plotting.style import PAPER

LONG = "Influence(damping=0.01, num_iterations=100, solver='lissa', checkpoints=(1, 2, 3), seed=0)"
NAMES = ("DualView(C=0.001, gap=1e-06, seed=0)", LONG, "random", "same class")
TALE = (
    "undefined for 3 of 100 test samples, "
    + "whose sums do not vary over the subsets and are left out, " * 12
    + "the end"
)


def line(
    metric: str,
    contender: str,
    mean: float,
    *,
    data: str = "digits",
    half: float = 0.1,
    better: bool | None = True,
    chance: float | None = None,
    notes: tuple[str, ...] = (),
) -> Line:
    values = torch.tensor([mean], dtype=torch.float64)
    found = Estimate(metric, values, mean - half, mean + half, better, chance=chance, notes=notes)
    return Line(data, "standard", metric, contender, found)


def costs(seconds: dict[str, float]) -> tuple[Cost, ...]:
    """Split each contender's seconds over two cases, a fit and an explanation each."""
    return tuple(
        Cost(data, "standard", name, 0.5 * share * total, 0.5 * share * total, (10, 0), (10, 0), 10, 8, 99.0)
        for name, total in seconds.items()
        for data, share in (("digits", 0.25), ("mnist", 0.75))
    )


DUALVIEW, _, RANDOM, SAME = NAMES
FEW = Judgement(
    (
        line("lds", DUALVIEW, 0.6, chance=0.0, notes=("ceiling 0.7", "few subsets")),
        line("lds", LONG, 0.4, chance=0.0, notes=("ceiling 0.7", TALE)),
        line("lds", RANDOM, 0.01, chance=0.0, half=math.nan),
        Line("digits", "standard", "lds", SAME, None, "its scores cannot be summed"),
        line("slack", DUALVIEW, 0.9, chance=0.5, better=False),
        line("slack", RANDOM, math.nan, chance=0.5, better=False, notes=("nothing planted",)),
        Line("digits", "standard", "slack", SAME, None, "its scores cannot be summed"),
        line("sparsity", DUALVIEW, 0.2, better=None),
        line("sparsity", LONG, 0.2, better=None),
    ),
    costs({DUALVIEW: 20.0, LONG: 4000.0, RANDOM: 1e-5, SAME: 1e-5}),
)


def many(num_contenders: int, num_panels: int) -> Judgement:
    names = [f"{NAMES[i % 4]} {i}" for i in range(num_contenders)]
    lines = [
        line(
            f"mislabel-detection-slack-{p}", name, (i - p) / 7, chance=0.5, notes=(f"note {p}", f"{name}: note {i * p}")
        )
        for i, name in enumerate(names)
        for p in range(num_panels)
    ]
    return Judgement(tuple(lines), costs({name: 10.0 ** (i % 3) for i, name in enumerate(names)}))


SIZES = (2, 1), (10, 7), (2, 30)  # contenders and panels


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def dots(axes: Axes) -> list[Line2D]:
    return [drawn for drawn in axes.get_lines() if drawn.get_marker() == "o"]


def row_of(figure: Figure, axes: Axes, middle: float) -> list[str]:
    """Return what is written in a row of a panel, in the panel or at its right, from left to right."""
    panel, (_, y) = axes.get_window_extent(), axes.transData.transform((0, middle))
    boxes = [(text.get_window_extent(), text.get_text()) for text in figure.texts]
    beside = [(box.x0, text) for box, text in boxes if box.y0 < y < box.y1 and panel.x0 <= box.x0 < panel.x1 + 20]
    return [text for _, text in sorted(beside)]


def foot(figure: Figure) -> dict[int, str]:
    """Return number → note, lines put together again, from the foot of the figure."""
    below = min(axes.get_window_extent().y0 for axes in figure.axes)
    found = dict[int, str]()
    for text in figure.texts:
        if text.get_window_extent().y1 < below:
            if text.get_text().isdigit() and text.get_position()[0] * figure.get_figwidth() < 0.31:
                found[int(text.get_text())] = ""
            else:
                found[max(found)] += " " * (found[max(found)] != "") + text.get_text()
    return found


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────


def test_every_mean_stands_with_its_interval_in_its_contenders_row():
    figure = dv.plot(FEW)
    lds, slack, sparsity = figure.axes
    assert [dot.get_xdata().tolist() for dot in dots(lds)] == [[0.6], [0.4], [0.01]]
    assert [dot.get_xdata().tolist() for dot in dots(slack)] == [[0.9]]
    rows = [dot.get_ydata()[0] for dot in dots(lds)]
    assert rows == sorted(rows) and [dot.get_ydata()[0] for dot in dots(sparsity)] == rows[:2]
    for dot, y in zip(dots(lds), rows, strict=True):
        assert lds.get_ylim()[1] < y < lds.get_ylim()[0]  # downwards
        bars = [bar.get_xdata() for bar in lds.get_lines() if list(bar.get_ydata()) == [y, y]]
        (mean,) = dot.get_xdata()
        told = dot.get_markerfacecolor() != PAPER
        assert told == (mean != 0.01)
        assert [list(bar) for bar in bars] == ([[pytest.approx(mean - 0.1), pytest.approx(mean + 0.1)]] if told else [])
    names = {text.get_text(): text.get_window_extent() for text in figure.texts}
    _, y = lds.transData.transform((0, rows[2]))
    assert names[RANDOM].y0 < y < names[RANDOM].y1


def test_chance_is_marked_where_it_is_known():
    lds, slack, sparsity = dv.plot(FEW).axes
    for axes, chance, num_rows in ((lds, 0.0, 3), (slack, 0.5, 1), (sparsity, None, 0)):
        dashed = [drawn for drawn in axes.get_lines() if drawn.get_linestyle() == "--"]
        assert [list(drawn.get_xdata()) for drawn in dashed] == [[chance, chance]] * num_rows
        assert all(axes.get_xlim()[0] < drawn.get_xdata()[0] < axes.get_xlim()[1] for drawn in dashed)


def test_a_panel_says_what_it_is_and_which_way_is_better():
    said = words(dv.plot(FEW))
    for metric, reading in (
        ("lds", "higher is better, chance 0"),
        ("slack", "lower is better, chance 0.500"),
        ("sparsity", "neither way is better"),
    ):
        assert said[said.index(metric) + 1 :][:2] == ["digits, standard", reading]
    assert said[0] == "4 contenders, 3 metrics, 1 data set"


def test_what_has_no_value_is_said_in_its_row_and_noted():
    figure = dv.plot(FEW)
    lds, slack, sparsity = figure.axes
    first, second, third = (dot.get_ydata()[0] for dot in dots(lds))
    last = lds.get_ylim()[0] - first  # as high a row as the first
    assert row_of(figure, lds, first) == ["1, 2"]
    assert row_of(figure, lds, second) == ["1, 3"]
    assert row_of(figure, lds, third) == []
    assert row_of(figure, lds, last) == ["does not apply", "4"]
    assert row_of(figure, slack, first) == []
    assert row_of(figure, slack, second) == ["not measured"]
    assert row_of(figure, slack, third) == ["undefined", "5"]
    assert row_of(figure, sparsity, third) == ["not measured"]
    assert foot(figure) == {
        1: "ceiling 0.7",
        2: "few subsets",
        3: TALE,
        4: "its scores cannot be summed",
        5: "nothing planted",
    }


def test_cases_of_one_name_stand_apart():
    figure = dv.plot(Judgement((line("lds", "a", 0.25), line("lds", "b", 0.5), line("lds", "a", 0.75)), ()))
    assert [[dot.get_xdata()[0] for dot in dots(axes)] for axes in figure.axes] == [[0.25, 0.5], [0.75]]


@pytest.mark.parametrize("judgement", [FEW, *(many(*of) for of in SIZES)], ids=["few", *map(str, SIZES)])
def test_metrics_are_legible(judgement: Judgement, faults):
    figure = dv.plot(judgement)
    assert faults(figure) == []
    for axes in figure.axes:
        labels = [label.get_window_extent() for label in axes.get_xticklabels()]
        shown = [box for box in labels if axes.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= axes.bbox.x1 + 1]
        assert len(shown) >= 2
        assert all(one.x1 < other.x0 for one, other in zip(shown, shown[1:], strict=False))
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in shown)
        assert not any(box.overlaps(text.get_window_extent()) for box in shown for text in figure.texts)
    notes = {
        note for one in judgement.lines for note in ([one.why_not] if one.estimate is None else one.estimate.notes)
    }
    assert sorted(foot(figure).values()) == sorted(notes)


def test_all_marks_lead_to_their_notes():
    judgement = many(4, 5)
    figure = dv.plot(judgement)
    notes = foot(figure)
    for panel, axes in enumerate(figure.axes):
        for row, dot in enumerate(dots(axes)):
            marks = " ".join(row_of(figure, axes, dot.get_ydata()[0]))
            said = [notes[int(number)] for number in re.findall(r"\d+", marks)]
            assert said == [f"note {panel}", f"{judgement.lines[5 * row].contender}: note {row * panel}"]


def test_marks_that_need_more_room_take_more_lines(faults):
    notes = tuple(f"note {i}" for i in range(12))
    figure = dv.plot(Judgement((line("lds", "a", 0.1, notes=notes), line("lds", "b", 0.2)), ()))
    (axes,) = figure.axes
    right = [t.get_text() for t in figure.texts if t.get_window_extent().x0 > axes.bbox.x1]
    assert len(right) > 1 and re.findall(r"\d+", " ".join(right)) == [str(i) for i in range(1, 13)]
    assert faults(figure) == []


# ── ranks ────────────────────────────────────────────────────────────────────────────────────────


def test_each_contender_stands_at_its_run_time_and_mean_rank():
    figure = dv.plot(FEW, kind="ranks")
    (axes,) = figure.axes
    (found,) = dots(axes)
    # lds alone compares: slack has one value, and for sparsity neither way is better
    assert found.get_xdata() == pytest.approx([20.0, 4000.0, 1e-3]) and list(found.get_ydata()) == [1, 2, 3]
    assert axes.get_xscale() == "log"
    assert axes.transData.transform((1, 1))[1] > axes.transData.transform((1, 3))[1]  # the best at the top
    assert words(figure)[1] == "Each rank is the mean over 1 comparison; a comparison is a metric on a case."
    assert f"No comparison with others: {SAME}." in words(figure)
    assert "Faster than 0.001\u202fs, drawn there: random." in words(figure)


def label_boxes(figure: Figure, axes: Axes) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return what is written inside the axes: words → boxes."""
    found = dict[str, list[tuple[float, float, float, float]]]()
    for text in figure.texts:
        box = text.get_window_extent()
        if box.overlaps(axes.bbox):
            found.setdefault(text.get_text(), []).append((box.x0, box.y0, box.x1, box.y1))
    return found


def crowd(num_contenders: int) -> Judgement:
    """Contenders whose run times and mean ranks are much the same."""
    names = [f"{NAMES[i % 4]} {i}" for i in range(num_contenders)]
    lines = [line(f"metric {m}", name, float((i * (m + 1)) % 3)) for i, name in enumerate(names) for m in range(3)]
    return Judgement(tuple(lines), costs({name: 3.0 + 0.1 * i for i, name in enumerate(names)}))


@pytest.mark.parametrize("judgement", [FEW, many(2, 1), many(12, 3), crowd(12)], ids=["few", "two", "twelve", "crowd"])
def test_labels_keep_apart_and_off_the_dots(judgement: Judgement, faults):
    figure = dv.plot(judgement, kind="ranks")
    (axes,) = figure.axes
    assert faults(figure) == []
    labels = label_boxes(figure, axes)
    (drawn,) = dots(axes)
    spots = axes.transData.transform(drawn.get_xydata())
    assert len(spots) == len(judgement.ranks())
    for x, y in spots:
        assert not any(x0 - 4 < x < x1 + 4 and y0 < y < y1 for boxes in labels.values() for x0, y0, x1, y1 in boxes)
    boxes = [box for boxes in labels.values() for box in boxes]
    for (x0, y0, x1, y1), (left, low, right, high) in itertools.combinations(boxes, 2):
        assert min(y1, high) - max(y0, low) <= 1 or max(x0, left) - min(x1, right) >= 3
    said = " ".join(labels)
    assert all(name.split()[0] in said and name.split()[-1] in said for name in judgement.ranks())


def test_a_label_stands_beside_its_dot_or_is_led_to():
    figure = dv.plot(many(12, 3), kind="ranks")
    (axes,) = figure.axes
    (drawn,) = dots(axes)
    boxes = [box for boxes in label_boxes(figure, axes).values() for box in boxes]
    leads = [axes.transAxes.transform(one.get_xydata()) for one in axes.get_lines() if one.get_marker() != "o"]
    for x, y in axes.transData.transform(drawn.get_xydata()):
        beside = [(x, y), *(end for start, end in leads if start == pytest.approx((x, y), abs=0.5))]
        near = [
            (x0, y0, x1, y1)
            for at_x, at_y in beside
            for x0, y0, x1, y1 in boxes
            if y0 - 12 < at_y < y1 + 12 and min(abs(x0 - at_x), abs(x1 - at_x)) < 16
        ]
        assert near


def test_contenders_with_fewer_comparisons_say_so():
    lines = (*FEW.lines, line("hoyer", DUALVIEW, 0.3), line("hoyer", RANDOM, 0.1))
    said = words(dv.plot(Judgement(lines, FEW.costs), kind="ranks"))
    assert "Each rank is the mean over 1 to 2 comparisons; a comparison is a metric on a case." in said
    assert sum("(1 of 2)" in words for words in said) == 1


def test_contenders_without_run_time_are_named():
    said = words(dv.plot(Judgement(FEW.lines, costs({DUALVIEW: 1.0, LONG: 2.0})), kind="ranks"))
    assert "No run time: random." in said


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="`kind` is 'rank'; expected 'metrics' or 'ranks'"):
        dv.plot(FEW, kind="rank")
    with pytest.raises(ValueError, match="holds no lines"):
        dv.plot(Judgement((), ()))
    with pytest.raises(ValueError, match="nothing to rank"):
        dv.plot(Judgement(FEW.lines[:1], FEW.costs), kind="ranks")
