"""The manifest of a store's folder: what was recorded, by which model, and which files hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dualview.engine.files import write_atomically
from dualview.engine.fingerprint import hash_bytes
from dualview.engine.shards import RowSpec, Shard
from dualview.errors import DamagedFile
from dualview.ops.layout import as_layout

SCHEMA = 2
"""Version of the folder's layout; part of every key, so that another layout is another folder."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Key:
    """What recorded rows depend on besides the data; its hash names their folder.

    Attributes:
        representation: what is recorded of each sample, as JSON values.
        model_class: the model's class, for people to read.
        model_fingerprint: as `model_fingerprint` gives it.
        data_id: the user's own name for the data set, where there is one.
    """

    representation: Mapping[str, Any]
    model_class: str
    model_fingerprint: str
    data_id: str | None = None

    @property
    def folder(self) -> str:
        """Name of the folder: a hash of representation, model, layout and data_id."""
        return hash_bytes(_canonical([SCHEMA, self.representation, self.model_fingerprint, self.data_id]))


@dataclass(frozen=True)
class Manifest:
    """What stands in one folder of a store.

    Attributes:
        key: what the rows depend on.
        library: version of dualview that began the recording.
        spec: what one row holds.
        input_spec: the caller's description of the model's inputs, as JSON values.
        num_rows: rows of the data set, recorded or still to be.
        rows_per_shard: rows of every shard but the last.
        shards: whole shards, in data-set order.
    """

    key: Key
    library: str
    spec: RowSpec
    input_spec: Any
    num_rows: int
    rows_per_shard: int
    shards: tuple[Shard, ...] = ()

    @property
    def num_recorded(self) -> int:
        """Rows that stand in whole shards."""
        return self.shards[-1].stop if self.shards else 0

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the data set's recorded samples."""
        return hash_bytes("shards", *(shard.data for shard in self.shards))

    def write(self, folder: Path) -> None:
        """Write it into `folder`, atomically; nothing in it depends on the time or the process."""
        content = {
            "schema": SCHEMA,
            "library": self.library,
            "representation": self.key.representation,
            "model_class": self.key.model_class,
            "model_fingerprint": self.key.model_fingerprint,
            "data_id": self.key.data_id,
            "num_rows": self.num_rows,
            "rows_per_shard": self.rows_per_shard,
            "row_spec": {**self.spec._asdict(), "dtype": self.spec.dtype_name},
            "input_spec": self.input_spec,
            "shards": [shard._asdict() for shard in self.shards],
        }
        content["checksum"] = hash_bytes(_canonical(content))
        write_atomically(folder / MANIFEST, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of `folder`.

        Raises:
            FileNotFoundError: there is none.
            DamagedFile: it was altered, truncated, or is not one of ours.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_bytes().decode())
            checksum = content.pop("checksum")
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise DamagedFile(f"{path} was altered or truncated; remove the folder {folder} to record again") from error
        if checksum != hash_bytes(_canonical(content)):
            raise DamagedFile(f"{path} was altered: its checksum differs; remove the folder {folder} to record again")
        row = content["row_spec"]
        return cls(
            key=Key(*(content[name] for name in ("representation", "model_class", "model_fingerprint", "data_id"))),
            library=content["library"],
            spec=RowSpec(**{**row, "dtype": getattr(torch, row["dtype"]), "layout": as_layout(row["layout"])}),
            input_spec=content["input_spec"],
            num_rows=content["num_rows"],
            rows_per_shard=content["rows_per_shard"],
            shards=tuple(Shard(**shard) for shard in content["shards"]),
        )


def as_json(value: Any) -> Any:
    """Bring a value into the form in which JSON gives it back."""
    return json.loads(json.dumps(value))


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
