"""One run of a bank: train a model on one subset with one seed, and measure it on the test samples."""

from __future__ import annotations

import dataclasses
import inspect
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor, nn

from dualview.engine.batches import Inputs, batch_size_for, num_rows
from dualview.engine.datasets import Samples
from dualview.engine.fingerprint import data_fingerprint, hash_bytes
from dualview.engine.isolation import untouched
from dualview.engine.labels import columns_of
from dualview.engine.subsets import Subsets
from dualview.engine.task import Task, class_logits
from dualview.errors import NonFiniteError

Train = Callable[..., nn.Module]
"""(mask "train", True keeps a sample; seed) → a freshly trained model; a third argument holds the labels
"train" where the protocol changes labels."""

_Batch = tuple[Inputs, Tensor, Tensor]  # inputs, labels, targets

_ANY_COLUMN = 2**31  # how many columns the models have shows when the first one is trained


class Run(NamedTuple):
    """Which subset, and which seed."""

    subset: int
    seed: int

    def __str__(self) -> str:
        return f"subset {self.subset}, seed {self.seed}"

    @property
    def random_seed(self) -> int:
        """What the global generators start from: the first 32 bits of the hash of "run <seed> <subset>"."""
        return int(hash_bytes(f"run {self.seed} {self.subset}")[:8], 16)


class Record(NamedTuple):
    """What a run left: arrays, since tensors would pass between processes by shared memory.

    Attributes:
        run: which one.
        outputs: "output test", float64, the measured outputs.
        scalars: `accuracy` and mean `loss` on the test samples, `seconds` of the training, and
            `train_accuracy` and `train_loss` where the training set is at hand.
    """

    run: Run
    outputs: np.ndarray
    scalars: dict[str, float]


def check_train(train: Any, *, labels: bool = False) -> None:
    """Refuse a recipe that cannot be called as recipes are, before anything is made.

    Args:
        train: what is to be called; where it tells no signature, as compiled code, it passes.
        labels: whether a third argument holds labels.

    Raises:
        TypeError: it is no function, or takes other arguments.
    """
    given = ("mask", "seed", "labels")[: 3 if labels else 2]
    called = f"train({', '.join(given)})"
    if not callable(train):
        raise TypeError(f"`train` must be a function {called} that returns a model; it is {type(train).__name__}")
    try:
        signature = inspect.signature(train)
    except ValueError:
        return
    try:
        signature.bind(*given)
    except TypeError:
        nothing = inspect.Signature.empty
        plain = [parameter.replace(annotation=nothing) for parameter in signature.parameters.values()]
        taken = signature.replace(parameters=plain, return_annotation=nothing)
        raise TypeError(f"`train` is called as {called}; this one takes {taken}") from None


@dataclass(frozen=True, eq=False)
class ReadSamples:
    """The test samples, read once.

    Attributes:
        inputs: the batches.
        labels: output columns of their labels, for the accuracy and the loss.
        targets: columns that are measured, the same for all models.
    """

    inputs: list[Inputs]
    labels: Int[Tensor, " test"]
    targets: Int[Tensor, " test"]

    @classmethod
    def of(cls, task: Task, samples: Samples, targets: Int[Tensor, " test"] | None) -> ReadSamples:
        """Read all samples; `targets` default to their labels."""
        with untouched():  # reading an augmenting data set draws from global random states
            parts = list(_batches(task, samples, range(len(samples))))
        labels = torch.cat([columns_of(found, _ANY_COLUMN, task.classes) for _, _, found in parts])
        targets = labels if targets is None else columns_of(targets, _ANY_COLUMN)
        if len(targets) != len(labels):
            raise ValueError(f"`targets` holds {len(targets)} columns; expected one for each of {len(labels)} samples")
        return cls([inputs for _, inputs, _ in parts], labels, targets)

    @property
    def fingerprint(self) -> str:
        """Hash of all inputs and labels."""
        return data_fingerprint(self.labels, list(enumerate(self.inputs)))


@dataclass(frozen=True, eq=False)
class Retraining:
    """All that a run takes; call it with one.

    Attributes:
        train: see `Train`.
        subsets: what to train on.
        task: says what is measured; its own model is not used.
        test: the samples it is measured on.
        train_set: the training set, to tell how well each model fits what it was trained on.
    """

    train: Train
    subsets: Subsets
    task: Task
    test: ReadSamples
    train_set: Samples | None = None

    def __call__(self, run: Run) -> Record:
        """Train and measure one model; an error carries a note that names the run.

        Gradients are on and autocast is off, as in a fresh process, and torch's, numpy's and Python's
        global generators start from `run.random_seed`; they are left as they were found.
        """
        with ExitStack() as stack:
            stack.push(partial(_name_run, run))
            mask = self.subsets.masks[run.subset]
            labels = None if self.subsets.labels is None else self.subsets.labels[run.subset]
            model, seconds = self._trained(run, mask, labels)
            task = dataclasses.replace(self.task, model=model)
            outputs, accuracy, loss = _measured(task, self._test_batches())
            bad = (~outputs.isfinite()).any(0).nonzero().flatten().tolist()
            if bad:
                raise NonFiniteError(
                    f"the measured output is NaN or infinite at test sample {bad[0]} ({len(bad)} of {outputs.shape[1]} "
                    "samples): does the training diverge? Mend `train`, or measure another output",
                    tuple(bad[:5]),
                )
            scalars = {"seconds": seconds, "accuracy": accuracy, "loss": loss}
            if self.train_set is not None:
                _, accuracy, loss = _measured(task, self._train_batches(self.train_set, mask, labels))
                scalars |= {"train_accuracy": accuracy, "train_loss": loss}
        return Record(run, outputs.numpy(), scalars)

    def _trained(self, run: Run, mask: Tensor, labels: Tensor | None) -> tuple[nn.Module, float]:
        changed = () if labels is None else (labels.clone(),)
        with seeded(run.random_seed):
            begun = time.perf_counter()
            model = self.train(mask.clone(), run.seed, *changed)
            seconds = time.perf_counter() - begun
        if not isinstance(model, nn.Module):
            raise TypeError(f"`train` must return the trained model; it returned {type(model).__name__}")
        return model, seconds

    def _test_batches(self) -> Iterator[_Batch]:
        start = 0
        for inputs in self.test.inputs:
            stop = start + num_rows(inputs)
            yield inputs, self.test.labels[start:stop], self.test.targets[start:stop]
            start = stop

    def _train_batches(self, train_set: Samples, mask: Tensor, labels: Tensor | None) -> Iterator[_Batch]:
        for positions, inputs, found in _batches(self.task, train_set, mask.nonzero().flatten().tolist()):
            columns = columns_of(found, _ANY_COLUMN, self.task.classes) if labels is None else labels[positions]
            yield inputs, columns, columns


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the user's code train: gradients on, all global generators started from `seed`, and put back after."""
    with untouched(), torch.enable_grad():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # what the user's code may draw from
        random.seed(seed)
        yield


def _batches(task: Task, samples: Samples, positions: Sequence[int]) -> Iterator[tuple[list[int], Inputs, Any]]:
    """Read samples in batches: their positions, inputs and labels."""
    size = batch_size_for(task.split(samples.batch([0]))[0])
    for read, batch in samples.batches(positions, size):
        yield read, *task.split(batch)


def _measured(task: Task, batches: Iterable[_Batch]) -> tuple[Float64[Tensor, "output test"], float, float]:
    """Return the measured outputs of a task's model for the targets, its accuracy and its mean loss."""
    measures = task.output if isinstance(task.output, tuple) else (task.output,)
    tasks = [dataclasses.replace(task, output=measure) for measure in measures]
    columns, right, total = [], 0, 0.0
    with untouched(task.model):
        for inputs, labels, targets in batches:
            raw = task.forward(inputs).cpu()
            raw = raw if raw.dtype == torch.float64 else raw.float()
            one_logit, logits = raw.shape[1] == 1, class_logits(raw)
            labels, targets = (columns_of(given, logits.shape[1]) for given in (labels, targets))
            measured = [each.measure(logits, targets, one_logit=one_logit).double() for each in tasks]
            for found in measured:
                if found.shape != targets.shape:
                    expected, came = tuple(targets.shape), tuple(found.shape)
                    raise ValueError(f"`output` must be one number per sample, shape {expected}; it is {came}")
            columns.append(torch.stack(measured))
            right += int((logits.argmax(1) == labels).sum())
            total += float(task.losses(logits, labels, one_logit=one_logit).double().sum())
    outputs = torch.cat(columns, dim=1)
    return outputs, right / outputs.shape[1], total / outputs.shape[1]


def _name_run(run: Run, kind: Any, error: BaseException | None, trace: Any) -> None:
    if error is not None:
        error.add_note(f"while training and measuring {run}")
