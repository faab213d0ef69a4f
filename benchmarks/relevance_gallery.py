"""Rendering 100 predictions × 10 pairs (both maps each) of the demo's network, by batch size.

The demo's network on 4,000 MNIST digits, DualView(C=1e-3), LRP("epsilon-plus-flat"), the 5 strongest
proponents and opponents of each of 100 test digits. Memory is the largest private memory during
`render` less that before it. The claims: under a minute, and memory set by `batch_size`.
"""

import json

from benchmarks.explain_memory import _run

PREDICTIONS, K, BATCH_SIZES = 100, 5, (8, 64, None)

PROGRAM = """
import json, torch, warnings
torch.set_num_threads(1)
warnings.simplefilter("ignore")
import dualview as dv
from benchmarks.explain_memory import Watch
from dataclasses import replace
from dualview.evaluation.tasks import recipes, sources
train, test = sources.mnist_5k()
model = replace(recipes.CNN_RECIPE, epochs=2).train(*train.pairs, 10)
explainer = dv.fit(dv.DualView(C=1e-3), model, train.pairs, progress=False)
relation = dv.relate(explainer, test.inputs[:{predictions}])
rule = dv.LRP("epsilon-plus-flat")
dv.render(relation, rule, test=0, k=1)
with Watch() as watch:
    maps = dv.render(relation, rule, test=range({predictions}), k={k}, batch_size={size})
print(json.dumps({{**watch.rows(), "pairs": len(maps)}}))
"""


def measure() -> list[dict]:
    rows = []
    for size in BATCH_SIZES:
        program = PROGRAM.format(predictions=PREDICTIONS, k=K, size=size)
        found = json.loads(_run(program).splitlines()[-1])
        rows.append(
            {
                "batch_size": "None (chosen)" if size is None else size,
                "predictions": PREDICTIONS,
                "pairs": found["pairs"],
                "seconds": found["seconds"],
                "private MB": found["private"],
            }
        )
    return rows
