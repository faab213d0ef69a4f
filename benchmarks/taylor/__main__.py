"""Methods rewritten as Taylor expansions, against what the methods give: fidelity, and the three principles.

Three networks: a random quadratic function of 8 numbers (its expansion of order 2 is the function), an MLP with
three layers of sigmoids on 8×8 digits (16 players: squares of 2×2 pixels), and a CNN with three layers of sigmoids
on 28×28 digits (9 players: squares of 10×10 pixels). Baseline 0; the logit of the predicted class; test samples as
the table says. For each method and sample `Taylor.allocation(order=2)` asks the method for its weights on every
effect of first and second order, and multiplies them with the network's effects.

- *r* and *apart*: Pearson's correlation over players, and |own − expressed| / |own|, of the method's own scores
  and of Σ_κ w I(κ); medians over samples. 1 and 0 on the quadratic function say that the rewriting is exact; on
  the others effects of third and higher order are missing, whose size stands in the first line.
- *Linear*: the largest miss of a(f + g) = a(f) + a(g) for effects g, relative to a(g). Where it is not about 0 the
  method is no fixed weighting of effects, and its row is no rewriting.
- *P1, P2, P3*: low approximation error, no unrelated allocation, complete allocation: medians of what is missed, as
  shares, on these inputs. "–": cannot be told, for the weights were fitted.
"""

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dualview as dv
from benchmarks.__main__ import machine, table
from dualview.evaluation.tasks import sources
from dualview.features._method import FeatureMethod

RESULT = Path(__file__).resolve().parents[1] / "results" / "taylor.md"


class Case(NamedTuple):
    """A network with inputs to explain."""

    task: dv.Task
    inputs: Tensor
    players: dv.Patches | None


class Quadratic(nn.Module):
    """c + b·x + xᵀAx, for each of two outputs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.c = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(2, width, generator=generator, dtype=torch.float64))
        self.a = nn.Parameter(torch.randn(2, width, width, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.c + x @ self.b.T + torch.stack([((x @ a) * x).sum(1) for a in self.a], dim=1)


def trained(model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimiser.step()
    return model.double().eval()


def cases(count: int, epochs: int) -> dict[str, Case]:
    torch.manual_seed(0)
    digits = load_digits()
    small = torch.tensor(digits.data / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(digits.target)
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10)
    )
    mlp = trained(mlp, small[:1400], labels[:1400], 2 * epochs)
    train, test = sources.mnist_5k()
    large, targets = train.pairs
    cnn = nn.Sequential(
        nn.Conv2d(1, 8, 5, 2), nn.Sigmoid(), nn.Conv2d(8, 16, 5, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(256, 10)
    )
    cnn = trained(cnn, large, torch.as_tensor(targets), epochs)
    generator = torch.Generator().manual_seed(1)
    return {
        "quadratic function": Case(
            dv.Task(Quadratic().eval()), torch.randn(count, 8, generator=generator, dtype=torch.float64), None
        ),
        "sigmoid MLP": Case(dv.Task(mlp), small[1400 : 1400 + count].double(), dv.Patches(2)),
        "sigmoid CNN": Case(dv.Task(cnn), test.pairs[0][:count].double(), dv.Patches(10)),
    }


def methods(players: dv.Patches | None) -> dict[str, FeatureMethod]:
    return {
        "InputXGradient": dv.InputXGradient(),
        "Occlusion, player by player": dv.Occlusion(players),
        "Shapley value (Taylor, exact)": dv.Taylor("exact", players=players),
        "IntegratedGradients": dv.IntegratedGradients(steps=32),
        "IntegratedGradients, mean over 3 noises": dv.IntegratedGradients(dv.Noise(-0.1, 0.1, count=3), steps=32),
        "SmoothGrad": dv.SmoothGrad(draws=10),
        "DeepLIFT, rescale": dv.DeepLIFT(),
        "DeepLIFT, reveal-cancel": dv.DeepLIFT("reveal-cancel"),
        "LRP, epsilon": dv.LRP("epsilon"),
    }


def rows(count: int, epochs: int) -> list[dict]:
    found = []
    for name, case in cases(count, epochs).items():
        taylor = dv.Taylor(players=case.players)
        for label, method in methods(case.players).items():
            try:
                got = taylor.allocation(method, case.task, case.inputs, family="derivatives", order=2)
            except NotImplementedError as refused:
                found.append(
                    {"network": name, "method": label, **dict.fromkeys(COLUMNS, "–"), "r": f"refused: {refused}"[:60]}
                )
                continue
            principles = torch.tensor([[one.missed for one in got.principles(k)] for k in range(len(got))])
            r, apart = got.fidelity.median(0).values.tolist()
            missing = float((got.left_out.abs() / got.change.abs()).median())
            shown = [f"{value:.1%}" if value == value else "–" for value in principles.median(0).values.tolist()]
            linear = float(got.additivity.max())
            row = dict(
                zip(
                    COLUMNS,
                    [f"{r:.4f}", f"{apart:.1%}", "fitted" if linear != linear else f"{linear:.0e}", *shown],
                    strict=True,
                )
            )
            found.append({"network": f"{name} (beyond order 2: {missing:.2%})", "method": label, **row})
            print(found[-1], flush=True)
    return found


COLUMNS = ("r", "apart", "linear", "P1", "P2", "P3")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.taylor", description=__doc__)
    parser.add_argument("--small", action="store_true", help="few samples, short training; print only")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    count, epochs = (2, 1) if small else (10, 6)
    found = rows(count, epochs)
    print(table(found))
    if not small:
        where = (
            f"`python -m benchmarks.taylor` on {machine()}; {count} samples a network. {time.strftime('%Y-%m-%d')}, "
            f"load {load:.2f} on cores shared with others."
        )
        RESULT.write_text(f"# taylor\n\n{__doc__}\n{where}\n\n{table(found)}\n")


if __name__ == "__main__":
    main()
