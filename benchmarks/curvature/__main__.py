"""Methods that invert a curvature, ours beside their rivals: CPU seconds for all scores of 10,000 × 500 images.

Fashion-MNIST, 10,000 training and 500 test images, one thread, and the networks of `benchmarks.gradients`: a CNN with
105,866 parameters and an MLP with 949,350. All go from the network to the table of scores.

- *Floor*: one pass forward and backward over the 10,500 images in batches of 500; the least of three. In brackets
  behind the seconds: in units of it.
- *Ours*: `dv.fit(method, task, train)` and `.explain(test)`, with kronfluence's damping of 0.1 × the mean eigenvalue.
  "tolerance=0" makes no low-rank approximation: what is computed is what kronfluence computes.
- *kronfluence*: `fit_all_factors` and `compute_pairwise_scores` with its defaults but for damping, for which it takes
  its heuristic; labels are sampled. Batches of 500 for factors, 250 test and 500 training images for scores, which
  are quicker than the 100 that `benchmarks.gradients` gives its rivals.
- *~*: extrapolated. All costs are a constant and so much for each training image: where all would take more than 40 s,
  a line is laid through runs with 500 and 1,500 of them and all test images. EKFAC and K-FAC of ours are always run
  whole, since how low the rank is depends on the samples.
- *Agreement*: the mean over test images of Spearman's correlation of two methods' scores, for the CNN with all test
  images and 1,500 training images. Labels are sampled by each, and that is most of what they differ by.
"""

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

import dualview as dv
from benchmarks.__main__ import machine, table
from benchmarks.gradients.__main__ import written
from benchmarks.gradients.networks import NETWORKS, Problem, cpu_seconds, forward_backward, problem
from benchmarks.gradients.rivals import LIMIT, Seconds
from dualview.data._method import DataMethod
from dualview.ops.ranking import spearman

RESULT = Path(__file__).resolve().parents[1] / "results" / "curvature.md"
FEWER = 500, 1500
OURS = {
    "EKFAC": dv.EKFAC(damping=0.1, fisher="sampled"),
    "EKFAC, tolerance=0": dv.EKFAC(damping=0.1, fisher="sampled", tolerance=0.0),
    "EKFAC, curvature='kfac'": dv.EKFAC(damping=0.1, fisher="sampled", curvature="kfac"),
}
Run = Callable[[Problem], Tensor]


def ours(method: DataMethod) -> Run:
    def run(given: Problem) -> Tensor:
        explainer = dv.fit(method, dv.Task(given.model), (given.inputs, given.labels), progress=False)
        return explainer.explain(given.test_inputs, given.test_labels).dense()

    return run


def kronfluence(strategy: str) -> Run:
    def run(given: Problem) -> Tensor:
        from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model

        class Logit(Task):
            def compute_train_loss(self, batch, model, sample=False):
                logits = model(batch[0])
                labels = torch.multinomial(logits.detach().softmax(1), 1)[:, 0] if sample else batch[1]
                return F.cross_entropy(logits, labels, reduction="sum")

            def compute_measurement(self, batch, model):
                return model(batch[0]).gather(1, batch[1][:, None]).sum()

        train = TensorDataset(given.inputs, given.labels)
        test = TensorDataset(given.test_inputs, given.test_labels)
        with tempfile.TemporaryDirectory() as folder:
            model = prepare_model(copy.deepcopy(given.model), Logit())  # it is wrapped in place
            rival = Analyzer("curvature", model, Logit(), cpu=True, disable_tqdm=True, output_dir=folder)
            rival.fit_all_factors(
                "factors", train, per_device_batch_size=500, factor_args=FactorArguments(strategy=strategy)
            )
            rival.compute_pairwise_scores(
                "scores", "factors", test, train, per_device_query_batch_size=250, per_device_train_batch_size=500,
                score_args=ScoreArguments(damping_factor=None),
            )  # fmt: skip
            return rival.load_pairwise_scores("scores")["all_modules"]

    return run


def fewer(given: Problem, number: int) -> Problem:
    return given._replace(inputs=given.inputs[:number], labels=given.labels[:number])


def measured(run: Run, given: Problem) -> Seconds:
    """Measure a run, or where that would take long lay a line through two runs with fewer training samples."""
    run(Problem(given.model, *(values[:20] for values in given[1:])))  # imports and compiles
    if len(given.labels) <= FEWER[1]:
        return Seconds(cpu_seconds(lambda: run(given)), extrapolated=False)
    few, more = (cpu_seconds(lambda number=number: run(fewer(given, number))) for number in FEWER)
    expected = more + (more - few) / (FEWER[1] - FEWER[0]) * (len(given.labels) - FEWER[1])
    if expected > LIMIT:
        return Seconds(expected, extrapolated=True)
    return Seconds(cpu_seconds(lambda: run(given)), extrapolated=False)


def rows(num_train: int, num_test: int) -> list[dict]:
    """Measure on each network in turn; a row for each method, a column for each network."""
    problems = {name: problem(name, num_train, num_test) for name in NETWORKS}
    unit = {name: forward_backward(given) for name, given in problems.items()}
    found = [{"": "floor: forward and backward", **{name: f"{unit[name]:.2f}" for name in problems}}]
    contenders = {f"ours: {name}": ours(method) for name, method in OURS.items()}
    contenders |= {f"kronfluence, {strategy}": kronfluence(strategy) for strategy in ("ekfac", "kfac")}
    for contender, run in contenders.items():
        whole = contender.startswith("ours") and "tolerance" not in contender
        row = {"": contender}
        for name, given in problems.items():
            seconds = Seconds(cpu_seconds(lambda: run(given)), False) if whole else measured(run, given)  # noqa: B023
            row[name] = written(seconds, unit[name])
        print(row, flush=True)
        found.append(row)
    return found


def agreement(num_train: int, num_test: int) -> str:
    """Return how well the two libraries' scores agree, and two fits of ours with other labels."""
    given = problem("CNN", num_train, num_test)
    mine, other, theirs = (
        run(given).double()
        for run in (
            ours(dv.EKFAC(damping=0.1, fisher="sampled")),
            ours(dv.EKFAC(damping=0.1, fisher="sampled", seed=1)),
            kronfluence("ekfac"),
        )
    )
    pairs = {"ours and kronfluence's": -theirs, "ours with another seed": other}
    return "; ".join(f"{name}: {float(spearman(mine, scores).mean()):.3f}" for name, scores in pairs.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curvature", description=__doc__)
    parser.add_argument("--small", action="store_true", help="400 × 50 images, to see that all run; print only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    size = (400, 50) if arguments.small else (10_000, 500)
    found = rows(*size)
    agreed = agreement(min(size[0], FEWER[1]), size[1])
    print(table(found), agreed, sep="\n")
    if not arguments.small:
        where = (
            f"`python -m benchmarks.curvature` on {machine()}; kronfluence {version('kronfluence')}. "
            f"{time.strftime('%Y-%m-%d')}, load {load:.2f} on cores shared with others."
        )
        RESULT.write_text(f"# curvature\n\n{__doc__}\n{where}\n\n{table(found)}\n\nAgreement: {agreed}.\n")


if __name__ == "__main__":
    main()
