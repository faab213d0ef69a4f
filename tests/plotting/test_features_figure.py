"""The figure of a feature attribution: samples beside their maps."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from dualview import (
    FeatureAttribution,
    GradCAM,
    Gradient,
    InputXGradient,
    IntegratedGradients,
    Maps,
    Occlusion,
    Taylor,
)
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


def test_a_map_of_zeros_is_said_to_be_one(attribution: FeatureAttribution, two_maps: Maps, faults: Faults):
    values = attribution.values.clone()
    values[0] = 0
    figure = plot(dataclasses.replace(attribution, values=values), [0, 1])
    assert "The map is zero everywhere." in words(figure)
    ends = [word for word in words(figure) if word[0] in "+−" and word[1:].replace(".", "").isdigit()]
    assert sorted(ends) == sorted([signed(limit([heat(values[1])])), signed(-limit([heat(values[1])]))])
    assert faults(figure) == []
    assert "zero everywhere" not in said(plot(attribution, [0, 1]))


def test_a_grad_cam_that_relu_leaves_nothing_of_says_so():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    nn.init.constant_(model[3].weight, -0.1)  # each unit lowers each logit
    assert "The map is zero everywhere." in words(plot(GradCAM("1").attribute(model, torch.ones(1, 1, 8, 8))))


@pytest.mark.parametrize("shape", [(6,), (100,)])
def test_bars_and_lines_of_zeros_say_so(shape: tuple[int, ...]):
    torch.manual_seed(0)
    scores = InputXGradient().attribute(nn.Linear(*shape, 2), torch.zeros(1, *shape))
    assert "All scores are zero." in said(plot(scores)) and "+1.00" not in said(plot(scores))


def test_terms_of_zeros_have_no_scale():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    figure = plot(Taylor().attribute(model, torch.zeros(1, 1, 4, 4)))  # the input is the baseline
    assert "All scores are zero." in said(figure) and "+1.00" not in said(figure)


def test_the_baseline_is_named_once():
    torch.manual_seed(0)
    image, row = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), nn.Linear(8, 2)
    for model, inputs in ((image, noise(1, 1, 4, 4)), (row, noise(1, 8)), (nn.Linear(100, 2), noise(1, 100))):
        for method in (IntegratedGradients(), Taylor() if model is image else Occlusion()):
            assert f"{method}, baseline 0.0, of the network’s logit" in said(plot(method.attribute(model, inputs)))
        half = said(plot(IntegratedGradients(0.5).attribute(model, inputs)))
        assert half.count("0.5)") == 1 and ", baseline" not in half
        assert "baseline" not in said(plot(Gradient().attribute(model, inputs)))
    drawn = dataclasses.replace(Gradient().attribute(row, noise(1, 8)), baseline="Noise(count=4)")
    assert "Gradient(), baseline Noise(count=4), of the network’s" in said(plot(drawn))


def test_it_says_that_there_are_other_test_samples(attribution: FeatureAttribution):
    torch.manual_seed(0)
    assert "The first of 2 test samples; test=[0, 1] draws both." in words(plot(attribution))
    for figure in (plot(attribution, 0), plot(attribution, [0, 1]), plot(attribution[1])):
        assert "test samples" not in said(figure)
    split = Taylor().attribute(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), noise(4, 1, 4, 4))
    assert "The first of 4 test samples; test=[0, 1, 2] draws more." in words(plot(split))
    for width in (8, 100):
        one = plot(Gradient().attribute(nn.Linear(width, 2), noise(4, width)))
        assert "The first of 4 test samples; test=1 draws another." in words(one)


def test_plot_says_what_most_figures_take():
    assert all(f"`{name}=`" in str(plot.__doc__) for name in ("test", "k", "true_targets", "names", "display"))


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
