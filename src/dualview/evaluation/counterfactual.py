"""What retraining says: does the model get better without the samples that were suspected?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dualview.engine.batches import batch_size_for
from dualview.engine.datasets import Samples, as_samples
from dualview.engine.isolation import untouched
from dualview.engine.labels import columns_of
from dualview.engine.progress import announce, progress_bar
from dualview.engine.runs import check_train
from dualview.engine.task import Task, class_logits

Train = Callable[[Tensor, int], nn.Module]
"""(mask over the training set, True keeps a sample; seed) → a freshly trained model."""

ARMS = ("all samples", "without the suspects", "without as many random samples")


@dataclass(frozen=True)
class RemovalEffect:
    """Test accuracy and loss of retrained models, per arm and seed.

    Attributes:
        num_removed: samples that the second and third arm left out.
        accuracy: arm → one test accuracy a seed, from 0 to 1.
        loss: arm → one mean test loss a seed.
    """

    num_removed: int
    accuracy: dict[str, list[float]]
    loss: dict[str, list[float]]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an arm: mean and standard deviation over seeds (NaN for a single seed)."""
        table = []
        for arm in self.accuracy:
            accuracy, loss = torch.tensor(self.accuracy[arm]), torch.tensor(self.loss[arm])
            table.append(
                {
                    "trained on": arm,
                    "accuracy": float(accuracy.mean()),
                    "accuracy_sd": float(accuracy.std()) if len(accuracy) > 1 else math.nan,
                    "loss": float(loss.mean()),
                    "seeds": len(accuracy),
                }
            )
        return table


def removal_effect(
    train: Train,
    drop: Int[Tensor, " drop"],
    num_train: int,
    task: Task,
    test: Any,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = False,
) -> RemovalEffect:
    """Retrain with all samples, without the suspects, and without as many random ones, and compare.

    Args:
        train: (mask, seed) → model; the mask is True where a sample is kept.
        drop: positions of the suspects.
        num_train: size of the training set.
        task: says how batches split, and what the loss is.
        test: labelled data the models are compared on; must not hold the suspects' own mistakes.
        seeds: one retraining of each arm per seed; a single one tells nothing about the spread.
        progress: whether to show a line, and a bar with the time left.

    Raises:
        TypeError: `train` cannot be called as train(mask, seed), or returns no model.
        ValueError: there are no seeds.
    """
    check_train(train)
    if not len(seeds):
        raise ValueError("`seeds` are none; expected at least one")
    samples = as_samples(test, name="test")
    accuracy: dict[str, list[float]] = {arm: [] for arm in ARMS}
    loss: dict[str, list[float]] = {arm: [] for arm in ARMS}
    total = len(ARMS) * len(seeds)
    announce(f"retraining {total} models ({len(ARMS)} training sets × {len(seeds)} seeds)", progress)
    with progress_bar(total, enabled=progress) as bar:
        bar.unit = "run"
        for seed in seeds:
            for arm, mask in zip(ARMS, _masks(drop, num_train, seed), strict=True):
                model = train(mask, seed)
                if not isinstance(model, nn.Module):
                    raise TypeError(f"`train` must return the trained model; it returned {type(model).__name__}")
                right, mean_loss = accuracy_and_loss(dataclasses.replace(task, model=model), samples)
                accuracy[arm].append(right)
                loss[arm].append(mean_loss)
                bar.update()
    return RemovalEffect(len(drop), accuracy, loss)


def accuracy_and_loss(task: Task, data: Any) -> tuple[float, float]:
    """Return the share of right predictions and the mean loss of a task's model on labelled data."""
    found = measured(task, data if isinstance(data, Samples) else as_samples(data, name="data"))
    return float(found.right.double().mean()), float(found.losses.mean())


class Measured(NamedTuple):
    """What a model does on labelled samples.

    Attributes:
        probabilities: "test cls".
        predicted: "test", the class of the largest logit.
        targets: "test", labels as output columns.
        losses: "test", the task's loss, float64.
    """

    probabilities: Float[Tensor, "test cls"]
    predicted: Int[Tensor, " test"]
    targets: Int[Tensor, " test"]
    losses: Float[Tensor, " test"]

    @property
    def right(self) -> Bool[Tensor, " test"]:
        """Whether the predicted class is the label."""
        return self.predicted == self.targets


def measured(task: Task, samples: Samples) -> Measured:
    """Run a task's model over labelled samples, and leave it as it was."""
    parts: list[Measured] = []
    with untouched(task.model):
        size = batch_size_for(task.split(samples.batch([0]))[0])
        for _, batch in samples.batches(range(len(samples)), size):
            inputs, labels = task.split(batch)
            raw = task.forward(inputs).cpu()
            raw = raw if raw.dtype == torch.float64 else raw.float()
            logits = class_logits(raw)
            targets = columns_of(labels, logits.shape[1], task.classes)
            losses = task.losses(logits, targets, one_logit=raw.shape[1] == 1).double()
            parts.append(Measured(logits.softmax(1), logits.argmax(1), targets, losses))
    return Measured(*map(torch.cat, zip(*parts, strict=True)))


def _masks(drop: Tensor, num_train: int, seed: int) -> tuple[Bool[Tensor, " train"], ...]:
    everything = torch.ones(num_train, dtype=torch.bool)
    without, without_random = everything.clone(), everything.clone()
    without[drop] = False
    shuffled = torch.randperm(num_train, generator=torch.Generator().manual_seed(seed))
    without_random[shuffled[: len(drop)]] = False
    return everything, without, without_random
