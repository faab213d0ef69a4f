"""The figure of a feature attribution: samples beside their maps."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dualview import FeatureAttribution, Maps
from dualview.engine.pictures import picture_of
from dualview.plotting import features, plot
from dualview.plotting.heatmap import coloured, heat, limit
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


@pytest.fixture(scope="module")
def attribution(image_maps: Maps) -> FeatureAttribution:
    return image_maps.own


def test_features_show_each_sample_beside_its_map(attribution: FeatureAttribution, faults: Faults):
    figure = plot(attribution, [1, 0], true_targets=[2, 1])
    expected = []
    for row in (1, 0):
        shown, values = picture_of(noise(14, 1, 8, 8)[12 + row]), heat(attribution.values[row])
        expected += [shown.image, coloured(values, limit([values]), shown)]
        assert {signed(limit([values])), signed(-limit([values]))} <= set(words(figure))
        target = int(attribution.targets[row])
        assert f"Predicted {int(attribution.predicted[row])}, true label {[2, 1][row]}" in words(figure)
        sums, seed = float(attribution.values[row].sum()), float(attribution.account.seed[row])
        assert f"The map sums to {signed(sums)} of {signed(seed)}; operations absorbed" in said(figure)
        assert f"of the network’s logit of class {target}." in said(figure)
    for one, other in zip(images(figure), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [word for word in words(figure) if word.startswith("Test ")] == ["Test 1", "Test 0"]
    assert faults(figure) == []


def test_features_of_several_inputs_stand_beside_each_other(two_maps: Maps, faults: Faults):
    figure = plot(two_maps.own)
    assert {"Test 0, input image", "Test 0, input row"} <= set(words(figure))
    assert faults(figure) == []
    assert "Test 0, input row" in words(plot(two_maps.own, input="row"))
    assert "Test 0, input image" not in words(plot(two_maps.own, input="row"))


def test_features_without_a_source_show_the_map_alone(attribution: FeatureAttribution):
    values = heat(attribution.values[0])
    figure = plot(dataclasses.replace(attribution, source=None))
    np.testing.assert_array_equal(images(figure)[0], coloured(values, limit([values])))
    assert "no picture: a loaded result has no source" in said(figure)


def test_a_notebook_shows_it(attribution: FeatureAttribution):
    drawn = attribution._repr_png_()
    assert drawn is not None and drawn.startswith(b"\x89PNG")


def test_long_names_are_tidy(attribution: FeatureAttribution, faults: Faults):
    names = ["a class whose name goes on and on and never seems to end at all", "Unbreakable" * 9, "costs $5 or $6"]
    assert faults(plot(attribution, [0, 1], class_names=names, true_targets=[1, 2])) == []


def test_features_refuse_what_is_not_there(attribution: FeatureAttribution):
    with pytest.raises(IndexError, match="`test` is 2; rows of the attribution go from 0 to 1"):
        features(attribution, 2)
    with pytest.raises(ValueError, match="`true_targets` holds 1 entries; there are 2 rows in the attribution"):
        features(attribution, true_targets=[0])
