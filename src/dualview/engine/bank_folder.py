"""A bank's folder: what it is about, and one small file a run, so that a kill costs the runs under way.

    folder/bank.safetensors                subsets, targets, and what the numbers depend on
           run-00012-seed-1.safetensors    a record, written when its run ended
           .lock                           held while runs are added; empty

Every file is replaced atomically and carries a checksum; a record also carries the key of its bank.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from dualview._version import __version__
from dualview.engine.files import load_tensors, remove_temporaries, save_tensors
from dualview.engine.fingerprint import hash_bytes
from dualview.engine.runs import Record, Run
from dualview.engine.subsets import Subsets
from dualview.errors import DamagedFile, StoreError, StoreMismatch

log = logging.getLogger("dualview")

SCHEMA = 1
"""Version of the folder's layout and of how a run is seeded and measured; part of every key."""

LOCK = ".lock"
_DESCRIPTION = "bank.safetensors"


@dataclass(frozen=True, eq=False)
class Description:
    """What a bank is about.

    Attributes:
        subsets: what was trained on.
        seeds: one run per subset and seed.
        targets: "test" columns that are measured.
        measured: name of each output.
        several: whether the outputs have an axis of their own, because the task gave a tuple.
        parts: all that the numbers depend on, as name → (words for people, hash of the content).
        library: version of dualview that began it.
    """

    subsets: Subsets
    seeds: tuple[int, ...]
    targets: Int[Tensor, " test"]
    measured: tuple[str, ...]
    several: bool
    parts: Mapping[str, tuple[str, str]]
    library: str = __version__

    @property
    def key(self) -> str:
        """Hash of everything that the numbers depend on."""
        return hash_bytes(json.dumps([SCHEMA, self.parts], sort_keys=True))

    @property
    def runs(self) -> list[Run]:
        """List all runs, those of one subset together."""
        return [Run(subset, seed) for subset in range(len(self.subsets)) for seed in self.seeds]

    def write(self, folder: Path) -> None:
        """Write it into `folder`."""
        subsets = self.subsets
        tensors = {"masks": subsets.masks, "targets": self.targets}
        if subsets.labels is not None:
            tensors["labels"] = subsets.labels
        info = {
            "schema": SCHEMA,
            "library": self.library,
            "protocol": subsets.protocol,
            "reference": subsets.reference,
            "facts": subsets.facts,
            "seeds": self.seeds,
            "measured": self.measured,
            "several": self.several,
            "parts": self.parts,
        }
        save_tensors(folder / _DESCRIPTION, tensors, info)

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Read that of `folder`.

        Raises:
            StoreError: there is none, or another version of dualview wrote it.
            DamagedFile: it was altered or truncated.
        """
        path = folder / _DESCRIPTION
        if not path.exists():
            raise StoreError(f"{folder} holds no bank: there is no {_DESCRIPTION}; `retrain` makes one")
        tensors, info = load_tensors(path)
        if info["schema"] != SCHEMA:
            raise StoreError(
                f"the bank at {folder} has schema {info['schema']}, this dualview knows {SCHEMA}; it was written by "
                f"dualview {info['library']}: use that, or retrain into another folder"
            )
        subsets = Subsets(
            tensors["masks"], tensors.get("labels"), info["protocol"], info["reference"], facts=info["facts"]
        )
        parts = {name: (words, digest) for name, (words, digest) in info["parts"].items()}
        return cls(
            subsets,
            tuple(info["seeds"]),
            tensors["targets"],
            tuple(info["measured"]),
            info["several"],
            parts,
            info["library"],
        )


def begin(folder: Path, wanted: Description) -> None:
    """Prepare `folder` for runs; call it under the lock, which whoever is at work on the folder holds.

    A bank of other content of which no run ended, as a failed first try leaves it, gives way.

    Raises:
        StoreMismatch: it holds a bank of other content; the message says what differs.
    """
    remove_temporaries(folder)
    if (folder / _DESCRIPTION).exists():
        try:
            found = Description.read(folder)
        except DamagedFile as error:
            log.warning("%s; it is written again from the arguments", error)
        else:
            if found.key == wanted.key:
                return
            if _has_records(folder):
                raise StoreMismatch(
                    f"the bank at {folder} was made of other content: {_difference(found.parts, wanted.parts)}. "
                    "Give another `folder` (`--store` on the command line), or what it was made of"
                )
            log.info("the bank at %s was of other content and holds no run: it is begun anew", folder)
    wanted.write(folder)


def write_record(folder: Path, key: str, record: Record) -> None:
    """Keep what a run left."""
    info = {"key": key, "run": record.run, "scalars": record.scalars}
    save_tensors(_path(folder, record.run), {"outputs": torch.from_numpy(record.outputs)}, info)


def read_records(folder: Path, key: str, runs: Iterable[Run]) -> tuple[dict[Run, Record], list[DamagedFile]]:
    """Read those of the runs that have a record.

    Returns:
        The whole records, and what is wrong with each of the others.

    Raises:
        StoreMismatch: a record belongs to another bank.
    """
    records, damaged = {}, []
    for run in runs:
        try:
            records[run] = _read_record(folder, key, run)
        except FileNotFoundError:
            continue
        except DamagedFile as error:
            damaged.append(error)
    return records, damaged


def _read_record(folder: Path, key: str, run: Run) -> Record:
    path = _path(folder, run)
    tensors, info = load_tensors(path)
    if info["key"] != key:
        raise StoreMismatch(f"{path} belongs to another bank: move it out of this folder, or give another `folder`")
    if Run(*info["run"]) != run:
        raise DamagedFile(f"{path} is the record of {Run(*info['run'])}, under another name")
    return Record(run, tensors["outputs"].numpy().copy(), info["scalars"])  # a copy, so that no file stays mapped


def _has_records(folder: Path) -> bool:
    """Tell whether any run left a record, be it damaged: what it cost is not thrown away."""
    return any(folder.glob("run-*.safetensors"))


def _path(folder: Path, run: Run) -> Path:
    return folder / f"run-{run.subset:05d}-seed-{run.seed}.safetensors"


def _difference(there: Mapping[str, tuple[str, str]], now: Mapping[str, tuple[str, str]]) -> str:
    """Say in which parts two banks differ."""
    nothing = ("none", "")
    differs = []
    for name in sorted(there.keys() | now.keys()):
        (before, old), (after, new) = there.get(name, nothing), now.get(name, nothing)
        if before != after:
            differs.append(f"{name} ({before} there, {after} now)")
        elif old != new:
            differs.append(f"{name} ({after}, with another content)")
    return "; ".join(differs)
