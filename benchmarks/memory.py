"""The most memory that a call takes: the resident peak of this process, which Linux counts and lets one set back.

    forget_peak()
    before = resident()
    call()
    taken = peak() - before

A peak misses nothing between two looks, and counts what libraries take past Python and torch. It also counts pages of
files that the call maps. All is in KiB, which the kernel writes as kB.
"""

import ctypes
from pathlib import Path


def forget_peak() -> None:
    """Let the peak begin anew, at what is resident now.

    What was freed before goes back to the system first: a call that took it again would seem to take nothing.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> int:
    """Return what is resident now, in KiB."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most that was resident since `forget_peak`, in KiB."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
