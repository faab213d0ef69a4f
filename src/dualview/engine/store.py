"""The store: recorded rows on disk that survive a kill, verify themselves and grow with the data set.

    root/<key>/manifest.json                  what was recorded, by which model, in which files
               shard-00000-2048.safetensors   its number and how many consecutive rows; memory-mapped
               probe.safetensors              inputs and outputs that tell the model
               fits/<name>.safetensors        fitted states, each with its description
               .lock, fits/.lock              held while something is written; empty

The key is the hash of what the rows depend on besides the data (`Key`), so that one root holds any
number of models and representations. Every file is replaced atomically and carries a checksum, and
no file is a pickle.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm.auto import tqdm

from dualview._version import __version__
from dualview.engine.files import flush_folder, load_tensors, remove_temporaries, save_tensors
from dualview.engine.locks import locked
from dualview.engine.manifest import MANIFEST, Key, Manifest, as_json
from dualview.engine.progress import announce, progress_bar
from dualview.engine.shards import RowSpec, Shard, find_damage, read_shard, remove_unlisted, write_shard
from dualview.engine.tables import Rows, Table, join_rows
from dualview.errors import DamagedFile, StoreError, StoreMismatch

log = logging.getLogger("dualview")

_LOCK = ".lock"
_PROBE = "probe.safetensors"
_FITS = "fits"
_SUFFIX = ".safetensors"
_OTHER_DATA = "use another `store=`, or give each data set a `data_id` of its own"
_FIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

Produce = Callable[[int, int], Rows | Iterable[Rows]]
ShardFingerprint = Callable[[int, int], str]


class _Job(NamedTuple):
    """Rows start, ..., stop - 1 are to be computed for one shard, after those that `kept` holds."""

    number: int
    start: int
    stop: int
    kept: Shard | None


@dataclass(frozen=True, init=False)
class Store:
    """A folder of recorded rows and fitted states.

    Args:
        root: the folder; made at the first recording.
        shard_rows: rows of a shard, at most.
        max_shard_bytes: size of a shard, at most, but never less than one row. Both hold for new
            recordings; one that exists keeps its own.
    """

    root: Path
    shard_rows: int
    max_shard_bytes: int

    def __init__(
        self, root: str | os.PathLike[str], *, shard_rows: int = 1024, max_shard_bytes: int = 64 * 2**20
    ) -> None:
        for name, value in (("shard_rows", shard_rows), ("max_shard_bytes", max_shard_bytes)):
            if value < 1:
                raise ValueError(f"expected `{name}` to be at least 1, got {value}")
        object.__setattr__(self, "root", Path(root).expanduser())  # the way to set a field of a frozen dataclass
        object.__setattr__(self, "shard_rows", shard_rows)
        object.__setattr__(self, "max_shard_bytes", max_shard_bytes)

    # ── recording ────────────────────────────────────────────────────────────────────────────────

    def record(
        self,
        key: Key,
        num_rows: int,
        produce: Produce,
        shard_fingerprint: ShardFingerprint,
        *,
        spec: RowSpec,
        input_spec: Any = None,
        progress: bool = True,
    ) -> tuple[Table, int]:
        """Record the rows of a data set, computing only those that are not stored yet.

        Shards hold the same rows however often the recording was interrupted or extended; after any
        resume the folder's files are byte for byte those of an undisturbed run, provided that
        `produce` gives the same bytes.

        Args:
            key: what the rows depend on besides the data.
            num_rows: samples of the data set.
            produce: (start, stop) → rows start, ..., stop - 1 of the data set, as one block or as an
                iterable of consecutive ones; the bar moves with each.
            shard_fingerprint: (start, stop) → fingerprint of these samples, from the data set.
            spec: what one row holds.
            input_spec: description of the model's inputs, as JSON values; kept in the manifest.
            progress: whether to show a line on the size, and a bar with the time left.

        Returns:
            The table of all rows, memory-mapped, and how many rows were computed now.

        Raises:
            ValueError: the data set is empty, or `produce` gave other rows than asked for.
            StoreMismatch: the stored rows come from another data set, or are of another kind.
            DamagedFile: the manifest was altered.
        """
        if num_rows < 1:
            raise ValueError(f"expected a data set with samples, got {num_rows} of them")
        folder = self.root / key.folder
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            flush_folder(self.root)
        with locked(folder / _LOCK):
            remove_temporaries(folder)
            manifest = self._begin(folder, key, num_rows, spec, as_json(input_spec))
            _check_data(folder, manifest, num_rows, shard_fingerprint)
            if manifest.num_rows != num_rows:
                manifest = dataclasses.replace(manifest, num_rows=num_rows)
            jobs = _plan(folder, manifest)
            manifest.write(folder)
            remove_unlisted(folder, manifest.shards)
            computed = sum(job.stop - job.start for job in jobs)
            line = f"recording {spec.describe(num_rows)} in {folder}; {num_rows - computed:,} rows are there already"
            announce(line, progress)
            with progress_bar(num_rows, done=num_rows - computed, enabled=progress) as bar:
                for job in jobs:
                    manifest = _carry_out(job, folder, manifest, produce, shard_fingerprint, bar)
            remove_unlisted(folder, manifest.shards)
            return Table([read_shard(folder, shard) for shard in manifest.shards], manifest.spec.layout), computed

    def _begin(self, folder: Path, key: Key, num_rows: int, spec: RowSpec, input_spec: Any) -> Manifest:
        """Read the manifest of a recording that holds rows, or begin one."""
        manifest = Manifest.read(folder) if (folder / MANIFEST).exists() else None
        if manifest is None or not manifest.shards:
            rows_per_shard = min(self.shard_rows, max(1, self.max_shard_bytes // spec.row_bytes))
            key = dataclasses.replace(key, representation=as_json(key.representation))
            return Manifest(key, __version__, spec, input_spec, num_rows, rows_per_shard)
        for name, stored, given in (("rows", manifest.spec, spec), ("inputs", manifest.input_spec, input_spec)):
            if stored != given:
                raise StoreMismatch(
                    f"the store at {folder} holds features from other {name}: {stored} there, {given} now; "
                    f"{_OTHER_DATA}"
                )
        return manifest

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def keys(self) -> list[str]:
        """List the keys' folders that hold a manifest, in the order of their names."""
        return sorted(path.parent.name for path in self.root.glob(f"*/{MANIFEST}"))

    def manifest(self, key: Key | str) -> Manifest:
        """Read what the folder of a key holds.

        Raises:
            StoreMismatch: the store holds nothing for this key.
            DamagedFile: the manifest was altered.
        """
        folder = self._folder(key)
        if (folder / MANIFEST).exists():
            return Manifest.read(folder)
        if isinstance(key, str):
            raise StoreMismatch(f"the store at {self.root} has no folder {key!r}; it has: {self.keys() or 'none'}")
        held = [f"{one.key.model_class} ({one.key.representation})" for one in map(self.manifest, self.keys())]
        raise StoreMismatch(
            f"the store at {self.root} holds nothing of this {key.model_class} ({key.representation}); it holds "
            f"features of: {'; '.join(held) or 'no model'}. Weights that changed make another model; run fit on it"
        )

    def open(self, key: Key | str, *, num_rows: int | None = None, verify: bool = True) -> Table:
        """Open a recording without its data set.

        Args:
            key: the key, or the name of its folder.
            num_rows: only so many rows from the start, e.g. those that a fit was made on before more
                were appended; None takes all and asks that the recording be finished.
            verify: whether to read every shard once, for its checksum; else only sizes are compared.

        Raises:
            StoreMismatch: the store holds nothing for this key.
            StoreError: the recording is not finished.
            DamagedFile: a shard or the manifest is missing, truncated or altered.
        """
        folder, manifest = self._folder(key), self.manifest(key)
        wanted = manifest.num_rows if num_rows is None else num_rows
        if manifest.num_recorded < wanted:
            raise StoreError(
                f"the recording at {folder} is not finished: {manifest.num_recorded:,} of {wanted:,} rows; run fit "
                f"again on this store with the training data, and it goes on from there"
            )
        parts = []
        for shard in manifest.shards:
            if shard.first >= wanted:
                break
            damage = find_damage(folder, shard, checksum=verify)
            if damage and self.manifest(key) != manifest:  # another process extended it meanwhile
                return self.open(key, num_rows=num_rows, verify=verify)
            if damage:
                raise DamagedFile(
                    f"{folder / shard.file} (samples {shard.first:,} to {shard.stop - 1:,}) {damage}; run fit again "
                    f"on this store with the training data: only this shard is recomputed"
                )
            rows = read_shard(folder, shard)
            keep = min(shard.stop, wanted) - shard.first
            parts.append(rows if keep == shard.num_rows else Rows(*(column[:keep] for column in rows)))
        return Table(parts, manifest.spec.layout)

    # ── fitted states and the model's probe ──────────────────────────────────────────────────────

    def save_fit(self, key: Key | str, name: str, tensors: Mapping[str, Tensor], info: Any) -> None:
        """Keep a fitted state beside the rows that it was fitted on, replacing one of the same name.

        Args:
            key: the key, or the name of its folder.
            name: letters, digits, `_`, `-` and `.`.
            tensors: dense tensors.
            info: whatever describes the fit, as JSON values.
        """
        if not _FIT_NAME.fullmatch(name):
            raise ValueError(f"expected the fit's name in letters, digits, '_', '-' and '.', got {name!r}")
        self.manifest(key)
        self._save(self.fit_file(key, name), tensors, info)

    def load_fit(self, key: Key | str, name: str) -> tuple[dict[str, Tensor], Any]:
        """Load a fitted state: its tensors, memory-mapped, and its description.

        Raises:
            StoreError: there is no such fit; the message lists those there are.
            DamagedFile: its file was truncated or altered.
        """
        if name not in self.fits(key):
            raise StoreError(f"{self._folder(key)} has no fit {name!r}; it has: {self.fits(key) or 'none'}")
        return load_tensors(self.fit_file(key, name))

    def fits(self, key: Key | str) -> list[str]:
        """Name the fits of a key, in order."""
        files = (self._folder(key) / _FITS).glob(f"*{_SUFFIX}")
        return sorted(path.name.removesuffix(_SUFFIX) for path in files)

    def fit_file(self, key: Key | str, name: str) -> Path:
        """Return where a fit stands, or would."""
        return self._folder(key) / _FITS / f"{name}{_SUFFIX}"

    def save_probe(self, key: Key | str, tensors: Mapping[str, Tensor], info: Any = None) -> None:
        """Keep some inputs and the model's outputs on them, to tell the model by when it comes back."""
        self.manifest(key)
        self._save(self._folder(key) / _PROBE, tensors, info)

    def load_probe(self, key: Key | str) -> tuple[dict[str, Tensor], Any]:
        """Load what `save_probe` kept; FileNotFoundError where nothing was."""
        return load_tensors(self._folder(key) / _PROBE)

    def _folder(self, key: Key | str) -> Path:
        return self.root / (key if isinstance(key, str) else key.folder)

    def _save(self, path: Path, tensors: Mapping[str, Tensor], info: Any) -> None:
        path.parent.mkdir(exist_ok=True)
        with locked(path.parent / _LOCK):
            remove_temporaries(path.parent)
            save_tensors(path, tensors, info)


def _check_data(folder: Path, manifest: Manifest, num_rows: int, shard_fingerprint: ShardFingerprint) -> None:
    """Refuse a data set that does not begin with the samples that were recorded."""
    if manifest.num_recorded > num_rows:
        raise StoreMismatch(
            f"the store at {folder} holds {manifest.num_recorded:,} rows, but this data set has only "
            f"{num_rows:,} samples; {_OTHER_DATA}"
        )
    for shard in manifest.shards:
        if shard_fingerprint(shard.first, shard.stop) != shard.data:
            raise StoreMismatch(
                f"the store at {folder} holds features of another data set: samples {shard.first:,} to "
                f"{shard.stop - 1:,} differ (or are read with random augmentation); {_OTHER_DATA}"
            )


def _plan(folder: Path, manifest: Manifest) -> list[_Job]:
    """List what is to be computed: shards that are missing, damaged, or end before the data set does."""
    jobs = []
    for number, first in enumerate(range(0, manifest.num_rows, manifest.rows_per_shard)):
        stop = min(first + manifest.rows_per_shard, manifest.num_rows)
        shard = manifest.shards[number] if number < len(manifest.shards) else None
        if shard is not None:
            damage = find_damage(folder, shard)
            if damage:
                log.warning("%s %s; its rows are computed again", folder / shard.file, damage)
                shard = None
        start = first if shard is None else shard.stop
        if start < stop:
            jobs.append(_Job(number, start, stop, shard))
    return jobs


def _carry_out(
    job: _Job, folder: Path, manifest: Manifest, produce: Produce, shard_fingerprint: ShardFingerprint, bar: tqdm
) -> Manifest:
    """Compute the rows of one shard, write it, then write the manifest that knows it."""
    produced = produce(job.start, job.stop)
    blocks = []
    for block in [produced] if isinstance(produced, Rows) else produced:
        blocks.append(block)
        bar.update(len(block.index))
    if not blocks:
        raise ValueError(f"expected rows {job.start} to {job.stop - 1} from `produce`, got none")
    rows = join_rows(blocks)
    manifest.spec.check(rows, job.start, job.stop)
    first = job.start
    if job.kept is not None:
        first = job.kept.first
        rows = join_rows([read_shard(folder, job.kept), rows])
    shard = write_shard(folder, job.number, rows, shard_fingerprint(first, job.stop))
    shards = (*manifest.shards[: job.number], shard, *manifest.shards[job.number + 1 :])
    manifest = dataclasses.replace(manifest, shards=shards)
    manifest.write(folder)
    return manifest
