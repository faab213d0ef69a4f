"""Files of tensors and JSON: they come back exactly, or are refused."""

import os
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dualview.engine import files
from dualview.engine.files import load_tensors, save_tensors
from dualview.errors import DamagedFile, StoreError

INFO = {"method": "DualView", "scores": [0.1, None, True], "nested": {"ü": "é"}}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 4, generator=generator)
    return {
        "wide": wide,
        "column": wide[:, 1],  # shares memory, with strides
        "again": wide,
        "double": wide.double().t(),
        "half": wide.bfloat16(),
        "flags": wide > 0,
        "index": torch.arange(5),
        "number": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
    }


def test_tensors_and_info_come_back(tmp_path):
    save_tensors(tmp_path / "a.safetensors", tensors(), INFO)
    loaded, info = load_tensors(tmp_path / "a.safetensors")
    assert info == INFO and list(info) == list(INFO)
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_the_same_content_gives_the_same_bytes(tmp_path):
    save_tensors(tmp_path / "a", tensors(), INFO)
    save_tensors(str(tmp_path / "b"), dict(reversed(tensors().items())), INFO)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_flipped_bit_and_any_truncation_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"scores": torch.tensor([1.0, -2.0]), "index": torch.tensor([3])}, INFO)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        with pytest.raises(DamagedFile, match=r"a\.safetensors"):
            load_tensors(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile, match=r"a\.safetensors"):
            load_tensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DamagedFile):
        load_tensors(path)


def test_files_of_others_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(DamagedFile, match="dualview did not write it"):
        load_tensors(path)
    for head in ("[]", "{}", "text", '{"format": 1, "checksum": "", "info": {}}'):
        safetensors.torch.save_file({"weight": torch.ones(2)}, path, {"dualview": head})
        with pytest.raises(DamagedFile, match="altered"):
            load_tensors(path)
    path.write_text("a text")
    with pytest.raises(DamagedFile, match="no safetensors file"):
        load_tensors(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        load_tensors(tmp_path / "missing.safetensors")
    monkeypatch.setattr(files, "_FORMAT", 2)
    save_tensors(path, {}, None)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="use a newer dualview"):
        load_tensors(path)


def test_loaded_tensors_do_not_write_to_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors(), INFO)
    before = path.read_bytes()
    loaded, _ = load_tensors(path)
    for tensor in loaded.values():
        tensor.zero_()
    assert path.read_bytes() == before
    save_tensors(path, loaded, INFO)  # a file may be replaced while it is mapped
    assert all(not tensor.any() for tensor in load_tensors(path)[0].values())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors(), INFO)

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_tensors(path, {}, None)
    monkeypatch.undo()
    assert load_tensors(path)[1] == INFO
    assert list(tmp_path.iterdir()) == [path]


def test_sparse_tensors_are_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match="'scores' is torch.sparse_coo"):
        save_tensors(tmp_path / "a", {"scores": torch.eye(2).to_sparse()})


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_others_may_read_what_the_user_lets_them(tmp_path: Path):
    plain = tmp_path / "plain"
    plain.touch()
    save_tensors(tmp_path / "a", tensors())
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
