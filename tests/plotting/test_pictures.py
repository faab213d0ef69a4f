"""What figures rely on in the pictures of samples beyond plain images."""

import numpy as np
import torch

from dualview.engine.pictures import MAX_VALUES, picture_of


def test_opacity_is_never_stretched():
    image = torch.zeros(4, 2, 2)
    image[0] = torch.tensor([[-1.0, 3.0], [1.0, 1.0]])
    image[3] = torch.tensor([[1.0, 0.5], [0.0, 7.0]])
    shown = picture_of(image)
    assert shown.stretched
    # Colours run from −1 to 3: red is (value + 1)/4 of 255; the other two are 0, so (0 + 1)/4.
    np.testing.assert_array_equal(shown.image[..., 0], [[0, 255], [128, 128]])
    np.testing.assert_array_equal(shown.image[..., 1], np.full((2, 2), 64))
    np.testing.assert_array_equal(shown.image[..., 3], [[255, 128], [0, 255]])


def test_a_row_of_floats_keeps_its_numbers():
    row = torch.tensor([0.5, -2.0, 3.25])
    for sample in (row, row[None], row[:, None, None], {"x": row}):
        shown = picture_of(sample)
        assert shown.image is None
        np.testing.assert_array_equal(shown.values, [0.5, -2.0, 3.25])


def test_what_is_no_row_of_floats_stays_words():
    for sample in (torch.arange(5), torch.zeros(MAX_VALUES + 1), torch.zeros(2, 2, 2, 2), torch.tensor(1.0)):
        assert picture_of(sample).values is None
        assert picture_of(sample).text


def test_a_dict_of_one_image_is_that_image():
    image = torch.full((3, 4, 5), 0.2)
    for sample in ({"pixel_values": image}, (image,)):
        np.testing.assert_array_equal(picture_of(sample).image, np.full((4, 5, 3), 51))
    assert picture_of({"image": image, "mask": image}).image is None
