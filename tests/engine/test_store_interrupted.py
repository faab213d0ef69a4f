"""A recording that is killed, and two at once: the bytes are those of an undisturbed one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dualview.engine.manifest import Key
from dualview.engine.shards import RowSpec
from dualview.engine.store import Store
from dualview.engine.tables import Rows

KEY = Key({"kind": "activation", "site": "fc"}, "tests.Net", "0123")
KILLS = 20


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, str]:
    """The folder of recordings that were killed, and what their processes logged."""
    folder = tmp_path_factory.mktemp("interrupted")
    script = Path(__file__).with_name("interrupted_recording.py")
    command = [sys.executable, str(script), str(folder), "0", str(KILLS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return folder, run.stderr


def runs(log: Path) -> list[list[tuple[int, int]]]:
    """The ranges of rows that each process began to compute."""
    found = [text.split("\n") for text in log.read_text().split("run\n")[1:]]
    return [[tuple(map(int, line.split())) for line in lines if line] for lines in found]


def undisturbed(folder: Path, num_rows: int) -> dict[str, bytes]:
    """What a recording of `interrupted_recording.py` holds when nothing happens to it."""
    spec = RowSpec(width=16, num_classes=3)

    def produce(start: int, stop: int) -> Rows:
        index = torch.arange(start, stop)
        values = (index[:, None] * 16 + torch.arange(16)).float()
        return Rows(values, values[:, :3] + 0.5, index % 3, index)

    store = Store(folder, shard_rows=4)
    store.record(KEY, num_rows, produce, lambda start, stop: f"{start} {stop}", spec=spec, progress=False)
    return content(folder)


def assert_only_torn_shards_are_repeated(log: Path, num_rows: int, shard_rows: int) -> None:
    """Each process computes again at most the shard that the one before it was killed at."""
    rows = [row for run in runs(log) for start, stop in run for row in range(start, stop)]
    kills = len(runs(log)) - 1
    assert set(rows) == set(range(num_rows))
    assert len(rows) <= num_rows + kills * shard_rows
    for before, after in zip(runs(log), runs(log)[1:], strict=False):
        repeated = set(before) & set(after)
        assert repeated <= {before[-1]} if before else not repeated


def test_kills_at_random_moments_cost_at_most_the_torn_shard(interrupted, tmp_path):
    folder = interrupted[0] / "random"
    expected = undisturbed(tmp_path / "peace", 157)
    logs = sorted(folder.glob("*.log"))
    assert sum(len(runs(log)) - 1 for log in logs) == KILLS
    for log in logs:
        assert content(log.with_suffix("")) == expected
        assert_only_torn_shards_are_repeated(log, num_rows=157, shard_rows=4)


@pytest.mark.parametrize(("mode", "moments"), [("everywhere", 32), ("appending", 30)])
def test_a_kill_around_any_flush_or_rename_costs_at_most_the_torn_shard(interrupted, tmp_path, mode, moments):
    # Before or after each of 3 calls a file: manifest and shard twice, and the manifest that begins it all;
    # with rows to begin from, its folder's own flush is none of these moments.
    folder = interrupted[0] / mode
    expected = undisturbed(tmp_path / "peace", 6)
    logs = list(folder.glob("*.log"))
    assert len(logs) == moments + 1  # the last one meets no kill
    for log in logs:
        assert content(log.with_suffix("")) == expected
        assert_only_torn_shards_are_repeated(log, num_rows=6, shard_rows=4)


def test_two_processes_record_into_one_key_in_turn(interrupted, tmp_path):
    folder, logged = interrupted
    log = folder / "together" / "0.log"
    assert content(log.with_suffix("")) == undisturbed(tmp_path / "peace", 40)
    ranges = sorted(tuple(map(int, line.split())) for line in log.read_text().split("\n") if line not in ("", "run"))
    assert ranges == [(start, start + 4) for start in range(0, 40, 4)]
    assert logged.count("waiting until it is done") == 1
