"""A bank's folder: what it is about comes back, and what is damaged or foreign is told."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dualview.engine.bank_folder import Description, begin, read_records, write_record
from dualview.engine.files import load_tensors, save_tensors
from dualview.engine.runs import Record, Run
from dualview.engine.subsets import Subsets, label_flips
from dualview.errors import DamagedFile, StoreError, StoreMismatch

SUBSETS = label_flips(torch.tensor([0, 1, 1]), torch.tensor([2]), num_classes=2)
PARTS = {"train": ("ridge", "0123"), "seeds": ("0, 5", ""), "test": ("2 samples", "89ab")}
ABOUT = Description(SUBSETS, (0, 5), torch.tensor([1, 0]), ("margin",), several=False, parts=PARTS)


def record(run: Run) -> Record:
    return Record(run, np.array([[run.subset + 0.1, run.seed / 3]]), {"loss": 0.1 + run.seed, "seconds": 1e-3})


def filled(folder: Path) -> Path:
    begin(folder, ABOUT)
    for run in ABOUT.runs:
        write_record(folder, ABOUT.key, record(run))
    return folder


def test_description_and_records_come_back(tmp_path):
    filled(tmp_path)
    found = Description.read(tmp_path)
    assert (found.seeds, found.measured, found.several, found.parts) == ((0, 5), ("margin",), False, PARTS)
    assert found.key == ABOUT.key and found.runs == [(0, 0), (0, 5), (1, 0), (1, 5)] and found.library == ABOUT.library
    for name in ("masks", "labels"):
        assert torch.equal(getattr(found.subsets, name), getattr(SUBSETS, name))
    assert (found.subsets.protocol, found.subsets.reference) == ("label_flips", 0)
    assert found.subsets.facts == SUBSETS.facts and torch.equal(found.targets, ABOUT.targets)
    records, damaged = read_records(tmp_path, ABOUT.key, ABOUT.runs)
    assert list(records) == ABOUT.runs and damaged == []
    for run in ABOUT.runs:
        assert records[run].scalars == record(run).scalars
        assert np.array_equal(records[run].outputs, record(run).outputs)


def test_a_run_without_a_record_is_left_out(tmp_path):
    filled(tmp_path)
    (tmp_path / "run-00001-seed-0.safetensors").unlink()
    records, damaged = read_records(tmp_path, ABOUT.key, ABOUT.runs)
    assert set(ABOUT.runs) - set(records) == {Run(1, 0)} and damaged == []


def test_a_damaged_and_a_misnamed_record_are_named(tmp_path):
    filled(tmp_path)
    torn, copied = (tmp_path / f"run-0000{k}-seed-5.safetensors" for k in (0, 1))
    torn.write_bytes(torn.read_bytes()[:-3])
    shutil.copy(tmp_path / "run-00000-seed-0.safetensors", copied)
    records, damaged = read_records(tmp_path, ABOUT.key, ABOUT.runs)
    assert list(records) == [(0, 0), (1, 0)]
    assert f"{torn} is truncated" in str(damaged[0])
    assert str(damaged[1]) == f"{copied} is the record of subset 0, seed 0, under another name"


def test_a_record_of_another_bank_is_refused(tmp_path):
    filled(tmp_path)
    write_record(tmp_path, "another key", record(Run(1, 0)))
    with pytest.raises(StoreMismatch, match=r"run-00001-seed-0\.safetensors belongs to another bank"):
        read_records(tmp_path, ABOUT.key, ABOUT.runs)


def test_other_content_is_refused_and_said(tmp_path):
    filled(tmp_path)
    before = (tmp_path / "bank.safetensors").read_bytes()
    parts = PARTS | {"train": ("ridge", "4567"), "seeds": ("0", ""), "train_set": ("3 samples", "")}
    with pytest.raises(StoreMismatch) as caught:
        begin(tmp_path, replace(ABOUT, parts=parts))
    text = (
        "other content: seeds (0, 5 there, 0 now); train (ridge, with another content); train_set (none there, "
        "3 samples now). Give another `folder`"
    )
    assert text in str(caught.value) and "test (" not in str(caught.value)
    assert (tmp_path / "bank.safetensors").read_bytes() == before


def test_a_bank_without_a_finished_run_takes_on_other_content(tmp_path):
    begin(tmp_path, ABOUT)
    other = replace(ABOUT, parts=PARTS | {"train": ("mended", "4567")})
    begin(tmp_path, other)
    assert Description.read(tmp_path).key == other.key != ABOUT.key
    # One run, even of a record that cannot be read, is kept from then on.
    path = tmp_path / "run-00000-seed-0.safetensors"
    path.write_bytes(b"torn")
    with pytest.raises(StoreMismatch, match=r"train \(mended there, ridge now\)\. .*`--store` on the command line"):
        begin(tmp_path, ABOUT)
    assert Description.read(tmp_path).key == other.key and path.read_bytes() == b"torn"


def test_the_same_content_goes_on_and_leftovers_of_a_kill_are_removed(tmp_path):
    filled(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / ".run-00001-seed-0.safetensors.1-1.tmp").write_bytes(b"torn")
    begin(tmp_path, ABOUT)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_damaged_description_is_written_again_but_not_guessed(tmp_path, caplog):
    filled(tmp_path)
    path = tmp_path / "bank.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedFile, match=r"bank\.safetensors is truncated"):
        Description.read(tmp_path)
    with caplog.at_level(logging.WARNING, "dualview"):
        begin(tmp_path, ABOUT)
    assert "bank.safetensors is truncated" in caplog.text and "it is written again from the arguments" in caplog.text
    assert path.read_bytes() == whole
    # Where it was another bank's, its records still tell.
    path.write_bytes(whole[:-1])
    other = replace(ABOUT, parts=PARTS | {"seeds": ("0", "")})
    begin(tmp_path, other)
    with pytest.raises(StoreMismatch, match="belongs to another bank"):
        read_records(tmp_path, other.key, ABOUT.runs)


def test_no_bank_and_one_of_another_version_are_told_apart(tmp_path):
    with pytest.raises(StoreError, match="holds no bank: there is no bank.safetensors; `retrain` makes one"):
        Description.read(tmp_path)
    ABOUT.write(tmp_path)
    tensors, info = load_tensors(tmp_path / "bank.safetensors")
    save_tensors(tmp_path / "bank.safetensors", tensors, info | {"schema": 2, "library": "9.0"})
    with pytest.raises(StoreError, match="has schema 2, this dualview knows 1; it was written by dualview 9.0"):
        Description.read(tmp_path)


def test_the_key_holds_everything_the_numbers_depend_on():
    keys = {replace(ABOUT, parts=PARTS | {name: ("other", "")}).key for name in PARTS} | {ABOUT.key}
    assert len(keys) == len(PARTS) + 1
    assert replace(ABOUT, subsets=Subsets(SUBSETS.masks), library="9.0").key == ABOUT.key
