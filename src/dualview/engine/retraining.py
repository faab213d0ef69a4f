"""The bank: models retrained on subsets of the training set, the ground truth of data attribution."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from dualview.engine.bank_folder import LOCK, Description, begin, read_records, write_record
from dualview.engine.datasets import as_samples
from dualview.engine.files import flush_folder
from dualview.engine.fingerprint import (
    callable_fingerprint,
    data_fingerprint,
    hash_bytes,
    hash_tensor,
    hash_tensors,
)
from dualview.engine.locks import locked
from dualview.engine.progress import announce, progress_bar
from dualview.engine.runs import ReadSamples, Record, Retraining, Run, Train, check_train
from dualview.engine.subsets import Subsets
from dualview.engine.task import Task
from dualview.engine.workers import (
    StartMethod,
    check_importable,
    check_not_imported,
    default_start,
    distribute,
    num_cores,
    plain_function,
    started_workers,
)
from dualview.errors import DamagedFile, StoreError

log = logging.getLogger("dualview")


@dataclass(frozen=True, eq=False)
class Bank:
    """What retrained models say: their measured outputs on the test samples, for each seed and subset.

    Attributes:
        folder: where it stands.
        subsets: what was trained on.
        seeds: of the trainings, in the order of the first axis.
        targets: "test" output columns that were measured, the same for all models.
        measured: name of the measured output; several, where the task gave a tuple of outputs.
        outputs: "seed subset test"; a leading `output` axis where the task gave a tuple.
        accuracy: "seed subset", share of right predictions on the test samples, from 0 to 1.
        loss: "seed subset", mean loss on the test samples.
        seconds: "seed subset", time that `train` took.
        train_accuracy: as `accuracy`, on the samples that each model was trained on, with the labels
            it was given; None where no `train_set` was.
        train_loss: as `loss`, likewise.
        train: name of the recipe.
        library: version of dualview that began it.
    """

    folder: Path
    subsets: Subsets
    seeds: tuple[int, ...]
    targets: Int[Tensor, " test"]
    measured: str | tuple[str, ...]
    outputs: Float64[Tensor, "*output seed subset test"]
    accuracy: Float64[Tensor, "seed subset"]
    loss: Float64[Tensor, "seed subset"]
    seconds: Float64[Tensor, "seed subset"]
    train_accuracy: Float64[Tensor, "seed subset"] | None
    train_loss: Float64[Tensor, "seed subset"] | None
    train: str
    library: str

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Bank:
        """Open a bank that is finished.

        Raises:
            StoreError: there is none, or runs are missing.
            DamagedFile: a file is truncated or altered.
        """
        folder = Path(folder).expanduser()
        description = Description.read(folder)
        records, damaged = read_records(folder, description.key, description.runs)
        if damaged:
            raise DamagedFile(f"{damaged[0]}; call `retrain` again, which repeats only the runs that are damaged")
        missing = len(description.runs) - len(records)
        if missing:
            raise StoreError(
                f"the bank at {folder} lacks {missing} of {len(description.runs)} runs; call `retrain` again with the "
                "same arguments, and it goes on from there"
            )
        return cls._of(folder, description, records)

    @classmethod
    def _of(cls, folder: Path, description: Description, records: Mapping[Run, Record]) -> Bank:
        ordered = [[records[Run(k, seed)] for k in range(len(description.subsets))] for seed in description.seeds]
        outputs = torch.stack([torch.stack([torch.from_numpy(one.outputs) for one in row]) for row in ordered])
        names = ordered[0][0].scalars
        scalars = {
            name: torch.tensor([[one.scalars[name] for one in row] for row in ordered], dtype=torch.float64)
            for name in names
        }
        outputs = outputs.permute(2, 0, 1, 3).contiguous()
        return cls(
            folder=folder,
            subsets=description.subsets,
            seeds=description.seeds,
            targets=description.targets,
            measured=description.measured if description.several else description.measured[0],
            outputs=outputs if description.several else outputs[0],
            accuracy=scalars["accuracy"],
            loss=scalars["loss"],
            seconds=scalars["seconds"],
            train_accuracy=scalars.get("train_accuracy"),
            train_loss=scalars.get("train_loss"),
            train=description.parts["train"][0],
            library=description.library,
        )

    @property
    def masks(self) -> Bool[Tensor, "subset train"]:
        """What each model was trained on: True where a sample was kept."""
        return self.subsets.masks

    @property
    def facts(self) -> dict[str, Any]:
        """What stands beside a number that was made with this bank, as JSON values; `_sd` is over all runs."""
        kept = self.masks.sum(1)
        facts = {
            **self.subsets.facts,
            "protocol": self.subsets.protocol,
            "num_subsets": len(self.subsets),
            "num_train": self.masks.shape[1],
            "num_kept": [int(kept.min()), int(kept.max())],
            "seeds": list(self.seeds),
            "num_test": len(self.targets),
            "measured": self.measured,
            "train": self.train,
            "train_seconds": float(self.seconds.sum()),
            "library": self.library,
        }
        for name in ("accuracy", "loss", "train_accuracy", "train_loss"):
            values = getattr(self, name)
            if values is not None:
                facts[name] = float(values.mean())
                facts[f"{name}_sd"] = float(values.std()) if values.numel() > 1 else 0.0
        return facts


def retrain(
    train: Train,
    subsets: Subsets,
    task: Task,
    test: Any,
    *,
    folder: str | os.PathLike[str],
    seeds: Sequence[int] = (0, 1),
    targets: Int[Tensor, " test"] | None = None,
    train_set: Any = None,
    workers: int | None = None,
    start_method: StartMethod | None = None,
    name: str | None = None,
    progress: bool = True,
) -> Bank:
    """Retrain on every subset with every seed, and record what the models say of the test samples.

    A run is kept as soon as it ended; after a kill, an error or Ctrl-C the same call goes on from
    there. Before `train` is called, torch's, numpy's and Python's global random generators start from
    a number that depends on seed and subset alone (`Run.random_seed`), and one thread computes: a
    recipe that draws from nothing else gives the same bits whatever happened on the way and however
    many workers there were. For the same initial weights on all subsets, seed with `seed` yourself.

    Args:
        train: (mask "train", seed) → trained model; the mask is True where a sample is kept. For
            `label_flips` a third argument holds the labels "train". It must not raise the number of
            threads: a forked process would wait for ever.
        subsets: `half_subsets`, `leave_one_out`, `leave_groups_out`, `label_flips`, or `Subsets` of
            masks of your own.
        task: says what is measured, how batches split, and what the loss is; its model is not used.
        test: labelled samples; read once and kept in memory.
        folder: of this one bank; made where it is missing. A bank of other content is refused, unless
            no run of it ended: then the folder is taken over. What `train` reads from its module's
            globals and what it calls cannot be seen.
        seeds: distinct; one training each per subset.
        targets: output columns to measure; None takes the labels of the test samples. Never a model's
            own predictions: they differ between the models.
        train_set: the training set; given, each model's accuracy and mean loss on the samples it was
            trained on are recorded too, which tells half-trained models.
        workers: processes; None takes one a core, 0 trains in this process.
        start_method: "fork" or "spawn"; None forks on Linux without CUDA and spawns elsewhere. A
            spawned worker imports `train` by name.
        name: a name for `train` where its content cannot be hashed (a lambda, a closure over a data
            set). It then stands for the values that `train` carries: change it when they change.
        progress: whether to show a line, and a bar with the time left.

    Raises:
        StoreMismatch: the folder holds a bank of other content; the message says what differs.
        RuntimeError: a run failed in a worker, with its traceback, or a worker was killed. With
            workers=0 the error itself comes, with a note that names subset and seed.
        ValueError: an argument cannot be used; the message says which.
        TypeError: `train` cannot be called with these arguments, or not be sent to spawned workers.
    """
    check_not_imported()
    check_train(train, labels=subsets.labels is not None)
    workers, start_method = num_cores() if workers is None else workers, start_method or default_start()
    if workers < 0:
        raise ValueError(f"`workers` is {workers}; expected 0 (this process) or more")
    if workers and start_method == "spawn":
        check_importable(train, "train")
    retraining = _prepare(train, subsets, task, test, targets, train_set)
    description = _describe(retraining, tuple(seeds), name)
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        flush_folder(folder.parent)
    with locked(folder / LOCK):
        begin(folder, description)
        records, damaged = read_records(folder, description.key, description.runs)
        for error in damaged:
            log.warning("%s: this run is repeated", error)
        total, left = len(description.runs), [run for run in description.runs if run not in records]
        workers = min(workers, len(left))
        place = f"{workers} worker processes" if workers else "this process"
        line = f"retraining {total:,} models ({len(subsets):,} subsets × {len(description.seeds)} seeds) in {place}"
        announce(f"{line}, kept in {folder}; {len(records):,} are there already", progress)
        # The bar comes second: it may start a thread, and no thread should stand beside a fork.
        with (
            started_workers(retraining, workers, start_method) as started,
            progress_bar(total, done=len(records), enabled=progress) as bar,
        ):
            bar.unit = "run"

            def keep(record: Record) -> None:
                write_record(folder, description.key, record)
                records[record.run] = record
                bar.update()

            try:
                distribute(retraining, started, left, keep)
            finally:
                if len(records) < total:
                    words = "stopped; %d of %d runs are kept in %s, and the same call goes on from there"
                    log.warning(words, len(records), total, folder)
        return Bank._of(folder, description, records)


def _prepare(
    train: Train, subsets: Subsets, task: Task, test: Any, targets: Tensor | None, train_set: Any
) -> Retraining:
    """Gather what a run takes; of the task only what it takes, since spawned workers are sent it."""
    samples = None if train_set is None else as_samples(train_set, name="train_set")
    num_train = subsets.masks.shape[1]
    if samples is not None and len(samples) != num_train:
        raise ValueError(f"`train_set` holds {len(samples)} samples, the subsets' masks are over {num_train}")
    read = ReadSamples.of(task, as_samples(test, name="test"), targets)
    stripped = replace(task, model=nn.Identity(), readout=None, checkpoints=(), class_names=None, display=None)
    return Retraining(train, subsets, stripped, read, samples)


def _describe(retraining: Retraining, seeds: tuple[int, ...], name: str | None) -> Description:
    """Hash all that the numbers depend on, with words that tell a person what differs."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"`seeds` are {seeds}; expected at least one, each once")
    subsets, task, test = retraining.subsets, retraining.task, retraining.test
    measures = task.output if isinstance(task.output, tuple) else (task.output,)
    measured = tuple(replace(task, output=measure).measured for measure in measures)
    tensors = {"masks": subsets.masks} | ({} if subsets.labels is None else {"labels": subsets.labels})
    facts = json.dumps([subsets.reference, subsets.facts], sort_keys=True)
    shape = " × ".join(map(str, subsets.masks.shape))
    parts = {
        "subsets": (f"{subsets.protocol}, {shape}", hash_bytes(facts, hash_tensors(tensors))),
        "seeds": (", ".join(map(str, seeds)), ""),
        "train": _identity(retraining.train, name),
        "test": (f"{len(test.labels)} samples", test.fingerprint),
        "targets": (f"{len(test.targets)} columns", hash_tensor(test.targets)),
        "output": (", ".join(measured), hash_bytes(*map(callable_fingerprint, measures))),
        "loss": (getattr(task.loss, "name", type(task.loss).__name__), callable_fingerprint(task.loss)),
    }
    if retraining.train_set is not None:
        data = retraining.train_set  # read whole, labels and all: beside the trainings that is nothing
        digests = [
            data_fingerprint(torch.tensor(positions), [(positions[0], batch)])
            for positions, batch in data.batches(range(len(data)), 256)
        ]
        parts["train_set"] = (f"{len(data)} samples", hash_bytes(*digests))
    return Description(subsets, seeds, test.targets, measured, isinstance(task.output, tuple), parts)


def _identity(train: Train, name: str | None) -> tuple[str, str]:
    """Name the recipe, and hash its source and, where no name vouches for them, the values it carries."""
    plain = plain_function(train)
    if name is None:
        try:
            return getattr(plain, "__qualname__", type(plain).__qualname__), callable_fingerprint(train)
        except ValueError as error:
            raise ValueError(
                f"`train` cannot be told from another: {error}. Or give name=, which then stands for what it carries"
            ) from error
    try:
        return name, hash_bytes("named", name, inspect.getsource(plain))
    except (OSError, TypeError):  # typed into a prompt, or an object: its name alone tells it
        return name, hash_bytes("named", name)
