"""Weights in the words in which users give them."""

import numpy as np
import pytest
import torch

import dualview as dv


@pytest.mark.parametrize("given", [[1, 0, 2.5], (1.0, 0.0, 2.5), np.array([1, 0, 2.5]), torch.tensor([1.0, 0, 2.5])])
def test_weights_of_samples_and_classes_become_tuples_of_floats(given):
    method = dv.DualView(C=1.0, sample_weight=given, class_weight=given)
    assert method.sample_weight == method.class_weight == (1.0, 0.0, 2.5)
    assert hash(method) == hash(dv.DualView(C=1.0, sample_weight=[1.0, 0.0, 2.5], class_weight=[1, 0, 2.5]))


def test_numbers_of_numpy_and_torch_are_numbers():
    method = dv.DualView(class_weight=dict(zip(np.arange(2), [torch.tensor(1.0), np.float32(2)], strict=True)))
    assert method.class_weight == ((0, 1.0), (1, 2.0)) and type(method.class_weight[0][0]) is int
    assert dv.DualView(sample_weight=[np.float32(1), torch.tensor(2.0)]).sample_weight == (1.0, 2.0)


def test_a_mapping_becomes_pairs_by_column():
    method = dv.DualView(class_weight={3: 2, 1: 0.5})
    assert method.class_weight == ((1, 0.5), (3, 2.0)) and method == dv.DualView(class_weight={1: 0.5, 3: 2.0})
    assert dv.DualView(class_weight=[[1, 0.5], [3, 2.0]]) == method  # as JSON gives them back
    assert dv.DualView(class_weight={}) == dv.DualView()
    assert dv.DualView(class_weight="balanced").class_weight == "balanced"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_weight": [1.0, -1.0]}, "`sample_weight` must hold finite numbers of at least 0; that of sample 1 is"),
        ({"sample_weight": [float("nan")]}, "that of sample 0 is nan"),
        ({"sample_weight": ["heavy"]}, "that of sample 0 is 'heavy'"),
        ({"class_weight": {0: -2.0}}, "`class_weight` must hold finite numbers of at least 0; that of class 0 is -2.0"),
        ({"class_weight": {"cat": 1.0}}, "maps output columns, 0, 1, ..., to weights; it names 'cat'"),
        ({"class_weight": {-1: 1.0}}, "it names -1"),
        ({"class_weight": [(0, 1.0, 2.0)]}, "must hold weights, or pairs of a column and its weight; it holds (0, 1.0"),
        ({"class_weight": [(0, 1.0), (0, 2.0)]}, "gives class 0 two weights"),
        ({"class_weight": 2.0}, "`class_weight` must hold several weights; it is the one number 2.0"),
        ({"sample_weight": {0: 1.0}}, "one weight for each training sample, in their order; it is a mapping"),
        ({"sample_weight": torch.tensor(2.0)}, "`sample_weight` must hold several weights; it is the one number 2.0"),
        ({"class_weight": "even"}, '`class_weight` must be "balanced", a weight for each output column, or a mapping'),
    ],
)  # fmt: skip
def test_other_weights_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError) as caught:
        dv.DualView(**fields)
    assert message in str(caught.value)
