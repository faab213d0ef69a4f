"""Networks and how they are trained: fixed, seeded, and written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dualview.engine.fingerprint import qualified_name

Network = Callable[[tuple[int, ...], int], nn.Module]
"""(shape of a sample, classes) → an untrained network whose last layer is linear."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        network: makes it.
        epochs: passes over the training samples.
        learning_rate: at the start.
        batch_size: samples a step.
        optimiser: "sgd" or "adam".
        momentum: of SGD.
        weight_decay: L2 penalty, added to the gradient.
        falling: whether the learning rate falls linearly to zero.
    """

    network: Network
    epochs: int
    learning_rate: float
    batch_size: int
    optimiser: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    falling: bool = False

    def describe(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return {**vars(self), "network": qualified_name(self.network)}

    def train(
        self,
        inputs: Float[Tensor, "row ..."],
        labels: Int[Tensor, " row"],
        num_classes: int,
        *,
        mask: Bool[Tensor, " row"] | None = None,
        seed: int = 0,
    ) -> nn.Module:
        """Train anew and return the network in evaluation mode; torch's random state is left as it was.

        Args:
            inputs: training samples.
            labels: their output columns.
            num_classes: output columns.
            mask: True where a sample is kept; None: all.
            seed: of the first weights and the order of samples.
        """
        kept = torch.arange(len(labels)) if mask is None else mask.nonzero().squeeze(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.network(tuple(inputs.shape[1:]), num_classes)
            optimiser = self._optimiser(model)
            num_steps = self.epochs * math.ceil(len(kept) / self.batch_size)
            fall = torch.optim.lr_scheduler.LambdaLR(
                optimiser, lambda step: 1 - step / num_steps if self.falling else 1.0
            )
            for _ in range(self.epochs):
                for batch in kept[torch.randperm(len(kept))].split(self.batch_size):
                    optimiser.zero_grad()
                    F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                    optimiser.step()
                    fall.step()
        return model.eval()

    def _optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimiser == "adam":
            return torch.optim.Adam(model.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            model.parameters(), self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )


def mlp(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """One hidden layer of 64 ReLU units."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.ReLU(), nn.Linear(64, num_classes))


def linear(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A linear classifier."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes))


def small_cnn(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two convolutions of 16 and 32 channels, each pooled by 2, and 128 ReLU units."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 128), nn.ReLU(),
        nn.Linear(128, num_classes),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions with batch norm, the first with stride 2, beside a shortcut of one."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.skip = nn.Sequential(nn.Conv2d(channels, out, 1, 2, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Float[Tensor, "row channel height width"]) -> Float[Tensor, "row out high wide"]:
        """Add the two branches and cut at zero."""
        return F.relu(self.main(x) + self.skip(x))


def small_residual(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A stem of 8 channels and blocks of 16, 32 and 64, pooled over the image: 77,000 parameters at 28×28."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        Block(8, 16), Block(16, 32), Block(32, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )  # fmt: skip


MLP_RECIPE = Recipe(mlp, 15, learning_rate=0.05, batch_size=50, momentum=0.9, weight_decay=5e-4, falling=True)
CNN_RECIPE = Recipe(small_cnn, epochs=8, learning_rate=1e-3, batch_size=64, optimiser="adam")
TINY_CNN_RECIPE = Recipe(small_cnn, epochs=20, learning_rate=1e-3, batch_size=64, optimiser="adam")
RESIDUAL_RECIPE = Recipe(small_residual, epochs=8, learning_rate=2e-3, batch_size=64, optimiser="adam", falling=True)
TABLE_RECIPE = Recipe(mlp, epochs=60, learning_rate=0.05, batch_size=20, weight_decay=5e-4, falling=True)
TEXT_RECIPE = Recipe(mlp, epochs=40, learning_rate=0.3, batch_size=50, weight_decay=5e-4, falling=True)
