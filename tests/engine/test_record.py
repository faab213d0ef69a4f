"""Recording: the rows of a hook-free computation, in data-set order, without a trace on the model."""

import random
import re
import sys
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dualview.engine import record
from dualview.engine.datasets import as_samples
from dualview.engine.isolation import untouched
from dualview.engine.record import Activations, Recorder, record_rows
from dualview.engine.site import Site
from dualview.engine.task import Task
from dualview.errors import NonFiniteError
from dualview.ops.layout import plain

NUM = 13
SITE = Activations((Site("fc", "input"),))


class Net(nn.Module):
    """A small residual network; `features` and `fc` can be called without any hook."""

    def __init__(self, num_outputs: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16, num_outputs)

    def features(self, x):
        x = self.conv(x)
        x = F.relu(self.norm(x)) + x
        return self.drop(F.adaptive_avg_pool2d(x, 2).flatten(1))

    def forward(self, x):
        return self.fc(self.features(x))


class Images(Dataset):
    """Images and labels; reading one moves every global random state."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(NUM, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
        self.labels = torch.randint(3, (NUM,), generator=generator)

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, position):
        torch.rand(1), np.random.rand(), random.seed(position)  # noqa: NPY002
        return self.images[position], int(self.labels[position])


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(20, 1, 6, 6))  # moves the batch statistics
    return net.eval()


def recorder(net: nn.Module, data, batch_size: int = 4, num_classes: int = 3, **task) -> Recorder:
    described = Task(net, readout="fc", **task)
    samples = as_samples(data)
    with untouched():  # some of these data sets draw random numbers
        probe, _ = described.split(samples.batch([0]))
    return Recorder(described, samples, SITE.plan(described, probe), num_classes, batch_size)


def by_hand(net: Net, images: Tensor) -> tuple[Tensor, Tensor]:
    """One sample at a time, without hooks."""
    with torch.no_grad():
        features = torch.cat([net.features(image[None]) for image in images])
        return features, torch.cat([net.fc(row[None]) for row in features])


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────

# Batches of another size sum convolutions and products of length up to 36 in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("batch_size", [1, 4, NUM, 100])
def test_rows_are_those_of_a_hook_free_pass_whatever_the_batch_size(net, batch_size):
    data = Images()
    table = recorder(net, data, batch_size).table(progress=False)
    features, outputs = by_hand(net, data.images)
    torch.testing.assert_close(table.values, features, **CLOSE)
    torch.testing.assert_close(table.outputs, outputs, **CLOSE)
    assert torch.equal(table.targets, data.labels)
    assert torch.equal(table.parts[0].index, torch.arange(NUM))


@pytest.mark.parametrize(
    "loader", [{"shuffle": True}, {"drop_last": True, "shuffle": True}, {"num_workers": 2}], ids=str
)
def test_rows_come_in_data_set_order_whatever_the_loader(net, loader):
    data = Images()
    expected = recorder(net, data).table(progress=False)
    found = recorder(net, DataLoader(data, batch_size=5, **loader)).table(progress=False)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.outputs, expected.outputs)
    assert torch.equal(found.targets, expected.targets)


def test_a_stretch_of_rows_keeps_its_positions(net):
    rows = recorder(net, Images()).rows(5, 11)
    whole = recorder(net, Images()).rows(0, NUM)
    assert torch.equal(rows.index, torch.arange(5, 11))
    torch.testing.assert_close(rows.values, whole.values[5:11], **CLOSE)


def test_a_site_is_flattened_to_one_row_per_sample(net):
    data = Images()
    conv, fc = Site("conv", "output"), Site("fc", "input")
    plan = Activations((conv,)).plan(Task(net), data.images[:1])
    wide = Recorder(Task(net), as_samples(data), plan, 3, 4).rows(0, NUM)
    with torch.no_grad():
        torch.testing.assert_close(wide.values, net.conv(data.images).flatten(1), **CLOSE)
        plan = Activations((fc, conv)).plan(Task(net), data.images[:1])
        both = Recorder(Task(net), as_samples(data), plan, 3, 4).table(progress=False)
        maps, features = net.conv(data.images), net.features(data.images)
        torch.testing.assert_close(both.values, torch.cat([features, maps.flatten(1)], 1), **CLOSE)
        assert both.layout == (plain("fc", features.shape[1]), plain("conv", maps[0].numel()))
        averaged = Activations((conv,), pooled=True).plan(Task(net), data.images[:1]).record(data.images, None)
        torch.testing.assert_close(averaged.values, maps.mean((2, 3)), **CLOSE)
    assert Activations((conv,)).describe() == {
        "representation": "Activations",
        "sites": [["conv", "output", 0]],
        "pooled": False,
    }


def test_one_logit_keeps_one_column_and_counts_as_two_classes():
    net = Net(num_outputs=1).eval()
    data = Images()
    data.labels = data.labels % 2
    rows = recorder(net, data, num_classes=2).rows(0, NUM)
    assert rows.outputs.shape == (NUM, 1)
    assert torch.equal(rows.targets, data.labels)
    predicted = record_rows(
        Task(net), SITE.plan(Task(net), data.images[:1]), data.images, None, torch.arange(NUM)
    ).targets
    assert torch.equal(predicted, (rows.outputs[:, 0] > 0).long())


def test_missing_targets_are_the_predictions(net):
    rows = record_rows(Task(net), SITE.plan(Task(net), Images().images[:1]), Images().images, None, torch.arange(NUM))
    assert torch.equal(rows.targets, rows.outputs.argmax(1))


def test_a_network_that_squeezes_takes_a_lone_sample():
    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 1)

        def forward(self, x):
            return self.fc(F.adaptive_avg_pool2d(x.expand(-1, 4, -1, -1), 1).squeeze()).squeeze()

    data, net = Images(), Squeezes()
    data.labels = data.labels % 2
    one_by_one = recorder(net, data, batch_size=1, num_classes=2).rows(0, NUM)
    together = recorder(net, data, batch_size=NUM, num_classes=2).rows(0, NUM)
    torch.testing.assert_close(one_by_one.values, together.values, **CLOSE)
    torch.testing.assert_close(one_by_one.outputs, together.outputs, **CLOSE)


def test_labels_pass_through_classes_and_split(net):
    data = [(f"row {k}", image, "abc"[label]) for k, (image, label) in enumerate(Images())][:NUM]
    rows = recorder(net, data, split=lambda batch: (batch[1], batch[2]), classes={"c": 0, "a": 1, "b": 2}).rows(0, NUM)
    assert torch.equal(rows.targets, (Images().labels + 1) % 3)


# ── precision ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast_not_recomputed(net, dtype):
    half, data = net.to(dtype), Images(dtype)
    rows = recorder(half, data, batch_size=NUM).rows(0, NUM)
    with torch.no_grad():
        features = half.features(data.images)
        outputs = half.fc(features)
    assert features.dtype == dtype
    assert torch.equal(rows.values, features.float()) and rows.values.dtype == torch.float32
    assert torch.equal(rows.outputs, outputs.float()) and rows.outputs.dtype == torch.float32


def test_double_precision_is_kept(net):
    double, data = net.double(), Images(torch.float64)
    table = recorder(double, data).table(progress=False)
    features, outputs = by_hand(double, data.images)
    assert table.dtype == torch.float64
    torch.testing.assert_close(table.values, features, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(table.outputs, outputs, rtol=1e-14, atol=1e-14)


def test_autocast_outside_is_not_used_inside(net):
    expected = recorder(net, Images()).rows(0, NUM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recorder(net, Images()).rows(0, NUM)
    assert torch.equal(found.values, expected.values) and torch.equal(found.outputs, expected.outputs)


def test_rows_made_in_inference_mode_are_normal_tensors(net):
    with torch.inference_mode():
        rows = recorder(net, Images()).rows(0, NUM)
    assert not any(column.is_inference() for column in rows)


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("batch_size", [1, 3, NUM])
def test_features_that_are_not_finite_stop_it_with_the_sample(net, value, batch_size):
    data = Images()
    data.images[7, 0, 2, 2] = value
    with pytest.raises(NonFiniteError, match="^`train`: sample 7 has NaN or infinite features") as caught:
        recorder(net, data, batch_size).table(progress=False)
    assert caught.value.index == (7,)


def test_all_offending_samples_of_a_batch_are_known(net):
    data = Images()
    data.images[[5, 6]] = torch.nan
    with pytest.raises(NonFiniteError, match=r"sample 5 has .* \(2 of the 4 samples in its batch\)") as caught:
        recorder(net, data).table(progress=False)
    assert caught.value.index == (5, 6)


def test_infinite_outputs_of_finite_features_are_told_apart(net):
    with torch.no_grad():
        net.fc.bias[1] = torch.inf
    with pytest.raises(NonFiniteError, match="`train`: sample 0 has NaN or infinite outputs"):
        recorder(net, Images()).table(progress=False)


def test_a_label_outside_is_named_by_its_position_in_the_data_set(net):
    data = Images()
    data.labels[6] = 9
    message = r"`train`, samples 4 to 7: label 9 \(sample 6\) is no output column: the network has columns 0 to 2"
    with pytest.raises(ValueError, match=message):
        recorder(net, data).table(progress=False)
    with pytest.raises(ValueError, match=r"`train`, samples 4 to 7: label 9 \(sample 6\) is not in classes="):
        recorder(net, data, classes={0: 0, 1: 1, 2: 2}).table(progress=False)


def test_a_site_without_one_row_per_sample_is_refused():
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(x.flatten(0, 2)).reshape(len(x), -1, 3).mean(1)

    with pytest.raises(ValueError, match=r"the input of 'fc' has shape \(6, 6\) for 1 samples"):
        recorder(Patches(), Images()).rows(0, NUM)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_holds_samples(net, batch_size):
    with pytest.raises(ValueError, match=f"`batch_size` is {batch_size}; expected at least 1"):
        recorder(net, Images(), batch_size)


# ── traces ───────────────────────────────────────────────────────────────────────────────────────


def state_of(net: nn.Module) -> list:
    return [
        [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in net.named_modules()],
        [(name, tensor.tolist()) for name, tensor in net.state_dict().items()],
        [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in net.parameters()],
    ]


def global_state() -> tuple:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, torch.is_grad_enabled()


def follows(state: tuple, earlier: tuple) -> bool:
    """Tell whether Python's random state is the earlier one but for what the tests' type checks drew."""
    generator = random.Random()
    generator.setstate(earlier)
    for _ in range(1000):
        if generator.getstate() == state:
            return True
        generator.getrandbits(32)  # beartype looks at one random item of a list
    return False


@pytest.mark.parametrize("spoiled", [False, True], ids=["whole", "exception"])
def test_model_and_global_state_are_left_as_they_were(net, spoiled):
    net.train()
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    net(torch.randn(4, 1, 6, 6)).sum().backward()
    data = Images()
    if spoiled:
        data.images[7] = torch.nan
    before, around, python_state = state_of(net), global_state(), random.getstate()
    try:
        recorder(net, data).table(progress=False)
    except NonFiniteError:
        assert spoiled
    assert state_of(net) == before
    assert global_state() == around
    assert follows(random.getstate(), python_state)


def test_the_model_runs_once_per_sample(net):
    """Once in batches, and twice more for the first sample: to plan the recording, and to tell the size of a row."""
    seen: list[int] = []
    handle = net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    recorder(net, Images()).table(progress=False)
    handle.remove()
    assert seen == [1, 1, 4, 4, 4, 1]


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────


def test_the_line_before_and_the_bar_count_the_rows(net, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # where nobody watches there is no bar
    recorder(net, Images()).table(progress=True)
    said = capsys.readouterr().err
    assert re.search(r"recording `train`, .*13.*in memory", said)
    assert "13/13" in said


def test_batches_are_made_one_at_a_time(net):
    made: Iterator = recorder(net, Images()).batches(0, NUM)
    assert torch.equal(next(made).index, torch.arange(4))
    assert torch.equal(next(made).index, torch.arange(4, 8))


def test_rows_that_are_too_large_for_memory_stand_in_a_file(net, monkeypatch):
    data = Images()
    before = recorder(net, data).table(progress=False)
    monkeypatch.setattr(record, "MAX_IN_MEMORY", 10)
    monkeypatch.setattr(record.np, "memmap", counted := mock.Mock(side_effect=np.memmap))
    after = recorder(net, data).table(progress=False)
    assert counted.call_count > 0
    for name in ("values", "outputs", "targets"):
        assert torch.equal(getattr(after, name), getattr(before, name))


def test_tokens_are_averaged_over_positions_and_not_over_units():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 3))
    ids = torch.randint(0, 20, (6, 5))
    task = Task(TakesFirst(model))
    with torch.no_grad():
        averaged = Activations((Site("model.1", "input"),), pooled=True).plan(task, ids).record(ids, None)
        torch.testing.assert_close(averaged.values, model[0](ids).mean(1))
        plan = Activations((Site("model.1", "input"),)).plan(task, ids)
        with pytest.raises(ValueError, match="holds 24 numbers a sample in this batch, and held 40 for the first"):
            plan.record(ids[:, :3], None)


class TakesFirst(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)[:, 0]
