"""Saying how large a recording is before it starts, and how long it takes while it runs."""

from __future__ import annotations

import logging
import sys

from tqdm.auto import tqdm

log = logging.getLogger("dualview")


def announce(line: str, enabled: bool) -> None:
    """Say one line: on standard error where progress is shown, else to the log."""
    if enabled:
        tqdm.write(line, file=sys.stderr)
    else:
        log.info(line)


def progress_bar(total: int, *, done: int = 0, enabled: bool) -> tqdm:
    """Return a bar over rows with the time left; a log file, which nobody watches, gets none."""
    return tqdm(total=total, initial=done, unit="row", disable=not (enabled and sys.stderr.isatty()))
