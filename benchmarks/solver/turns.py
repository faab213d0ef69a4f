"""Contenders taking turns, each in a process of its own, so that a machine that drifts drifts for all."""

import json
import os
import signal
import statistics
import subprocess
import sys

FIT = ("ours", "fork", "liblinear 0.1", "liblinear 0.01")
FINER_IF_WITHIN = 5  # CPU seconds that LIBLINEAR may take at its default for the finer tolerance to be tried
MANY_IF_WITHIN, THREE_IF_WITHIN = 20, 60  # CPU seconds of the first run for all runs asked, or three; else one
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Child:
    """A process that has its data loaded and its code compiled, and fits when told."""

    def __init__(self, contender: str, features: str, C: float, num_threads: int = 1) -> None:
        command = [sys.executable, "-m", "benchmarks.solver.contenders", contender, features, repr(C), str(num_threads)]
        environment = os.environ | dict.fromkeys(THREADS, str(num_threads))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.outcomes: list[dict] = []
        self.stopped = False
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{' '.join(command)} failed; its message is above")

    def wants_turn(self, turn: int, num_runs: int) -> bool:
        if self.stopped:
            return False
        first = self.outcomes[0]["seconds"] if self.outcomes else 0
        return turn < (num_runs if first < MANY_IF_WITHIN else min(num_runs, 3 if first < THREE_IF_WITHIN else 1))

    def fit(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer:
            self.outcomes.append(json.loads(answer))
        elif self._process.wait() == -signal.SIGXCPU:
            self.stopped = True
        else:
            raise RuntimeError(f"a fit failed with code {self._process.returncode}; its message is above")

    def end(self) -> dict:
        """Return what was found: medians, and what the first run reported."""
        self._process.kill()
        self._process.communicate()
        if not self.outcomes:
            return {"stopped": True}
        medians = {key: statistics.median(outcome[key] for outcome in self.outcomes) for key in ("seconds", "wall")}
        return self.outcomes[0] | medians | {"runs": len(self.outcomes)}


def take_turns(children: dict[str, Child], num_runs: int) -> dict[str, dict]:
    try:
        for turn in range(num_runs):
            for child in children.values():
                if child.wants_turn(turn, num_runs):
                    child.fit()
    finally:
        found = {name: child.end() for name, child in children.items()}
    return found


def fits(features: str, C: float, *, num_runs: int, rivals: bool) -> dict:
    """Fit by all; LIBLINEAR's finer tolerance comes after the others, where its default was quick."""
    found = take_turns({name: Child(name, features, C) for name in (FIT[:3] if rivals else FIT[:1])}, num_runs)
    if rivals and found[FIT[2]].get("seconds", FINER_IF_WITHIN) < FINER_IF_WITHIN:
        found |= take_turns({FIT[3]: Child(FIT[3], features, C)}, num_runs)
    return {"part": "fit", "features": features, "C": C} | found


def path(features: str, last: float, *, num_runs: int) -> dict:
    found = take_turns({name: Child(name, features, last) for name in ("path", "path end")}, num_runs)
    return {"part": "path", "features": features, "C": last} | found


def threads(features: str, C: float, *, num_runs: int) -> dict:
    found = take_turns({f"{number} threads": Child("ours", features, C, number) for number in (1, 2)}, num_runs)
    return {"part": "threads", "features": features, "C": C} | found
