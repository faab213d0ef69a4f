"""Samples as a person sees them: every pixel where there is an image, words where there is none."""

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualview.engine.pictures import Picture, picture_of, thumbnail

H, W = 7, 5  # no side that could be channels
GREY = np.arange(H * W, dtype=np.uint8).reshape(H, W) * 7
RGB = np.stack([GREY, 255 - GREY, GREY // 2], 2)
RGBA = np.concatenate([RGB, GREY[:, :, None]], 2)
IMAGES = {"grey": GREY, "RGB": RGB, "RGBA": RGBA}


def channels_first(image: np.ndarray) -> torch.Tensor:
    return torch.tensor(image if image.ndim == 3 else image[:, :, None]).permute(2, 0, 1)


def assert_shows(picture: Picture, expected: np.ndarray, stretched: bool = False) -> None:
    assert picture.text is None and picture.values is None
    assert picture.image.dtype == np.uint8
    assert np.array_equal(picture.image, expected)
    assert picture.stretched == stretched


# ── images ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_bytes_are_shown_as_they_are_in_every_form(image):
    tensor = channels_first(image)
    forms = [tensor, tensor.int(), tensor.numpy(), {"pixels": tensor}, (tensor,)]
    for form in (*forms, image, torch.tensor(image), PIL.Image.fromarray(image)):
        assert_shows(picture_of(form), image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_floats_within_zero_and_one_are_brightness(image, dtype):
    """k/255 comes back as k: float16 is off by at most 2⁻¹² near one, a sixteenth of a grey step."""
    tensor = (channels_first(image).double() / 255).to(dtype)
    assert_shows(picture_of(tensor), image)
    assert_shows(picture_of(tensor.requires_grad_()), image)
    assert_shows(picture_of(np.asarray(image / 255)), image)


def test_rounding_beyond_zero_and_one_is_no_other_range():
    """A de-normalised image misses [0, 1] by a few 1e-7; its contrast stays."""
    tensor = torch.tensor([[0.2, 1.0000002], [-3e-8, 0.5]])
    assert_shows(picture_of(tensor), np.array([[51, 255], [0, 128]]))


def test_other_ranges_are_stretched_from_least_to_largest():
    normalised = channels_first(RGB).double() / 255 * 4 - 2
    low, high = normalised.min(), normalised.max()
    expected = ((normalised - low) / (high - low) * 255).round().byte().permute(1, 2, 0).numpy()
    assert_shows(picture_of(normalised), expected, stretched=True)
    assert_shows(picture_of(torch.tensor([[-1.0, 3.0], [1.0, 0.0]])), np.array([[0, 255], [128, 64]]), stretched=True)
    assert_shows(picture_of(np.array([[0, 1000], [500, 250]], np.uint16)), np.array([[0, 255], [128, 64]]), True)
    assert_shows(picture_of(torch.full((2, 2), 7.0)), np.zeros((2, 2)), stretched=True)


def test_opacity_is_never_stretched():
    image = torch.zeros(4, 2, 2)
    image[:3, 0, 0], image[:3, 1, 1], image[3] = -2.0, 2.0, 0.5
    shown = picture_of(image)
    assert shown.stretched
    assert np.array_equal(shown.image[..., 3], np.full((2, 2), 128))
    assert np.array_equal(shown.image[..., 0], np.array([[0, 128], [128, 255]]))


def test_the_sample_itself_is_not_changed():
    for image in (torch.randn(4, 3, 3), np.random.default_rng(0).normal(size=(4, 4, 3))):
        before = image.clone() if isinstance(image, torch.Tensor) else image.copy()
        picture_of(image)
        assert bool((before == image).all())


def test_truth_values_are_black_and_white_and_nan_is_black():
    assert_shows(picture_of(torch.tensor([[True, False], [False, True]])), np.array([[255, 0], [0, 255]]))
    assert_shows(picture_of(torch.tensor([[1.0, torch.nan], [0.2, torch.inf]])), np.array([[255, 0], [51, 0]]))


@pytest.mark.parametrize("mode", ["P", "LA", "CMYK", "YCbCr", "HSV", "1", "L", "RGB", "RGBA"])
def test_every_kind_of_pil_image_is_shown_in_its_colours(mode):
    source = PIL.Image.fromarray(RGB)
    image = source.convert(mode)
    shown = picture_of(image)
    kept = np.asarray(image.convert({"LA": "RGBA", "P": "RGBA", "1": "L", "L": "L", "RGBA": "RGBA"}.get(mode, "RGB")))
    assert_shows(shown, kept)


@given(st.integers(1, 4), st.integers(2, 9), st.integers(2, 9))
def test_channels_stand_where_they_can_stand(channels, height, width):
    """A tensor has its channels first and an array last, where both could be."""
    array = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    expected = array[:, :, 0] if channels == 1 else array
    shown = picture_of(torch.tensor(array).permute(2, 0, 1))
    if channels == 2:
        assert shown.image is None or shown.image.shape[2] in (3, 4)  # width 3 or 4 looks like channels
    else:
        assert_shows(shown, expected)
        assert_shows(picture_of(array), expected)


# ── no image ─────────────────────────────────────────────────────────────────────────────────────


def test_a_row_of_floats_is_kept_as_numbers_and_told_in_words():
    row = torch.tensor([0.5, -1.25, 3.0])
    for sample in (row, {"x": row}, (row,)):
        shown = picture_of(sample)
        assert shown.image is None and shown.text == "0.5, -1.25, 3"
        assert shown.values.tolist() == [0.5, -1.25, 3.0]
    assert picture_of(row[None]).values.tolist() == row.tolist()
    assert picture_of(torch.zeros(512)).values.shape == (512,)
    for other in (torch.zeros(513), torch.tensor([1, 2, 3]), torch.tensor([2.0])):
        assert picture_of(other).values is None


def test_everything_else_becomes_words():
    for sample, text in (
        (torch.arange(3), "0, 1, 2"),
        (torch.arange(10), "0, 1, 2, 3, 4, 5, 6, 7, …"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.float16), "2×3×4×5 float16"),
        (torch.zeros(100, dtype=torch.int64), "100 int64"),
        (torch.tensor(3.0), "scalar float32"),
        ({"ids": torch.arange(2), "pair": (torch.zeros(7, 7, 7), "x")}, "ids: 0, 1\npair.0: 7×7×7 float32"),
        ("some words", "some words"),
        (3, "3"),
        ({"text": "words"}, "{'text': 'words'}"),
        (torch.zeros(3, 0, 4), "3×0×4 float32"),
        (torch.zeros(2, 2, dtype=torch.complex64), "2×2 complex64"),
    ):
        shown = picture_of(sample)
        assert shown.image is None and shown.text == text


# ── display ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "display",
    [
        lambda x: RGB,
        lambda x: channels_first(RGB),
        lambda x: PIL.Image.fromarray(RGB),
        lambda x: (RGB / 255).astype(np.float32),
        lambda x: Picture(RGB, None),
        lambda x: x["pixels"] + channels_first(RGB),
    ],
    ids=["array", "tensor", "PIL", "floats", "picture", "of the sample"],
)
def test_display_returns_an_image_in_any_form(display):
    assert_shows(picture_of({"pixels": torch.zeros(3, 1, 1, dtype=torch.uint8), "ids": torch.arange(3)}, display), RGB)


def test_display_returns_text():
    assert picture_of(torch.arange(3), lambda ids: "token " * len(ids)) == Picture(None, "token token token ")


@pytest.mark.parametrize(
    ("returned", "described"),
    [
        (None, "None"),
        (7, "7"),
        ([[0.0, 1.0]], r"\[\[0.0, 1.0\]\]"),
        (torch.zeros(2, 3, 4, 5), "2×3×4×5 float32"),
        (torch.zeros(12), "12"),
        (np.float64(1.0), "1.0"),
    ],
    ids=str,
)
def test_display_returning_anything_else_is_refused(returned, described):
    with pytest.raises(TypeError, match=r"`display` returned (?s:.*); expected an image \(H×W"):
        picture_of(torch.zeros(3, 4, 4), lambda _: returned)


# ── thumbnails ───────────────────────────────────────────────────────────────────────────────────


def test_a_thumbnail_averages_whole_blocks():
    """Slow twin, pixel by pixel."""
    image = np.random.default_rng(0).integers(0, 256, (70, 51, 3), dtype=np.uint8)
    small = thumbnail(image, side=30)
    assert small.shape == (23, 17, 3)  # blocks of 3×3
    for y, x, c in ((0, 0, 0), (22, 16, 2), (11, 5, 1)):
        block = image[3 * y : 3 * y + 3, 3 * x : 3 * x + 3, c]
        assert small[y, x, c] == round(float(block.mean()))
    assert thumbnail(image, side=70) is image


@pytest.mark.parametrize("shape", [(1000, 5), (3, 999), (200, 100, 4), (97, 97, 3), (96, 96)], ids=str)
def test_a_thumbnail_fits_and_keeps_its_brightness(shape):
    small = thumbnail(np.full(shape, 77, np.uint8))
    assert 1 <= min(small.shape[:2]) and max(small.shape[:2]) <= 96
    assert small.shape[2:] == shape[2:]
    assert bool((small == 77).all())
