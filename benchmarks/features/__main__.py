"""Feature methods on real pictures and tables: `python -m benchmarks.features`.

The logit of the predicted class is explained, on networks in evaluation mode, with 0 for what is removed: grey in the
photographs, black in Fashion-MNIST, the column's mean in tables. Methods that draw references from data, blur, or know
no baseline are judged by the same removal, though it is not theirs (†). Seeds are 0.

- *Completeness*: mean |sum of scores − what they should add up to| / mean |what they should add up to|, each method by
  its own baseline; of LRP, which has none, the logit. Empty where nothing is promised.
- *Infidelity of groups*: E_S [(Σ_{p ∈ S} a_p − (f(x) − f(x without S)))²] / E_S [(f(x) − f(x without S))²], mean over
  samples, over all sets S of a few players (groups of columns, tiles of pixels); *of singles*: the same for more and
  smaller players, over 100 sets each of which holds about half. 0 is perfect, 1 what scores of zero have. Empty for
  similarities, which have no unit. Maps that stand for all channels are divided among them.
- *Rank by Shapley*: Spearman's correlation, over the groups, with their exact Shapley values for the same removal;
  *rank by Occlusion*: over the singles, with what is lost when each alone is removed. 1 is the same order, 0 chance.
- *Seconds* of CPU, rows that went *forward* and *backward* through the network: for each sample. *Megabytes*: largest
  resident memory during the call, for all samples, less that before it. Each method runs in a process of its own, after
  a pass of the network; calls of less than five seconds are made twice, and the second one stands.
- Brackets: 95 % intervals, bootstrap over samples.
- *random order*: integrated gradients' scores of the singles, shuffled; *equal shares*: the same for each single. Both
  add up to f(x) − f(0) and know nothing else. *best scores*: the least infidelity that any scores of the groups have.

Settings, where not the defaults: 50 nodes, steps or draws; CrediblePath 25 steps from 10 references (photographs: 2);
SAMP moves 4 % of a photograph at once, elsewhere 1 %, and *SAMP published* is `complete=False`; IIA 10 × 10 points
(photographs: 5 × 5); BlurIG from σ = 50 pixels (Fashion-MNIST: 7); PathIntegral fades rows of pixels in from above,
columns from the left; Occlusion and Taylor by singles, *Taylor exact* by groups; GradCAM and IIA at the last
convolution, in the residual network at the last block. Captum has 50 steps or samples; on photographs 4 rows a pass in
IntegratedGradients, and the mean of ten calls of 5 samples each in GradientShap, which has no such setting.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.__main__ import machine, table
from benchmarks.features.cases import Case, cases
from benchmarks.features.contenders import EXACT, PLAIN, contenders
from benchmarks.features.judged import Cost, Judge, explained
from dualview.evaluation._estimate import Estimate

HERE = Path(__file__).parent
RESULTS = HERE.parents[0] / "results"
METRICS = ("completeness", "infidelity of groups", "infidelity of singles", "rank by Shapley", "rank by Occlusion")
OTHERWISE = ("ExpectedGradients", "BlurIG", "CrediblePath", "LRP", "Captum GradientShap")
COLUMNS = ("task", "metric", "method", "value", "low", "high", "samples", *Cost._fields)
Found = dict[str, tuple[dict[str, Estimate], Cost | None]]


def judged(case: Case) -> tuple[Found, dict[str, str]]:
    """Return the metrics and cost of each contender, and why others have none."""
    scores, costs, refused = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for label, contender in contenders(case).items():
            found = contender if isinstance(contender, str) else explained(contender, case, Path(folder))
            if isinstance(found, str):
                refused[label] = found
            else:
                scores[label], costs[label] = found
            print(case.name, label, refused.get(label) or costs[label], file=sys.stderr, flush=True)
    judge = Judge(case, scores[EXACT], scores["Occlusion"])
    scores |= judge.nulls(scores[PLAIN])
    found = {label: (judge.of(one), costs.get(label)) for label, one in scores.items()}
    for rank in METRICS[-2:]:
        del found["equal shares"][0][rank]  # equal numbers have no order
    found["best scores"] = {"infidelity of groups": judge.floor()}, None
    return found, refused


def markdown(case: Case, found: Found, refused: dict[str, str]) -> str:
    shown = [name for name in METRICS if any(name in metrics for metrics, _ in found.values())]
    rows = []
    for label, (metrics, cost) in found.items():
        marked = label + " †" * label.startswith(OTHERWISE)
        cells = {name: _cell(metrics.get(name)) for name in shown}
        spent = dict.fromkeys(Cost._fields, "") if cost is None else _spent(cost)
        rows.append({"": marked, **cells, **spent})
    reasons = "".join(f"- {label}: {why}.\n" for label, why in refused.items())
    return f"## {case.name}\n\n{case.about}\n\n{table(rows)}\n\nNot there:\n\n{reasons}"


def _cell(found: Estimate | None) -> str:
    if found is None or found.mean != found.mean:
        return ""
    return f"{found.mean:.3g} ({found.low:.3g} to {found.high:.3g})"


def _spent(cost: Cost) -> dict[str, str]:
    return {
        "seconds": f"{cost.seconds:.2g}",
        "forward": f"{cost.forward:.4g}",
        "backward": f"{cost.backward:.4g}",
        "megabytes": str(cost.megabytes),
    }


def lines(case: Case, found: Found) -> list[list]:
    """Return a row of the CSV for each method and metric."""
    return [
        [case.name, metric, label, *(f"{value:.6g}" for value in (one.mean, one.low, one.high)), one.num_samples]
        + ([""] * len(Cost._fields) if cost is None else [f"{value:.6g}" for value in cost])
        for label, (metrics, cost) in found.items()
        for metric, one in metrics.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("tasks", nargs="*", help="print these alone; all, and write, by default")
    wanted = parser.parse_args().tasks
    torch.set_num_threads(1)
    load, start = os.getloadavg()[0], time.time()
    parts, rows = [], []
    for case in cases():
        if wanted and case.name not in wanted:
            continue
        found, refused = judged(case)
        parts.append(markdown(case, found, refused))
        rows += lines(case, found)
        print(parts[-1], flush=True)
    if wanted:
        return
    where = (
        f"`make bench-features` on {machine()}; captum {version('captum')}, scikit-image {version('scikit-image')}. "
        f"{time.strftime('%Y-%m-%d')}, {(time.time() - start) / 60:.0f} minutes, load {load:.2f} on cores shared with "
        "others."
    )
    reading = (HERE / "reading.md").read_text()
    (RESULTS / "features.md").write_text(f"# features\n\n{reading}## How\n\n{__doc__}\n{where}\n\n" + "\n".join(parts))
    with open(RESULTS / "features.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
