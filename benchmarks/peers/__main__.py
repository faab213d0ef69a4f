"""Other libraries by the same metrics: same network, same data, one run of one command, `make bench-peers`.

What `dualview evaluate` measures, for methods of ours and for peers, whose names begin with their library's. A peer
is run as its documentation says, on a copy of the network, and its scores go to the code that measures ours. Names
tell each setting that is not a default; in brackets, what a default is. All see the final network alone. The networks
are smaller than any peer was made for.

Ours have an advantage: the dampings that are their defaults were chosen by the linear datamodelling score on these
tasks, though on other subsets (`make bench-damping`); of the peers' settings only kronfluence's 0.001 was known to
serve on tasks like these. On `confirmation` nothing was chosen, of ours or theirs.

- *Metrics*: the mean; ↑ higher is better, ↓ lower is better; **bold**: the best. Intervals, chance levels and notes
  stand in `peers.csv`. Scores are those for the predicted class, and of the linear datamodelling score (`lds`) for the
  label. Empty: the contender offers no self-influence or no slack, or what stands below the table. An asterisk: a
  similarity.
- *Seconds*: of the processor, one thread, fit + explanation of all test samples of the standard variant, once. What a
  peer leaves to its explanation, such as training gradients (Captum, dattri's TracIn, kronfluence), counts there.
- *MiB*: the highest resident memory of the two, less what the process held before, network and data among it. Each
  contender has a process of its own, and runs on 100 × 10 samples first: neither clock nor memory counts what is
  imported and compiled once. Mapped files count. Below 1 MiB it is the allocator's grain.
- A contender has {limit} s of the processor for all variants and metrics of a task, and 8 GiB of address space. What it
  had measured when it was stopped stands; it is not tried on the tasks that follow.

Settings of peers that are no defaults: batches of 100 where the default is one sample or the caller must choose
(Captum, traker, dattri's TracIn and TRAK); all training samples in one where that is advised (dattri's influence
functions) or needed (Captum's similarity); 500 training and 250 test samples in kronfluence; single precision in
traker, since half is for GPUs. dattri's influence functions have no damping by default, and DataInf divides by it:
`max_iter=10, regularization=0.01` is its README's example of CG, and the same 0.01 stands in the rows of DataInf and
EK-FAC. kronfluence's `damping_factor=None` is its own heuristic, a tenth of the mean eigenvalue.

DualDA and `DualView` of the same C are one surrogate: DualDA gives the shares of its logit, `DualView` here those of
its margin, which is what the task measures. Captum's TracInCP and `TracIn` are one method: where they differ, the
network is so sure that 1 − p, the factor between the gradients of loss and margin, has few digits in single precision;
in double precision they agree. "TracIn, last layer" is `TracIn(parameters=...)`, with the bias that TracInCPFast
leaves out. dattri's Arnoldi takes the square root of eigenvalues that may be negative. quanda has no row: it needs
torchvision and another Captum; its metrics are among those that judge here.
"""

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.__main__ import machine, table
from benchmarks.full.rows import read
from benchmarks.full.tables import metric_rows
from benchmarks.peers.contenders import contenders
from benchmarks.peers.one import Measured, measured, prepare
from dualview.evaluation._estimate import Estimate
from dualview.evaluation._table import Line
from dualview.evaluation.judgement import Judgement
from dualview.evaluation.metrics import chosen
from dualview.evaluation.tasks import SOURCES

RESULTS = Path(__file__).resolve().parents[1] / "results"
TASKS = "wine", "digits-mlp", "confirmation", "digits-cnn"
PEERS = ("captum", "dattri", "dualxda", "kronfluence", "traker")
LIMIT = 240
NOT_OFFERED = "it has no"  # as the metric says it


def run(task: str, names: list[str], limit: int, stopped: dict[str, str]) -> dict[str, Measured]:
    """Measure contenders on a task; remember in `stopped` who took too long, and leave out who did before."""
    prepare(task)
    found = {}
    for name in names:
        started = time.monotonic()
        known = stopped.get(name)
        one = measured(task, name, limit) if known is None else Measured([], None, f"not tried: {known}")
        if one.why_not.startswith("stopped") and known is None:
            stopped[name] = f"{one.why_not} on {task}"
        print(f"{task}: {name}: {time.monotonic() - started:.0f} s {one.why_not}", flush=True)
        found[name] = one
    return found


def lines_of(task: str, found: dict[str, Measured]) -> list[Line]:
    """Return every contender's lines by metric; those that it did not reach say why."""
    lines = []
    for name, one in found.items():
        had = {line.metric: line for line in one.lines}
        for metric in chosen(None):
            missing = Line(task, metric.variant, metric.name, name, None, one.why_not)
            lines.append(had.get(metric.name, missing))
    return lines


def cost_lines(task: str, found: dict[str, Measured]) -> list[Line]:
    """Return costs as lines of the same table."""
    lines = []
    for name, one in found.items():
        for what, value in {} if one.spent is None else one.spent.by_name().items():
            values = torch.tensor([value], dtype=torch.float64)
            cost = Estimate(what, values, torch.nan, torch.nan, higher_is_better=False, over="runs")
            lines.append(Line(task, "standard", what, name, cost))
    return lines


def cost_rows(found: dict[str, Measured]) -> list[dict[str, str]]:
    """Return a line for each contender."""
    rows = []
    for name, one in found.items():
        row = {"": name, "seconds, fit + explain": one.why_not, "MiB": ""}
        if one.spent is not None:
            mebibytes = one.spent.memory / 2**20
            row["seconds, fit + explain"] = f"{one.spent.fit:.2g} + {one.spent.explain:.2g}"
            row["MiB"] = f"{mebibytes:,.0f}" if mebibytes >= 1 else "< 1"
        rows.append(row)
    return rows


def gaps(lines: list[Line]) -> str:
    """Say why cells are empty, a line for each contender and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line.estimate is None and not line.why_not.startswith(NOT_OFFERED):
            why_not = line.why_not.partition(", the first")[0]  # which row, is of no interest here
            reasons.setdefault((line.contender, why_not), []).append(line.metric)
    return "\n".join(
        f"- {name}: {why} ({'all' if len(metrics) == len(chosen(None)) else ', '.join(metrics)})"
        for (name, why), metrics in reasons.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Compare with other libraries.")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=sorted(SOURCES))
    parser.add_argument("--contenders", nargs="+", help="by name; all by default")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of the processor for a contender and task")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder for peers.md and peers.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts, everything, stopped = [], [], {}
    for task in arguments.tasks:
        found = run(task, arguments.contenders or [*contenders(task)], arguments.limit, stopped)
        lines = lines_of(task, found)
        everything += lines + cost_lines(task, found)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lines.csv"
            path.write_text(Judgement(tuple(lines), ()).to_csv())
            shown = metric_rows(read(path))
        parts += [f"## {task}", table(shown), gaps(lines), table(cost_rows(found))]
        print(*parts[-4:], sep="\n\n", flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    where = f"`make bench-peers` on {machine()}; {versions}. {time.strftime('%Y-%m-%d')}."
    head = ["# peers", (__doc__ or "").strip().format(limit=arguments.limit), where]
    (arguments.to / "peers.md").write_text("\n\n".join(part for part in [*head, *parts] if part) + "\n")
    (arguments.to / "peers.csv").write_text(Judgement(tuple(everything), ()).to_csv())


if __name__ == "__main__":
    main()
