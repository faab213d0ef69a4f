"""The lock between writers: it excludes, it falls with its holder, and its absence is said."""

import errno
import logging
import sys
import threading

import pytest

from dualview.engine.locks import locked
from dualview.errors import StoreError


def test_the_second_waits_for_the_first_and_says_so(tmp_path, caplog):
    order: list[str] = []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        with locked(tmp_path / "lock", poll_seconds=0.001):
            order.append("second")

    with caplog.at_level(logging.WARNING, "dualview"):
        with locked(tmp_path / "lock"):
            thread = threading.Thread(target=second)
            thread.start()
            begun.wait()
            while "waiting until it is done" not in caplog.text:
                thread.join(0.001)
            order.append("first")
        thread.join()
    assert order == ["first", "second"]
    assert (tmp_path / "lock").read_bytes() == b""


def test_an_error_frees_the_lock(tmp_path, caplog):
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError("anything")
    with locked(tmp_path / "lock"):
        assert caplog.text == ""


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl is POSIX's")
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(StoreError, match="No locks available.*on a file system with locks"), locked(tmp_path / "lock"):
        pass
