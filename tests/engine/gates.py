"""Waiting for what happens, instead of for a time: how fast the machine is makes no difference."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 120.0  # seconds; what has not come by then on a busy machine never will


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Wait until it has happened."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {PATIENCE:g} s")
        time.sleep(0.001)


class Opening(logging.Handler):
    """Opens a gate, a file that others wait for, once this process says that it waits for another."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self.gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        if "another process is writing" in record.getMessage():
            self.gate.touch()
