"""The colours of relevance: what is summed, where a scale ends, and that signs are mirrored."""

import numpy as np
import pytest
import torch

from dualview.engine.pictures import MAX_VALUES, Picture
from dualview.plotting.heatmap import PICTURE_DEPTH, Heated, Scale, coloured, heat, limit, part_of

FOR, AGAINST = np.array([11, 95, 165]), np.array([180, 70, 15])  # #0b5fa5 and #b4460f
PAPER = np.array([255, 255, 255])


def lightness(colours: np.ndarray) -> np.ndarray:
    """Return CIE L* of sRGB colours."""
    linear = np.where(colours / 255 <= 0.04045, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("colours", [1, 2, 3, 4, 7])
def test_colours_are_summed(colours: int):
    relevance = torch.randn(colours, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [[sum(float(relevance[c, y, x]) for c in range(colours)) for x in range(6)] for y in range(5)]
    np.testing.assert_allclose(heat(relevance), expected, rtol=0, atol=1e-15)


def test_colours_may_come_last_as_in_pictures():
    relevance = torch.arange(30.0).reshape(5, 2, 3)
    np.testing.assert_array_equal(heat(relevance), relevance.sum(2))


def test_a_plane_and_a_row_stay_as_they_are():
    plane = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    np.testing.assert_array_equal(heat(plane), plane)
    for row in (
        torch.tensor([1.0, -2.0, 3.0]),
        torch.tensor([[1.0, -2.0, 3.0]]),
        torch.tensor([[[1.0]], [[-2.0]], [[3.0]]]),
    ):
        np.testing.assert_array_equal(heat(row), [1.0, -2.0, 3.0])


def test_what_has_no_picture_is_none_and_says_so():
    for relevance in (torch.ones(2, 3, 4, 5), torch.tensor(1.0), torch.zeros(MAX_VALUES + 1), torch.zeros(3, 1, 9)):
        assert heat(relevance) is None
    assert Heated.of(-torch.ones(2, 3, 4, 5), Picture(None, None)).words == (
        "2×3×4×5, which has no picture; it sums to −120"
    )


def test_one_of_several_inputs_is_chosen_by_name():
    parts = {"image": torch.ones(3, 2, 2), "mask": torch.zeros(2, 2)}
    np.testing.assert_array_equal(heat(parts, "image"), np.full((2, 2), 3.0))
    assert part_of({"only": parts["mask"]}) is parts["mask"]
    with pytest.raises(ValueError, match="`input` is None; expected one of 'image', 'mask'"):
        heat(parts)
    with pytest.raises(ValueError, match="`input` is 'text'; expected one of 'image', 'mask'"):
        heat(parts, "text")
    with pytest.raises(ValueError, match="`input` is 'image'; the model takes one input, so leave it out"):
        heat(parts["mask"], "image")


# ── the scale ────────────────────────────────────────────────────────────────────────────────────


def test_a_scale_holds_99_percent_of_what_is_not_zero():
    # 1 to 1000, half of them negative, among zeros: 99 % of 1000 values are at most 990, and the next one is 991.
    values = np.arange(1.0, 1001) * np.where(np.arange(1000) % 2, 1, -1)
    maps = [values[:500].reshape(20, 25), np.zeros((90, 90)), values[500:].reshape(20, 25)]
    assert limit(maps) == 991
    assert Scale.of(maps) == Scale(991, pointed=True, flipped=False, bars=False)


def test_few_values_reach_the_ends_and_no_further():
    maps = [np.array([[0.5, -2.0], [0.0, 1.0]]), np.array([[0.1, 0.2], [0.3, 0.4]])]
    assert Scale.of([*maps, None]) == Scale(2.0, pointed=False, flipped=False, bars=False)


def test_bars_are_never_cut():
    row = np.arange(-400.0, 0.0)
    assert Scale.of([row]) == Scale(400, pointed=False, flipped=False, bars=True)


def test_nothing_but_zeros_has_a_scale_too():
    for maps in ([], [np.zeros((3, 3))], [np.zeros(4)]):
        assert limit(maps) == 1.0
    np.testing.assert_array_equal(coloured(np.zeros((3, 3)), 1.0), np.full((3, 3, 3), 255))


def test_the_strip_runs_from_one_end_to_the_other():
    strip = Scale(0.25, pointed=False, flipped=False, bars=False).strip(5)
    expected = [AGAINST, (AGAINST + PAPER) / 2, PAPER, (FOR + PAPER) / 2, FOR]
    np.testing.assert_allclose(strip[0], expected, rtol=0, atol=0.5)  # rounded to whole numbers
    loss = Scale(0.25, pointed=False, flipped=True, bars=False).strip(5)
    np.testing.assert_array_equal(loss, strip[:, ::-1])
    bars = Scale(0.25, pointed=False, flipped=False, bars=True).strip(5)
    np.testing.assert_array_equal(bars[0], [AGAINST, AGAINST, PAPER, FOR, FOR])


# ── the colours ──────────────────────────────────────────────────────────────────────────────────


def test_ends_have_the_colours_of_the_scores_and_so_has_what_lies_beyond():
    drawn = coloured(np.array([[-2.0, 2.0], [-50.0, 2.0001]]), 2.0)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, [[AGAINST, FOR], [AGAINST, FOR]])


def test_signs_are_mirrored():
    values = np.random.default_rng(0).normal(size=(20, 20))
    plus, minus = coloured(values, 1.5).astype(float), coloured(-values, 1.5).astype(float)

    def strengths(drawn: np.ndarray, signs: np.ndarray) -> np.ndarray:
        return (PAPER - drawn) / np.where(signs[..., None] > 0, PAPER - FOR, PAPER - AGAINST)

    # A colour is rounded by at most 0.5, of the 75 steps that its least channel has.
    np.testing.assert_allclose(strengths(plus, values), strengths(minus, -values), rtol=0, atol=1 / 75)


def test_more_is_bluer_and_less_is_more_orange():
    rising = coloured(np.linspace(-1, 1, 21)[None], 1.0)[0].astype(int)
    assert (np.diff(rising[:, 2] - rising[:, 0]) > 0).all()


def test_both_signs_are_equally_dark():
    steps = np.linspace(0, 1, 11)[None]
    blue, orange = lightness(coloured(steps, 1.0)), lightness(coloured(-steps, 1.0))
    # Their ends are L* 39.5 and 44.4; 5 of 100 is far less than a step of the scale's 60.
    np.testing.assert_allclose(blue, orange, rtol=0, atol=5)
    # And equal steps of relevance are equal steps of lightness, within a sixth of one.
    for drawn in (blue, orange):
        np.testing.assert_allclose(np.diff(drawn[0]), np.diff(drawn[0]).mean(), rtol=1 / 6)


# ── the sample beneath ───────────────────────────────────────────────────────────────────────────


def test_a_faint_picture_lies_beneath_and_strong_relevance_covers_it():
    picture = Picture(np.array([[0, 255], [0, 255]], np.uint8), None)
    drawn = coloured(np.array([[0.0, 0.0], [1.0, -1.0]]), 1.0, picture)
    dark = round(255 * (1 - PICTURE_DEPTH))
    np.testing.assert_array_equal(drawn, [[[dark] * 3, PAPER], [FOR, AGAINST]])


def test_pictures_in_colour_become_grey_and_transparent_ones_paper():
    image = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    drawn = coloured(np.zeros((2, 2)), 1.0, Picture(image, None))
    shares = np.array([[0.2126, 0.7152], [0.0722, 1.0]])
    np.testing.assert_allclose(drawn[..., 0], 255 * (1 - PICTURE_DEPTH * (1 - shares)), rtol=0, atol=0.5)
    assert (np.ptp(drawn.astype(int), axis=2) == 0).all()
    clear = np.dstack([image, np.array([[0, 255], [0, 0]], np.uint8)])
    drawn_clear = coloured(np.zeros((2, 2)), 1.0, Picture(clear, None))
    np.testing.assert_array_equal(drawn_clear[..., 0], [[255, drawn[0, 1, 0]], [255, 255]])


def test_picture_and_map_of_different_size_meet_at_the_larger():
    large = Picture(np.zeros((4, 6), np.uint8), None)
    drawn = coloured(np.array([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]), 1.0, large)
    assert drawn.shape == (4, 6, 3)
    np.testing.assert_array_equal(drawn[:2, :2], np.broadcast_to(FOR, (2, 2, 3)))
    np.testing.assert_array_equal(drawn[:2, 4:], np.broadcast_to(AGAINST, (2, 2, 3)))
    small = Picture(np.array([[0, 255]] * 2, np.uint8), None)
    below = coloured(np.zeros((4, 4)), 1.0, small)
    np.testing.assert_array_equal(below[0, :, 0], [191, 191, 255, 255])


def test_a_picture_of_other_proportions_is_left_out():
    values = np.array([[0.5, 0.0], [0.0, -1.0]])
    for picture in (Picture(np.zeros((4, 8), np.uint8), None), Picture(None, "words")):
        np.testing.assert_array_equal(coloured(values, 1.0, picture), coloured(values, 1.0))
        assert not Heated(picture, values, "").is_laid_over
    assert Heated(Picture(np.zeros((8, 8), np.uint8), None), values, "").is_laid_over


def test_a_loss_is_painted_the_other_way_round():
    values = np.array([[0.5, -0.25], [0.0, 1.0]])
    np.testing.assert_array_equal(
        Scale.of([values], lower_is_better=True).paint(values), Scale.of([values]).paint(-values)
    )
