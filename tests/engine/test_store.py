"""The store: what it holds, and what a growing data set, another data set and damage do to it."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dualview.engine.fingerprint import data_fingerprint, seeded_positions
from dualview.engine.manifest import Key
from dualview.engine.shards import RowSpec
from dualview.engine.store import Store
from dualview.engine.tables import Rows
from dualview.errors import DamagedFile, StoreError, StoreMismatch

KEY = Key({"kind": "activation", "site": "fc"}, "tests.Net", "0123")
SPEC = RowSpec(width=5, num_classes=3)
SHARD_ROWS = 4


class Recorder:
    """A data set whose features and outputs are known, with a note of every row asked for."""

    def __init__(self, num_rows: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(100, 5, generator=generator)[:num_rows]
        self.targets = torch.randint(3, (100,), generator=generator)[:num_rows]
        self.produced: list[tuple[int, int]] = []

    def outputs(self) -> Tensor:
        return 2 * self.inputs[:, :3]

    def produce(self, start: int, stop: int) -> Rows:
        self.produced.append((start, stop))
        here = slice(start, stop)
        return Rows(self.inputs[here], self.outputs()[here], self.targets[here], torch.arange(start, stop))

    def fingerprint(self, start: int, stop: int) -> str:
        samples = [(row, self.inputs[row]) for row in seeded_positions(start, stop)]
        return data_fingerprint(self.targets[start:stop], samples)

    def record(self, store: Store, key: Key = KEY, **options) -> tuple:
        self.produced.clear()
        options = {"spec": SPEC, "progress": False, **options}
        return store.record(key, len(self.inputs), self.produce, self.fingerprint, **options)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", shard_rows=SHARD_ROWS)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shard_file(store: Store, number: int) -> Path:
    return store.root / KEY.folder / store.manifest(KEY).shards[number].file


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)


def assert_holds(table, recorder: Recorder) -> None:
    assert torch.equal(table.values, recorder.inputs)
    assert torch.equal(table.outputs, recorder.outputs())
    assert torch.equal(table.targets, recorder.targets)
    assert torch.equal(torch.cat([part.index for part in table.parts]), torch.arange(len(recorder.inputs)))


# ── recording ────────────────────────────────────────────────────────────────────────────────────


def test_rows_come_back_as_recorded_and_are_computed_once(store):
    recorder = Recorder(10)
    table, computed = recorder.record(store)
    assert_holds(table, recorder)
    assert (computed, recorder.produced) == (10, [(0, 4), (4, 8), (8, 10)])
    table, computed = recorder.record(store)
    assert_holds(table, recorder)
    assert (computed, recorder.produced) == (0, [])
    assert_holds(store.open(KEY), recorder)
    assert_holds(store.open(store.keys()[0], verify=False), recorder)


def test_blocks_of_a_shard_are_joined(store, tmp_path):
    recorder = Recorder(10)

    def in_blocks(start: int, stop: int) -> Iterator[Rows]:
        for row in range(start, stop):
            yield recorder.produce(row, row + 1)

    table, computed = store.record(KEY, 10, in_blocks, recorder.fingerprint, spec=SPEC, progress=False)
    assert_holds(table, recorder)
    assert computed == 10
    recorder.record(Store(tmp_path / "other", shard_rows=SHARD_ROWS))
    assert content(store.root) == content(tmp_path / "other")


def test_shards_keep_to_their_size(tmp_path):
    # A row takes (5 + 3)·4 + 8 = 40 bytes, so 100 bytes hold two; less than a row still holds one.
    for limit, rows in ((100, 2), (39, 1)):
        store = Store(tmp_path / f"{limit}", max_shard_bytes=limit)
        Recorder(5).record(store)
        assert [shard.num_rows for shard in store.manifest(KEY).shards] == [rows] * (5 // rows) + [1] * (5 % rows)
    recorder = Recorder(6)  # a recording keeps its own size
    _, computed = recorder.record(Store(tmp_path / "100"))
    assert (computed, recorder.produced) == (1, [(5, 6)])


def test_appended_samples_cost_only_their_own_rows(store, tmp_path):
    Recorder(6).record(store)
    recorder = Recorder(11)
    table, computed = recorder.record(store)
    assert_holds(table, recorder)
    assert (computed, recorder.produced) == (5, [(6, 8), (8, 11)])
    Recorder(11).record(Store(str(tmp_path / "at once"), shard_rows=SHARD_ROWS))
    assert content(store.root) == content(tmp_path / "at once")
    assert_holds(store.open(KEY, num_rows=6), Recorder(6))


def test_each_model_representation_and_data_id_has_a_folder(store):
    keys = [
        KEY,
        Key(KEY.representation, KEY.model_class, "4567"),
        Key({**KEY.representation, "site": "head"}, KEY.model_class, KEY.model_fingerprint),
        Key(KEY.representation, KEY.model_class, KEY.model_fingerprint, data_id=""),
        Key(KEY.representation, KEY.model_class, KEY.model_fingerprint, data_id="v2"),
    ]
    for seed, key in enumerate(keys):
        recorder = Recorder(5, seed)
        assert recorder.record(store, key)[1] == 5
    assert store.keys() == sorted({key.folder for key in keys}) and len(store.keys()) == len(keys)
    for seed, key in enumerate(keys):
        assert_holds(store.open(key), Recorder(5, seed))
        assert store.manifest(key).key == key


def test_another_data_set_is_refused(store):
    Recorder(10).record(store)
    before = content(store.root)
    other = Recorder(10)
    other.targets[6] = (other.targets[6] + 1) % 3
    with pytest.raises(StoreMismatch, match=r"samples 4 to 7 differ.*`store=`.*`data_id`"):
        other.record(store)
    with pytest.raises(StoreMismatch, match="samples 0 to 3 differ"):
        Recorder(12, seed=1).record(store)
    with pytest.raises(StoreMismatch, match="holds 10 rows, but this data set has only 9 samples"):
        Recorder(9).record(store)
    with pytest.raises(StoreMismatch, match=r"other inputs: None there, \{'shape': \[5\]\} now"):
        Recorder(10).record(store, input_spec={"shape": (5,)})
    with pytest.raises(StoreMismatch, match="other rows: RowSpec"):
        Recorder(10).record(store, spec=RowSpec(5, 2))
    assert other.produced == [] and content(store.root) == before


def test_a_data_set_that_ends_within_an_unfinished_plan_is_taken(store):
    recorder = Recorder(10)

    def dying(start: int, stop: int) -> Rows:
        if start == 8:
            raise KeyboardInterrupt
        return recorder.produce(start, stop)

    with pytest.raises(KeyboardInterrupt):
        store.record(KEY, 10, dying, recorder.fingerprint, spec=SPEC, progress=False)
    with pytest.raises(StoreError, match=r"not finished: 8 of 10 rows; run fit again"):
        store.open(KEY)
    assert_holds(store.open(KEY, num_rows=7), Recorder(7))
    recorder = Recorder(8)
    assert recorder.record(store)[1] == 0
    assert_holds(store.open(KEY), recorder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows._replace(index=rows.index + 1), "data-set order"),
        (lambda rows: rows._replace(index=rows.index.flip(0)), "data-set order"),
        (lambda rows: Rows(*(column[:-1] for column in rows)), "expected values"),
        (lambda rows: rows._replace(values=rows.values[:, :4]), "expected values"),
        (lambda rows: rows._replace(values=rows.values.double()), "torch.float64"),
        (lambda rows: iter(()), "got none"),
    ],
)
def test_other_rows_than_asked_for_are_refused(store, spoil: Callable, message: str):
    recorder = Recorder(4)
    with pytest.raises(ValueError, match=message):
        store.record(
            KEY, 4, lambda *rows: spoil(recorder.produce(*rows)), recorder.fingerprint, spec=SPEC, progress=False
        )
    assert store.manifest(KEY).num_recorded == 0
    assert recorder.record(store, input_spec="another")[1] == 4  # where no row stands, nothing is refused


def test_an_empty_data_set_is_refused(store):
    with pytest.raises(ValueError, match="expected a data set with samples"):
        Recorder(0).record(store)
    with pytest.raises(ValueError, match="`shard_rows`"):
        Store(store.root, shard_rows=0)


def test_the_size_is_said_before_the_start(store, capsys, caplog, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = "3 rows × (5 features + 3 outputs) × 4 bytes = 120 B"
    recorder = Recorder(3)
    produce, said = recorder.produce, []
    recorder.produce = lambda *rows: said.append(capsys.readouterr().err) or produce(*rows)
    recorder.record(store, progress=True)
    assert line in said[0] and "0 rows are there already" in said[0]
    assert "3/3" in capsys.readouterr().err
    with caplog.at_level(logging.INFO, "dualview"):
        recorder.record(store)
    assert line in caplog.text and "3 rows are there already" in caplog.text
    assert capsys.readouterr().err == ""
    assert RowSpec(192, 10).describe(60_000) == "60,000 rows × (192 features + 10 outputs) × 4 bytes = 49 MB"


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("damage", [truncate, flip_bit, Path.unlink])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_shard_is_named_refused_and_recomputed_alone(store, caplog, damage: Callable, number: int):
    recorder = Recorder(10)
    recorder.record(store)
    before = content(store.root)
    path = shard_file(store, number)
    damage(path)
    with pytest.raises(DamagedFile, match=rf"{path.name}.*run fit again.*only this shard is recomputed"):
        store.open(KEY)
    with caplog.at_level(logging.WARNING, "dualview"):
        table, computed = recorder.record(store)
    assert path.name in caplog.text
    assert recorder.produced == [(4 * number, min(4 * number + 4, 10))]
    assert computed == recorder.produced[0][1] - recorder.produced[0][0]
    assert_holds(table, recorder)
    assert content(store.root) == before


def test_a_damaged_last_shard_is_recomputed_with_what_is_appended(store):
    Recorder(6).record(store)
    flip_bit(shard_file(store, 1))
    recorder = Recorder(9)
    table, computed = recorder.record(store)
    assert_holds(table, recorder)
    assert (computed, recorder.produced) == (5, [(4, 8), (8, 9)])


def test_another_data_set_is_refused_before_anything_is_recomputed(store):
    Recorder(10).record(store)
    flip_bit(shard_file(store, 0))
    other = Recorder(10)
    other.targets[9] = (other.targets[9] + 1) % 3
    with pytest.raises(StoreMismatch, match="samples 8 to 9 differ"):
        other.record(store)
    assert other.produced == []


def test_a_damaged_manifest_is_refused(store):
    recorder = Recorder(6)
    recorder.record(store)
    path = store.root / KEY.folder / "manifest.json"
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DamagedFile, match=r"manifest\.json"):
            store.open(KEY)
    for data in (whole[: len(whole) // 2], b"", b"[]", b"{}", b"\xff\x00"):
        path.write_bytes(data)
        with pytest.raises(DamagedFile, match="remove the folder"):
            recorder.record(store)
    assert recorder.produced == []


def test_what_killed_writers_left_is_removed(store):
    recorder = Recorder(6)
    recorder.record(store)
    before = content(store.root)
    folder = store.root / KEY.folder
    (folder / ".shard-00002-4.safetensors.123-4.tmp").write_bytes(b"torn")
    (folder / "shard-00002-4.safetensors").write_bytes(b"renamed, but no manifest lists it")
    recorder.record(store)
    assert content(store.root) == before


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="reads the list of mapped files that Linux gives")
def test_shards_are_mapped_and_never_written_through(store):
    recorder = Recorder(10)
    recorder.record(store)
    before = content(store.root)
    table = store.open(KEY)
    mapped = Path("/proc/self/maps").read_text()
    assert all(str(shard_file(store, number)) in mapped for number in range(3))
    for part in table.parts:
        part.values.zero_()
    assert content(store.root) == before
    assert_holds(store.open(KEY), recorder)


# ── fits and probes ──────────────────────────────────────────────────────────────────────────────


def test_fits_and_probes_come_back(store):
    recorder = Recorder(6)
    recorder.record(store)
    weights = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    info = {"method": "DualView", "C": 1e-3, "gap": 9.4e-7, "rows": 6}
    store.save_fit(KEY, "dualview-1", {"weights": weights}, info)
    store.save_fit(KEY, "dualview-2", {"weights": -weights}, info)
    store.save_fit(KEY, "dualview-1", {"weights": 2 * weights}, {**info, "C": 1e-2})
    store.save_probe(KEY, {"inputs": recorder.inputs[:2]}, {"rows": [0, 1]})
    reopened = Store(store.root)
    assert reopened.fits(KEY) == ["dualview-1", "dualview-2"]
    tensors, description = reopened.load_fit(KEY.folder, "dualview-1")
    assert torch.equal(tensors["weights"], 2 * weights) and description == {**info, "C": 1e-2}
    tensors, description = reopened.load_probe(KEY)
    assert torch.equal(tensors["inputs"], recorder.inputs[:2]) and description == {"rows": [0, 1]}
    assert recorder.record(store)[1] == 0


def test_a_damaged_fit_is_refused(store):
    Recorder(6).record(store)
    store.save_fit(KEY, "svm", {"weights": torch.ones(3, 6)}, {"C": 1e-3})
    for damage in (truncate, flip_bit):
        damage(store.root / KEY.folder / "fits" / "svm.safetensors")
        with pytest.raises(DamagedFile, match=r"svm\.safetensors"):
            store.load_fit(KEY, "svm")
        store.save_fit(KEY, "svm", {"weights": torch.ones(3, 6)}, {"C": 1e-3})
    assert store.load_fit(KEY, "svm")[1] == {"C": 1e-3}


def test_what_is_not_there_is_named_with_what_is(store):
    other = Key(KEY.representation, "tests.Other", "89ab")
    with pytest.raises(StoreMismatch, match="holds features of: no model"):
        store.open(KEY)
    Recorder(6).record(store)
    with pytest.raises(StoreMismatch, match=r"nothing of this tests\.Other .* it holds features of: tests\.Net"):
        store.open(other)
    with pytest.raises(StoreMismatch, match=f"no folder 'abc'.*{KEY.folder}"):
        store.open("abc")
    with pytest.raises(StoreMismatch, match=r"nothing of this tests\.Other"):
        store.save_fit(other, "svm", {}, {})
    store.save_fit(KEY, "svm", {"weights": torch.ones(1)}, {})
    with pytest.raises(StoreError, match=r"no fit 'other'; it has: \['svm'\]"):
        store.load_fit(KEY, "other")
    for name in ("../svm", "a/b", "", ".svm"):
        with pytest.raises(ValueError, match="the fit's name"):
            store.save_fit(KEY, name, {}, {})


def test_the_manifest_is_readable_and_knows_its_data(store):
    recorder = Recorder(6)
    recorder.record(store, input_spec={"shape": [5]})
    content = json.loads((store.root / KEY.folder / "manifest.json").read_text())
    assert content["representation"] == KEY.representation and content["model_class"] == "tests.Net"
    assert content["model_fingerprint"] == "0123" and content["data_id"] is None
    assert (content["num_rows"], content["rows_per_shard"]) == (6, 4)
    assert content["row_spec"] == {"width": 5, "num_classes": 3, "dtype": "float32", "num_targets": 0, "layout": []}
    assert content["input_spec"] == {"shape": [5]} == store.manifest(KEY).input_spec
    assert [shard["data"] for shard in content["shards"]] == [recorder.fingerprint(0, 4), recorder.fingerprint(4, 6)]
    short = store.manifest(KEY).data_fingerprint
    Recorder(7).record(store, input_spec={"shape": [5]})
    assert store.manifest(KEY).data_fingerprint != short
