"""A short judgement that anyone can repeat: baselines and DualView on two small tasks, in about two minutes.

`mnist-mlp` in all variants and `digits-mlp` flipped, 60 half subsets × 2 seeds. The table gives each metric
for the networks of seed 0, and the interval in which 19 of 20 repetitions fall: mean ± 2.78 standard
deviations over five networks of other seeds (Student's t with four degrees of freedom), widened by the
table's last digit. `make bench-short` measures seed 0 anew and fails where a value lies outside.
"""

import argparse
import csv
import math
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.__main__ import machine
from dualview.evaluation.cases import case_of
from dualview.evaluation.contenders import contenders
from dualview.evaluation.judgement import judge
from dualview.evaluation.metrics import chosen
from dualview.evaluation.tasks import SOURCES, VARIANTS, Problem

RESULTS = Path(__file__).resolve().parents[1] / "results"
TABLE, PAGE = RESULTS / "short.csv", RESULTS / "short.md"
CONTENDERS = ("random", "same-class", "DualView", "DualView(C=1e-3)")
PROBLEMS = (*(("mnist-mlp", variant) for variant in VARIANTS), ("digits-mlp", "flipped"))
SUBSETS, SEEDS, REPEATS = 60, 2, 5
STUDENT = 2.78  # 97.5 % quantile with REPEATS - 1 degrees of freedom
DIGIT = 5e-4  # half of the last digit in the table
HEAD = ("task", "variant", "metric", "contender", "value", "low", "high")


def measure(seed: int, folder: Path) -> dict[tuple[str, ...], float]:
    """Return each value of the table for the networks of one seed."""
    cases = [
        partial(case_of, Problem(SOURCES[name], variant, folder), num_subsets=SUBSETS, num_seeds=SEEDS, seed=seed)
        for name, variant in PROBLEMS
    ]
    found = judge(contenders(CONTENDERS), chosen(None), cases)
    return {
        (line.data, line.variant, line.metric, line.contender): line.estimate.mean
        for line in found.lines
        if line.estimate is not None
    }


def write(folder: Path) -> None:
    """Measure seed 0 and the others, and write the table."""
    values, *others = (measure(seed, folder) for seed in range(REPEATS + 1))
    rows = []
    for key, value in values.items():
        repeats = [other[key] for other in others]
        half = STUDENT * statistics.stdev(repeats) * math.sqrt(1 + 1 / REPEATS) + DIGIT
        middle = statistics.mean(repeats)
        low, high = min(middle - half, value - DIGIT), max(middle + half, value + DIGIT)
        rows.append((*key, f"{value:.3f}", f"{low:.3f}", f"{high:.3f}"))
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *rows])
    table = "\n".join("| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows))
    PAGE.write_text(f"# short\n\n{__doc__}\nWritten by `make bench-short WRITE=1` on {machine()}.\n\n{table}\n")
    print(f"Written: {PAGE}")


def repeat(folder: Path) -> int:
    """Measure seed 0 anew and compare; return how many values lie outside."""
    values = measure(0, folder)
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    outside = 0
    for row in rows:
        value = values.pop(tuple(row[name] for name in HEAD[:4]), math.nan)
        inside = float(row["low"]) - DIGIT <= value <= float(row["high"]) + DIGIT
        inside = inside or (math.isnan(value) and row["value"] == "nan")
        outside += not inside
        if not inside or round(value, 3) != round(float(row["value"]), 3):
            name = ", ".join(row[name] for name in HEAD[:4])
            print(
                f"{name}: {value:.3f}, was {row['value']} ({row['low']} to {row['high']}){'' if inside else ' OUTSIDE'}"
            )
    for key in values:
        print(f"{', '.join(key)}: not in the table")
    print(f"{len(rows)} values repeated, {outside} outside of their intervals")
    return outside + len(values)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.short", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table instead of repeating it")
    write_it = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        if write_it:
            write(Path(folder))
        elif repeat(Path(folder)):
            sys.exit(1)


if __name__ == "__main__":
    main()
