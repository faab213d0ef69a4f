"""Files that are whole or refused: atomic replacement, and tensors with JSON under one checksum."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dualview.engine.fingerprint import hash_bytes, hash_tensors, new_hash
from dualview.errors import DamagedFile, StoreError

_FORMAT = 1
_MARK = "dualview"  # the one metadata key: with several, safetensors writes them in random order


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a kill or a power cut leaves the old file or the new one, whole.

    Written under a temporary name in the same folder, flushed to the disk, renamed, and the folder
    flushed. A killed process leaves at most its temporary file, `.<name>.<process>.tmp`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk (POSIX; elsewhere the rename itself does)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in `folder`; only while no other process can write there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """Hash a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, new_hash).hexdigest()


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors into the form that safetensors takes: dense, on the CPU, none sharing memory."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise TypeError(f"expected dense tensors, {name!r} is {tensor.layout}; give its indices and values apart")
        tensor = tensor.detach().cpu().contiguous()
        alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        known = any(tensor.data_ptr() == other.data_ptr() for other in plain.values())
        plain[name] = tensor if alone and not known else tensor.clone()
    return plain


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], info: Any = None) -> None:
    """Save named tensors and a JSON value as one safetensors file, atomically.

    The same tensors and info give the same bytes. The checksum inside covers names, dtypes, shapes,
    values and info. In memory it takes the file's size once more while it is written.

    Args:
        path: the file; an existing one is replaced.
        tensors: dense tensors of any dtype and device.
        info: what `json.dumps` takes; comes back as `json.loads` gives it (tuples as lists, keys as
            texts).
    """
    plain = plain_tensors(tensors)
    text = json.dumps(info)
    head = json.dumps({"format": _FORMAT, "checksum": _checksum(_FORMAT, text, plain), "info": text})
    write_atomically(Path(path), safetensors.torch.save(plain, {_MARK: head}))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Any]:
    """Load what `save_tensors` saved, after verifying its checksum.

    The tensors map the file: writing to one changes this process's memory only, never the file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: the file is truncated, altered, or not one of ours.
        StoreError: a newer version of dualview wrote it.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise DamagedFile(f"{path} is truncated, altered, or no safetensors file ({error}); make it again") from error
    if _MARK not in metadata:
        raise DamagedFile(f"{path} is a safetensors file, but dualview did not write it")
    try:
        head = json.loads(metadata[_MARK])
        version, checksum, text = head["format"], head["checksum"], head["info"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path} was altered: its description cannot be read; make it again") from error
    if not isinstance(text, str) or checksum != _checksum(version, text, tensors):
        raise DamagedFile(f"{path} was altered: its checksum does not match its content; make it again")
    if version != _FORMAT:
        raise StoreError(f"{path} has format {version}, this dualview reads format {_FORMAT}; use a newer dualview")
    return tensors, json.loads(text)


def _checksum(version: Any, text: str, tensors: Mapping[str, Tensor]) -> str:
    return hash_bytes(str(version), text, hash_tensors(tensors))
