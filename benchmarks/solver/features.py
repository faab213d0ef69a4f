"""The features that the solvers are compared on: made here, seeded, and kept in `.benchmarks/solver/features/`.

`python -m benchmarks.solver.features` makes those that are missing, in about six minutes. To make one anew,
delete its two files.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.evaluation.tasks.sources import fashion_mnist

CACHE = Path(__file__).resolve().parents[2] / ".benchmarks" / "solver"
BATCH = 128

Labelled = tuple[np.ndarray, np.ndarray]  # float32 "train unit", int64 "train"


@dataclass(frozen=True)
class Features:
    """A set of features with labels.

    Attributes:
        title: what they are, in a few words.
        role: "tuned on" where the solver's settings were chosen with them in view, else "held out".
        C_values: where the solvers are compared.
        make: returns them.
    """

    title: str
    role: str
    C_values: tuple[float, ...]
    make: Callable[[], Labelled]


def load(name: str) -> Labelled:
    """Return the features and labels called `name`, making and storing them at the first call."""
    paths = features_path(name), features_path(f"{name}-labels")
    if not all(path.exists() for path in paths):
        torch.set_num_threads(1)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        made = SETS[name].make()
        for path, array in zip(paths, made, strict=True):
            np.save(path, array)
    features, labels = (np.load(path) for path in paths)
    return features, labels


def features_path(name: str) -> Path:
    return CACHE / "features" / f"{name}.npy"


def cnn(width: int) -> Labelled:
    """Return the ReLU units before the last layer of a small network, trained for two epochs."""
    torch.manual_seed(0)
    body = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1568, width), nn.ReLU()),
    )
    return _trained(body, nn.Linear(width, 10), num_epochs=2)


class Block(nn.Module):
    """Two convolutions with batch norm, beside a shortcut."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()),
            *(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.skip = nn.Sequential(nn.Conv2d(width, out, 1, 2, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.skip(x))


def residual() -> Labelled:
    """Return the pooled features of a small residual network, trained for one epoch: dense and of small norm."""
    torch.manual_seed(0)
    stem = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    blocks = Block(16, 32), Block(32, 64), Block(64, 128)
    return _trained(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(128, 10), 1)


def standardised() -> Labelled:
    """Return the CNN's 192 units, each with mean zero and variance one where it varies at all."""
    features, labels = load("d192")
    deviation = features.std(0, dtype=np.float64)
    scaled = (features - features.mean(0, dtype=np.float64)) / np.where(deviation > 0, deviation, 1)
    return scaled.astype(np.float32), labels


def gaussian(num_rows: int, num_classes: int, *, distance: float = 1.0, noisy_labels: float = 0.0) -> Labelled:
    """Return relu(distance·μ_class + 1.5·noise), 512 units, μ and noise normal, some labels drawn anew."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((num_classes, 512), dtype=np.float32) * np.float32(distance)
    labels = random.integers(num_classes, size=num_rows)
    features = centres[labels] + np.float32(1.5) * random.standard_normal((num_rows, 512), dtype=np.float32)
    drawn_anew = random.random(num_rows) < noisy_labels
    labels[drawn_anew] = random.integers(num_classes, size=drawn_anew.sum())
    return np.maximum(features, 0), labels


def _trained(body: nn.Module, head: nn.Module, num_epochs: int) -> Labelled:
    """Train on Fashion-MNIST and return what the body makes of the training images."""
    images, labels = fashion_mnist()[0].pairs
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], 1e-3)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(head(body(images[rows])), labels[rows]).backward()
            optimiser.step()
    body.eval()
    with torch.no_grad():
        features = torch.cat([body(part) for part in images.split(1000)])
        accuracy = (head(features).argmax(1) == labels).float().mean()
    print(f"{tuple(features.shape)}: training accuracy {accuracy:.3f}, {(features == 0).float().mean():.0%} zeros")
    return features.numpy(), labels.numpy()


SMALL = (1e-5, 1e-3, 0.1)
SETS = {
    "d192": Features("Fashion-MNIST CNN, 192 units", "tuned on", (*SMALL, 1.0), lambda: cnn(192)),
    "d512": Features("Fashion-MNIST CNN, 512 units", "tuned on", SMALL, lambda: cnn(512)),
    "k100": Features("100 classes, separable", "tuned on", SMALL, lambda: gaussian(50_000, 100)),
    "kh100": Features(
        "100 classes, overlapping, 5 % label noise",
        "tuned on",
        SMALL,
        lambda: gaussian(50_000, 100, distance=0.2, noisy_labels=0.05),
    ),
    "residual": Features("Fashion-MNIST residual net, 128 pooled", "held out", SMALL, residual),
    "standardised": Features("Fashion-MNIST CNN, 192 units, standardised", "held out", SMALL, standardised),
    "k1000": Features("1,000 classes, separable", "held out", SMALL, lambda: gaussian(20_000, 1000)),
}


def make(names: Iterable[str]) -> None:
    """Make the features that are missing."""
    for name in names:
        features, labels = load(name)
        live = features.any(0).sum()
        print(f"{features_path(name)}: {features.shape}, {live} live columns, {len(np.unique(labels))} classes")


if __name__ == "__main__":
    make(SETS)
