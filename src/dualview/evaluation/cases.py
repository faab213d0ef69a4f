"""What a metric sees: a trained network, its data, and what is known to be true of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dualview.engine.datasets import as_samples
from dualview.engine.fingerprint import hash_bytes, hash_tensors
from dualview.engine.isolation import untouched
from dualview.engine.labels import columns_of
from dualview.engine.retraining import Bank, retrain
from dualview.engine.runs import seeded
from dualview.engine.subsets import half_subsets
from dualview.engine.task import Task, class_logits
from dualview.evaluation.counterfactual import Train, measured
from dualview.evaluation.tasks.planted import Planted
from dualview.evaluation.tasks.problem import MARKED_CLASS, Problem


@dataclass(frozen=True)
class Case:
    """A network, its data, and the truth about them, as far as it is known.

    Attributes:
        name: of the data and network.
        variant: which flaw is planted; "standard" for none.
        task: the trained network.
        train: labelled training set, as `dualview.fit` takes it.
        test: labelled test set.
        train_targets: "train" labels as output columns.
        test_targets: "test" likewise.
        planted: what was planted in the training and the test set, where something may have been.
        retrain: (mask, seed) → a network trained anew; None where it cannot be.
        other_model: seed → a network trained from another seed; None where there is none.
        untrained: returns a network as training starts from it.
        bank_folder: where retrained outputs are kept.
        bank_name: stands for what `retrain` carries, where the folder's name tells it; None: it is hashed.
        num_subsets: half subsets of the bank.
        num_seeds: trainings of each.
        reserved: whether the first half of the subsets is for choosing contenders, and only the rest for scores.
        identity: stands for the network and the data, to the last bit; None where nothing does.
    """

    name: str
    variant: str
    task: Task
    train: Any
    test: Any
    train_targets: Int[Tensor, " train"]
    test_targets: Int[Tensor, " test"]
    planted: tuple[Planted, Planted] | None = None
    retrain: Train | None = None
    other_model: Callable[[int], nn.Module] | None = None
    untrained: Callable[[], nn.Module] | None = None
    bank_folder: Path | None = None
    bank_name: str | None = None
    num_subsets: int = 100
    num_seeds: int = 2
    reserved: bool = False
    identity: str | None = None
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def predicted(self) -> Int[Tensor, " test"]:
        """The network's predictions for the test set."""
        if "predicted" not in self._cache:
            self._cache["predicted"] = measured(self.task, as_samples(self.test, name="test")).predicted
        return self._cache["predicted"]

    @property
    def accuracy(self) -> float:
        """Share of the test set that the network predicts rightly."""
        return float((self.predicted == self.test_targets).double().mean())

    @property
    def lower_is_better(self) -> bool:
        """Whether less of what is measured speaks for the network."""
        return bool(getattr(self.task.single_output, "lower_is_better", False))

    def seeded_retrain(self, mask: Tensor, seed: int) -> nn.Module:
        """Train with torch's, numpy's and Python's generators started from the seed, and put back after."""
        assert self.retrain is not None
        with seeded(seed):
            return self.retrain(mask, seed)

    @property
    def test_inputs(self) -> Any:
        """The test set's inputs, all of them in one batch as the model takes them, or a data set."""
        return self.planted[1].inputs if self.planted is not None else self.test

    def bank(self, progress: bool = True) -> Bank:
        """Return retrained networks' outputs for the test set's labels; train what is missing.

        Raises:
            ValueError: nothing says how to train, or where to keep it.
        """
        if self.retrain is None or self.bank_folder is None:
            raise ValueError(f"{self.name}: retrained networks need a function train(mask, seed) and a store folder")
        needed = 4 if self.reserved else 2
        if self.num_subsets < needed:
            raise ValueError(f"{self.num_subsets} subsets were asked for; correlations over them need {needed} or more")
        if "bank" not in self._cache:
            self._cache["bank"] = retrain(
                self.retrain,
                half_subsets(len(self.train_targets), self.num_subsets),
                self.task,
                self.test,
                seeds=tuple(range(self.num_seeds)),
                folder=self.bank_folder,
                train_set=self.train,
                name=self.bank_name,
                progress=progress,
            )
        return self._cache["bank"]

    def truth(self, *, for_choice: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks "subset train", outputs "seed subset test" and accuracies "seed subset" of the bank.

        Args:
            for_choice: those that are reserved for choosing contenders, instead of those for scores.
        """
        bank = self.bank()
        half = len(bank.masks) // 2
        part = slice(None, half) if for_choice else slice(half, None) if self.reserved else slice(None)
        return bank.masks[part], bank.outputs[..., part, :], bank.accuracy[:, part]


def case_of(problem: Problem, *, num_subsets: int | None = None, num_seeds: int = 2, seed: int = 0) -> Case:
    """Return a built-in problem as a case, training its network where it is not kept.

    Args:
        problem: the problem.
        num_subsets: half subsets of its bank; None: as many as its source says.
        num_seeds: trainings of each.
        seed: of the network that is explained.
    """
    train, test = problem.train, problem.test
    num_subsets = problem.source.num_subsets if num_subsets is None else num_subsets
    bank = f"{problem.fingerprint}-{num_subsets}-{num_seeds}"
    folder = None if problem.folder is None else problem.folder / "banks" / bank
    return Case(
        problem.source.name,
        problem.variant,
        problem.task(problem.model(seed)),
        train.pairs,
        test.pairs,
        train.labels,
        test.labels,
        planted=(train, test),
        retrain=problem.retrain,
        other_model=problem.model,
        untrained=lambda: problem.untrained(seed + 1),
        bank_folder=folder,
        bank_name=problem.source.name,
        num_subsets=num_subsets,
        num_seeds=num_seeds,
        identity=hash_bytes(problem.fingerprint, hash_tensors({"test": test.inputs, "labels": test.labels}), str(seed)),
    )


def case_of_task(
    task: Task,
    train: Any,
    test: Any,
    *,
    retrain: Train | None = None,
    bank_folder: Path | None = None,
    num_subsets: int | None = None,
    num_seeds: int = 2,
) -> Case:
    """Return a user's own task as a case.

    Args:
        task: the trained model.
        train: labelled training set.
        test: labelled test set.
        retrain: (mask, seed) → a model trained on the kept samples.
        bank_folder: where retrained outputs are kept, in a folder for each training set and number of runs.
        num_subsets: half subsets to retrain on; None: 100.
        num_seeds: trainings of each.
    """
    labels = [_labels(task, data) for data in (train, test)]
    num_subsets = 100 if num_subsets is None else num_subsets
    content = hash_tensors({"train": labels[0], "test": labels[1], "runs": torch.tensor([num_subsets, num_seeds])})
    made = Case(
        type(task.model).__name__,
        "standard",
        task,
        train,
        test,
        labels[0],
        labels[1],
        retrain=retrain,
        bank_folder=None if bank_folder is None else bank_folder / content[:16],
        num_subsets=num_subsets,
        num_seeds=num_seeds,
    )
    everything = torch.ones(len(labels[0]), dtype=torch.bool)
    others = None if retrain is None else partial(made.seeded_retrain, everything)
    return dataclasses.replace(made, other_model=others)


def misled(case: Case) -> Bool[Tensor, " test"]:
    """Tell which test samples the mark of a shortcut leads astray: predicted as its class, and not of it."""
    return (case.predicted == MARKED_CLASS) & (case.test_targets != MARKED_CLASS)


def with_model(case: Case, model: nn.Module) -> Task:
    """Return the case's task for another network."""
    return dataclasses.replace(case.task, model=model)


def _labels(task: Task, data: Any) -> Tensor:
    samples = as_samples(data, name="data")
    with untouched(task.model):
        columns = class_logits(task.forward(task.split(samples.batch([0]))[0]).cpu().float()).shape[1]
    found = [
        columns_of(task.split(batch)[1], columns, task.classes)
        for _, batch in samples.batches(range(len(samples)), 256)
    ]
    return torch.cat(found)
