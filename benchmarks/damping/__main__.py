"""How much damping matters, and which defaults were chosen: `python -m benchmarks.damping`.

Linear datamodelling score of each method that inverts a curvature, over its damping: rank correlation of summed scores
with the margins of networks retrained on half subsets, mean over test samples. The subsets are drawn for this table
alone, 60 × 2 seeds: no table that judges methods uses them, so that defaults that were chosen here are not chosen on
what they are judged by. λ is `damping` × the mean diagonal of the matrix that is inverted (ForwardInfluence: of the
training samples' kernel, so many samples' worth). **Bold**: the method's default; then the mean over tasks, and the
seconds of fit and explanation, summed over tasks, one thread. Intervals stand in `damping.csv`. Influence by conjugate
gradients and Arnoldi are left out of `digits-cnn`, where each value takes minutes.
"""

import argparse
import csv
import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import dualview as dv
from benchmarks.__main__ import machine, table
from dualview.data._method import DataMethod
from dualview.engine.retraining import Bank, retrain
from dualview.engine.subsets import half_subsets
from dualview.evaluation.datamodelling import linear_datamodelling_score
from dualview.evaluation.tasks import SOURCES, Problem

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "damping.md"
STORE = ROOT / "runs" / "evaluation"
TASKS = ("mnist-mlp", "digits-mlp", "digits-cnn", "wine")
SUBSETS, SEEDS, DRAWN = 60, 2, 1  # half_subsets(..., seed=0) are those of all other tables
DAMPINGS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
LARGE = {"Influence": (1.0, 10.0, 100.0)}  # below, conjugate gradients take minutes
TOO_LONG = (("digits-cnn", "Influence"), ("digits-cnn", "Arnoldi"))  # minutes for each value
METHODS: dict[str, Callable[[float], DataMethod]] = {
    "Random": lambda d: dv.Random(),
    "EKFAC": lambda d: dv.EKFAC(damping=d),
    "KFAC": lambda d: dv.EKFAC(damping=d, curvature="kfac"),
    "diagonal": lambda d: dv.EKFAC(damping=d, curvature="diagonal"),
    "Influence": lambda d: dv.Influence(damping=d),
    "Arnoldi": lambda d: dv.Arnoldi(damping=d),
    "DataInf": lambda d: dv.DataInf(damping=d),
    "KernelInfluence": lambda d: dv.KernelInfluence(damping=d),
    "LastLayerInfluence": lambda d: dv.LastLayerInfluence(damping=d),
    "ForwardInfluence": lambda d: dv.ForwardInfluence(damping=d),
}


def bank(problem: Problem, task: dv.Task) -> Bank:
    """Retrain on subsets of this table's own."""
    train = problem.train
    return retrain(
        problem.retrain,
        half_subsets(len(train.labels), SUBSETS, seed=DRAWN),
        task,
        problem.test.pairs,
        seeds=tuple(range(SEEDS)),
        folder=STORE / "banks" / f"{problem.fingerprint}-{SUBSETS}-{SEEDS}-drawn-{DRAWN}",
        train_set=train.pairs,
        name=problem.source.name,
    )


class Row(NamedTuple):
    """One method with one damping on one task."""

    task: str
    method: str
    damping: float | None
    default: bool
    lds: float
    low: float
    high: float
    seconds: float


def scores(names: list[str]) -> list[Row]:
    """Measure, and print each number when it is there."""
    found = []
    for source in TASKS:
        problem = Problem(SOURCES[source], "standard", STORE)
        task = problem.task(problem.model(0))
        truth = bank(problem, task)
        for name in names:
            if (source, name) in TOO_LONG:
                continue
            default = type(METHODS[name](1.0))()
            own = getattr(default, "damping", None)
            for damping in [None] if own is None else sorted({*LARGE.get(name, DAMPINGS), own}):
                method = METHODS[name](damping or 1.0)
                started = time.perf_counter()
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    explainer = dv.fit(method, task, problem.train.pairs, progress=False)
                    result = explainer.explain(problem.test.inputs, problem.test.labels)
                seconds = time.perf_counter() - started
                at = linear_datamodelling_score(result, truth.masks, truth.outputs)
                chosen = damping is not None and dataclasses.replace(default) == method
                row = Row(source, name, damping, chosen, at.mean, at.low, at.high, seconds)
                print(row, "; ".join(str(one.message) for one in said), flush=True)
                found.append(row)
    return found


def rows(found: list[Row]) -> list[dict[str, str]]:
    """Write a line for each method and damping."""
    lines = []
    for name, damping in dict.fromkeys((row.method, row.damping) for row in found):
        here = [row for row in found if (row.method, row.damping) == (name, damping)]
        values = {row.task: row.lds for row in here}
        label = "" if damping is None else f"**{damping:g}**" if here[0].default else f"{damping:g}"
        written = {task: f"{values[task]:.3f}" if task in values else "" for task in TASKS}
        mean = f"{sum(values.values()) / len(values):.3f}" if len(values) == len(TASKS) else ""
        seconds = f"{sum(row.seconds for row in here):.2g}"
        lines.append({"method": name, "damping": label, **written, "mean": mean, "seconds": seconds})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damping", description=__doc__)
    parser.add_argument("methods", nargs="*", help=f"print these alone, of {', '.join(METHODS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = scores(arguments.methods or [*METHODS])
    lines = table(rows(found))
    print(lines)
    if not arguments.methods:
        with RESULT.with_suffix(".csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Row._fields, *found])
        where = f"`make bench-damping` on {machine()}. {time.strftime('%Y-%m-%d')}."
        RESULT.write_text(f"# damping\n\n{__doc__}\n{where}\n\n{lines}\n")


if __name__ == "__main__":
    main()
