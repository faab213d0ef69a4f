"""The dual solver beside the reference fork and LIBLINEAR: CPU seconds, quality, memory and support.

Ours stops at a relative gap of 1e-6. The fork is `sklearn_dual.svm.LinearSVC(multi_class="crammer_singer",
tol=1e-4)`, set as dualxda sets it; LIBLINEAR is the official library, `-s 4 -B 1`, at its default epsilon 0.1
and, where that takes less than 5 s, at 0.01. All regularise the bias, and all have one thread.

- *Seconds* are CPU seconds of one fit, the median of five; of three where the first took 20 to 60 s and of one
  beyond, as the table then says. A fit is stopped at 300 s. Contenders take turns, each in a process of its
  own that has loaded its data and compiled its code. Ours counts the copy that it makes of the features.
  Rivals' conversions are not counted: float64 and LIBLINEAR's sparse rows are made before; those that the
  fork makes within its fit are timed by a call that it refuses just after making them, and taken off.
- *Quality* is (P_rival - D_ours) / P_rival: P evaluated here in float64 from the rival's weights, D from our
  certificate; for ours it is the gap. The rivals stop by the largest violation, not by a gap.
- *Memory* is the largest resident memory during the first fit (VmHWM, set back just before) less what is
  resident with the float32 features loaded and the code compiled. The rivals' own format of the data
  counts, what it takes to make it does not.
- *Support* is the share of rows with any |alpha| > 1e-6 C. LIBLINEAR does not hand out alpha.
- *Path*: C = 1e-5, 1e-4, 1e-3, 1e-2, 0.1, each to gap 1e-4, beside the last alone; CPU seconds.
- *Two threads*: wall seconds of ours in processes with one and with two threads; needs an idle machine.

The solver's settings were chosen with the features marked "tuned on" in view, not those "held out".
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.__main__ import machine
from benchmarks.solver import tables, turns
from benchmarks.solver.contenders import PATH
from benchmarks.solver.features import CACHE, SETS, make

RESULT = Path(__file__).resolve().parents[1] / "results" / "solver.md"
ROWS = CACHE / "rows.jsonl"
NUM_RUNS = 5
PATHS = ("d192", "d512", "residual")
THREADED = (("d192", 1e-3), ("d192", 0.1), ("d512", 0.1), ("k100", 1e-3))

HELP = """Without arguments: measure everything anew, an hour or somewhat more on two idle cores, and write
benchmarks/results/solver.md. Features are made when first needed (six minutes) and kept in .benchmarks/solver/,
as are the rows of the table while they are measured. With --only, --C, --runs or --no-rivals: measure that
part and print it, leaving the table and its rows alone."""

Part = tuple[str, str, float]  # kind, features, C


def parts(only: list[str], C_values: list[float]) -> Iterator[Part]:
    """Yield what is to be measured; `only` names features, "path" or "threads"."""
    everything: list[Part] = [("fit", name, C) for name, features in SETS.items() for C in features.C_values]
    everything += [("path", name, PATH[-1]) for name in PATHS]
    everything += [("threads", name, C) for name, C in THREADED]
    kinds = set(only) & {"path", "threads"} or {"fit"} if only else {"fit", "path", "threads"}
    names = set(only) & set(SETS) or set(SETS)
    for kind, name, C in everything:
        if kind in kinds and name in names and (not C_values or C in C_values):
            yield kind, name, C


def measure(part: Part, num_runs: int, rivals: bool) -> dict:
    kind, name, C = part
    kinds: dict[str, Callable[..., dict]] = {
        "fit": partial(turns.fits, rivals=rivals),
        "path": turns.path,
        "threads": turns.threads,
    }
    row = kinds[kind](name, C, num_runs=num_runs)
    print(f"{kind} {name} C={C:g}\n{tables.write([row], num_runs)}\n", flush=True)
    return row


def circumstances() -> str:
    peers = ("dualview", "dualxda_skl", "liblinear-official", "scikit-learn", "numba", "scipy")
    versions = ", ".join(f"{name} {version(name)}" for name in peers)
    return (
        f"`make bench-solver` on {machine()}; {versions}. {time.strftime('%Y-%m-%d')}, load average at the start "
        f"{os.getloadavg()[0]:.2f}."
    )


def everything(resume: bool) -> None:
    """Measure all parts, keeping each row as it comes, and write the table: expect 60 to 75 minutes."""
    make(SETS)
    if not resume:
        ROWS.write_text(json.dumps({"circumstances": circumstances()}) + "\n")
    head, *rows = map(json.loads, ROWS.read_text().splitlines())
    known = {(row["part"], row["features"], row["C"]) for row in rows}
    with ROWS.open("a") as file:
        for part in parts([], []):
            if part not in known:
                rows.append(measure(part, NUM_RUNS, rivals=True))
                print(json.dumps(rows[-1]), file=file, flush=True)
    text = f"# solver\n\n{__doc__}\n{head['circumstances']}\n\n{tables.write(rows, NUM_RUNS)}\n"
    RESULT.write_text(text)
    print(f"Written: {RESULT}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solver", description=HELP)
    parser.add_argument("--only", nargs="+", default=[], choices=[*SETS, "path", "threads"])
    parser.add_argument("--C", nargs="+", default=[], type=float)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--resume", action="store_true", help="go on with a full run that was interrupted")
    arguments = parser.parse_args()
    if not (arguments.only or arguments.C or arguments.runs or arguments.no_rivals):
        everything(arguments.resume)
        return
    chosen = list(parts(arguments.only, arguments.C))
    if not chosen:
        parser.error(f"nothing is measured for --only {arguments.only} --C {arguments.C}")
    make({name for _, name, _ in chosen})
    for part in chosen:
        measure(part, arguments.runs or NUM_RUNS, not arguments.no_rivals)


if __name__ == "__main__":
    main()
