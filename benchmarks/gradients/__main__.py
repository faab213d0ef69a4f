"""Methods that compare gradients, ours beside their rivals: CPU seconds for all scores of 10,000 × 500 images.

Fashion-MNIST, 10,000 training and 500 test images, one thread. The networks, trained for one epoch: a CNN (two 3×3
convolutions of 16 and 32 channels, each pooled by 2, and linear layers 1568-64-10: 105,866 parameters) and an MLP
(784-784-420-10: 949,350 parameters). All measure one checkpoint, from the network to the table of scores.

- *Floors*: one pass over the 10,500 images in batches of 500, forward, and forward and backward for the gradient of
  the summed loss; the least of three. In brackets behind the seconds: in units of the second.
- *Rivals* get batches of 100. traker has its default projection on a CPU, normal numbers made anew for each batch, in
  single precision with a ridge of 1. dattri projects to 512 numbers unless told otherwise, and goes through all test
  images again for each batch of training images.
- *~*: extrapolated. All costs are a constant and so much for each training image; where all of them would take more
  than 40 s, a line is laid through runs with 100 and 300 of them (10 and 30 for the slowest) and all test images.
- *Ours*: `dv.fit(method, task, train)` and `.explain(test)`, with each method's defaults but for what its name says.
  "recording alone" leaves out what the method itself computes: its curvature, its solves and its scores.
"""

import argparse
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch

import dualview as dv
from benchmarks.__main__ import machine, table
from benchmarks.gradients.networks import NETWORKS, Problem, cpu_seconds, forward, forward_backward, problem
from benchmarks.gradients.rivals import RIVALS, Seconds, measured
from dualview.data._method import DataMethod
from dualview.evaluation.contenders import Method

RESULT = Path(__file__).resolve().parents[1] / "results" / "gradients.md"
OURS = (
    dv.GradDot(),
    dv.TracIn(),
    dv.TRAK(projection=512),
    dv.TRAK(),
    dv.KernelInfluence(),
    dv.LastLayerInfluence(),
    dv.ForwardInfluence(),
)
DENSE = dv.TRAK(projection=512, kind_of_projection="rademacher")
OWN_WORK = ("fit", "prepare", "score")  # of a method; the rest of a call is recording


def ours(method: DataMethod) -> Callable[[Problem], Seconds]:
    """Return how to measure a method of ours."""

    def measure(given: Problem) -> Seconds:
        return Seconds(cpu_seconds(lambda: scores(method, given)), extrapolated=False)

    return measure


def scores(method: DataMethod, given: Problem) -> None:
    explainer = dv.fit(method, dv.Task(given.model), (given.inputs, given.labels), progress=False)
    explainer.explain(given.test_inputs, given.test_labels)


def recording(method: DataMethod) -> Callable[[Problem], Seconds]:
    """Return how to measure all that is not the method's own arithmetic."""

    def measure(given: Problem) -> Seconds:
        spent = 0.0

        def timed(function: Callable) -> Callable:
            def call(*arguments: object, **words: object) -> object:
                nonlocal spent
                start = time.process_time()
                try:
                    return function(*arguments, **words)
                finally:
                    spent += time.process_time() - start

            return call

        with ExitStack() as stack:
            for name in OWN_WORK:
                whole = getattr(type(method), name)
                stack.enter_context(mock.patch.object(type(method), name, timed(whole)))
            total = cpu_seconds(lambda: scores(method, given))
        return Seconds(total - spent, extrapolated=False)

    return measure


def product(given: Problem, width: int = 512, block: int = 1024) -> Seconds:
    """Multiply as many rows of all parameters as there are images by a matrix of `width` columns."""
    left, right = torch.randn(block, given.num_parameters), torch.randn(given.num_parameters, width)
    seconds = min(cpu_seconds(lambda: left @ right) for _ in range(2))
    return Seconds(seconds * (len(given.inputs) + len(given.test_inputs)) / block, extrapolated=True)


def rows(num_train: int, num_test: int, *, rivals: bool) -> list[dict]:
    """Measure on each network in turn; a row for each method, a column for each network."""
    problems = {name: problem(name, num_train, num_test) for name in NETWORKS}
    unit = {name: forward_backward(given) for name, given in problems.items()}
    found = [{"": "floor: forward", **{name: written(Seconds(forward(problems[name]), False)) for name in problems}}]
    found.append({"": "floor: forward and backward", **{name: f"{unit[name]:.2f}" for name in problems}})
    found.append(
        {
            "": "floor: gradients × a matrix of 512 columns",
            **{name: written(product(problems[name]), unit[name]) for name in problems},
        }
    )
    print(found, flush=True)
    contenders = {f"ours: {Method(one).name}": ours(one) for one in OURS}
    contenders["ours: ForwardInfluence, recording alone"] = recording(dv.ForwardInfluence())
    contenders[f"ours: {Method(DENSE).name}"] = ours(DENSE)
    if rivals:
        contenders |= {name: lambda given, run=run: measured(run, given) for name, run in RIVALS.items()}
    for contender, measure in contenders.items():
        row = {"": contender}
        for name, given in problems.items():
            minutes = "rademacher" in contender and name == "MLP"
            row[name] = "not run" if minutes else written(measure(given), unit[name])
        print(row, flush=True)
        found.append(row)
    return found


def written(seconds: Seconds, unit: float | None = None) -> str:
    number = f"{'~' if seconds.extrapolated else ''}{seconds.seconds:.3g}"
    return number if unit is None else f"{number} ({seconds.seconds / unit:.3g}×)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    parser.add_argument("--no-rivals", action="store_true", help="measure ours and the floors, and print them")
    parser.add_argument("--small", action="store_true", help="400 × 50 images, to see that all run; print only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    found = rows(*((400, 50) if arguments.small else (10_000, 500)), rivals=not arguments.no_rivals)
    print(table(found))
    if not (arguments.small or arguments.no_rivals):
        peers = ", ".join(f"{name} {version(name)}" for name in ("captum", "traker", "dattri"))
        where = (
            f"`python -m benchmarks.gradients` on {machine()}; {peers}. {time.strftime('%Y-%m-%d')}, load {load:.2f}."
        )
        RESULT.write_text(f"# gradients\n\n{__doc__}\n{where}\n\n{table(found)}\n")


if __name__ == "__main__":
    main()
