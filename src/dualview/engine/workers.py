"""Work spread over processes: one thread each, no orphan, and no failure or kill that goes unsaid."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import MethodType
from typing import Any, Literal, NamedTuple

import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

StartMethod = Literal["fork", "spawn"]


class Worker(NamedTuple):
    """A process that waits for items at the other end of a pipe."""

    process: BaseProcess
    pipe: Connection


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def default_start() -> StartMethod:
    """Fork where that is safe, since a forked worker needs nothing sent and can call any closure.

    It is safe on Linux without CUDA, where the worker uses one thread. (A forked process that enters
    OpenMP with more waits for ever for threads which only its parent has.)
    """
    return "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def check_not_imported() -> None:
    """Refuse to work in a spawned process that is still importing the user's script.

    It would wait for a lock that its parent holds, while the parent waits for it.

    Raises:
        RuntimeError: the script starts its work when it is imported.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # what multiprocessing itself asks
        raise RuntimeError(
            "a worker process imported this script, which would start its work again: put that under "
            "`if __name__ == '__main__':`"
        )


def check_importable(function: Callable[..., Any], argument: str) -> None:
    """Refuse what a spawned process cannot import by name, before it fails there.

    Raises:
        TypeError: it is a lambda, or was made inside a function, in a notebook or in a prompt.
    """
    plain = plain_function(function)
    name = getattr(plain, "__qualname__", "")
    typed = getattr(plain, "__module__", "") == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    if "<" in name or typed:
        raise TypeError(
            f"`{argument}` ({name}) is a lambda, or was made inside a function, a notebook or a prompt; worker "
            "processes that are spawned import it by name. Put it into a module and import it from there, with "
            "functools.partial for the data it needs; or give workers=0, which uses this process; or "
            "start_method='fork', on Linux and where this process has not used CUDA"
        )


def plain_function(function: Any) -> Any:
    """Look through functools.partial, bound methods and decorators."""
    while isinstance(function, (partial, MethodType)):
        function = function.func if isinstance(function, partial) else function.__func__
    return inspect.unwrap(function)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread in torch, BLAS and OpenMP, so that the last bit is the same in any process."""
    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def started_workers(work: Callable[[Any], Any], count: int, start_method: StartMethod) -> Iterator[list[Worker]]:
    """Start processes that call `work`; kill them at the end, however it ends.

    A worker also ends when its parent does, even by SIGKILL. Ctrl-C in a terminal reaches every
    process there; workers leave it to the parent.
    """
    context = multiprocessing.get_context("fork") if start_method == "fork" else multiprocessing.get_context("spawn")
    workers: list[Worker] = []
    try:
        for _ in range(count):
            pipe, far_end = context.Pipe()
            process = context.Process(target=_serve, args=(work, far_end, torch.get_default_dtype()))
            with warnings.catch_warnings():
                # Since Python 3.12; of the locks that other threads may hold, the worker takes none.
                warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
                process.start()
            workers.append(Worker(process, pipe))
            far_end.close()  # else the workers that follow inherit it, and the end of this one goes unseen
        yield workers
    finally:
        for process, pipe in workers:
            process.kill()
            process.join()
            pipe.close()


def distribute(
    work: Callable[[Any], Any], workers: Sequence[Worker], items: Iterable[Any], keep: Callable[[Any], None]
) -> None:
    """Have each item worked on by the next free worker; call `keep` with each result, in order of arrival.

    Without workers it is done here, one item after the other, and an error comes as it is.

    Raises:
        RuntimeError: an item failed, with the worker's traceback; or a worker was killed.
    """
    if not workers:
        with one_thread():
            for item in items:
                keep(work(item))
        return
    left = iter(items)
    busy = {worker.pipe: (worker, item) for worker, item in zip(workers, left, strict=False)}
    for worker, item in busy.values():
        _send(worker, item)
    while busy:
        for pipe in wait(list(busy)):
            assert isinstance(pipe, Connection)
            worker, item = busy.pop(pipe)
            result, failure = _receive(worker, item)
            if failure is not None:
                raise RuntimeError(f"{item} failed in a worker process:\n\n{failure}")
            following = next(left, None)
            if following is not None:  # before the result is kept, so that the worker need not wait for that
                _send(worker, following)
                busy[pipe] = worker, following
            keep(result)


def _send(worker: Worker, item: Any) -> None:
    try:
        worker.pipe.send(item)
    except OSError:
        raise _ended(worker, item) from None


def _receive(worker: Worker, item: Any) -> tuple[Any, str | None]:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        raise _ended(worker, item) from None


def _ended(worker: Worker, item: Any) -> RuntimeError:
    worker.process.join()
    code = worker.process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name
        hint = ": the system does that where memory runs out; use fewer `workers`" if name == "SIGKILL" else ""
        return RuntimeError(f"a worker process was killed by {name} at {item}{hint}")
    return RuntimeError(
        f"a worker process ended by itself, with exit code {code}, at {item}; what it said stands on standard error. "
        "Where workers are spawned, a script must start its work under `if __name__ == '__main__':`, and what it "
        "gives them must be importable from a module; workers=0 runs in this process"
    )


def _serve(work: Callable[[Any], Any], pipe: Connection, dtype: torch.dtype) -> None:
    """Answer each item with (result, None) or (None, traceback), until the parent ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _leave_shared_locks()
    torch.set_default_dtype(dtype)
    with one_thread():
        while True:
            item = pipe.recv()
            with ExitStack() as stack:
                stack.push(partial(_send_failure, pipe))
                pipe.send((work(item), None))


def _send_failure(pipe: Connection, kind: Any, error: BaseException | None, trace: Any) -> bool:
    """Send the traceback of whatever was raised, and go on."""
    if error is not None:
        pipe.send((None, "".join(traceback.format_exception(error))))
    return True


def _leave_shared_locks() -> None:
    """Give tqdm a lock of this process: the one that forked processes share stays taken if its holder is killed."""
    own = threading.RLock()
    for kind in tqdm.__mro__:
        if issubclass(kind, plain_tqdm):
            kind.set_lock(own)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
