"""What C does to DualView, and what sparsity costs: `python -m benchmarks.sparsity`.

Four members of the family over C, beside random scores and two methods whose scores are all different from zero. On the
subsets of the damping table (`make bench-damping`), which no other table uses; nothing is chosen here either.

- *lds*: linear datamodelling score, mean over test samples, with its 95 % interval.
- *zeros*: share of the scores that are zero, mean over test samples.
- *support*: share of the training samples with a dual variable at all.
- *agreement*: share of the test samples for which surrogate and network predict the same class.
- *seconds*: fit and explanation of all test samples, one thread.
"""

import argparse
import csv
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import dualview as dv
from benchmarks.__main__ import machine, table
from benchmarks.damping.__main__ import STORE, TASKS, bank
from dualview.data._method import DataMethod
from dualview.evaluation import sanity
from dualview.evaluation.datamodelling import linear_datamodelling_score
from dualview.evaluation.tasks import SOURCES, Problem

RESULT = Path(__file__).resolve().parents[1] / "results" / "sparsity.md"
C = tuple(10.0**power for power in range(-6, 1))
FAMILY: dict[str, Callable[[float], DataMethod]] = {
    "DualView": lambda c: dv.DualView(C=c),
    "DualView, whitened": lambda c: dv.DualView(C=c, metric="whitened"),
    "DualView, smooth hinge": lambda c: dv.DualView(C=c, loss="smooth-hinge"),
    "DualView, softmax, curvature": lambda c: dv.DualView(C=c, loss="softmax", metric="curvature"),
}
BESIDE: dict[str, DataMethod] = {
    "Random": dv.Random(),
    "GradDot": dv.GradDot(),
    "ForwardInfluence": dv.ForwardInfluence(),
}


class Row(NamedTuple):
    """One method at one C on one task."""

    task: str
    method: str
    C: float | None
    lds: float
    low: float
    high: float
    zeros: float
    support: float | None
    agreement: float | None
    gap: float | None
    seconds: float


def measure(task: str, names: list[str]) -> list[Row]:
    problem = Problem(SOURCES[task], "standard", STORE)
    explained = problem.task(problem.model(0))
    truth = bank(problem, explained)
    asked = [(name, None, method) for name, method in BESIDE.items()]
    asked += [(name, c, make(c)) for name, make in FAMILY.items() for c in C]
    found = []
    for name, c, method in asked:
        if names and name not in names:
            continue
        held_out = problem.test.pairs if c is not None else None
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the gap stands in the table
            explainer = dv.fit(method, explained, problem.train.pairs, held_out=held_out, progress=False)
            scores = explainer.explain(problem.test.inputs, problem.test.labels)
        seconds = time.perf_counter() - started
        lds = linear_datamodelling_score(scores, truth.masks, truth.outputs)
        surrogate = (None, None, None)
        if c is not None:
            certificate = explainer.certificate
            agreement = explainer.fidelity["held_out"]["agreement"]
            surrogate = (certificate["support_share"], agreement, certificate["gap"])
        found.append(Row(task, name, c, lds.mean, lds.low, lds.high, sanity.sparsity(scores).mean, *surrogate, seconds))
        print(found[-1], flush=True)
    return found


def written(row: Row) -> dict[str, str]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return {
        "method": row.method,
        "C": "" if row.C is None else f"{row.C:g}",
        "lds": f"{row.lds:.3f} ({row.low:.2f} to {row.high:.2f})",
        "zeros": f"{row.zeros:.3f}",
        "support": share(row.support),
        "agreement": share(row.agreement),
        "gap": "" if row.gap is None else f"{row.gap:.1e}",
        "seconds": f"{row.seconds:.2g}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparsity", description=__doc__)
    parser.add_argument("methods", nargs="*", help=f"print these alone, of {', '.join((*BESIDE, *FAMILY))}")
    names = parser.parse_args().methods
    torch.set_num_threads(1)
    found = {task: measure(task, names) for task in TASKS}
    if not names:
        where = f"`make bench-sparsity` on {machine()}. {time.strftime('%Y-%m-%d')}."
        tables = "\n".join(f"## {task}\n\n{table([written(row) for row in rows])}\n" for task, rows in found.items())
        RESULT.write_text(f"# sparsity\n\n{__doc__}\n{where}\n\n{tables}")
        with RESULT.with_suffix(".csv").open("w", newline="") as file:
            everything = [row for rows in found.values() for row in rows]
            csv.writer(file, lineterminator="\n").writerows([Row._fields, *everything])


if __name__ == "__main__":
    main()
