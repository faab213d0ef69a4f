"""Work in processes: the same results, one thread, and no failure or death that goes unsaid."""

import functools
import multiprocessing
import os
import signal
import threading

import pytest
import torch
from tqdm.auto import tqdm

from dualview.engine.workers import check_importable, distribute, num_cores, one_thread, started_workers


def square(item: int) -> int:
    return item**2


def in_processes(work, items, count: int = 2) -> list:
    results: list = []
    with started_workers(work, count, "fork") as workers:
        distribute(work, workers, items, results.append)
    return results


@pytest.fixture
def others() -> set:
    """Processes that ran before: a loader's, say, that an error of an earlier test keeps alive."""
    return set(multiprocessing.active_children())


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_each_item_is_worked_on_once(count):
    assert sorted(in_processes(square, range(20), count)) == [item**2 for item in range(20)]


def test_more_workers_than_items():
    assert in_processes(square, [3], count=2) == [9]
    assert in_processes(square, [], count=2) == []


def test_workers_are_other_processes_that_end(others):
    pids = set(in_processes(lambda item: os.getpid(), range(40)))
    assert len(pids) <= 2 and os.getpid() not in pids
    assert set(multiprocessing.active_children()) <= others


def test_a_worker_uses_one_thread_and_our_default_type(monkeypatch):
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    found = in_processes(lambda item: (torch.get_num_threads(), str(torch.zeros(1).dtype)), [0])
    assert found == [(1, "torch.float64")]


def test_a_worker_shares_no_lock_that_its_death_would_leave_taken():
    with tqdm(range(1), disable=True):  # this makes the lock that forks share, where there was none
        assert in_processes(lambda item: isinstance(tqdm.get_lock(), type(threading.RLock())), [0]) == [True]
        assert not isinstance(tqdm.get_lock(), type(threading.RLock()))


def test_one_thread_is_for_a_while():
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError("anything")
        assert torch.get_num_threads() == 2
        # A fork of a process whose OpenMP threads stand: one thread does not wait for those that are not there.
        large = torch.ones(400, 400) @ torch.ones(400, 400)
        assert in_processes(lambda item: float((large @ large).double().sum()), [0]) == [400.0**5]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("failure", [ValueError("oh no"), SystemExit(3), KeyboardInterrupt()])
def test_a_failure_comes_with_its_traceback(failure, others):
    def work(item: int) -> int:
        if item == 3:
            raise failure
        return item

    with pytest.raises(RuntimeError) as caught:
        in_processes(work, range(10))
    text = str(caught.value)
    assert text.startswith("3 failed in a worker process:\n\nTraceback")
    assert "in work\n    raise failure" in text and type(failure).__name__ in text
    assert set(multiprocessing.active_children()) <= others


def test_without_workers_a_failure_comes_as_it_is():
    with pytest.raises(ZeroDivisionError):
        in_processes(lambda item: 1 // item, [0], count=0)


def test_what_was_finished_before_a_failure_is_kept():
    kept: list[int] = []
    with (
        started_workers(lambda item: 6 // (3 - item), 1, "fork") as workers,
        pytest.raises(RuntimeError, match="3 fai"),
    ):
        distribute(square, workers, range(10), kept.append)
    assert kept == [2, 3, 6]


def test_a_killed_worker_is_noticed():
    def work(item: int) -> None:
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="killed by SIGKILL at 3: .* memory runs out; use fewer `workers`"):
        in_processes(work, range(10))


def test_a_worker_that_ends_by_itself_is_noticed():
    with pytest.raises(RuntimeError, match="ended by itself, with exit code 7, at 0; .*standard error"):
        in_processes(lambda item: os._exit(7), range(10), count=1)


def test_a_worker_that_was_killed_while_idle_is_noticed():
    with started_workers(square, 1, "fork") as workers:
        os.kill(workers[0].process.pid, signal.SIGKILL)
        workers[0].process.join()
        with pytest.raises(RuntimeError, match="killed by SIGKILL at 5"):
            distribute(square, workers, [5], print)


def test_what_cannot_be_imported_is_refused():
    check_importable(square, "train")
    check_importable(functools.partial(square, 3), "train")

    def inner(item: int) -> int:
        return item

    for function in (lambda item: item, inner, functools.partial(inner, 3)):
        with pytest.raises(TypeError, match=r"`train` \(.*\) is a lambda, or was made inside .*; or give workers=0"):
            check_importable(function, "train")


def test_there_is_a_core():
    assert 1 <= num_cores() <= (os.cpu_count() or 1)
