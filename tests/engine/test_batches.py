"""Batches of every form: split, counted, cut, placed and given to the model."""

from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dualview.engine.batches import (
    TARGET_KEYS,
    as_inputs,
    batch_size_for,
    call_model,
    logits_of,
    map_tensors,
    named_fields,
    num_rows,
    split_batch,
    take_rows,
    tensors_in,
)

X, MASK, Y = torch.arange(12.0).reshape(4, 3), torch.ones(4, 2, dtype=torch.bool), torch.tensor([2, 0, 1, 1])


@dataclass
class Sample:
    image: Tensor
    label: Tensor


Named = namedtuple("Named", ["label", "image", "mask"])
Plain = namedtuple("Plain", ["image", "category"])


class Encoding(UserDict):
    """A mapping that is no dict, as tokenizers return."""


# ── splitting ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((X, Y), X),
        ([X, Y], X),
        ((X, MASK, Y), (X, MASK)),
        ({"pixel_values": X, "labels": Y}, {"pixel_values": X}),
        (Encoding(input_ids=X, attention_mask=MASK, labels=Y), {"input_ids": X, "attention_mask": MASK}),
        (Sample(X, Y), {"image": X}),
        (Named(Y, X, MASK), (X, MASK)),
        (Plain(X, Y), X),
        (({"x": X}, Y), {"x": X}),
    ],
    ids=["tuple", "list", "two inputs", "dict", "mapping", "dataclass", "named tuple", "other names", "nested"],
)
def test_the_default_split_finds_inputs_and_labels(batch, expected):
    inputs, labels = split_batch(batch)
    assert labels is Y
    assert type(inputs) is type(expected)
    found, wanted = tensors_in(inputs), tensors_in(expected)
    assert list(found) == list(wanted)
    assert all(found[place] is wanted[place] for place in wanted)


@pytest.mark.parametrize("key", TARGET_KEYS)
def test_labels_are_found_under_each_of_their_names(key):
    inputs, labels = split_batch({"x": X, key: Y})
    assert labels is Y and inputs == {"x": X}


def test_a_batch_that_does_not_say_its_labels_is_refused():
    with pytest.raises(TypeError, match="a batch of type Tensor does not say .* give split="):
        split_batch(X)
    with pytest.raises(TypeError, match="a batch of type tuple does not say"):
        split_batch((X,))
    with pytest.raises(ValueError, match="entries 'x', 'mask' must hold .*found: none"):
        split_batch({"x": X, "mask": MASK})
    with pytest.raises(ValueError, match="found: 'label' and 'y'"):
        split_batch({"x": X, "y": X, "label": Y})


def test_named_entries_are_those_of_instances_only():
    assert named_fields(Sample) is None
    assert named_fields(Plain(X, Y)) is None
    assert list(named_fields(Sample(X, Y))) == ["image", "label"]


# ── tensors inside ───────────────────────────────────────────────────────────────────────────────

NESTED = {"ids": X, "extra": (MASK, [Y, {"z": X}]), "text": "words", "scale": torch.tensor(2.0)}


def test_places_of_nested_tensors():
    assert list(tensors_in(NESTED)) == ["ids", "extra.0", "extra.1.0", "extra.1.1.z", "scale"]
    assert list(tensors_in(X)) == [""]
    assert list(tensors_in((X, Y))) == ["0", "1"]


def test_mapping_reaches_every_tensor_and_leaves_the_rest():
    mapped = map_tensors(lambda tensor: tensor * 2, {**NESTED, "extra": (X, [Y, Encoding(z=X)])})
    assert torch.equal(mapped["extra"][1][1]["z"], 2 * X)
    assert torch.equal(mapped["extra"][1][0], 2 * Y)
    assert mapped["text"] == "words"


def test_rows_are_counted_and_cut_on_the_first_axis():
    assert num_rows(NESTED) == 4
    cut = take_rows(NESTED, 1, 3)
    assert torch.equal(cut["ids"], X[1:3])
    assert torch.equal(cut["extra"][1][1]["z"], X[1:3])
    assert torch.equal(cut["scale"], torch.tensor(2.0))
    assert num_rows(Encoding(ids=X)) == 4
    with pytest.raises(ValueError, match=r"different numbers of samples: \{'0': 4, '1': 3\}"):
        num_rows((X, X[:3]))
    with pytest.raises(TypeError, match="`inputs` of type dict hold no tensor with a sample axis"):
        num_rows({"text": "words", "scale": torch.tensor(1.0)})


# ── what a user calls inputs ─────────────────────────────────────────────────────────────────────


def test_arrays_become_tensors_of_the_default_type_and_tensors_stay():
    read_only = np.arange(6.0).reshape(2, 3)
    read_only.flags.writeable = False
    given = {
        "array": np.arange(6.0).reshape(2, 3),
        "frame": pd.DataFrame({"a": [0.0, 3.0], "b": [1.0, 4.0], "c": [2.0, 5.0]}),
        "mirrored": np.array([[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]])[:, ::-1],
        "read_only": read_only,
    }
    made = as_inputs(Encoding(given))
    for name, tensor in made.items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, torch.arange(6.0).reshape(2, 3)), name
    assert as_inputs((np.array([3, 1]), X))[0].dtype == torch.int64
    double = X.double()
    assert as_inputs(double) is double
    assert as_inputs("words") == "words"


# ── calling the model ────────────────────────────────────────────────────────────────────────────


class Net(nn.Module):
    def forward(self, x, mask=None):
        return x if mask is None else x * mask[:, :1]


class AnyName(nn.Module):
    def forward(self, **named):
        return named["pixel_values"]


def test_inputs_are_given_by_position_or_by_name():
    assert call_model(Net(), X) is X
    assert torch.equal(call_model(Net(), (X, MASK)), X)
    assert torch.equal(call_model(Net(), {"mask": MASK, "x": X}), X)
    assert call_model(AnyName(), {"pixel_values": X}) is X
    # a lone entry that `forward` does not know, such as a dataclass sample's `image`
    assert call_model(Net(), {"image": X}) is X
    assert call_model(nn.Sequential(nn.Identity()), {"image": X}) is X
    with pytest.raises(TypeError, match="image"):
        call_model(Net(), {"image": X, "mask": MASK})


@pytest.mark.parametrize(
    "output",
    [
        X,
        SimpleNamespace(logits=X, hidden_states=None),
        {"loss": torch.tensor(0.0), "logits": X},
        Encoding(logits=X),
        (X, MASK),
        [X],
        X[:, :, None, None],
        X[:, None],
    ],
    ids=["tensor", "object", "dict", "mapping", "tuple", "list", "pooled", "token"],
)
def test_logits_are_found_in_every_model_output(output):
    assert torch.equal(logits_of(output, 4), X)


def test_one_logit_is_a_column_and_a_lone_sample_keeps_its_axis():
    assert torch.equal(logits_of(X[:, 0], 4), X[:, :1])
    assert torch.equal(logits_of(X[0], 1), X[:1])
    assert torch.equal(logits_of(X[0, 1], 1), X[:1, 1:2])
    assert torch.equal(logits_of(X[:1, 1], 1), X[:1, 1:2])


def test_what_is_no_row_of_logits_per_sample_is_refused():
    for output, kind in (("words", "str"), ({"out": X}, "dict"), (Y, "Tensor"), ((), "tuple")):
        with pytest.raises(TypeError, match=rf"the model returned {kind}; expected logits"):
            logits_of(output, 4)
    with pytest.raises(ValueError, match=r"logits of shape \(4, 3\) for 5 samples"):
        logits_of(X, 5)
    with pytest.raises(ValueError, match=r"logits of shape \(\) for 4 samples"):
        logits_of((torch.tensor(0.5), X), 4)  # a loss first, as some models do when they are given labels
    with pytest.raises(ValueError, match=r"shape \(4, 3, 2\); expected one row of classes per sample"):
        logits_of(torch.zeros(4, 3, 2), 4)


def test_a_batch_holds_about_sixteen_mebibytes_and_at_most_256_samples():
    assert batch_size_for(torch.zeros(4, 10)) == 256
    assert batch_size_for((torch.zeros(4, 2**18), torch.zeros(4, 2**18))) == 8  # 2 MiB a sample
    assert batch_size_for(torch.zeros(1, 2**23)) == 1
