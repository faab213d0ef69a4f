"""The networks, their data, and the floors: one pass through the network."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.evaluation.tasks.recipes import Network, Recipe
from dualview.evaluation.tasks.sources import fashion_mnist

NUM_TRAIN, NUM_TEST, BATCH = 10_000, 500, 500


class Problem(NamedTuple):
    model: nn.Sequential
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def cnn(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, num_classes),
    )  # fmt: skip


def mlp(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 784), nn.ReLU(), nn.Linear(784, 420), nn.ReLU(), nn.Linear(420, num_classes)
    )


NETWORKS: dict[str, Network] = {"CNN": cnn, "MLP": mlp}


def problem(name: str, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST) -> Problem:
    """Train a network for one epoch."""
    train, test = fashion_mnist(num_train=num_train, num_test=num_test)
    recipe = Recipe(NETWORKS[name], epochs=1, learning_rate=0.05, batch_size=50, momentum=0.9)
    model = recipe.train(train.inputs, train.labels, 10)
    return Problem(model, train.inputs, train.labels, test.inputs, test.labels)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def forward(problem: Problem) -> float:
    def run() -> None:
        with torch.no_grad():
            for inputs, _ in _batches(problem):
                problem.model(inputs)

    return min(cpu_seconds(run) for _ in range(3))


def forward_backward(problem: Problem) -> float:
    def run() -> None:
        for inputs, labels in _batches(problem):
            torch.autograd.grad(F.cross_entropy(problem.model(inputs), labels), list(problem.model.parameters()))

    return min(cpu_seconds(run) for _ in range(3))


def _batches(problem: Problem) -> list[tuple[Tensor, Tensor]]:
    inputs, labels = (
        torch.cat(pair) for pair in ((problem.inputs, problem.test_inputs), (problem.labels, problem.test_labels))
    )
    return list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))
