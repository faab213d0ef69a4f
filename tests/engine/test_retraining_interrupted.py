"""A bank whose making is killed, stopped, or done by two at once: its bits are those of an undisturbed one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dualview.engine.retraining import Bank

KILLS = 20
RUNS = 24  # 12 subsets × 2 seeds
WORKERS = 2


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, str]:
    """The folder of banks, and what their processes logged."""
    folder = tmp_path_factory.mktemp("interrupted")
    script = Path(__file__).with_name("interrupted_retraining.py")
    command = [sys.executable, str(script), str(folder), "0", str(KILLS)]
    logged = folder / "logged"  # a file: a pipe would be read until the last orphan, if there was one, ends
    with open(logged, "w") as file:
        run = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    assert run.returncode == 0, logged.read_text()
    return folder, logged.read_text()


def banks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def calls(bank: Path) -> list[list[str]]:
    """What each call of `retrain` began to train."""
    return [text.splitlines() for text in Path(f"{bank}.log").read_text().split("call\n")[1:]]


def assert_same_bits(folder: Path, peace: Path, num_subsets: int = 12) -> None:
    """Compare a bank with the first subsets of an undisturbed one; only the seconds may differ."""
    bank, expected = Bank.open(folder), Bank.open(peace)
    assert torch.equal(bank.masks, expected.masks[:num_subsets])
    assert torch.equal(bank.outputs, expected.outputs[:, :, :num_subsets])
    assert torch.equal(bank.accuracy, expected.accuracy[:, :num_subsets])
    assert torch.equal(bank.loss, expected.loss[:, :num_subsets])
    assert not list(folder.glob(".*.tmp"))


def test_an_undisturbed_bank_trains_each_run_once(interrupted):
    peace = interrupted[0] / "peace" / "0"
    assert [len(lines) for lines in calls(peace)] == [RUNS] and len(set(calls(peace)[0])) == RUNS
    assert len({tuple(run) for run in Bank.open(peace).outputs.flatten(1, 2)[0].tolist()}) == RUNS


def test_kills_at_random_moments_cost_at_most_the_runs_under_way(interrupted):
    folder = interrupted[0]
    found = banks(folder / "random")
    assert sum(len(calls(bank)) - 1 for bank in found) == KILLS
    for bank in found:
        assert_same_bits(bank, folder / "peace" / "0")
        trained = [line for call in calls(bank) for line in call]
        assert set(trained) == set(calls(folder / "peace" / "0")[0])
        # Under way are a run in each worker, and one whose record is being written.
        assert len(trained) <= RUNS + (len(calls(bank)) - 1) * (WORKERS + 1)


def test_a_kill_around_any_flush_or_rename_costs_at_most_the_torn_run(interrupted):
    folder = interrupted[0]
    found = banks(folder / "everywhere")
    # Before or after each of 3 calls a file (the description and two records), and the folder's own flush.
    assert len(found) == 2 * (3 * 3 + 1) + 1  # the last one meets no kill
    for bank in found:
        assert_same_bits(bank, folder / "peace" / "0", num_subsets=1)
        first, second = calls(bank)
        assert set(first) & set(second) <= set(first[-1:])


def test_ctrl_c_keeps_what_is_done_and_leaves_no_worker(interrupted):
    folder, logged = interrupted
    bank = folder / "ctrl-c" / "0"
    assert_same_bits(bank, folder / "peace" / "0")
    first, second = calls(bank)
    # It came when 6 runs had ended, of which one record might be in writing, and each worker had one under way.
    assert len(first) == 6 + WORKERS and set(first[-WORKERS:]) <= set(second)
    assert len(set(first) & set(second)) <= WORKERS + 1
    assert "Traceback" not in logged  # of a worker
    assert re.search(rf"stopped; [56] of {RUNS} runs are kept in {bank}, and the same call goes on", logged)


def test_two_processes_on_one_bank_share_the_work(interrupted):
    folder, logged = interrupted
    bank = folder / "together" / "0"
    assert_same_bits(bank, folder / "peace" / "0")
    trained = [line for call in calls(bank) for line in call]
    assert len(trained) == RUNS and len(calls(bank)) == 2
    assert f"another process is writing to {bank}" in logged


def test_spawned_workers_give_the_same_bits(interrupted):
    folder = interrupted[0]
    assert_same_bits(folder / "spawn" / "0", folder / "peace" / "0", num_subsets=3)
