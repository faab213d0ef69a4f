"""The relation figure: which numbers and pictures stand in it, and where."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import dualview as dv
from dualview import Maps
from dualview.engine.pictures import picture_of
from dualview.engine.propagation.account import Absorbed, Account, Place
from dualview.plotting import plot, relation_figure
from dualview.plotting.explained import check_target
from dualview.plotting.heatmap import coloured, heat, limit
from dualview.plotting.style import AGAINST, FOR
from dualview.plotting.words import signed

Faults = Callable[[Figure], list[str]]
LONG_NAMES = ["a class whose name goes on and on and never seems to end at all", "Unbreakable" * 9, "costs $5 or $6"]


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


def tips(figure: Figure) -> list[str]:
    """Return the colours of the pointed ends of the last scale."""
    ends = [patch for patch in figure.axes[-1].patches if np.ptp(patch.get_xy()[:, 0]) > 0]
    return [to_hex(end.get_facecolor()) for end in ends]


def tiles(figure: Figure) -> list[tuple[str, str, str]]:
    """Return score, label and position of each training sample, from left to right."""
    texts = words(figure)
    places = [place for place, text in enumerate(texts) if re.fullmatch(r"train \d+", text)]
    return [(texts[place - 2], texts[place - 1], texts[place]) for place in places]


def order_of(maps: Maps, *, lower_is_better: bool = False) -> list[int]:
    """Return the places of the proponents, strongest first, then of the opponents, strongest first."""
    scores = maps.scores.tolist()
    places = sorted(range(len(scores)), key=lambda place: -abs(scores[place]))
    for_it = [place for place in places if (scores[place] > 0) != lower_is_better]
    return for_it + [place for place in places if place not in for_it]


def account(seed: list[float], absorbed: list[float]) -> Account:
    kept = Absorbed(Place("conv2d"), "bias", torch.tensor(absorbed))
    return Account(torch.tensor(seed), torch.tensor(seed) - kept.amount, (kept,), (), 0.0, 1.0)


@pytest.fixture(scope="module")
def figure(image_maps: Maps) -> Figure:
    return plot(image_maps, 1)


# ── which pictures ───────────────────────────────────────────────────────────────────────────────


def test_every_pair_stands_with_both_maps_on_one_scale(image_maps: Maps, figure: Figure):
    maps, train, test = image_maps.of_test(1), noise(12, 1, 8, 8), noise(14, 1, 8, 8)[13]
    on_train, on_test = [heat(one) for one in maps.train], [heat(one) for one in maps.test]
    end, own = limit([*on_train, *on_test]), heat(maps.own.values[0])
    expected = [picture_of(test).image, coloured(own, limit([own]), picture_of(test))]
    for place in order_of(maps):
        beside = picture_of(train[maps.train_index[place]])
        expected += [
            beside.image,
            coloured(on_train[place], end, beside),
            coloured(on_test[place], end, picture_of(test)),
        ]
    drawn = images(figure)
    assert len(drawn) == len(expected) == 2 + 3 * 6
    for one, other in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_maps_of_a_pair_stand_below_its_sample(image_maps: Maps, figure: Figure):
    panels = [axes.get_window_extent() for axes in figure.axes[3:-1]]  # after the test sample, its map and its scale
    for sample, on_train, on_test in zip(panels[::3], panels[1::3], panels[2::3], strict=True):
        assert sample.x0 == on_train.x0 == on_test.x0
        assert sample.y0 > on_train.y1 > on_train.y0 > on_test.y1
    lefts = [panel.x0 for panel in panels[::3]]
    assert lefts == sorted(lefts)  # proponents at the left, opponents at the right
    assert len({panel.y0 for panel in panels[::3]}) == 1


def test_the_first_rendered_row_is_drawn_by_default(image_maps: Maps):
    assert words(plot(image_maps.of_test(1))) == words(plot(image_maps, 1))
    assert "Test 0" in words(plot(image_maps))


def test_an_image_of_the_same_proportions_lies_beneath_and_no_other(image_maps: Maps):
    maps = image_maps.of_test(0)
    place = order_of(maps)[0]
    values, end = heat(maps.train[place]), limit([heat(one) for one in [*maps.train, *maps.test]])
    large = images(plot(maps, display=lambda sample: torch.zeros(16, 16)))
    beneath = coloured(values, end, picture_of(torch.zeros(16, 16)))
    np.testing.assert_array_equal(large[3], beneath)
    assert large[3].shape == (16, 16, 3)
    cropped = plot(maps, display=lambda sample: sample[:, :5])
    np.testing.assert_array_equal(images(cropped)[3], coloured(values, end))
    assert "Grey beneath" not in said(cropped)


# ── what is said ─────────────────────────────────────────────────────────────────────────────────


def test_scores_labels_and_positions_are_those_of_the_pairs(image_maps: Maps, figure: Figure):
    maps = image_maps.of_test(1)
    expected = [
        (signed(float(maps.scores[p])), f"label {int(maps.train_index[p]) % 3}", f"train {int(maps.train_index[p])}")
        for p in order_of(maps)
    ]
    assert tiles(figure) == expected
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert [colours[score] for score, _, _ in expected] == [FOR] * 3 + [AGAINST] * 3


def test_a_map_and_what_was_absorbed_add_up_to_the_printed_score(image_maps: Maps, figure: Figure):
    maps = image_maps.of_test(1)
    for side, books in ((maps.train, maps.train_account), (maps.test, maps.test_account)):
        absorbed = sum((entry.amount.double() for entry in books.absorbed), torch.zeros(len(maps)).double())
        sums = side.double().flatten(1).sum(1) + absorbed
        # Sums of 64 float32 values are right to far more than the three digits that are printed.
        assert [signed(float(sums[place])) for place in order_of(maps)] == [score for score, _, _ in tiles(figure)]


def test_says_what_scores_maps_and_scales_are(image_maps: Maps, figure: Figure):
    target, predicted = int(image_maps.own.targets[1]), int(image_maps.own.predicted[1])
    text = said(plot(image_maps, 1, true_target=2))
    assert f"Predicted {predicted}, true label 2" in text
    assert f"Each score is a training sample’s share of the surrogate’s logit of class {target}." in text
    assert f"Relevance, in shares of the surrogate’s logit of class {target}" in text
    assert "Proponents: raise this logit" in text and "Opponents: lower this logit" in text
    total = float(image_maps.own.values[1].sum())
    assert f"For the network’s logit of class {target}: sums to {signed(total)} of" in text
    assert words(figure).count("Relevance on the training sample") == 1
    assert words(figure).count("Relevance on the test sample") == 1


def test_ends_of_both_scales_are_their_limits(image_maps: Maps, figure: Figure):
    maps = image_maps.of_test(1)
    own = limit([heat(maps.own.values[0])])
    pairs = limit([heat(one) for one in [*maps.train, *maps.test]])
    texts = words(figure)
    for end in (own, pairs):
        place = texts.index(signed(-end))
        assert texts[place : place + 4] == [signed(-end), "orange lowers it", signed(end), "blue raises it"]
    for strip in strips(figure):
        assert [to_hex(tone / 255) for tone in (strip[0], strip[127], strip[-1])] == [AGAINST, "#ffffff", FOR]


def test_values_beyond_the_scale_point_its_ends(image_maps: Maps):
    maps = image_maps.of_test(0)
    even = dataclasses.replace(maps, train=torch.ones_like(maps.train), test=-torch.ones_like(maps.test))
    even = dataclasses.replace(even, own=dataclasses.replace(maps.own, values=torch.ones_like(maps.own.values)))
    flat = plot(even)
    assert "Pointed" not in said(flat)
    assert tips(flat) == []
    outlier = even.train.clone()
    outlier[0, 0, 3, 3] = 7.0
    pointed = plot(dataclasses.replace(even, train=outlier))
    assert "Pointed ends of a scale: a few values lie beyond and have the colour of the end." in words(pointed)
    assert {"−1.00", "+1.00"} <= set(words(pointed)) and "+7.00" not in words(pointed)
    assert tips(pointed) == [AGAINST, FOR]


def test_says_how_much_was_absorbed(image_maps: Maps):
    maps = image_maps.of_test(0)
    count = len(maps)
    books = {
        "train_account": account([1.0, -1.0] * (count // 2), [0.1, -0.3] * (count // 2)),  # (0.1 + 0.3) / 2 of the seed
        "test_account": account([1.0] * count, [0.0001] * count),
        "own": dataclasses.replace(maps.own, account=account([4.0], [-0.5])),
    }
    text = said(plot(dataclasses.replace(maps, **books)))
    assert (
        "LRP('epsilon-plus-flat', bias='exclude'). Of the scores, operations absorbed 20.0\u202f% on the way to the "
        "training samples and less than 0.1\u202f% on the way to the test sample, which is not in the maps." in text
    )
    assert "of +4.00; operations absorbed 12.5\u202f%." in text
    whole = Account(
        torch.ones(count), torch.ones(count), (Absorbed(Place("mm"), "bias", torch.tensor(0.5)),), (), 0.0, 1.0
    )
    unknown = plot(dataclasses.replace(maps, train_account=whole, test_account=whole))
    assert "operations absorbed an unknown share on the way to either sample" in said(unknown)


def test_dashed_frames_mark_labels_that_are_not_the_explained_class(image_maps: Maps, figure: Figure):
    maps, target = image_maps.of_test(1), int(image_maps.own.targets[1])
    dashed = [any(p.get_linestyle() not in ("-", "solid") for p in axes.patches) for axes in figure.axes[3:-1]]
    expected = [int(maps.train_index[place]) % 3 != target for place in order_of(maps)]
    assert dashed[::3] == expected and any(expected)
    assert not any(dashed[1::3] + dashed[2::3])


def test_one_unit_alone_is_named(image_maps: Maps):
    one = dv.render(image_maps.relation, dv.LRP("epsilon-plus-flat"), test=0, k=2, unit=3)
    assert "Each score is unit 3’s part of a training sample’s share" in said(plot(one))


def test_proponents_of_a_loss_lower_it_and_are_blue(image_maps: Maps):
    maps = image_maps.of_test(0)
    loss = dataclasses.replace(maps.own, measured="loss", lower_is_better=True, linearised=True)
    flipped = plot(dataclasses.replace(maps, own=loss))
    assert "Proponents: lower this loss" in words(flipped)
    target = int(maps.own.targets[0])
    assert f"For the network’s loss for class {target}, linearised: sums to" in said(flipped)
    assert f"in shares of the surrogate’s loss for class {target}, linearised" in said(flipped)
    assert "surrogate’s loss for class" in said(flipped) and "linearised at the network’s logits" in said(flipped)
    first = order_of(maps, lower_is_better=True)[0]
    assert float(maps.scores[first]) < 0
    beside = picture_of(noise(12, 1, 8, 8)[maps.train_index[first]])
    end = limit([heat(one) for one in [*maps.train, *maps.test]])
    np.testing.assert_array_equal(images(flipped)[3], coloured(-heat(maps.train[first]), end, beside))
    texts = words(flipped)
    place = texts.index(signed(-end))
    assert texts[place : place + 4] == [signed(-end), "blue lowers it", signed(end), "orange raises it"]
    assert to_hex(strips(flipped)[-1][0] / 255) == FOR


# ── how many ─────────────────────────────────────────────────────────────────────────────────────


def test_more_pairs_than_asked_are_left_out_and_counted(image_maps: Maps):
    figure = plot(image_maps, k=2)
    assert len(images(figure)) == 2 + 3 * 4
    assert "Drawn are the 2 strongest of 3 rendered proponents." in words(figure)
    assert "Drawn are the 2 strongest of 3 rendered opponents." in words(figure)


def test_many_pairs_wrap_below_each_other(image_maps: Maps, faults: Faults):
    maps = dv.render(image_maps.relation, dv.LRP("epsilon-plus-flat"), test=0, train=range(12))
    proponents = int((maps.scores > 0).sum())
    figure = plot(maps, k=12)
    assert max(proponents, int((maps.scores < 0).sum())) > 4
    assert words(figure).count("Relevance on the test sample") == 2
    assert faults(figure) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_a_side_without_pairs_is_said_and_not_drawn(image_maps: Maps, faults: Faults, sign: int):
    maps = image_maps.of_test(0)
    place = order_of(maps)[0 if sign > 0 else -1]
    one = dv.render(maps.relation, dv.LRP("epsilon-plus-flat"), test=0, train=int(maps.train_index[place]))
    figure = plot(one)
    there, missing = ("Proponents", "opponents") if sign > 0 else ("Opponents", "proponents")
    assert f"There are no {missing} among the rendered pairs." in words(figure)
    assert any(word.startswith(f"{there}: ") for word in words(figure))
    assert len(images(figure)) == 2 + 3
    assert faults(figure) == []


def test_pairs_without_a_score_are_counted_and_not_drawn(image_maps: Maps, faults: Faults):
    maps = image_maps.of_test(0)
    scores = maps.scores.clone()
    scores[order_of(maps)[1:]] = 0.0
    figure = plot(dataclasses.replace(maps, scores=scores))
    assert "Not drawn: 5 rendered pairs with score 0." in words(figure)
    assert len(images(figure)) == 2 + 3
    nothing = plot(dataclasses.replace(maps, scores=torch.zeros_like(scores)))
    assert "Not drawn: 6 rendered pairs with score 0." in words(nothing)
    assert len(images(nothing)) == 2
    assert faults(nothing) == []


# ── where it stands, and refusals ────────────────────────────────────────────────────────────────

CASES: dict[str, Callable[[Maps], Figure]] = {
    "plain": plot,
    "long names": lambda maps: plot(maps, class_names=LONG_NAMES, names=["folder/" * 20] * 12, true_target=1),
    "one of each": lambda maps: plot(maps, k=1, class_names=LONG_NAMES, true_target=1),
    "words": lambda maps: plot(maps, display=lambda sample: "many words in a row " * 50),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_cut_off_or_overlaps(image_maps: Maps, faults: Faults, case: str):
    assert faults(CASES[case](image_maps)) == []


def test_a_notebook_shows_it(image_maps: Maps):
    drawn = image_maps._repr_png_()
    assert drawn is not None and drawn.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"test": 5}, IndexError, "`test` is 5; rendered are the rows 0, 1"),
        ({"k": 0}, ValueError, "`k` must be at least 1; it is 0"),
        ({"names": ["a"]}, ValueError, "`names` holds 1 entries; there are 12 training samples"),
        ({"true_target": 17}, ValueError, "`true_target` is 17; output columns go from 0 to 2"),
        ({"input": "mask"}, ValueError, "`input` is 'mask'; the model takes one input, so leave it out"),
    ],
)
def test_refusals(image_maps: Maps, settings: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        relation_figure(image_maps, **settings)


def test_a_label_that_is_no_output_column_is_refused():
    with pytest.raises(TypeError, match=r"`true_target` must be an output column, .* from 0 to 2; it is '7'"):
        check_target("true_target", "7", 3)
    assert check_target("true_target", torch.tensor(2), 3) == 2
