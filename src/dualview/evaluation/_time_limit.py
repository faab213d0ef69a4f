"""Stopping what takes too long, wherever it is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

AGAIN = 5.0  # seconds: code that swallowed the exception, such as a destructor, is told once more


class TimeLimitReached(Exception):
    """The time allowed is over."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TimeLimitReached` inside the block after so many seconds; None: never.

    The system's alarm does it, so that any Python code is interrupted; one long call into compiled code ends first.

    Raises:
        ValueError: the limit is not positive, or this is not the main thread of a system with alarms.
    """
    if seconds is None:
        yield
        return
    if not seconds > 0:
        raise ValueError(f"`limit` must be a positive number of seconds; it is {seconds}")
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        raise ValueError("`limit` needs the main thread, on Linux or macOS; leave it out")

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeLimitReached(f"after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # first, so that an alarm at this moment is no exception here
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
