"""Inputs survive being taken apart, written as JSON, and put together."""

import json
from collections import UserDict

import pytest
import torch

from dualview.engine.packing import pack, unpack

X, MASK = torch.randn(4, 3), torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    "inputs",
    [
        X,
        (X, MASK),
        {"ids": X, "mask": MASK},
        {"pair": (X, {"deep": MASK}), "scale": 2.5, "none": None, "words": ["a", "b"]},
        {0: X, "tensor": MASK, "tuple": "dict"},
        (),
    ],
    ids=["tensor", "tuple", "dict", "nested", "keys that are kinds", "empty"],
)
def test_a_round_trip_through_json_keeps_everything(inputs):
    tensors, skeleton = pack(inputs)
    assert_same(unpack(tensors, json.loads(json.dumps(skeleton))), inputs)


def assert_same(found, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert found is expected
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (tuple, list)):
        assert isinstance(found, tuple) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


def test_tensors_are_numbered_in_their_order_and_any_mapping_is_a_dict():
    tensors, skeleton = pack(UserDict(a=X, b=(MASK, X)))
    assert list(tensors) == ["0", "1", "2"]
    assert tensors["0"] is X and tensors["1"] is MASK and tensors["2"] is X
    assert list(unpack(tensors, skeleton)) == ["a", "b"]
