"""The solvers that are compared, each run in a process of its own: see `main`."""

import json
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.sparse import csr_matrix

from benchmarks import memory
from benchmarks.solver.features import Labelled, load
from dualview import solvers
from dualview.solvers import crammer_singer

CAP = 300  # CPU seconds after which a run is stopped
PATH, PATH_GAP = (1e-5, 1e-4, 1e-3, 1e-2, 0.1), 1e-4


class Contender:
    """A solver with its data. It is called in this order: made (imports, compiles), convert, fit, report."""

    def __init__(self, data: Labelled, C: float) -> None:
        self.features, self.labels = self.data = data
        self.C = C

    def convert(self) -> None:
        """Bring the data into the solver's own format; its memory counts, its time does not."""

    def fit(self) -> None:
        raise NotImplementedError

    def conversion_seconds(self) -> float:
        """Return the part of `fit` that was conversion after all."""
        return 0.0

    def report(self) -> dict:
        raise NotImplementedError


class Ours(Contender):
    def __init__(self, data: Labelled, C: float, gap: float = 1e-6) -> None:
        """Compile: tiny problems of every precision, many classes or few, each regime, and a corner of the data."""
        super().__init__(data, C)
        self.gap = gap
        random = np.random.default_rng(0)
        for num_classes in (3, 60):
            labels = np.arange(300) % num_classes
            features = np.maximum(random.normal(size=(300, 20)) + random.normal(size=(num_classes, 20))[labels], 0)
            for dtype in (np.float32, np.float64):
                for tiny in (1e-3, 0.1, 10.0):
                    crammer_singer(features.astype(dtype), labels, C=tiny, gap=1e-9, max_epochs=200)
        crammer_singer(self.features[:2_000], self.labels[:2_000], C=C, gap=1e-4, max_epochs=20)

    def fit(self) -> None:
        self.solution = crammer_singer(self.features, self.labels, C=self.C, gap=self.gap)

    def report(self) -> dict:
        solution, coefficients = self.solution, self.solution.coefficients.coalesce()
        primal = primal_value(self.data, solution.weights.numpy(), self.C)
        if not math.isclose(primal, solution.primal, rel_tol=1e-9):
            raise AssertionError(f"the certificate says P = {solution.primal}, its weights give {primal}")
        rows = coefficients.indices()[0][coefficients.values().abs() > 1e-6 * self.C]
        return {
            "primal": primal,
            "dual": solution.dual,
            "gap": solution.gap,
            "status": solution.status,
            "regime": solution.regime,
            "support": len(rows.unique()) / len(self.labels),
        }


class WholePath(Contender):
    """Five values of C, one after the other."""

    def __init__(self, data: Labelled, C: float) -> None:
        super().__init__(data, C)
        Ours(data, C)  # compiles
        list(solvers.path(self.features[:2_000], self.labels[:2_000], list(PATH), gap=1e-2))

    def fit(self) -> None:
        self.solutions = list(solvers.path(self.features, self.labels, list(PATH), gap=PATH_GAP))

    def report(self) -> dict:
        return {"gap": max(solution.gap for solution in self.solutions)}


class Fork(Contender):
    """The fork that dualxda solves with, set as there. It ignores max_iter and stops after 100,000 passes."""

    def __init__(self, data: Labelled, C: float) -> None:
        super().__init__(data, C)
        from sklearn_dual.svm import LinearSVC, _liblinear

        self._inside = _liblinear
        self.solver = LinearSVC(
            multi_class="crammer_singer", C=C, tol=1e-4, fit_intercept=True, max_iter=1_000_000, random_state=0
        )

    def convert(self) -> None:
        self.rows = self.features.astype(np.float64)

    def fit(self) -> None:
        self.solver.fit(self.rows, self.labels)

    def conversion_seconds(self) -> float:
        """Time a call that it refuses, for its C, just after making its sparse rows."""
        labels, weights = self.labels.astype(np.float64), np.ones(len(self.labels))
        start = time.process_time()
        try:
            self._inside.train_wrap(
                self.rows, labels, False, 4, 1e-4, 1.0, -1.0, np.ones(self.labels.max() + 1), 1, 0, 0.1, weights
            )
        except ValueError:
            return time.process_time() - start
        raise AssertionError("the fork took a negative C")

    def report(self) -> dict:
        weights = np.c_[self.solver.coef_, self.solver.intercept_]
        return {
            "primal": primal_value(self.data, weights, self.C),
            "support": float((np.abs(self.solver.alpha_) > 1e-6 * self.C).any(0).mean()),
        }


class Liblinear(Contender):
    """The official library. It hands out weights, no alpha."""

    def __init__(self, data: Labelled, C: float, epsilon: float) -> None:
        super().__init__(data, C)
        self.epsilon = epsilon
        from liblinear import liblinearutil

        self._library = liblinearutil
        self._pose(slice(100))  # compiles the conversion

    def _pose(self, rows: slice) -> None:
        self.problem = self._library.problem(
            self.labels[rows].astype(np.float64), csr_matrix(self.features[rows]), bias=1
        )

    def convert(self) -> None:
        self._pose(slice(None))

    def fit(self) -> None:
        self.model = self._library.train(
            self.problem, self._library.parameter(f"-s 4 -B 1 -q -c {self.C!r} -e {self.epsilon}")
        )

    def report(self) -> dict:
        num_classes, num_units = self.model.get_nr_class(), self.model.get_nr_feature() + 1
        weights = np.empty((num_classes, num_units))
        weights[self.model.get_labels()] = np.ctypeslib.as_array(self.model.w, (num_units, num_classes)).T
        return {"primal": primal_value(self.data, weights, self.C)}


# A rival is imported when it is made: only its own process needs it.
CONTENDERS: dict[str, Callable[[Labelled, float], Contender]] = {
    "ours": Ours,
    "fork": Fork,
    "liblinear 0.1": partial(Liblinear, epsilon=0.1),
    "liblinear 0.01": partial(Liblinear, epsilon=0.01),
    "path": WholePath,
    "path end": partial(Ours, gap=PATH_GAP),
}


def primal_value(data: Labelled, weights: np.ndarray, C: float) -> float:
    """Return ½‖W‖² + C·Σ_i max_m (w_m·phi_i + [m ≠ y_i] - w_{y_i}·phi_i), in float64."""
    features, labels = data
    loss = 0.0
    for rows in np.array_split(np.arange(len(labels)), math.ceil(len(labels) / 5_000)):
        scores = features[rows].astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
        own = np.arange(len(rows)), labels[rows]
        own_scores = scores[own]
        scores += 1
        scores[own] = own_scores
        loss += (scores.max(1) - own_scores).sum()
    return float(0.5 * (weights**2).sum() + C * loss)


def timed(contender: Contender) -> dict:
    """Fit once. At CAP seconds the kernel ends this process, in whatever library it is."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + CAP, hard))
    wall, start = time.perf_counter(), time.process_time()
    contender.fit()
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    return {"seconds": seconds, "wall": wall}


def main(contender_name: str, features_name: str, C: str, num_threads: str) -> None:
    """Fit once for each line read and answer with a line of JSON; the first one also has memory and quality."""
    warnings.simplefilter("ignore")  # the fork's of its age; ours are in `status`
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(int(num_threads))
    contender = CONTENDERS[contender_name](load(features_name), float(C))
    memory.forget_peak()
    before = memory.resident()
    contender.convert()
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        memory.forget_peak()
        outcome = timed(contender)
        if not number:
            outcome |= {"MiB": (memory.peak() - before) / 1024, **contender.report()}
        outcome["seconds"] -= contender.conversion_seconds()
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
