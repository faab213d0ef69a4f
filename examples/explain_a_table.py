"""Why does this network call a tumour benign? A table's columns, told apart by Taylor effects.

    python examples/explain_a_table.py          writes table.png and allocation.png

Real data: 569 tumours with 30 measured columns (scikit-learn's breast_cancer). The network is a small
MLP of smooth units, so that orders above the first mean something.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import dualview as dv


def main(folder: str = ".", steps: int = 300) -> None:
    torch.set_num_threads(1)
    table = load_breast_cancer()
    inputs = torch.tensor((table.data - table.data.mean(0)) / table.data.std(0), dtype=torch.float32)
    labels = torch.tensor(table.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 2))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs[:450]), labels[:450]).backward()
        optimiser.step()
    task = dv.Task(model.eval(), output=dv.margin, class_names=list(table.target_names))
    test = inputs[450:]
    accuracy = float((model(test).argmax(1) == labels[450:]).float().mean())
    print(f"accuracy on 119 held-out tumours {accuracy:.1%}")

    # The mean tumour is the baseline: 0 after standardising.
    taylor = dv.Taylor(baseline=0.0)
    scores = taylor.attribute(task, test[:3])
    print(scores, f"\nlargest completeness error {float(scores.completeness_error.abs().max()):.1e}")
    names = [str(name) for name in table.feature_names]
    dv.plot(scores, 0, names=names, true_targets=labels[450:453]).savefig(Path(folder) / "table.png")

    # Do two methods disagree? Ask each what it makes of every effect.
    for method in (dv.IntegratedGradients(), dv.Occlusion()):
        allocation = taylor.allocation(method, task, test[:1])
        print(allocation)
    dv.plot(allocation, names=names).savefig(Path(folder) / "allocation.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
