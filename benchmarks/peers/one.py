"""One contender on one task, in a process of its own: its cost first, then every metric."""

import contextlib
import gc
import pickle
import resource
import signal
import warnings
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.peers.contenders import contenders
from dualview.evaluation._table import Line
from dualview.evaluation.cases import Case, case_of
from dualview.evaluation.contenders import Contender
from dualview.evaluation.judgement import judge
from dualview.evaluation.metrics import chosen
from dualview.evaluation.tasks import SOURCES, VARIANTS, Problem

STORE = Path(__file__).resolve().parents[2] / "runs" / "evaluation"
WARM = 100, 10  # training and test samples of the run that imports and compiles
MOST_MEMORY = 8 * 2**30  # bytes of address space: the machine is shared


class Spent(NamedTuple):
    """CPU seconds of the fit and of the explanation of all test samples, and bytes of memory beyond what was held."""

    fit: float
    explain: float
    memory: int

    def by_name(self) -> dict[str, float]:
        return {"fit seconds": self.fit, "explain seconds": self.explain, "MiB": self.memory / 2**20}


class Measured(NamedTuple):
    """A contender on a task; a cost or lines that are missing have their reason in `why_not`."""

    lines: list[Line]
    spent: Spent | None
    why_not: str


def case(task: str, variant: str) -> Case:
    return case_of(Problem(SOURCES[task], variant, STORE))


def prepare(task: str) -> None:
    """Train what is not kept, before any contender's clock runs."""
    for variant in VARIANTS:
        made = case(task, variant)
        if variant == "standard":
            made.bank(progress=False)


def measured(task: str, name: str, limit: int) -> Measured:
    """Run a contender until it is done, ends by itself, or its processor time is up; return what it had by then."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "sklearn.datasets"])  # imported once; no process that computed is forked
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, name, limit, sending))
    lines: list[Line] = []
    spent, why_not = None, ""
    process.start()
    sending.close()
    with contextlib.suppress(EOFError):
        while True:
            found = pickle.loads(receiving.recv_bytes())
            if isinstance(found, list):
                lines += found
            elif isinstance(found, Spent):
                spent = found
            else:
                why_not = found
    process.join()
    if process.exitcode == -signal.SIGXCPU:
        why_not = f"stopped after {limit} s"
    elif process.exitcode:
        why_not = f"ended with code {process.exitcode}"
    return Measured(lines, spent, why_not)


def _work(task: str, name: str, limit: int, sending: Connection) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 10))  # of the processor: the machine may be busy
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    warnings.simplefilter("ignore")  # peers warn of their own age; ours say it in the notes
    one = contenders(task)[name]
    try:
        _send(sending, cost(one, case(task, "standard")))
    except ValueError as error:  # it refuses these data, or it is a peer that raised
        _send(sending, str(error))
    for variant in VARIANTS:
        found = judge([one], chosen(None), [partial(case, task, variant)], progress=False)
        _send(sending, list(found.lines))


def _send(sending: Connection, found: Spent | str | list[Line]) -> None:
    sending.send_bytes(pickle.dumps(found))  # torch would share tensors' memory, which ends with this process


def cost(one: Contender, given: Case) -> Spent:
    """Measure a contender from the network to the scores of all test samples for their predicted classes.

    A run on a few samples goes before, so that imports and compilation count neither as time nor as memory.
    """
    train, inputs, classes = given.train, given.test_inputs, given.predicted
    few, some = WARM
    with contextlib.suppress(ValueError):  # the run itself will say what it refuses
        _run(one, given, tuple(part[:few] for part in train), given.train_targets[:few], inputs[:some], classes[:some])
    gc.collect()
    memory.forget_peak()
    before = memory.resident()
    fit, explain = _run(one, given, train, given.train_targets, inputs, classes)
    return Spent(fit, explain, (memory.peak() - before) * 1024)


def _run(one: Contender, given: Case, train: tuple, targets: Tensor, inputs: Tensor, classes: Tensor) -> tuple:
    started = _processor_seconds()
    fitted = one.fit(given.task, train, targets)
    between = _processor_seconds()
    fitted.explain(inputs, classes)
    return between - started, _processor_seconds() - between


def _processor_seconds() -> float:
    """Return the seconds that this process has had; `time.process_time` ticks every 4 ms on some machines."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
