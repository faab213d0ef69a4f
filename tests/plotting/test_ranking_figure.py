"""What stands in the figure of a ranking: which samples in which order, what is said of each, and what is not known."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

import dualview as dv
from dualview import Ranking, Task
from dualview.engine.datasets import as_samples
from dualview.engine.source import Source
from dualview.plotting import plot, ranking_figure
from dualview.plotting.style import AGAINST, INK

ORDER = torch.tensor([7, 2, 9, 0, 4, 5, 1])
BOOTS = ["Trouser", "Ankle boot", "Unbreakable" * 9]


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def make(inputs: Tensor, *, display: Callable[[Any], Any] | None = None, **settings: Any) -> Ranking:
    """Rank seven of ten training samples of three classes; the second and the last are as the network predicts."""
    facts: dict[str, Any] = {
        "index": ORDER,
        "columns": {
            "slack": torch.tensor([4.5, 2.25, 1.5, 1.0, 0.5, 0.25, 0.0]),
            "loss": torch.tensor([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]),
            "target": torch.tensor([0, 1, 2, 0, 1, 2, 0]),
            "predicted": torch.tensor([1, 1, 0, 1, 2, 0, 0]),
            "confidence": torch.tensor([0.975, 0.5, 0.25, 1.0, 0.75, 0.625, 0.875]),
        },
        "by": "slack",
        "num_samples": 10,
        "what": "Training samples under suspicion",
        "of": "train",
        "source": Source(Task(nn.Linear(1, 3), display=display), None, as_samples((inputs, torch.zeros(10)))),
    }
    return Ranking(**{**facts, **settings})


@pytest.fixture
def digits() -> Ranking:
    return make(noise(10, 1, 8, 8))


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def positions(figure: Figure, word: str = "train") -> list[int]:
    return [int(said.split()[1]) for said in words(figure) if said.startswith(f"{word} ")]


def look(figure: Figure, said: str) -> list[tuple[str, str]]:
    """Return weight and colour of each text that says this."""
    found = [text for text in figure.texts if text.get_text() == said]
    return [(str(text.get_fontproperties().get_weight()), to_hex(text.get_color())) for text in found]


def pixels(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[-1].get_array()) for axes in figure.axes]


def rows_of(figure: Figure) -> list[int]:
    """Return how many panels stand in each row, from the top."""
    tops = [round(axes.get_position().y1, 6) for axes in figure.axes]
    return [tops.count(top) for top in sorted(set(tops), reverse=True)]


def test_samples_stand_in_their_order_with_what_is_known_of_them(digits: Ranking):
    figure = plot(digits, k=3, names=[f"digit_{i}.png" for i in range(10)])
    texts = words(figure)
    assert texts[:2] == ["Training samples under suspicion, by slack", "The first 3 of 7 training samples; the whole "
                         "set holds 10."]  # fmt: skip
    assert texts[2:14] == [
        "train 7", "digit_7.png", "label 0", "predicted 1", "slack 4.50", "confidence 97.5\u202f%",
        "train 2", "digit_2.png", "label 1", "predicted 1", "slack 2.25", "confidence 50.0\u202f%",
    ]  # fmt: skip
    assert positions(figure) == [7, 2, 9]
    expected = (noise(10, 1, 8, 8)[ORDER[:3], 0] * 255).round().to(torch.uint8).numpy()
    assert all(map(np.array_equal, pixels(figure), expected))
    places = [axes.get_position().x0 for axes in figure.axes]
    assert places == sorted(places) and len(places) == 3


def test_another_prediction_than_the_label_is_seen(digits: Ranking):
    figure = plot(digits, k=2)
    assert look(figure, "predicted 1") == [("bold", AGAINST), ("normal", INK)]
    assert look(figure, "label 0") == look(figure, "label 1") == [("normal", INK)]
    note = "Bold and orange: the network predicts another class than the label."
    assert note in words(figure)
    agreed = dataclasses.replace(digits, columns={**digits.columns, "predicted": digits.columns["target"]})
    assert note not in words(plot(agreed))


def test_classes_have_their_names(digits: Ranking):
    named = dataclasses.replace(digits, class_names=BOOTS)
    assert {"label Trouser", "label Ankle boot"} <= set(words(plot(named, k=2)))
    given = words(plot(named, k=2, class_names=["a", "b", "c"]))
    assert {"label a", "predicted b"} <= set(given) and not any("Trouser" in word for word in given)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [4, 3]),
        ({"k": 1}, [1]),
        ({"k": 4}, [4]),
        ({"k": 5}, [5]),
        ({"columns": 2}, [2, 2, 2, 1]),
        ({"columns": 9}, [7]),
    ],
)
def test_tiles_stand_row_by_row(digits: Ranking, settings: dict[str, int], expected: list[int]):
    figure = plot(digits, **settings)
    assert rows_of(figure) == expected
    assert positions(figure) == ORDER[: sum(expected)].tolist()
    reading = sorted(figure.axes, key=lambda axes: (-round(axes.get_position().y1, 6), axes.get_position().x0))
    assert reading == figure.axes


def test_thirty_stand_six_a_row():
    ranking = Ranking(torch.arange(40), {"loss": torch.arange(40.0)}, "loss", 40)
    figure = plot(ranking, k=30)
    assert rows_of(figure) == [6] * 5
    assert words(figure)[:2] == ["Samples, by loss", "The first 30 of 40 samples."]
    assert positions(figure, "sample") == list(range(30))
    assert words(plot(ranking.head(12)))[1] == "12 samples; the whole set holds 40."
    assert words(plot(ranking, k=1))[1] == "The first of 40 samples."


def test_an_empty_ranking_says_so(digits: Ranking):
    figure = plot(digits.head(0))
    assert words(figure) == ["Training samples under suspicion, by slack", "There are none."]
    assert not figure.axes


def test_an_order_that_no_column_made_is_told_by_all_of_them(digits: Ranking):
    figure = plot(dataclasses.replace(digits, by="from here to there"), k=1)
    assert words(figure)[0] == "Training samples under suspicion, from here to there"
    assert {"slack 4.50", "loss 8.00", "confidence 97.5\u202f%"} <= set(words(figure))


def test_rows_of_numbers_are_on_one_scale():
    figure = plot(make(noise(10, 5) - 0.5))
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    heights = [bar.get_height() for bar in figure.axes[0].patches[:5] if isinstance(bar, Rectangle)]
    assert heights == pytest.approx((noise(10, 5) - 0.5)[7].tolist())
    assert "Bars: the sample’s values, all on one scale." in words(figure)


def test_display_is_the_given_one_else_the_tasks():
    ranking = make(noise(10, 1, 8, 8), display=lambda image: "the task’s")
    assert words(plot(ranking, k=2)).count("the task’s") == 2
    assert words(plot(ranking, k=2, display=lambda image: f"{image.sum():.4f}")).count(
        f"{noise(10, 1, 8, 8)[7].sum():.4f}"
    ) == 1  # fmt: skip


def test_what_cannot_be_shown_is_said_in_words(digits: Ranking):
    assert digits.source is not None
    alone = plot(dataclasses.replace(digits, source=None), k=2)
    assert words(alone).count("no picture: this") == 2 and len(alone.axes) == 2
    not_kept = " ".join(words(plot(dataclasses.replace(digits, of="data"), k=1)))
    assert "input not kept" in not_kept
    opened = dataclasses.replace(digits.source, train=None, thumbnails={2: np.full((4, 4), 9, np.uint8)})
    figure = plot(dataclasses.replace(digits, source=opened), k=2)
    assert "give train= to see it" in " ".join(words(figure))
    assert [len(axes.images) for axes in figure.axes] == [0, 1]


# ── of real fits ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def classifier() -> tuple[nn.Module, Tensor, Tensor]:
    """Two classes of 4×4 images told apart by their brightness; every seventh label is wrong."""
    inputs = noise(40, 1, 4, 4) / 2
    truth = torch.arange(40) % 2
    inputs[truth == 1] += 0.5
    labels = truth.clone()
    labels[::7] = 1 - labels[::7]
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model[1].weight.data = torch.stack([torch.full((16,), -1.0), torch.full((16,), 1.0)])
    model[1].bias.data = torch.tensor([8.0, -8.0])
    return model, inputs, labels


def test_suspects_and_errors_are_drawn(classifier: tuple[nn.Module, Tensor, Tensor]):
    model, inputs, labels = classifier
    explainer = dv.fit(dv.DualView(C=0.1), dv.Task(model, class_names=["dark", "bright"]), (inputs, labels))
    suspects = explainer.suspects(6)
    figure = plot(suspects)
    assert sorted(positions(figure)) == list(range(0, 40, 7))
    assert set(words(figure)) >= {"label dark", "label bright", "predicted dark", "predicted bright"}
    shown = (inputs[suspects.index, 0] * 255).round().to(torch.uint8).numpy()
    assert all(map(np.array_equal, pixels(figure), shown))
    flipped = (inputs.flip(0), labels.flip(0))  # the same samples at other positions
    errors = explainer.errors(flipped)
    figure = plot(errors)
    assert words(figure)[:2] == ["Wrong predictions, by loss", "6 samples; the whole set holds 40."]
    assert positions(figure, "sample") == errors.index.tolist()
    shown = (flipped[0][errors.index, 0] * 255).round().to(torch.uint8).numpy()
    assert all(map(np.array_equal, pixels(figure), shown))


@pytest.mark.parametrize("problem", ["regression", "several numbers", "multi-label"])
def test_labels_that_are_no_classes(problem: str):
    inputs = noise(24, 3)
    several = problem != "regression"
    labels = inputs[:, : 2 if several else 1].clone()
    labels[5] += 3
    if problem == "multi-label":
        labels = (labels > 0.5).float()
    model = nn.Linear(3, 2 if several else 1)
    model.weight.data, model.bias.data = torch.eye(3)[: 2 if several else 1], torch.zeros(2 if several else 1)
    loss = "hinge" if problem == "multi-label" else "squared"
    task = dv.Task(model, problem="multi-label" if problem == "multi-label" else "regression")
    explainer = dv.fit(dv.DualView(C=0.1, loss=loss), task, (inputs, labels), progress=False)
    figure = plot(explainer.suspects(4, by="loss"))
    texts = words(figure)
    assert texts[0] == "Training samples under suspicion, by loss" and len(figure.axes) == 4
    assert sum(word.startswith("loss ") for word in texts) == 4
    assert any(word.startswith("label ") for word in texts) == (not several)
    if problem == "regression":
        first = texts.index("train 5")
        assert texts[first + 1 : first + 3] == [f"label {labels[5, 0]:.2f}", f"predicted {inputs[5, 0]:.3f}"]
        assert not any(weight == "bold" for weight, _ in look(figure, texts[first + 2]))
    assert not any("confidence" in word.lower() for word in texts)


# ── every figure ─────────────────────────────────────────────────────────────────────────────────

CASES: dict[str, Callable[[], Figure]] = {
    "images": lambda: plot(make(noise(10, 1, 8, 8))),
    "one": lambda: plot(make(noise(10, 3, 8, 8)), k=1),
    "empty": lambda: plot(make(noise(10, 1, 8, 8)).head(0)),
    "two columns": lambda: plot(make(noise(10, 1, 8, 8)), columns=2),
    "long names": lambda: plot(make(noise(10, 3, 8, 8), class_names=BOOTS), names=["folder/" * 20] * 10),
    "words": lambda: plot(make(noise(10, 3), display=lambda row: "many words in a row " * 50)),
    "table": lambda: plot(make(3 * noise(10, 30) - 2)),
    "no pictures": lambda: plot(make(noise(10, 3), source=None)),
    "not kept": lambda: plot(make(noise(10, 3), of="data")),
    "long column": lambda: plot(
        Ranking(
            torch.arange(3),
            {"a_rather_long_name_of_a_column": torch.rand(3) * 1e-5},
            "a_rather_long_name_of_a_column",
            3,
        )
    ),  # fmt: skip
    "stretched": lambda: plot(make(3 * noise(10, 1, 8, 8) - 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_cut_off_or_overlaps(case: str, faults: Callable[[Figure], list[str]]):
    assert faults(CASES[case]()) == []


def test_a_notebook_shows_it(digits: Ranking):
    shown = digits._repr_png_()
    assert shown is not None and shown.startswith(b"\x89PNG")


def test_refuses_what_cannot_be_drawn(digits: Ranking):
    with pytest.raises(ValueError, match="`k` is 0; expected 1 or more"):
        ranking_figure(digits, k=0)
    anything = getattr(ranking_figure, "__wrapped__", ranking_figure)  # past the check of annotations
    with pytest.raises(TypeError, match=r"`columns` is \['slack'\]; expected a whole number, tiles beside each other"):
        anything(digits, columns=["slack"])
    with pytest.raises(TypeError, match=r"`k` is '3'; expected a whole number, samples to draw at most"):
        anything(digits, k="3")
    with pytest.raises(ValueError, match="`columns` is 0; expected 1 or more"):
        ranking_figure(digits, columns=0)
    with pytest.raises(ValueError, match="`names` holds 1 entries; there are 10 samples in the data set"):
        ranking_figure(digits, names=["a"])
    with pytest.raises(ValueError, match="`class_names` holds 1 entries; .* output column 2: give a name for each"):
        ranking_figure(digits, class_names=["a"])
