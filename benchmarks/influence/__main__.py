"""How well the methods foretell retraining, and how well they find wrong labels: `python -m benchmarks.influence`.

One network for each task; what is measured of it is the margin of the label. Every method has its defaults but for
what its name says: nothing is tuned on the truth. n is the number of training samples; ", response" is
`Explainer.response` of the same fit. TracIn sees the final network alone, where it is GradDot.

- *Linear datamodelling score*, 95 % interval: rank correlation of summed scores with the outputs of networks retrained
  on half subsets, 100 × 2 seeds, of `fashion-residual` 30 × 2. The noise ceiling is what perfect scores could reach.
- *Seconds*: fit, recording included, and explanation of all test samples, one thread. What is loaded or compiled once
  falls on the first that needs it: a second or two of GradDot's fit, and of DualView's.
- *Wrong labels*: 5 % of the training labels are flipped and a network is trained on them. Area under the ROC curve of
  self-influence, or of slack, 95 % interval; ½ is chance. Methods whose self-influence is the same for all samples are
  left out. cleanlab, where it is installed, ranks by the probability of the label in 5-fold cross-validation.

`Influence` by conjugate gradients and `InputKernel` take too long on the larger tasks (`make bench-full` has them),
and so does Arnoldi on `fashion-residual`.
`confirmation` is measured only when it is asked for, since nothing may be tuned on it.
"""

import argparse
import csv
import importlib
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import dualview as dv
from benchmarks.__main__ import machine, table
from dualview.data._method import DataMethod
from dualview.evaluation import retrieval
from dualview.evaluation._estimate import Estimate
from dualview.evaluation.cases import Case, case_of
from dualview.evaluation.contenders import Method
from dualview.evaluation.datamodelling import linear_datamodelling_score, noise_ceiling
from dualview.evaluation.tasks import SOURCES, Problem

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "runs" / "evaluation"
TABLE, PAGE = (ROOT / "benchmarks" / "results" / f"influence.{ending}" for ending in ("csv", "md"))
TASKS = ("mnist-mlp", "digits-mlp", "digits-cnn", "fashion-residual", "bbc-sentences", "wine")
CONFIRMATION = "confirmation"
FOLDS = 5

CURVED = ("softmax", "entmax", "sparsemax", "smooth-hinge")
METHODS: tuple[DataMethod, ...] = (
    dv.Random(),
    dv.SameClass(),
    dv.GradDot(),
    dv.GradCos(),
    dv.TracIn(),
    dv.TRAK(512),
    dv.TRAK(2048),
    dv.DataInf(),
    dv.Arnoldi(),
    dv.EKFAC(),
    dv.EKFAC(damping=0.1),
    dv.RelatIF(),
    dv.KernelInfluence(),
    dv.LastLayerInfluence(),
    dv.ForwardInfluence(sites=1),
    dv.ForwardInfluence(),
    dv.TraceNTK(),
    dv.FeatureSimilarity(),
    dv.FeatureSimilarity("cosine"),
    dv.InputSimilarity("cosine"),
    dv.RepresenterPoints(),
    dv.RepresenterPoints(fit_to="labels"),
    dv.SupportSpectrum(),
    dv.DualView(),
    dv.DualView(C=1e-2, metric="whitened"),
    dv.DualView(C=1e-2, loss="smooth-hinge"),
    *(dv.DualView(loss=loss, metric="curvature") for loss in CURVED),
)


class Row(NamedTuple):
    """One number of the tables, with its interval, and what it took."""

    task: str
    metric: str
    contender: str
    value: float
    low: float
    high: float
    fit: float = 0.0
    explain: float = 0.0

    @classmethod
    def of(cls, task: str, metric: str, contender: str, found: Estimate, fit: float = 0, explain: float = 0) -> "Row":
        return cls(task, metric, contender, found.mean, found.low, found.high, fit, explain)


def methods(num_train: int, only: tuple[str, ...] = ()) -> dict[str, DataMethod]:
    """Return what is measured, by its name in the tables; of some classes alone where these are named."""
    if only:
        return {Method(method).name: method for method in METHODS if type(method).__name__ in only}
    named = {Method(method).name: method for method in METHODS}
    return named | {
        f"DualView(C=1/n, loss={loss!r}, metric='curvature')": dv.DualView(1 / num_train, loss, "curvature")
        for loss in CURVED
    }


def datamodelling(case: Case, only: tuple[str, ...]) -> Iterator[Row]:
    """Measure scores, and responses where there are some, by a retraining bank."""
    masks, outputs, _ = case.truth()
    yield Row.of(case.name, "lds", "noise ceiling", noise_ceiling(outputs))
    for name, method in methods(len(case.train_targets), only).items():
        started = time.perf_counter()
        explainer = dv.fit(method, case.task, case.train, progress=False)
        fit = time.perf_counter() - started
        ways = {name: explainer.explain}
        if isinstance(method, dv.DualView):
            ways[f"{name}, response"] = explainer.response
        for way, explain in ways.items():
            started = time.perf_counter()
            scores = explain(case.test_inputs, case.test_targets)
            seconds = time.perf_counter() - started
            found = linear_datamodelling_score(scores, masks, outputs, allow_similarity=scores.kind == "similarity")
            yield Row.of(case.name, "lds", way, found, fit, seconds)


def wrong_labels(case: Case, only: tuple[str, ...]) -> Iterator[Row]:
    """Measure what finds the training labels that were flipped."""
    assert case.planted is not None
    flipped = case.planted[0].flipped
    baselines = {Method(one).name: one for one in (dv.Random(), dv.Loss(), dv.Confidence())}
    for name, method in (({} if only else baselines) | methods(len(case.train_targets), only)).items():
        fitted = Method(method).fit(case.task, case.train, case.train_targets)
        started = time.perf_counter()
        suspicions = fitted.suspicions()
        seconds = time.perf_counter() - started
        for what, suspicion in suspicions.items():
            label = name if what == "self_influence" else f"{name}, {what}"
            found = retrieval.mislabel_detection(suspicion, flipped)
            yield Row.of(case.name, "auc", label, found, fitted.seconds, seconds)
    if importlib.util.find_spec("cleanlab") is not None and not only:
        started = time.perf_counter()
        found = retrieval.mislabel_detection(-by_cleanlab(case), flipped)
        yield Row.of(case.name, "auc", f"cleanlab, {FOLDS} folds", found, 0.0, time.perf_counter() - started)


def by_cleanlab(case: Case) -> torch.Tensor:
    """Return cleanlab's quality of each training label, by networks that did not see it."""
    inputs, labels = case.train
    fold = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % FOLDS
    probabilities = []
    for k in range(FOLDS):
        with torch.no_grad():
            probabilities.append(case.seeded_retrain(fold != k, k)(inputs[fold == k]).softmax(1))
    back = torch.cat([(fold == k).nonzero().squeeze(1) for k in range(FOLDS)]).argsort()
    rank = importlib.import_module("cleanlab.rank")
    return torch.from_numpy(rank.get_label_quality_scores(labels.numpy(), torch.cat(probabilities)[back].numpy()))


def measure(task: str, store: Path, only: tuple[str, ...]) -> list[Row]:
    """Measure one task, and print each number when it is there."""
    rows = []
    for variant, ask in (("standard", datamodelling), ("flipped", wrong_labels)):
        for row in ask(case_of(Problem(SOURCES[task], variant, store)), only):
            print(f"{row.task}, {row.metric}: {row.contender}: {cell(row)}, {seconds(row)} s", flush=True)
            rows.append(row)
    return rows


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


def cell(row: Row) -> str:
    return f"{row.value:.3f} ({row.low:.2f} to {row.high:.2f})"


def seconds(row: Row) -> str:
    return " + ".join(f"{part:.2g}" if part < 10 else f"{part:.0f}" for part in (row.fit, row.explain))


def page(rows: list[Row], left_out: dict[str, str]) -> str:
    """Write the tables: a row for each contender, a column for each task."""
    parts = []
    for title, metric, show in (
        ("Linear datamodelling score", "lds", cell),
        ("Seconds: fit + explanation of all test samples", "lds", seconds),
        ("Wrong labels: area under the ROC curve", "auc", cell),
    ):
        chosen = [row for row in rows if row.metric == metric and (show is cell or row.contender != "noise ceiling")]
        tasks = [task for task in (*TASKS, CONFIRMATION) if any(row.task == task for row in chosen)]
        lines: dict[str, dict[str, str]] = {}
        for row in chosen:
            lines.setdefault(row.contender, {"": row.contender} | dict.fromkeys(tasks, ""))[row.task] = show(row)
        parts.append(f"## {title}\n\n{table(list(lines.values()))}\n")
    missing = "".join(f"\n{task} is left out: {why}\n" for task, why in left_out.items())
    where = f"`make bench-influence` on {machine()}. {time.strftime('%Y-%m-%d')}."
    return f"# influence\n\n{__doc__}\n{where}\n{missing}\n" + "\n".join(parts)


def read() -> list[Row]:
    """Return what was measured before."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return [Row(*words[:3], *map(float, words[3:])) for words in list(csv.reader(file))[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.influence", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"measure these alone, of {', '.join(TASKS)}")
    parser.add_argument("--confirmation", action="store_true", help="measure the task that nothing was tuned on, alone")
    parser.add_argument(
        "--only", action="append", default=[], help="measure methods of this class alone; repeat for more"
    )
    parser.add_argument("--store", type=Path, default=STORE, help="folder that keeps networks and retraining banks")
    arguments = parser.parse_args()
    if unknown := set(arguments.tasks) - set(TASKS):
        parser.error(f"there is no task {', '.join(unknown)} here; there are {', '.join(TASKS)}")
    torch.set_num_threads(1)
    rows, left_out = read(), {}
    for task in (CONFIRMATION,) if arguments.confirmation else arguments.tasks or TASKS:
        try:
            found = measure(task, arguments.store, tuple(arguments.only))
        except ModuleNotFoundError as missing:  # data that are not installed
            left_out[task] = " ".join(str(missing).split())
            continue
        new = {row[:3] for row in found}
        rows = [row for row in rows if row.task != task or (arguments.only and row[:3] not in new)] + found
        with TABLE.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Row._fields, *rows])
        PAGE.write_text(page(rows, left_out))
    print(f"Written: {PAGE}", *(f"{task} is left out: {why}" for task, why in left_out.items()), sep="\n")


if __name__ == "__main__":
    main()
