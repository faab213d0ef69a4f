"""Fingerprints of tensors, models and data: the same for the same content, another for any change that can be seen."""

import copy
import hashlib
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dualview.engine.fingerprint import (
    data_fingerprint,
    hash_bytes,
    hash_tensor,
    hash_tensors,
    model_fingerprint,
    seeded_positions,
)

# ── bytes and tensors ────────────────────────────────────────────────────────────────────────────


def test_parts_do_not_run_into_each_other():
    hashes = [hash_bytes(*parts) for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), (b"abc",), ()]]
    assert len(set(hashes)) == len(hashes)
    assert hash_bytes(b"abc") == hash_bytes(bytearray(b"abc")) == hash_bytes(memoryview(b"abc"))
    expected = hashlib.blake2b(b"text 2\nab" + b"bytes 1\nc", digest_size=16).hexdigest()
    assert hash_bytes("ab", b"c") == expected


def test_a_tensor_is_its_dtype_shape_and_values():
    values = torch.arange(6.0)
    different = [values, values.double(), values.int(), values.reshape(2, 3), values.reshape(3, 2), values + 1, -values]
    different += [values.bfloat16(), values.half(), values.bfloat16() + 1, values[:0], values[:0].reshape(0, 2)]
    different += [values[0], values[:1], values > 2, values.to(torch.complex64), values.to(torch.float8_e4m3fn)]
    different += [torch.diag(values).to_sparse()]
    hashes = [hash_tensor(tensor) for tensor in different]
    assert len(set(hashes)) == len(hashes)


def test_strides_and_gradients_of_a_tensor_do_not_count():
    values = torch.arange(6.0).reshape(2, 3)
    views = [values.t().contiguous().t(), torch.arange(12.0).reshape(2, 6)[:, :3] - torch.tensor([[0.0], [3.0]])]
    views += [values.clone().requires_grad_(), nn.Parameter(values)]
    assert {hash_tensor(view) for view in views} == {hash_tensor(values)}
    conjugate = torch.complex(values, values).conj()
    assert hash_tensor(conjugate) == hash_tensor(torch.complex(values, -values))
    assert hash_tensor(torch.eye(3).to_sparse()) == hash_tensor(torch.eye(3).to_sparse().clone())


def test_names_of_tensors_count_and_their_order_does_not():
    a, b = torch.zeros(2), torch.ones(2)
    assert hash_tensors({"a": a, "b": b}) == hash_tensors({"b": b, "a": a})
    assert hash_tensors({"a": a, "b": b}) != hash_tensors({"a": b, "b": a}) != hash_tensors({"a": b})


def test_tensors_without_plain_bytes_are_refused():
    with pytest.raises(TypeError, match="got a torch._mkldnn one; convert it first"):
        hash_tensor(torch.ones(2, 2).to_mkldnn())


# ── models ───────────────────────────────────────────────────────────────────────────────────────


class Net(nn.Module):
    def __init__(self, act: nn.Module | None = None, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=stride)
        self.norm = nn.BatchNorm2d(2)
        self.act = act or nn.ReLU()
        self.fc = nn.Linear(2, 3)
        self.register_buffer("table", torch.ones(2), persistent=False)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)) * self.table)


class Twin(Net):
    pass


class Carrying(nn.Module):
    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra


def net(kind: type[Net] = Net, **options) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options)


def test_any_weight_buffer_class_or_dtype_makes_another_model():
    models = [net(), net(Twin), net(act=nn.Tanh()), net(stride=2), net().double(), net(act=nn.LeakyReLU(0.1))]
    models += [net(act=nn.LeakyReLU(0.2))]
    for name, tensor in [*net().named_parameters(), *net().named_buffers()]:
        changed = net()
        where = changed.get_parameter(name) if isinstance(tensor, nn.Parameter) else changed.get_buffer(name)
        where.data.reshape(-1)[-1] += 1
        models.append(changed)
    frozen = net()
    frozen.fc.bias = None
    models.append(frozen)
    hashes = [model_fingerprint(model) for model in models]
    assert len(models) == 7 + 6 + 4 + 1  # conv, norm, fc: weight, bias; norm: mean, variance, count; table
    assert len(set(hashes)) == len(hashes)


def test_what_does_not_change_the_model_does_not_count():
    model = net()
    before = model_fingerprint(model)
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 1, 5, 5))  # counts a step
    model.requires_grad_(False)
    model.fc.register_forward_hook(lambda *args: None)
    assert model_fingerprint(model) == model_fingerprint(copy.deepcopy(model)) == before
    assert model_fingerprint(net().to(memory_format=torch.channels_last)) == before


def test_tying_alone_does_not_count():
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert model_fingerprint(tied) == model_fingerprint(copy.deepcopy(tied))
    untied = copy.deepcopy(tied)
    untied[1].weight = nn.Parameter(tied[0].weight.detach().clone())
    assert model_fingerprint(untied) == model_fingerprint(tied)
    reused = nn.Linear(2, 2)
    assert model_fingerprint(nn.Sequential(reused, reused)) != model_fingerprint(nn.Sequential(reused))


def test_extra_state_counts_and_needs_stable_bytes():
    states = [{"scale": 1.0}, {"scale": 2.0}, torch.ones(2), torch.zeros(2), b"a", b"b", None]
    hashes = [model_fingerprint(Carrying(state)) for state in states]
    assert len(set(hashes)) == len(hashes)
    with pytest.raises(ValueError, match="extra state of module 'inner' of Sequential: it holds a object"):
        model_fingerprint(nn.Sequential(OrderedDict(inner=Carrying(object()))))


SCRIPT = """
import torch
from torch import nn
from dualview.engine.fingerprint import callable_fingerprint, model_fingerprint

class Net(nn.Linear):
    pass

def loss(output, target):
    return (output - target).square().sum(1)

def prints():
    model = Net(2, 2)
    with torch.no_grad():
        model.weight.fill_(0.5), model.bias.zero_()
    print(model_fingerprint(model), callable_fingerprint(loss))

if __name__ == "__main__":
    prints()
"""


def test_a_script_and_its_import_in_another_process_agree(tmp_path: Path):
    (tmp_path / "training.py").write_text(SCRIPT)
    printed = [
        subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for arguments in (["training.py"], ["-c", "import training; training.prints()"])
    ]
    assert len(printed[0].split()) == 2 and len(set(printed)) == 1


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


def test_seeded_positions_depend_on_their_arguments_alone():
    assert seeded_positions(0, 3) == [0, 1, 2]
    assert seeded_positions(5, 9, count=None) == [5, 6, 7, 8]
    for start, stop in ((0, 2048), (2048, 4096), (10, 15)):
        positions = seeded_positions(start, stop)
        assert positions == seeded_positions(start, stop) == sorted(set(positions))
        assert len(positions) == 4 and start <= positions[0] and positions[-1] < stop
    assert seeded_positions(0, 2048) != seeded_positions(0, 2048, seed=1)
    # Uniform: over many blocks of 10 rows each row is drawn as often. Sampling 4 of 10 without
    # replacement 2000 times, a row's count has mean 800 and standard deviation sqrt(2000·0.4·0.6) < 22.
    counts = np.bincount([row % 10 for k in range(2000) for row in seeded_positions(10 * k, 10 * k + 10)])
    assert np.abs(counts - 800).max() < 5 * 22


def test_any_seen_change_makes_other_data():
    targets = torch.arange(4)
    image = torch.arange(4.0).reshape(2, 2)
    sample = {"image": image, "size": (2, 2), "name": "a", "mask": np.ones(2)}
    other_samples = [
        [],
        [(1, sample)],
        [(0, sample), (1, sample)],
        [(0, {**sample, "image": image + 1})],
        [(0, {**sample, "image": image.double()})],
        [(0, {**sample, "image": image.reshape(1, 4)})],
        [(0, {**sample, "mask": np.zeros(2)})],
        [(0, {**sample, "mask": np.ones(2, dtype=np.float32)})],
        [(0, {**sample, "mask": torch.ones(2, dtype=torch.float64)})],
        [(0, {**sample, "size": [2, 2]})],
        [(0, (image, 2))],
        [(0, image)],
    ]
    hashes = [data_fingerprint(targets, [(0, sample)])]
    hashes += [data_fingerprint(targets, samples) for samples in other_samples]
    hashes += [data_fingerprint(changed, [(0, sample)]) for changed in (targets + 1, targets.int(), targets[:3])]
    hashes += [data_fingerprint(targets, [(0, sample)], spec) for spec in ({"dtype": "float32"}, {"dtype": "float64"})]
    assert len(set(hashes)) == len(hashes)
    assert data_fingerprint(targets.clone(), [(0, dict(reversed(sample.items())))]) == hashes[0]
    with pytest.raises(ValueError, match="sample 7: it holds a object"):
        data_fingerprint(targets, [(7, (image, object()))])


def test_one_number_is_hashed_whatever_its_stride():
    column = torch.arange(9.0).reshape(1, 9)[:, -1]
    assert column.stride() == (9,) and hash_tensor(column) == hash_tensor(torch.tensor([8.0]))
