"""Every data method by every metric that trains no network for it, with its cost: `python -m benchmarks.methods`.

What `dualview evaluate` measures, one line a method. Each method has its defaults; nothing is tuned on the truth
(`make bench-damping` chooses the defaults' damping on subsets of its own). Scores are those for the predicted class,
and of the linear datamodelling score (`lds`) for the label. Columns: the mean, **bold** the best where one way is
better; empty where the metric does not apply, such as mislabel detection to a self-influence that is the same for all.
An asterisk: a similarity, whose sums mean nothing of their own. Intervals and notes stand in `methods.csv`.

- *Seconds*: fit, recording included, and explanation of all test samples, mean over the variants of a task; one thread.
- *Passes*: samples that went forward and backward through the network in both, in multiples of the training set.
- *Bytes*: kept between fit and explanation, for each training sample.
"""

import argparse
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import torch

from benchmarks.__main__ import machine, table
from dualview.evaluation.cases import case_of
from dualview.evaluation.contenders import NAMES, contenders
from dualview.evaluation.judgement import Cost, Judgement, Line, judge
from dualview.evaluation.metrics import chosen
from dualview.evaluation.tasks import SOURCES, VARIANTS, Problem

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
STORE = ROOT / "runs" / "evaluation"
TASKS = ("digits-mlp", "wine")


def measured(task: str, names: list[str]) -> Judgement:
    """Judge the methods on all variants of a task."""
    cases = [partial(case_of, Problem(SOURCES[task], variant, STORE)) for variant in VARIANTS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes and certificates say it
        return judge(contenders(names), chosen(None), cases)


def metric_rows(lines: list[Line]) -> list[dict[str, str]]:
    """Return a line for each contender and a column for each metric."""
    best: dict[str, float] = {}
    for line in lines:
        found = line.estimate
        if found is not None and found.higher_is_better is not None and found.mean == found.mean:
            better = max if found.higher_is_better else min
            best[line.metric] = better(best.get(line.metric, found.mean), found.mean)
    metrics = list(dict.fromkeys(line.metric for line in lines))
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        row = rows.setdefault(line.contender, {"": line.contender} | dict.fromkeys(metrics, ""))
        row[line.metric] = cell(line, best)
    return list(rows.values())


def cell(line: Line, best: dict[str, float]) -> str:
    found = line.estimate
    if found is None:
        return ""
    star = "*" if any("similarities" in note for note in found.notes) else ""
    text = f"{found.mean:.3f}{star}"
    return f"**{text}**" if best.get(line.metric) == found.mean else text


def cost_rows(costs: list[Cost], num_train: int) -> list[dict[str, str]]:
    """Return a line for each contender: its cost on a task, mean over variants."""
    by_name: dict[str, list[Cost]] = {}
    for cost in costs:
        by_name.setdefault(cost.contender, []).append(cost)
    return [
        {
            "": name,
            "seconds, fit + explain": " + ".join(
                f"{statistics.mean(values):.2g}"
                for values in ([one.fit_seconds for one in group], [one.explain_seconds for one in group])
            ),
            "passes, forward + backward": " + ".join(
                f"{statistics.mean(one.fit_passes[way] + one.explain_passes[way] for one in group) / num_train:.2f}"
                for way in (0, 1)
            ),
            "bytes": f"{statistics.mean(one.num_bytes for one in group) / num_train:,.0f}",
        }
        for name, group in by_name.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("methods", nargs="*", help="print these alone; all, and write, by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts, csv = [], []
    for task in TASKS:
        found = measured(task, arguments.methods or [*NAMES])
        num_train = len(Problem(SOURCES[task], "standard", STORE).train.labels)
        parts.append(f"## {task}\n\n{table(metric_rows(list(found.lines)))}\n")
        parts.append(f"{table(cost_rows(list(found.costs), num_train))}\n")
        csv.append(found.to_csv() if not csv else found.to_csv().partition("\n")[2])
        print(*parts[-2:], sep="\n", flush=True)
    if not arguments.methods:
        where = f"`make bench-methods` on {machine()}. {time.strftime('%Y-%m-%d')}."
        (RESULTS / "methods.md").write_text(f"# methods\n\n{__doc__}\n{where}\n\n" + "\n".join(parts))
        (RESULTS / "methods.csv").write_text("".join(csv))


if __name__ == "__main__":
    main()
