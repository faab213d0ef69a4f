"""The relation figure of rows of numbers, of one of several inputs, and of what cannot be drawn."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn

from dualview import Maps
from dualview.engine.pictures import picture_of
from dualview.plotting import plot, relation_figure
from dualview.plotting.heatmap import coloured, heat, limit
from dualview.plotting.style import AGAINST, FOR
from dualview.plotting.words import signed

Faults = Callable[[Figure], list[str]]


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def said(figure: Figure) -> str:
    return " ".join(words(figure))


def images(figure: Figure) -> list[np.ndarray]:
    """Return what is drawn as an image, panel by panel; without the strips of scales, one pixel high."""
    drawn = [np.asarray(axes.images[-1].get_array()) for axes in figure.axes if axes.images]
    return [image for image in drawn if image.shape[0] > 1]


def strips(figure: Figure) -> list[np.ndarray]:
    drawn = [np.asarray(axes.images[-1].get_array()) for axes in figure.axes if axes.images]
    return [image[0] for image in drawn if image.shape[0] == 1]


def order_of(maps: Maps, *, lower_is_better: bool = False) -> list[int]:
    """Return the places of the proponents, strongest first, then of the opponents, strongest first."""
    scores = maps.scores.tolist()
    places = sorted(range(len(scores)), key=lambda place: -abs(scores[place]))
    for_it = [place for place in places if (scores[place] > 0) != lower_is_better]
    return for_it + [place for place in places if place not in for_it]


@pytest.fixture(scope="module")
def table_maps(render: Callable[..., Maps]) -> Maps:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    return render(model, noise(12, 5) - 0.5, noise(14, 5)[12:] - 0.5, k=2)


def test_rows_of_numbers_become_bars_in_the_colours_of_their_signs(table_maps: Maps):
    maps = table_maps.of_test(0)
    figure = plot(maps)
    place = order_of(maps)[0]
    sample, on_train, on_test = figure.axes[3:6]
    position = int(maps.train_index[place])
    values = noise(12, 5)[position] - 0.5
    assert [bar.get_height() for bar in sample.containers[-1]] == pytest.approx(values.tolist())
    end = max(float(maps.train.abs().max()), float(maps.test.abs().max()))
    for axes, relevance in ((on_train, maps.train[place]), (on_test, maps.test[place])):
        bars = axes.containers[-1]
        assert [bar.get_height() for bar in bars] == pytest.approx(relevance.tolist())
        assert [to_hex(bar.get_facecolor()) for bar in bars] == [FOR if r > 0 else AGAINST for r in relevance.tolist()]
        assert axes.get_ylim() == pytest.approx((-1.06 * end, 1.06 * end))
    behind = [bar.get_height() for bar in on_train.containers[0]]
    assert behind == pytest.approx((values / values.abs().max() * end).tolist())
    assert {signed(-end), signed(end)} <= set(words(figure))
    assert "Pointed" not in said(figure)


def test_places_of_rows_are_numbered_and_the_strongest_is_named(table_maps: Maps):
    maps = table_maps.of_test(0)
    figure = plot(maps)
    place = order_of(maps)[0]
    for axes, relevance in ((figure.axes[4], maps.train[place]), (figure.axes[5], maps.test[place])):
        box = axes.get_window_extent()
        below = [
            text
            for text in figure.texts
            if box.x0 - 9 < text.get_window_extent().x0 < box.x1 and 0 < box.y0 - text.get_window_extent().y1 < 50
        ]
        bars = axes.containers[-1]
        numbers = {text.get_text(): text for text in below if text.get_text().isdigit()}
        assert list(numbers) == ["0", "1", "2", "3", "4"]
        for number, text in numbers.items():
            bar, drawn = bars[int(number)].get_window_extent(), text.get_window_extent()
            assert (drawn.x0 + drawn.x1) / 2 == pytest.approx((bar.x0 + bar.x1) / 2, abs=1)  # pixel
        strongest = int(relevance.abs().argmax())
        named = " ".join(text.get_text() for text in below if not text.get_text().isdigit())
        assert named.startswith(f"most on value {strongest} ({signed(float(relevance[strongest]), 2)})")


def test_one_of_several_inputs_is_drawn(two_maps: Maps, faults: Faults):
    place = order_of(two_maps)[0]
    image = plot(two_maps, input="image")
    position = int(two_maps.train_index[place])
    end = limit([heat(one) for side in (two_maps.train, two_maps.test) for part in side.values() for one in part])
    shown = picture_of(noise(12, 3, 4, 4)[position])
    np.testing.assert_array_equal(images(image)[2], shown.image)
    np.testing.assert_array_equal(images(image)[3], coloured(heat(two_maps.train["image"][place]), end, shown))
    row = plot(two_maps, input="row")
    heights = [bar.get_height() for bar in row.axes[4].containers[-1]]
    assert heights == pytest.approx(two_maps.train["row"][place].tolist())
    for figure in (image, row):
        assert faults(figure) == []
    with pytest.raises(ValueError, match="`input` is None; expected one of 'image', 'row'"):
        relation_figure(two_maps)
    assert two_maps._repr_png_() is None


@pytest.mark.parametrize("name", ["image", "row"])
def test_what_the_drawn_input_carries_is_said(two_maps: Maps, name: str):
    """Scale one input's maps so that they carry a millionth of the scores: nothing of them may look strong."""
    other = {"image": "row", "row": "image"}[name]
    scores = two_maps.scores

    def carrying(side: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        whole = side[other] * (scores / side[other].flatten(1).sum(1)).reshape(-1, *[1] * (side[other].ndim - 1))
        tiny = side[name] * (1e-6 * scores / side[name].flatten(1).sum(1)).reshape(-1, *[1] * (side[name].ndim - 1))
        return {name: tiny, other: whole}

    maps = dataclasses.replace(two_maps, train=carrying(two_maps.train), test=carrying(two_maps.test))
    small = said(plot(maps, input=name))
    apart = "between less than 0.1\u202f% and less than 0.1\u202f% on the"
    assert f"Of each score, input “{name}” carries {apart} training samples and {apart} test sample." in small
    whole = said(plot(maps, input=other))
    apart = "between 100.0\u202f% and 100.0\u202f% on the"
    assert f"Of each score, input “{other}” carries {apart} training samples and {apart} test sample." in whole
    end = limit([heat(one) for side in (maps.train, maps.test) for part in side.values() for one in part])
    assert signed(end) in small and signed(end) in whole


def test_what_cannot_be_drawn_is_described(render: Callable[..., Maps], faults: Faults):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3))
    maps = render(model, noise(12, 2, 2, 3, 4) - 0.5, noise(1, 2, 2, 3, 4) - 0.5, k=1)
    figure = plot(maps)
    place = order_of(maps)[0]
    sums = signed(float(maps.train[place].sum()))
    assert f"No map: relevance of 2×2×3×4, which has no picture; it sums to {sums}" in said(figure)
    assert not strips(figure)
    assert faults(figure) == []


def test_tables_are_tidy(table_maps: Maps, faults: Faults):
    assert faults(plot(table_maps)) == []
