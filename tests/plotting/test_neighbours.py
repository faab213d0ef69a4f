"""What stands in a figure of neighbours, where it stands, and that it leaves no trace."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import matplotlib
import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dualview import DataAttribution
from dualview.plotting import neighbours, plot

LONG_NAMES = [
    "a class whose name goes on and on and never seems to end at all",
    "Unbreakable" * 9,
    "costs $5 or $6, <b>",
]


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def said(figure: Figure) -> str:
    return " ".join(words(figure))


def tiles(figure: Figure) -> list[tuple[str, str, str]]:
    """Return score, label and position of each training sample, in reading order of the figure."""
    texts = words(figure)
    places = [place for place, text in enumerate(texts) if text.startswith("train ")]
    return [(texts[place - 2], texts[place - 1], texts[place]) for place in places]


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def inside(figure: Figure, axes: object) -> np.ndarray:
    """Return the drawn pixels of an axes, without its frame."""
    whole, box = pixels(figure), axes.get_window_extent()
    height = whole.shape[0]
    return whole[height - int(box.y1) + 3 : height - int(box.y0) - 3, int(box.x0) + 3 : int(box.x1) - 3]


# ── what is said ─────────────────────────────────────────────────────────────────────────────────


def test_shows_the_strongest_of_each_sign(grey: DataAttribution):
    figure = plot(grey, k=3)
    assert tiles(figure) == [
        ("+0.750", "label 1", "train 4"),
        ("+0.500", "label 0", "train 0"),
        ("+0.300", "label 1", "train 7"),
        ("−0.400", "label 2", "train 8"),
        ("−0.250", "label 1", "train 1"),
        ("−0.0625", "label 0", "train 3"),
    ]
    assert len(figure.axes) == 7  # the test sample and six training samples


def test_says_what_is_measured_and_what_it_adds_up_to(grey: DataAttribution):
    text = said(plot(grey, k=3, true_targets=[2, 1]))
    assert "Predicted 0, true label 2" in text
    # Of the first row nine scores are not zero; with the bias −0.5 they make 0.66248.
    assert "share of the surrogate’s logit of class 0: all 9 scores and the bias −0.500 add up to +0.662." in text
    assert "Proponents: raise this logit" in text
    assert "Opponents: lower this logit" in text


def test_says_how_much_of_the_sums_is_drawn(grey: DataAttribution):
    # Proponents 0.5, 0.125, 0.75, 0.3, 0.2 sum to 1.875, opponents to −0.71252; together with the bias they make
    # 0.66248, so sums have three decimals.
    text = said(plot(grey, k=2))
    assert "Drawn: 2 of 5 proponents, which carry 66.7\u202f% of their sum of +1.875; " in text  # 1.25 / 1.875
    assert "2 of 4 opponents, which carry 91.2\u202f% of their sum of −0.713." in text  # 0.65 / 0.71252
    assert "no opponents." in said(plot(grey, test=1)) and "5 of 10 proponents" in said(plot(grey, test=1))
    effect = dataclasses.replace(grey, kind="effect", bias=torch.zeros(2))
    assert "which carry 66.7\u202f% of their sum of +1.88" in said(plot(effect, k=2))  # +1.16 together
    assert "Drawn" not in said(plot(dataclasses.replace(grey, kind="similarity"), k=2))
    loss = dataclasses.replace(grey, measured="loss", lower_is_better=True)
    assert "2 of 4 proponents, which carry 91.2\u202f% of their sum of −0.713" in said(plot(loss, k=2))


def test_says_that_there_are_other_test_samples(grey: DataAttribution):
    assert "The first of 2 test samples; test=[0, 1] draws both." in words(plot(grey))
    for figure in (plot(grey, 0), plot(grey, [0, 1]), plot(grey[0])):
        assert "test samples" not in said(figure)
    many = dataclasses.replace(grey[[0, 1, 0, 1]], test_index=torch.tensor([0, 1, 0, 1]))
    assert "The first of 4 test samples; test=[0, 1, 2] draws more." in words(plot(many))


def test_says_when_another_class_is_explained(grey: DataAttribution):
    assert "Predicted 2, explained for 1" in said(plot(grey, test=1))


def test_proponents_of_a_loss_are_negative(grey: DataAttribution):
    loss = dataclasses.replace(grey, measured="loss", lower_is_better=True, linearised=True)
    figure = plot(loss, k=1)
    assert tiles(figure) == [("−0.400", "label 2", "train 8"), ("+0.750", "label 1", "train 4")]
    assert "Proponents: lower this loss" in words(figure)
    assert "surrogate’s loss for class 0, linearised at the network’s logits" in said(figure)


def test_partial_results_claim_no_sum(grey: DataAttribution):
    text = said(plot(dataclasses.replace(grey, top_k=2), k=5))
    assert "share of the surrogate’s logit of class 0." in text
    assert "add up" not in text
    assert "Drawn: 2 proponents, which sum to +1.25; 2 opponents, which sum to −0.650." in text
    assert "Only the top 2 of each sign were kept: the sums of all are not known." in text
    assert "train 7" not in text  # third among the proponents; only two were kept


def test_a_side_without_scores_is_said_and_not_drawn(grey: DataAttribution):
    figure = plot(grey, test=1, k=2)
    assert "No opponents: no score of that sign" in words(figure)
    assert len(figure.axes) == 3


def test_nothing_at_all_is_said_too(grey: DataAttribution):
    empty = torch.zeros(2, 0)
    figure = plot(dataclasses.replace(grey, scores=empty, bias_shares=empty, train_index=torch.arange(0)))
    assert {"No proponents: no score of that sign", "No opponents: no score of that sign"} <= set(words(figure))
    assert len(figure.axes) == 1


def test_names_and_classes_given_at_the_call_win(attribution: Callable[..., DataAttribution]):
    result = attribution(noise(2, 1, 8, 8), noise(10, 1, 8, 8), names=["old"] * 10, class_names=["u", "v", "w"])
    figure = plot(result, k=1, names=[f"file{number}.png" for number in range(10)], class_names=["cat", "dog", "cow"])
    assert tiles(figure) == [("+0.750", "dog", "train 4"), ("−0.400", "cow", "train 8")]
    assert {"file4.png", "file8.png", "Predicted cat"} <= set(words(figure))
    assert "old" not in said(figure)


def test_several_rows_make_several_blocks(grey: DataAttribution):
    figure = plot(grey, [1, 0], k=2)
    text = words(figure)
    assert [word for word in text if word.startswith("Test ")] == ["Test 1", "Test 0"]
    assert len(figure.axes) == (1 + 2 + 0) + (1 + 2 + 2)


def test_a_slice_keeps_the_number_of_its_row(grey: DataAttribution):
    assert "Test 1" in words(plot(grey[1:]))


def test_marks_training_labels_that_are_not_the_explained_class(grey: DataAttribution):
    figure = plot(grey, k=3)
    dashed = [any(patch.get_linestyle() not in ("-", "solid") for patch in axes.patches) for axes in figure.axes]
    # Test sample; proponents with labels 1, 0, 1; opponents with labels 2, 1, 0. Class 0 is explained.
    assert dashed == [False, True, False, True, True, True, False]
    assert "Dashed frame: the training label is not the explained class." in words(figure)


def test_bars_are_as_long_as_the_scores(grey: DataAttribution):
    figure = plot(grey, k=2)
    lengths = [patch.get_width() for patch in figure.findobj(matplotlib.patches.Rectangle) if patch.axes is None]
    track = max(length for length in lengths if length < 0.9)
    drawn = [length / track for length in lengths if length < 0.9]
    expected = [score / 0.75 for score in (0.75, 0.5, 0.4, 0.25)]
    assert drawn[1::2] == pytest.approx(expected)


# ── what is seen ─────────────────────────────────────────────────────────────────────────────────


def test_grey_images_are_grey(attribution: Callable[..., DataAttribution]):
    images = torch.zeros(2, 1, 4, 4)
    images[:, :, :, 2:] = 0.5
    figure = plot(attribution(images, noise(10, 1, 4, 4)))
    drawn = inside(figure, figure.axes[0])
    left, right = drawn[:, : drawn.shape[1] // 2 - 3], drawn[:, drawn.shape[1] // 2 + 3 :]
    assert (left == 0).all()
    assert (right == 128).all()


def test_colours_are_kept(attribution: Callable[..., DataAttribution]):
    images = torch.tensor([1.0, 0.2, 0.0])[None, :, None, None].expand(2, 3, 5, 5)
    figure = plot(attribution(images, noise(10, 3, 5, 5)))
    assert (inside(figure, figure.axes[0]) == [255, 51, 0]).all()


def test_transparency_shows_a_light_checker(attribution: Callable[..., DataAttribution]):
    images = torch.zeros(2, 4, 4, 4)
    images[:, 2] = 1.0
    images[:, 3, :, 2:] = 1.0  # the right half is opaque blue, the left half lets everything through
    figure = plot(attribution(images, noise(10, 4, 4, 4)))
    drawn = inside(figure, figure.axes[0])
    left, right = drawn[:, : drawn.shape[1] // 2 - 3], drawn[:, drawn.shape[1] // 2 + 3 :]
    assert (right == [0, 0, 255]).all()
    assert set(np.unique(left)) == {226, 250}


def test_oblong_images_keep_their_proportions(attribution: Callable[..., DataAttribution]):
    figure = plot(attribution(torch.zeros(2, 1, 10, 40), noise(10, 1, 40, 10)))
    dark = (inside(figure, figure.axes[0]) < 10).all(2)
    assert dark.any(1).mean() == pytest.approx(0.25, abs=0.03)
    assert dark.any(0).all()


def test_display_at_the_call_undoes_a_normalisation(attribution: Callable[..., DataAttribution]):
    images = torch.full((2, 1, 4, 4), -3.0)
    images[:, :, 0, 0] = 3.0
    result = attribution(images, noise(10, 1, 4, 4) * 6 - 3)
    assert any(word.startswith("Contrast stretched") for word in words(plot(result)))
    figure = plot(result, display=lambda sample: torch.full_like(sample, 0.4))
    assert not any(word.startswith("Contrast stretched") for word in words(figure))
    assert (inside(figure, figure.axes[0]) == 102).all()


def test_rows_of_a_table_become_bars_on_one_scale(attribution: Callable[..., DataAttribution]):
    test, train = noise(2, 9) - 0.5, noise(10, 9) * 3
    figure = plot(attribution(test, train), k=1)
    drawn = [[bar.get_height() for bar in axes.containers[-1]] for axes in figure.axes]
    assert drawn == [pytest.approx(row.tolist()) for row in (test[0], train[4], train[8])]
    behind = [bar.get_height() for bar in figure.axes[1].containers[0]]
    assert behind == pytest.approx(test[0].tolist())
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_ylim()[1] > float(torch.cat([test[:1], train[[4, 8]]]).max())


def test_text_is_shown_as_it_is(attribution: Callable[..., DataAttribution]):
    tokens = torch.arange(10)[:, None].expand(10, 3)
    figure = plot(attribution(tokens[:2], tokens, display=lambda row: f"word{int(row[0])}"), k=1)
    assert {"word0", "word4", "word8"} <= set(words(figure))


def test_unknown_tensors_are_described(attribution: Callable[..., DataAttribution]):
    figure = plot(attribution(torch.zeros(2, 2, 3, 4, 5), torch.zeros(10, 2, 3, 4, 5)), k=1)
    assert words(figure).count("2×3×4×5 float32") == 3


def test_a_loaded_result_shows_scores_and_says_why_there_are_no_pictures(grey: DataAttribution):
    figure = plot(dataclasses.replace(grey, source=None), k=1)
    assert tiles(figure)[0] == ("+0.750", "label 1", "train 4")
    assert "no picture" in said(figure)


# ── where it stands ──────────────────────────────────────────────────────────────────────────────

CASES = {
    "grey": lambda make: plot(make(noise(2, 1, 8, 8), noise(10, 1, 8, 8)), true_targets=[1, 1]),
    "long names": lambda make: plot(
        make(noise(2, 3, 8, 8), noise(10, 3, 8, 8), class_names=LONG_NAMES, names=["folder/" * 20] * 10),
        [0, 1],
        true_targets=[2, 1],
    ),
    "many": lambda make: plot(
        make(
            noise(2, 1, 8, 8),
            noise(10, 1, 8, 8),
            scores=noise(2, 10) + 0.1,
            measured="log_probability",
            linearised=True,
        ),
        k=10,
    ),
    "few": lambda make: plot(make(noise(2, 1, 8, 8), noise(10, 1, 8, 8)), 1, k=1),
    "table": lambda make: plot(make(noise(2, 30), noise(10, 30)), [0, 1]),
    "text": lambda make: plot(make(noise(2, 3), noise(10, 3), display=lambda row: "many words in a row " * 50)),
    "one long word": lambda make: plot(make(noise(2, 3), noise(10, 3), display=lambda row: "x" * 400), k=2),
    "no pictures": lambda make: plot(make(noise(2, 3), noise(10, 3), source=None)),
}


@pytest.fixture(scope="module", params=CASES)
def figure(request: pytest.FixtureRequest, attribution: Callable[..., DataAttribution]) -> Figure:
    return CASES[request.param](attribution)


def test_nothing_is_cut_off_or_overlaps(figure: Figure, faults: Callable[[Figure], list[str]]):
    assert faults(figure) == []


def test_dollar_signs_are_no_mathematics(attribution: Callable[..., DataAttribution]):
    figure = CASES["long names"](attribution)
    assert any("$5 or" in word for word in words(figure))
    assert not any(text.get_parse_math() for text in figure.texts)


# ── no trace ─────────────────────────────────────────────────────────────────────────────────────


def test_settings_of_matplotlib_are_neither_read_nor_changed(grey: DataAttribution):
    plain = pixels(plot(grey))
    with matplotlib.style.context("ggplot"), matplotlib.rc_context({"font.size": 30, "figure.autolayout": True}):
        before = dict(matplotlib.rcParams)
        styled = pixels(plot(grey))
        assert dict(matplotlib.rcParams) == before
    np.testing.assert_array_equal(plain, styled)


def test_a_notebook_shows_figure_and_result(grey: DataAttribution):
    figure, direct = plot(grey), grey._repr_png_()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert direct is not None and direct.startswith(b"\x89PNG")


def test_importing_and_drawing_need_no_pyplot():
    program = (
        "import sys, dualview.plotting; print('matplotlib' in sys.modules); "
        "import dualview.plotting.layout; print('matplotlib.pyplot' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def test_refuses_rows_that_are_not_there(grey: DataAttribution):
    with pytest.raises(IndexError, match=r"`test` is 2; rows of the attribution go from 0 to 1"):
        neighbours(grey, 2)
    with pytest.raises(ValueError, match="`test` is empty"):
        neighbours(grey, [])


def test_refuses_lists_of_the_wrong_length(grey: DataAttribution):
    with pytest.raises(ValueError, match="`names` holds 3 entries; there are 10 training samples"):
        neighbours(grey, names=["a", "b", "c"])
    with pytest.raises(ValueError, match="`true_targets` holds 1 entries; there are 2 rows"):
        neighbours(grey, true_targets=[0])


def test_refuses_what_nothing_draws():
    with pytest.raises(TypeError, match=r"nothing draws a dict; known are .*DataAttribution"):
        plot({})
