"""Data sets of every form are read in their own order, and what cannot be attributed to is refused."""

import copy
import random
import warnings
from collections import UserDict
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from dualview.engine.batches import split_batch
from dualview.engine.datasets import (
    Samples,
    as_samples,
    check_inputs,
    collate_samples,
    input_spec,
    merge_specs,
    spec_of,
    warn_if_augmented,
)
from dualview.errors import AugmentationWarning

NUM = 10
X, Y = torch.arange(NUM * 2.0).reshape(NUM, 2), torch.arange(NUM) % 3


class Items(Dataset):
    """(transformed input, label), as torchvision's data sets have them."""

    def __init__(self, transform=None) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, position):
        if not 0 <= position < NUM:
            raise IndexError(position)
        image = X[position]
        return (image if self.transform is None else self.transform(image)), int(Y[position])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Items())


def with_marker(samples: list) -> tuple[Tensor, Tensor]:
    """A collate function of one's own, recognisable by what it does."""
    images, labels = zip(*samples, strict=True)
    return 100 + torch.stack(images), torch.tensor(labels)


def read(samples: Samples, batch_size: int = 4) -> tuple[list[int], Tensor, Tensor]:
    positions, inputs, labels = [], [], []
    for chunk, batch in samples.batches(range(len(samples)), batch_size):
        positions += chunk
        inputs.append(split_batch(batch)[0])
        labels.append(split_batch(batch)[1])
    return positions, torch.cat(inputs), torch.cat(labels)


# ── order ────────────────────────────────────────────────────────────────────────────────────────

LOADERS = {
    "plain": partial(DataLoader, batch_size=3),
    "shuffled": partial(DataLoader, batch_size=3, shuffle=True),
    "drop_last": partial(DataLoader, batch_size=3, drop_last=True),
    "workers": partial(DataLoader, batch_size=3, num_workers=2),
    "batch_sampler": lambda data: DataLoader(
        data, batch_sampler=BatchSampler(RandomSampler(data), batch_size=4, drop_last=True)
    ),
    "weighted": lambda data: DataLoader(data, sampler=WeightedRandomSampler([1.0] * NUM, 4), batch_size=2),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_loader_gives_its_data_set_in_order(make):
    positions, inputs, labels = read(as_samples(make(Items())))
    assert positions == list(range(NUM))
    assert torch.equal(inputs, X) and torch.equal(labels, Y)


def test_a_loader_gives_its_collate_function_and_workers():
    samples = as_samples(DataLoader(Items(), collate_fn=with_marker, shuffle=True, num_workers=1))
    assert samples.num_workers == 1
    _, inputs, labels = read(samples)
    assert torch.equal(inputs, 100 + X) and torch.equal(labels, Y)
    assert torch.equal(samples.batch([4, 1])[0], 100 + X[[4, 1]])


def test_asked_positions_come_in_the_order_asked():
    samples = as_samples(Items())
    chunks = [(chunk, batch[0]) for chunk, batch in samples.batches([7, 0, 7, 3, 9], 2)]
    assert [chunk for chunk, _ in chunks] == [[7, 0], [7, 3], [9]]
    assert torch.equal(torch.cat([inputs for _, inputs in chunks]), X[[7, 0, 7, 3, 9]])


def test_reading_with_workers_draws_no_global_random_number():
    before = torch.get_rng_state()
    read(as_samples(DataLoader(Items(), shuffle=True, num_workers=2)))
    assert torch.equal(torch.get_rng_state(), before)


# ── forms ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (X.numpy(), Y.numpy()),
        (X.numpy().astype(np.float64), Y),
        (X, Y.tolist()),
        (pd.DataFrame(X.numpy()), pd.Series(Y.numpy(), index=range(50, 60))),
        TensorDataset(X, Y),
        [(x, int(y)) for x, y in zip(X, Y, strict=True)],
        tuple((x, int(y)) for x, y in zip(X, Y, strict=True)),
        Subset(Items(), range(NUM)),
        DataLoader(TensorDataset(X, Y)),
    ],
    ids=[
        "tensors",
        "arrays",
        "doubles",
        "list",
        "pandas",
        "dataset",
        "samples",
        "tuple of samples",
        "subset",
        "loader",
    ],
)
def test_every_form_gives_the_same_batches(data):
    positions, inputs, labels = read(as_samples(data))
    assert positions == list(range(NUM))
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, X) and torch.equal(labels, Y)


@pytest.mark.parametrize(
    "words", [["a", "b"] * 5, np.array(["a", "b"] * 5), pd.Series(["a", "b"] * 5, index=range(50, 60))], ids=type
)
@pytest.mark.parametrize("features", [X, X.double().numpy(), pd.DataFrame(X.numpy())], ids=type)
def test_labels_that_are_words_stay_words(features, words):
    inputs, labels = split_batch(as_samples((features, words)).batch([3, 0, 1]))
    assert inputs.dtype == torch.float32 and torch.equal(inputs, X[[3, 0, 1]])
    assert list(labels) == ["b", "a", "b"]


def test_several_inputs_stay_in_their_order():
    (first, second), labels = split_batch(as_samples((X, -X.numpy(), Y)).batch([1, 2]))
    assert torch.equal(first, X[1:3]) and torch.equal(second, -X[1:3]) and torch.equal(labels, Y[1:3])


def test_samples_pass_through():
    samples = as_samples(Items())
    assert as_samples(samples) is samples
    assert torch.equal(read(as_samples(samples, transform=torch.neg))[1], -X)


@dataclass(frozen=True)
class Checked:
    """A sample that checks itself when it is made, with a field that its __init__ does not take."""

    image: Tensor
    label: int
    size: int = field(init=False, default=2)

    def __post_init__(self) -> None:
        assert isinstance(self.label, int) and self.image.ndim == 1


def test_dataclass_samples_are_collated_field_by_field():
    batch = as_samples([Checked(x, int(y)) for x, y in zip(X, Y, strict=True)]).batch([2, 5])
    assert isinstance(batch, Checked)
    assert torch.equal(batch.image, X[[2, 5]]) and torch.equal(batch.label, Y[[2, 5]])
    assert torch.equal(batch.size, torch.tensor([2, 2]))
    assert torch.equal(collate_samples([{"x": X[0]}, {"x": X[1]}])["x"], X[:2])


# ── refused ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream()), (sample for sample in Items()), {1, 2}], ids=type)
def test_what_has_no_positions_is_refused_with_the_way_out(data):
    with pytest.raises(TypeError, match=r"`held_out` is an iterable data set: .* map-style .* list\(dataset\)"):
        as_samples(data, name="held_out")


@pytest.mark.parametrize("data", [[], (X[:0], Y[:0]), Subset(Items(), []), DataLoader([])], ids=type)
def test_an_empty_data_set_is_refused(data):
    with pytest.raises(ValueError, match="`train` is an empty data set"):
        as_samples(data)


def test_what_is_no_data_set_is_refused():
    for data, kind in ((3, "int"), ({"train": Items()}, "dict"), (UserDict(train=Items()), "UserDict")):
        with pytest.raises(TypeError, match=f"`train` must be a map-style data set .* it is {kind}"):
            as_samples(data)
    with pytest.raises(TypeError, match="tuple of one tensor"):
        as_samples((X,))
    with pytest.raises(ValueError, match=r"different numbers of samples: \[10, 9\]"):
        as_samples((X, Y[:9]))


def test_a_loader_that_reads_a_part_or_makes_no_batches_is_refused():
    for loader in (
        DataLoader(Items(), sampler=SubsetRandomSampler([1, 2])),
        DataLoader(Items(), batch_sampler=BatchSampler(SubsetRandomSampler([1, 2]), 2, False)),
    ):
        with pytest.raises(ValueError, match=r"SubsetRandomSampler reads a part .*Subset\(dataset, indices\)"):
            as_samples(loader)
    with pytest.raises(ValueError, match="batch_size=None"):
        as_samples(DataLoader(Items(), batch_size=None))


# ── augmentation ─────────────────────────────────────────────────────────────────────────────────


def flip(image: Tensor) -> Tensor:
    return image.flip(0) if random.random() < 0.5 else image


def numpy_collate(samples: list) -> tuple[np.ndarray, list]:
    return np.stack([np.asarray(image) for image, _ in samples]), [label for _, label in samples]


class Opaque:
    """A batch that cannot be compared."""

    def __init__(self, samples: list) -> None:
        self.samples = samples


def test_augmentation_is_seen_and_the_warning_names_the_way_out():
    random.seed(0)
    for collate in (collate_samples, numpy_collate):
        samples = as_samples(DataLoader(Items(flip), collate_fn=collate))
        with pytest.warns(AugmentationWarning, match="two reads of `train` sample . differ.* give transform="):
            warn_if_augmented(samples)


def test_a_coin_flip_rarely_goes_unseen():
    """Each of eight samples shows it with probability one half: 2⁻⁸ of the checks miss it."""
    random.seed(0)
    samples, seen = as_samples(Items(flip)), 0
    for _ in range(50):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_if_augmented(samples)
        seen += len(caught)
    assert seen >= 48  # 50 · 2⁻⁸ ≈ 0.2 are expected to be missed


@pytest.mark.filterwarnings("error")
def test_a_data_set_that_does_not_augment_gives_no_warning():
    nan = torch.full((NUM, 2), torch.nan)
    for data in (
        Items(),
        [Checked(x, int(y)) for x, y in zip(X, Y, strict=True)],
        [UserDict(x=x, y=y) for x, y in zip(X, Y, strict=True)],
        (nan, Y),
        (X, ["a"] * NUM),
        DataLoader(Items(), collate_fn=numpy_collate),
        DataLoader(TensorDataset(nan, Y), collate_fn=numpy_collate),
        DataLoader(Items(), collate_fn=Opaque),
        [(X[0], Y[0])],
    ):
        samples = as_samples(DataLoader(data, collate_fn=list) if data and isinstance(data, list) else data)
        warn_if_augmented(samples)
        assert len(samples) in (1, NUM)


class Vision(Items):
    """torchvision's way: `transforms` holds both and is what `__getitem__` calls."""

    def __init__(self, transform=None, target_transform=None) -> None:
        super().__init__(transform)
        self.target_transform = target_transform
        self.transforms = lambda image, label: (transform(image) if transform else image, label)

    def __getitem__(self, position):
        return self.transforms(X[position], int(Y[position]))


class OwnSubset(Subset):
    """A subset with a transform on top of a data set without one, and something of its own."""

    def __init__(self, dataset, indices, transform) -> None:
        super().__init__(dataset, indices)
        self.transform = transform

    def __getitem__(self, position):
        image, label = self.dataset[self.indices[position]]
        return self.transform(image), label

    def __getitems__(self, positions):
        return [self[position] for position in positions]


@pytest.mark.parametrize(
    ("data", "positions"),
    [
        (Items(flip), range(NUM)),
        (Items(), range(NUM)),
        (Vision(flip), range(NUM)),
        (Subset(Items(flip), [3, 1]), [3, 1]),
        (Subset(Subset(Vision(flip), [4, 3, 1]), [2, 0]), [1, 4]),
        (OwnSubset(Items(), [5, 6], flip), [5, 6]),
        (ConcatDataset([Items(flip), Subset(Vision(flip), [2])]), [*range(NUM), 2]),
        (ConcatDataset([Items(flip), TensorDataset(X, Y)]), [*range(NUM), *range(NUM)]),
        ((X, Y), range(NUM)),
        (DataLoader(Items(flip), shuffle=True), range(NUM)),
    ],
    ids=["own", "none", "vision", "subset", "nested", "own subset", "concat", "mixed", "tensors", "loader"],
)
def test_transform_replaces_the_data_sets_own_and_leaves_it_alone(data, positions):
    innermost = data
    while isinstance(innermost, (Subset, DataLoader)):
        innermost = innermost.dataset
    before = copy.copy(vars(innermost)) if hasattr(innermost, "__dict__") else None
    positions = list(positions)
    samples = as_samples(data, transform=lambda image: 10 * image)
    _, inputs, labels = read(samples)
    assert torch.equal(inputs, 10 * X[positions]) and torch.equal(labels, Y[positions])
    if before is not None:
        assert vars(innermost) == before


def test_transform_keeps_the_target_transform():
    data = Vision(flip, target_transform=lambda label: label + 5)
    assert torch.equal(read(as_samples(data, transform=torch.neg))[2], Y + 5)


def test_transform_on_other_samples_asks_for_a_transform_attribute():
    samples = as_samples([{"x": x, "y": 0} for x in X], transform=torch.neg)
    with pytest.raises(
        TypeError, match="transform= needs a data set with a `transform` attribute, .* sample 2 is a dict"
    ):
        samples.batch([2])


# ── what inputs look like ────────────────────────────────────────────────────────────────────────


def test_inputs_are_described_and_compared_with_training():
    spec = spec_of(as_samples([{"ids": x, "mask": x > 0, "label": 1} for x in X]), split_batch)
    assert spec == {"ids": {"dtype": "float32", "shape": [2]}, "mask": {"dtype": "bool", "shape": [2]}}
    check_inputs({"mask": X > 0, "ids": X}, spec)
    with pytest.raises(ValueError, match=r"have the parts \['ids'\]; the training samples have \['ids', 'mask'\]"):
        check_inputs({"ids": X}, spec)
    with pytest.raises(
        ValueError, match=r"`inputs`\['ids'\] has shape \(10, 3\); expected \(test, 2\) as in training$"
    ):
        check_inputs({"ids": torch.zeros(NUM, 3), "mask": X > 0}, spec)


def test_a_single_sample_is_told_how_to_become_a_batch():
    images = input_spec(torch.zeros(5, 1, 8, 8))
    with pytest.raises(
        ValueError, match=r"\(1, 8, 8\); expected \(test, 1, 8, 8\) .* single sample give inputs\[None\]"
    ):
        check_inputs(torch.zeros(1, 8, 8), images)
    with pytest.raises(ValueError, match=r"`inputs` has shape \(5, 2\); expected \(test\) as in training"):
        check_inputs(torch.zeros(5, 2), input_spec(torch.zeros(5)))


def test_shapes_that_vary_are_left_open():
    varying = as_samples([(torch.zeros(3 + k % 2), 0) for k in range(NUM)])
    spec = spec_of(varying, split_batch)
    assert spec == {"": {"dtype": "float32", "shape": None}}
    check_inputs(torch.zeros(1, 99), spec)
    assert merge_specs(spec, input_spec(torch.zeros(1, 4))) == spec
    assert merge_specs(None, spec) is spec


def test_the_description_looks_at_the_whole_length():
    longer_at_the_end = as_samples([(torch.zeros(3 + (k == 99)), 0) for k in range(100)])
    assert spec_of(longer_at_the_end, split_batch)[""]["shape"] is None
    assert spec_of(as_samples([(torch.zeros(3), 0)]), split_batch)[""]["shape"] == [3]
