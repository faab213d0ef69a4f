"""Record into stores, and be killed at it: `interrupted_recording.py FOLDER SEED KILLS`.

Run by test_store_interrupted.py, it leaves:

    FOLDER/random/N       killed at KILLS random moments in all, then left in peace
    FOLDER/everywhere/N   killed once, before or after the Nth flush or rename
    FOLDER/appending/N    the same, while rows are appended to two that stand there
    FOLDER/together/0     two processes record into one key

What is killed is a child of this process, by fork, so that PyTorch is imported once. Beside each
recorded folder stands `<folder>.log`: one line "start stop" for each call of `produce`, written when
it begins, and one line "run" for each process.
"""

import logging
import os
import random
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gates import Opening, wait_for

from dualview.engine.manifest import Key
from dualview.engine.shards import RowSpec
from dualview.engine.store import Store
from dualview.engine.tables import Rows

KEY = Key({"kind": "activation", "site": "fc"}, "tests.Net", "0123")
SPEC = RowSpec(width=16, num_classes=3)


def rows(start: int, stop: int) -> Rows:
    """Rows whose numbers count on, exactly, in float32."""
    values = torch.arange(start * SPEC.width, stop * SPEC.width, dtype=torch.float32).reshape(-1, SPEC.width)
    index = torch.arange(start, stop)
    return Rows(values, values[:, : SPEC.num_classes] + 0.5, index % SPEC.num_classes, index)


def record(folder: Path, num_rows: int, shard_rows: int, seconds: float = 0.0, gate: Path | None = None) -> None:
    """Record; with a gate, nothing is produced before it opens."""
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, b"run\n")

    def produce(start: int, stop: int) -> Rows:
        os.write(log, f"{start} {stop}\n".encode())
        time.sleep(seconds)
        if gate is not None:
            wait_for(gate.exists, f"{gate} opens")
        return rows(start, stop)

    store = Store(folder, shard_rows=shard_rows)
    store.record(KEY, num_rows, produce, lambda start, stop: f"{start} {stop}", spec=SPEC, progress=False)


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    work()
    os._exit(0)


def ended(child: int) -> bool:
    """Wait for a child; tell whether it ended by itself (True) or by SIGKILL (False)."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def killed_at_random(folder: Path, seed: int, kills: int) -> None:
    """Kill and resume until `kills` have hit; a recording that ends before goes on in a new folder."""
    generator = random.Random(seed)
    number = 0
    while True:
        child = fork(lambda number=number: record(folder / f"{number}", num_rows=157, shard_rows=4, seconds=0.004))
        if kills:
            time.sleep(generator.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)  # without effect on one that has ended
        whole = ended(child)
        if not whole:
            kills -= 1
        elif kills:
            number += 1
        else:
            break


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


def killed_everywhere(folder: Path, before: int) -> None:
    """Record `before` rows in peace; be killed at each moment on the way to 6 rows; then resume in peace."""
    moment = 0
    whole = False
    while not whole:
        here = folder / f"{moment}"

        def doomed(here: Path = here, moment: int = moment) -> None:
            kill_at(moment)
            record(here, num_rows=6, shard_rows=4)

        if before:
            record(here, before, shard_rows=4)
        whole = ended(fork(doomed))
        if before:  # what was whole stays readable
            table = Store(here).open(KEY, num_rows=before)
            assert torch.equal(table.values, rows(0, before).values)
        record(here, num_rows=6, shard_rows=4)
        moment += 1


def together(folder: Path) -> None:
    """Start the second process while the first one produces, which ends when it has found the key taken."""
    here, log, gate = folder / "0", folder / "0.log", folder / "0.gate"
    first = fork(lambda: record(here, num_rows=40, shard_rows=4, gate=gate))
    wait_for(lambda: log.exists() and log.read_text().count("\n") == 2, "the first process produces")

    def late() -> None:
        logging.getLogger("dualview").addHandler(Opening(gate))
        record(here, num_rows=40, shard_rows=4)

    second = fork(late)
    assert ended(first) and ended(second)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    root, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for name in ("random", "everywhere", "appending", "together"):
        (root / name).mkdir(parents=True)
    killed_at_random(root / "random", seed, kills)
    killed_everywhere(root / "everywhere", before=0)
    killed_everywhere(root / "appending", before=2)
    together(root / "together")
