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

Where something must happen in the middle of a bank, its trainings stop at a gate, the file `<bank>.gate`,
until it has happened: how fast the machine is makes no difference.
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
from gates import PATIENCE, Opening, wait_for
from torch import nn
from tqdm.auto import tqdm

from dualview.engine import outputs
from dualview.engine.retraining import retrain
from dualview.engine.subsets import half_subsets
from dualview.engine.task import Task

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 5, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(0, 3, (40,), generator=GENERATOR)


def ridge(
    mask: torch.Tensor,
    seed: int,
    log: str = os.devnull,
    seconds: float = 0.0,
    gate: Path | None = None,
    free: torch.Tensor | None = None,
) -> nn.Module:
    """Ridge regression on noisy one-hot labels; the noise comes from each global generator in turn.

    With a gate, only the subsets in `free` are trained on before it opens, and Ctrl-C is to be left to the parent.
    """
    if gate is not None:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "a worker would be stopped by Ctrl-C itself"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{mask.int().tolist()} {seed}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    if gate is not None and not (free == mask).all(1).any():
        wait_for(gate.exists, f"{gate} opens")
    wanted = nn.functional.one_hot(LABELS, 3)[mask] + 0.1 * torch.randn(20, 3) + random.random()
    wanted = wanted + torch.from_numpy(np.random.rand(20, 3))  # noqa: NPY002
    kept = INPUTS[mask]
    model = nn.Linear(5, 3, bias=False).double()
    solved = torch.linalg.solve(kept.T @ kept + torch.eye(5, dtype=torch.float64), kept.T @ wanted)
    model.weight.data = solved.T.contiguous()
    return model


def bank(
    folder: Path,
    num_subsets: int = 12,
    workers: int = 2,
    seconds: float = 0.01,
    free: int | None = None,
    **options: object,
) -> None:
    """Retrain; with `free`, only on so many subsets before the gate opens."""
    subsets = half_subsets(40, num_subsets)
    train = functools.partial(ridge, log=f"{folder}.log", seconds=seconds)
    if free is not None:
        train = functools.partial(train, gate=gate(folder), free=subsets.masks[:free])
    task = Task(nn.Linear(5, 3), output=(outputs.margin, outputs.logit))
    test = (INPUTS[:9], LABELS[:9])
    retrain(train, subsets, task, test, folder=folder, workers=workers, name="ridge", progress=False, **options)


def gate(folder: Path) -> Path:
    return Path(f"{folder}.gate")


def called(folder: Path) -> Path:
    """Log that a call begins: here, since a process may be killed before it comes to that."""
    with open(f"{folder}.log", "a") as file:
        file.write("call\n")
    return folder


def fork(folder: Path, work: Callable[[Path], None]) -> tuple[int, int]:
    """Start a process group that works on a bank; return its leader and the reading end of its leash."""
    called(folder)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.close(reading)
        tqdm.set_lock(threading.RLock())  # the one that forked processes share stays taken if its holder is killed
        try:
            work(folder)
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
        child, leash = fork(folder / f"{number}", bank)
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
        retraining = functools.partial(bank, num_subsets=1, workers=0, seconds=0.0)

        def doomed(here: Path, retraining: Callable = retraining, moment: int = moment) -> None:
            kill_at(moment)
            retraining(here)

        code = ended(*fork(here, doomed))
        assert ended(*fork(here, retraining)) == 0
        moment += 1
    assert code == 0


def begun(folder: Path) -> int:
    """Count the trainings that began."""
    return Path(f"{folder}.log").read_text().replace("call\n", "").count("\n")


def interrupted(here: Path) -> None:
    """Ctrl-C when each worker holds a run of the fourth subset; the last one of the third may be in writing."""
    child, leash = fork(here, functools.partial(bank, free=3))
    wait_for(lambda: begun(here) == 8, "6 runs of the first subsets and 2 of the fourth begin")
    os.killpg(child, signal.SIGINT)  # as a terminal does
    assert ended(child, leash) == 3
    assert ended(*fork(here, bank)) == 0


def together(here: Path) -> None:
    """Start the second process in the first one's first trainings, which end when it has found the bank taken."""
    first = fork(here, functools.partial(bank, free=0))
    wait_for(lambda: begun(here) == 2, "each worker trains")

    def late(here: Path) -> None:
        logging.getLogger("dualview").addHandler(Opening(gate(here)))
        bank(here, free=0)

    second = fork(here, late)
    assert ended(*first) == 0
    assert ended(*second) == 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs behind it deaf to Ctrl-C
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    root, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for name in ("peace", "random", "everywhere", "ctrl-c", "together", "spawn"):
        (root / name).mkdir(parents=True)
    bank(called(root / "peace" / "0"), workers=0)
    killed_at_random(root / "random", seed, kills)
    killed_everywhere(root / "everywhere")
    interrupted(root / "ctrl-c" / "0")
    together(root / "together" / "0")
    bank(called(root / "spawn" / "0"), num_subsets=3, start_method="spawn")
