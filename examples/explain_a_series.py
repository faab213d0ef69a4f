"""When did it happen? A convolutional network that hears a chirp in noise, and the steps that made it.

    python examples/explain_a_series.py         writes series.png

The series are made here, so that the truth is known: class 1 holds a chirp of 24 steps on the first of
two channels, at a place of its own; the second channel is noise in both classes.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import dualview as dv

LENGTH, CHIRP = 160, 24


def series(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return series "count 2 160", labels, and where each chirp begins."""
    generator = torch.Generator().manual_seed(seed)
    inputs = 0.5 * torch.randn(count, 2, LENGTH, generator=generator)
    labels = torch.arange(count) % 2
    starts = torch.randint(0, LENGTH - CHIRP, (count,), generator=generator)
    time = torch.arange(CHIRP) / CHIRP
    chirp = torch.sin(2 * torch.pi * (1.5 * time + 2.5 * time**2)) * torch.sin(torch.pi * time) * 2
    for row in labels.nonzero().flatten().tolist():
        inputs[row, 0, starts[row] : starts[row] + CHIRP] += chirp
    return inputs, labels, starts


def main(folder: str = ".", steps: int = 150) -> None:
    torch.set_num_threads(1)
    inputs, labels, _ = series(400, seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 16, 9, padding=4), nn.GELU(), nn.Conv1d(16, 16, 9, padding=4), nn.GELU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    task = dv.Task(model.eval(), class_names=["noise", "chirp"])
    test, truth, starts = series(40, seed=1)
    heard = (model(test).argmax(1) == truth) & (truth == 1)
    print(f"accuracy on 40 new series {float((model(test).argmax(1) == truth).float().mean()):.1%}")

    scores = dv.IntegratedGradients(steps=100).attribute(task, test[heard])
    inside = [scores.values[k, 0, s : s + CHIRP].clamp(min=0).sum() for k, s in enumerate(starts[heard].tolist())]
    share = torch.stack(inside) / scores.values.clamp(min=0).sum((1, 2))
    print(f"of the positive scores {float(share.mean()):.0%} lie on the chirp, which is 7.5 % of the steps")
    figure = dv.plot(scores, 0, names=["sensor", "noise"])
    figure.savefig(Path(folder) / "series.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
