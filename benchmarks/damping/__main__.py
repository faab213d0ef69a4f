"""How much damping matters, and which defaults were chosen: `python -m benchmarks.damping`.

Linear datamodelling score of each method that inverts a curvature, over its damping: rank correlation of summed scores
with the margins of networks retrained on half subsets, mean over test samples. The subsets are drawn for this table
alone, 60 × 2 seeds: no other table uses them, so that defaults that were chosen here are not chosen on what they are
judged by. λ is `damping` × the mean diagonal of the matrix that is inverted (ForwardInfluence: of the training
samples' kernel, so many samples' worth). **Bold**: the method's default; the last column is the mean over tasks.
"""

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path

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
METHODS: dict[str, Callable[[float], DataMethod]] = {
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


def scores(names: list[str]) -> dict[str, dict[tuple[str, float], float]]:
    """Measure; method → (task, damping) → score."""
    found: dict[str, dict[tuple[str, float], float]] = {name: {} for name in names}
    for source in TASKS:
        problem = Problem(SOURCES[source], "standard", STORE)
        task = problem.task(problem.model(0))
        truth = bank(problem, task)
        for name in names:
            default = getattr(METHODS[name](1.0).__class__(), "damping")  # noqa: B009
            for damping in sorted({*LARGE.get(name, DAMPINGS), default}):
                started = time.perf_counter()
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    explainer = dv.fit(METHODS[name](damping), task, problem.train.pairs, progress=False)
                    result = explainer.explain(problem.test.inputs, problem.test.labels)
                measured = linear_datamodelling_score(result, truth.masks, truth.outputs)
                found[name][source, damping] = measured.mean
                words = "; ".join(str(one.message) for one in said)
                seconds = time.perf_counter() - started
                print(f"{source} {name} {damping:g}: {measured.mean:.3f} ({seconds:.1f} s) {words}", flush=True)
    return found


def rows(found: dict[str, dict[tuple[str, float], float]]) -> list[dict[str, str]]:
    """Write a line for each method and damping."""
    lines = []
    for name, values in found.items():
        default = METHODS[name](1.0).__class__()
        for damping in sorted({damping for _, damping in values}):
            chosen = damping == default.damping and dataclasses.replace(default) == METHODS[name](damping)
            cells = [values[source, damping] for source in TASKS]
            written = [f"{value:.3f}" for value in (*cells, sum(cells) / len(cells))]
            label = f"{damping:g}"
            lines.append(
                {"method": name, "damping": f"**{label}**" if chosen else label}
                | dict(zip((*TASKS, "mean"), written, strict=True))
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damping", description=__doc__)
    parser.add_argument("methods", nargs="*", help=f"print these alone, of {', '.join(METHODS)}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = table(rows(scores(arguments.methods or [*METHODS])))
    print(lines)
    if not arguments.methods:
        where = f"`make bench-damping` on {machine()}. {time.strftime('%Y-%m-%d')}."
        RESULT.write_text(f"# damping\n\n{__doc__}\n{where}\n\n{lines}\n")


if __name__ == "__main__":
    main()
