"""Retrain into banks, and be killed at it: `interrupted_retraining.py FOLDER SEED KILLS`.

Run by test_retraining_interrupted.py, it leaves these banks, all of one content:

    FOLDER/peace/0         undisturbed, without workers
    FOLDER/random/N        killed at KILLS random moments in all, then left in peace
    FOLDER/everywhere/N    killed once, before or after the Nth flush or rename; then left in peace
    FOLDER/ctrl-c/0        parent and workers get SIGINT in the middle; then left in peace
    FOLDER/together/0      two processes at once
    FOLDER/spawn/0         undisturbed, with spawned workers

At random, every other kill hits the whole process group, the rest only the parent. Each time it is
made sure that no worker is left: all hold the writing end of a pipe (the leash), which is read until
they are gone. Beside each bank stands `<bank>.log`: a line "subset seed" for each training that
began, and a line "call" for each process.
"""

import functools
import logging
import os
import random
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from dualview.engine import outputs
from dualview.engine.retraining import retrain
from dualview.engine.subsets import half_subsets
from dualview.engine.task import Task

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 5, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(0, 3, (40,), generator=GENERATOR)
PATIENCE = 20.0


def ridge(mask: torch.Tensor, seed: int, log: str = os.devnull, seconds: float = 0.0) -> nn.Module:
    """Ridge regression on noisy one-hot labels; the noise comes from each global generator in turn."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{mask.int().tolist()} {seed}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    wanted = nn.functional.one_hot(LABELS, 3)[mask] + 0.1 * torch.randn(20, 3) + random.random()
    wanted = wanted + torch.from_numpy(np.random.rand(20, 3))  # noqa: NPY002
    kept = INPUTS[mask]
    model = nn.Linear(5, 3, bias=False).double()
    solved = torch.linalg.solve(kept.T @ kept + torch.eye(5, dtype=torch.float64), kept.T @ wanted)
    model.weight.data = solved.T.contiguous()
    return model


def bank(folder: Path, num_subsets: int = 12, workers: int = 2, seconds: float = 0.01, **options: object) -> None:
    log = f"{folder}.log"
    with open(log, "a") as file:
        file.write("call\n")
    train = functools.partial(ridge, log=log, seconds=seconds)
    task = Task(nn.Linear(5, 3), output=(outputs.margin, outputs.logit))
    subsets = half_subsets(40, num_subsets)
    test = (INPUTS[:9], LABELS[:9])
    retrain(train, subsets, task, test, folder=folder, workers=workers, name="ridge", progress=False, **options)


def fork(work: Callable[[], None]) -> tuple[int, int]:
    """Start a process group of its own; return its leader and the reading end of its leash."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.close(reading)
        tqdm.set_lock(threading.RLock())  # the one that forked processes share stays taken if its holder is killed
        try:
            work()
        except KeyboardInterrupt:
            os._exit(3)
        os._exit(0)
    os.setpgid(child, child)
    os.close(writing)
    return child, reading


def ended(child: int, leash: int) -> int:
    """Wait for a child and all its workers; return its exit code, or minus the signal."""
    _, status = os.waitpid(child, 0)
    gone, _, _ = select.select([leash], [], [], PATIENCE)
    assert gone, "a worker outlived its parent"
    assert os.read(leash, 1) == b""
    os.close(leash)
    return os.waitstatus_to_exitcode(status)


def killed_at_random(folder: Path, seed: int, kills: int) -> None:
    """Kill and resume until `kills` have hit; a bank that is finished before goes on in a new folder."""
    generator = random.Random(seed)
    number = 0
    while True:
        child, leash = fork(lambda number=number: bank(folder / f"{number}"))
        if kills:
            time.sleep(generator.uniform(0.0, 0.2))
            kill = os.killpg if kills % 2 else os.kill
            kill(child, signal.SIGKILL)  # without effect on one that has ended
        code = ended(child, leash)
        if code == -signal.SIGKILL:
            kills -= 1
            continue
        assert code == 0
        if not kills:
            break
        number += 1


def kill_at(moment: int) -> None:
    """Kill this process at the moment with this number: before a flush or rename, or after it.

    Before its flush a file may be torn: it then loses its second half.
    """
    passed = 0

    def watched(call: Callable) -> Callable:
        def call_or_die(*args: object) -> None:
            nonlocal passed
            if passed == moment:
                if call is fsync and stat.S_ISREG(os.fstat(args[0]).st_mode):
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            call(*args)
            if passed + 1 == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            passed += 2

        return call_or_die

    fsync = os.fsync
    os.fsync, os.replace = watched(os.fsync), watched(os.replace)


def killed_everywhere(folder: Path) -> None:
    """Be killed at each moment on the way to 2 runs; then resume in peace, to 2 runs."""
    moment = 0
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        here = folder / f"{moment}"
        retraining = functools.partial(bank, here, num_subsets=1, workers=0, seconds=0.0)

        def doomed(retraining: Callable = retraining, moment: int = moment) -> None:
            kill_at(moment)
            retraining()

        code = ended(*fork(doomed))
        assert ended(*fork(retraining)) == 0
        moment += 1
    assert code == 0


def begun(folder: Path, lines: int) -> None:
    """Wait until the log of a bank has so many lines."""
    log = Path(f"{folder}.log")
    while not log.exists() or log.read_text().count("\n") < lines:
        time.sleep(0.001)


def interrupted(here: Path) -> None:
    child, leash = fork(lambda: bank(here))
    begun(here, lines=8)
    os.killpg(child, signal.SIGINT)  # as a terminal does
    assert ended(child, leash) == 3
    assert ended(*fork(lambda: bank(here))) == 0


def together(here: Path) -> None:
    first = fork(lambda: bank(here))
    begun(here, lines=2)
    second = fork(lambda: bank(here))
    assert ended(*first) == 0
    assert ended(*second) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    root, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for name in ("peace", "random", "everywhere", "ctrl-c", "together", "spawn"):
        (root / name).mkdir(parents=True)
    bank(root / "peace" / "0", workers=0)
    killed_at_random(root / "random", seed, kills)
    killed_everywhere(root / "everywhere")
    interrupted(root / "ctrl-c" / "0")
    together(root / "together" / "0")
    bank(root / "spawn" / "0", num_subsets=3, start_method="spawn")
