"""Every data method by every metric on every built-in task and variant, with its cost: `make bench-full`.

Two runs of `dualview evaluate`, put on one page: all tasks by all metrics that train no network for each method, and
small ones by those that do (stability, brittleness, coreset selection, data pruning). Each method has its
defaults; nothing is tuned on the truth, and nothing at all on `confirmation` (`make bench-damping` chose dampings, on
subsets of its own). A method whose scores for a task took longer than 90 s was stopped, and not tried on the task's
other variants. Scores are those for the predicted class, and of the linear datamodelling score (`lds`) for the label.

- Columns: the mean; ↑ higher is better, ↓ lower is better; **bold**: the best; empty where the metric does not apply,
  such as mislabel detection to a self-influence that is the same for all. An asterisk: a similarity, whose sums mean
  nothing of their own. Intervals, chance levels and notes stand in `full.csv` and `retrained.csv`.
- *Seconds*: fit, recording included, and explanation of all test samples, median over a task's variants; one thread.
  Where a method was stopped on some variants, the median is over the others, as the bracket says.
- *Passes*: samples that went forward and backward through the network in both, in multiples of the training set.
- *Bytes*: kept between fit and explanation, for each training sample.
- *Rank*: 1 is best; in brackets, over how many tasks. A method that was stopped has no rank there. "All purposes" is
  the mean over the linear datamodelling score and class, subclass, shortcut, mixed-data and mislabel detection. Other
  metrics have no part in it: random scores lead some of them, and slack is known of three methods alone. In brackets
  there: comparisons; methods to which one of the six does not apply say "not all", and stand last.
- *≈*: the two 95 % intervals overlap.

Networks of seed 0. Banks: 100 half subsets × 2 seeds; of `mnist-cnn`, `fashion-cnn` and `fashion-residual` 30 × 2.
"""

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.__main__ import machine, table
from benchmarks.full import figures
from benchmarks.full.rows import Row, read
from benchmarks.full.tables import PURPOSES, ceilings, cost_rows, groups, leaders, metric_rows, standing, summary

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, IMAGES = RESULTS / "full.md", ROOT / "docs" / "images" / "full"
TABLES = RESULTS / "full.csv", RESULTS / "retrained.csv"
RETRAINING = ("stability", "brittleness", "coreset-selection", "data-pruning")
MADE_BY = "`make bench-full`"
CONFIRMATION, HEART, RANDOM = "confirmation", "DualView", "random"
BY_PURPOSE = (
    f"The five that lead by mean rank over all tasks but `{CONFIRMATION}`, {HEART}, and random scores; "
    f"`{CONFIRMATION}` apart, with the place there."
)
NUM_TRAIN = {  # written down, so that the page can be written where the texts are not installed
    "digits-mlp": 1437, "digits-cnn": 1437, "mnist-mlp": 2000, "mnist-cnn": 4000, "fashion-cnn": 4000,
    "fashion-residual": 4000, "confirmation": 2000, "wine": 118, "bbc-sentences": 1600,
}  # fmt: skip
STANDING = (
    "Its value, its place among how many, the best other method with its value, and that of random scores, where the "
    "metric applies to them and they are not the best other. Last: its seconds, and those of random scores."
)


def origin(here: bool) -> str:
    """Say where and when the tables were measured: here and now, or as the page has it that they were put on before."""
    if not here and PAGE.exists():
        for line in PAGE.read_text().splitlines():
            if line.startswith(MADE_BY):
                return line
    return f"{MADE_BY} on {machine()}. {time.strftime('%Y-%m-%d')}."


def page(rows: Sequence[Row], where: str) -> str:
    """Write the tables."""
    metrics = list(dict.fromkeys(metric for metric, _ in groups(rows)))
    missing = [task for task in NUM_TRAIN if task not in {row.data for row in rows}]
    missing += [metric for metric in RETRAINING if metric not in {row.metric for row in rows}]
    left_out = f"\nNot in these tables: {', '.join(missing)}; the same command adds them.\n" if missing else ""
    parts = [f"# full\n\n{__doc__}\n{where}\n{left_out}"]
    for title, chosen in (
        (f"Mean ranks, all tasks but {CONFIRMATION}", [row for row in rows if row.data != CONFIRMATION]),
        (f"Mean ranks, {CONFIRMATION}", [row for row in rows if row.data == CONFIRMATION]),
    ):
        if chosen:
            parts.append(f"## {title}\n\n{table(summary(chosen, metrics))}\n")
    parts.append(f"## By purpose\n\n{BY_PURPOSE}\n")
    for metric in PURPOSES:
        parts.append(f"### {metric}\n\n{table(leaders(rows, metric, CONFIRMATION, (HEART, RANDOM)))}\n")
    parts.append(f"## Where {HEART} stands\n\n{STANDING}\n\n{table(standing(rows, HEART, RANDOM))}\n")
    for task in dict.fromkeys(row.data for row in rows):
        here = [row for row in rows if row.data == task]
        noted = "".join(f"\nThe {note}.\n" for note in ceilings(here))
        parts += [f"## {task}\n{noted}\n{table(metric_rows(here))}\n", f"{table(cost_rows(here, NUM_TRAIN[task]))}\n"]
    return "\n".join(parts)


def draw(rows: Sequence[Row]) -> None:
    """Draw all figures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    asked = [row for row in rows if row.metric in PURPOSES]
    save(figures.ranks([row for row in asked if row.data != CONFIRMATION]), "ranks")
    save(figures.ranks([row for row in asked if row.data == CONFIRMATION]), "ranks-confirmation")
    for metric in dict.fromkeys(metric for metric, _ in groups(rows)):
        save(figures.metric([row for row in rows if row.metric == metric]), metric)
    save(figures.damping(RESULTS / "damping.csv"), "damping")
    save(figures.penalty(RESULTS / "sparsity.csv"), "c")
    save(figures.sparsity(RESULTS / "sparsity.csv"), "sparsity")


def save(figure: Figure, name: str) -> None:
    """Write a picture of few colours, which is small; the octree keeps thin lines apart."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    picture = (
        Image.open(buffer).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    )
    picture.save(IMAGES / f"{name}.png", optimize=True)
    print(f"figure: {IMAGES / name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full", description=__doc__)
    parser.add_argument("--figures", action="store_true", help="draw the figures alone")
    parser.add_argument("--here", action="store_true", help="the tables were measured on this machine, today")
    given = parser.parse_args()
    rows = read(*(path for path in TABLES if path.exists()))
    if not given.figures:
        PAGE.write_text(page(rows, origin(given.here)))
    draw(rows)


if __name__ == "__main__":
    main()
