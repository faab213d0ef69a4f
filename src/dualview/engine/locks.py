"""One writer at a time: a lock between processes, held by the operating system.

The lock falls when its holder ends, however it ends, so that a killed run never blocks the next one.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualview.errors import StoreError

log = logging.getLogger("dualview")

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(path: Path, poll_seconds: float = 0.05) -> Iterator[None]:
    """Hold the lock at `path` (an empty file, which stays); wait for it, and say so, where it is taken.

    Raises:
        StoreError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        waiting = False
        while True:
            try:
                _try_lock(descriptor)
                break
            except (BlockingIOError, PermissionError):
                if not waiting:
                    log.warning("another process is writing to %s; waiting until it is done", path.parent)
                waiting = True
                time.sleep(poll_seconds)
            except OSError as error:
                raise StoreError(f"cannot lock {path} ({error}); put the store on a file system with locks") from error
        yield
    finally:
        os.close(descriptor)
