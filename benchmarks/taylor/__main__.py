"""Methods rewritten as Taylor expansions, against what the methods give: fidelity, and the three principles.

Three networks: a random quadratic function of 8 numbers (its expansion of order 2 is the function), an MLP of
three layers with sigmoids on 8×8 digits (9 players: squares of 3×3 pixels), and a CNN of three layers with sigmoids
on 28×28 digits (9 players: squares of 10×10 pixels). The baseline b is the mean training image (0 for the quadratic
function, and for InputXGradient and LRP, which know no other), the output the logit of the predicted class.
Explained are the points b + a (x − b), a part a of the way to a test sample: a series of order 2 says less the further
it is followed, and on these networks it does not reach x.
For each method and sample `Taylor.allocation(order=2)` asks the method for its weights on every effect of first and
second order, and multiplies them with the network's effects.

- *r* and *apart*: Pearson's correlation over players, and |own − expressed| / |own|, of the method's own scores
  and of Σ_κ w I(κ); medians over samples. 1 and 0 on the quadratic function say that the rewriting is exact; on
  the others effects of third and higher order are missing; *beyond* is their size as a share of f(x) − f(b).
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
    baseline: Tensor | float = 0.0


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
        "sigmoid MLP": Case(
            dv.Task(mlp), small[1400 : 1400 + count].double(), dv.Patches(3), small[:1400].double().mean(0)
        ),
        "sigmoid CNN": Case(dv.Task(cnn), test.pairs[0][:count].double(), dv.Patches(10), large.double().mean(0)),
    }


def methods(players: dv.Patches | None, baseline: Tensor | float) -> dict[str, FeatureMethod]:
    return {
        "Occlusion, player by player": dv.Occlusion(players, baseline=baseline),
        "Shapley value (Taylor, exact)": dv.Taylor("exact", players=players, baseline=baseline),
        "IntegratedGradients": dv.IntegratedGradients(baseline, steps=32),
        "DeepLIFT, rescale": dv.DeepLIFT(baseline=baseline),
        "DeepLIFT, reveal-cancel": dv.DeepLIFT("reveal-cancel", baseline=baseline),
        "InputXGradient": dv.InputXGradient(),
        "LRP, epsilon": dv.LRP("epsilon"),
    }


def rows(count: int, epochs: int) -> list[dict]:
    found = []
    for name, case in cases(count, epochs).items():
        for part in (1.0,) if case.players is None else (0.1, 0.3, 1.0):
            with torch.no_grad():
                targets = case.task.model(case.inputs).argmax(1)
            for label, method in methods(case.players, case.baseline).items():
                case = case._replace(baseline=0.0) if label in FROM_ZERO else case
                points = case.baseline + part * (case.inputs - case.baseline)
                found.append(
                    {"network": name, "part of the way": part, "method": label, **judged(case, method, points, targets)}
                )
                print(found[-1], flush=True)
    return found


def judged(case: Case, method: FeatureMethod, points: Tensor, targets: Tensor) -> dict[str, str]:
    taylor = dv.Taylor(players=case.players, baseline=case.baseline)
    try:
        got = taylor.allocation(method, case.task, points, targets, family="derivatives", order=2)
    except NotImplementedError:  # LRP has no rule for products
        return {**dict.fromkeys(COLUMNS, "–"), "r": "refused"}
    principles = torch.tensor([[one.missed for one in got.principles(k)] for k in range(len(got))])
    r, apart = got.fidelity.median(0).values.tolist()
    beyond = float((got.left_out.abs() / got.change.abs()).median())
    shown = [f"{value:.1%}" if value == value else "–" for value in principles.median(0).values.tolist()]
    linear = float(got.additivity.max())
    said = "fitted" if linear != linear else f"{linear:.0e}"
    return dict(zip(COLUMNS, [f"{beyond:.1%}", f"{r:.4f}", f"{apart:.1%}", said, *shown], strict=True))


FROM_ZERO = ("InputXGradient", "LRP, epsilon")  # their own baseline, and the last in the list
COLUMNS = ("beyond", "r", "apart", "linear", "P1", "P2", "P3")


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
