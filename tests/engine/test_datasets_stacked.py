"""Samples that torch cannot stack into a batch."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dualview.engine.datasets import Samples
from dualview.engine.stacking import collate_samples

ONE = torch.ones(2)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("sizes", [(3, 4), (9, 4)])
def test_samples_of_different_sizes_are_refused_with_the_way_out(sizes, num_workers: int):
    """A worker process stacks into memory that a larger sample does not fit into, which torch says in other words."""
    data = [(torch.zeros(size), 0) for size in (*sizes, 1)]
    samples = Samples(data, collate_samples, num_workers)
    with pytest.raises(ValueError, match="samples of different sizes .* give a DataLoader with your collate_fn"):
        list(samples.batches([0, 1, 2], 2))


def test_what_else_goes_wrong_in_a_stack_stays_as_it_is():
    with pytest.raises(RuntimeError, match="device") as raised:
        collate_samples([torch.zeros(2), torch.zeros(2, device="meta")])
    assert not isinstance(raised.value, ValueError)


def refused(data: list, positions: list[int], num_workers: int = 0) -> str:
    with pytest.raises(TypeError) as caught:
        list(Samples(data, collate_samples, num_workers).batches(positions, 3))
    assert num_workers or isinstance(caught.value.__cause__, (TypeError, RuntimeError))
    return str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_labels_of_mixed_type_keep_the_words_of_torch(num_workers: int):
    data: list = [(ONE, torch.tensor(2))] * 4 + [(ONE, 1)]
    words = "'int' object has no attribute 'numel'" if num_workers else "expected Tensor as element 1 .* but got int"
    message = refused(data, [0, 1, 2, 3, 4], num_workers)
    assert re.search(f"samples 3 to 4 make no batch: {words}$", message) and "ToTensor" not in message
    assert refused(data, [0, 4, 1]).startswith("samples 0, 4, 1 make no batch: expected")
    assert refused([(ONE, object())], [0]).startswith("sample 0 makes no batch: default_collate: batch must contain")


@dataclass
class Noted:
    x: torch.Tensor
    y: Any


@pytest.mark.parametrize(
    ("sample", "place"),
    [
        (lambda label: (ONE, label), "[1]"),
        (lambda label: {"x": ONE, "y": label}, "['y']"),
        (lambda label: {"x": ONE, "y": [0, label]}, "['y'][1]"),
        (lambda label: Noted(ONE, label), "['y']"),
    ],
    ids=["tuple", "dict", "nested", "dataclass"],
)
@pytest.mark.parametrize("other", [1, torch.tensor(1), None], ids=["int", "tensor", "None"])
def test_a_label_that_is_none_is_named_with_its_sample(sample, place: str, other):
    data = [sample(1 if other is None else other)] * 5 + [sample(None)] * 2
    positions = [5, 6] if other is None else [3, 4, 5]
    message = refused(data, positions)
    assert message.startswith(f"sample 5 holds None at {place}, of which no batch is made")
    assert "ToTensor" not in message


def test_a_sample_that_is_none_is_named():
    assert refused([None], [0]).startswith("sample 0 holds None, of which")
    with pytest.raises(TypeError, match=r"^sample 1 holds None at \[1\]"):
        Samples([(ONE, 0), (ONE, None)], collate_samples).batch([1])


class Array:
    """What numpy reads and torch does not."""

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.zeros(3)


@pytest.mark.parametrize("picture", [Image.new("L", (2, 2)), Array()], ids=["PIL", "array"])
def test_pictures_ask_for_a_transform(picture):
    for data in ([(picture, 0)], [{"image": picture, "label": None}]):
        message = refused(data, [0])
        assert message.startswith(f"samples that hold {type(picture)} make no batch: give transform=")


def test_another_error_beside_a_picture_is_not_blamed_on_it():
    data: list = [(torch.tensor(2), Image.new("L", (2, 2))), (1, Image.new("L", (2, 2)))]
    assert refused(data, [0, 1]).startswith("samples 0 to 1 make no batch: expected Tensor as element 1")
