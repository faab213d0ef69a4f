"""Seconds of one relevance pass (trace, rules and audit), and of DeepLIFT, in units of one forward-backward pass.

Batches of 32, and one photograph for EfficientNet-Lite0, which `make oracles` installs: its column needs
`PYTHONPATH=tests/oracles/stubs .venv-oracles/bin/python -m benchmarks relevance_speed`. The floor is a plain forward
pass and `torch.autograd.grad` of the summed logits with respect to weights and inputs, in evaluation mode. Each cell
is the smallest CPU time of several runs, rivals taking turns. Asked was relevance within 3 forward-backward passes; a
larger cell says that it is not met.
"""

import time
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.paths.__main__ import photograph
from dualview import DeepLIFT
from dualview.engine.propagation.composites import NAMES, composite
from dualview.engine.propagation.trace import trace
from dualview.evaluation.tasks.recipes import small_cnn

ROUNDS, BATCH = 9, 32
DIFFERENCES = {f"DeepLIFT, {rule}": DeepLIFT(rule) for rule in ("rescale", "reveal-cancel")}


class Block(nn.Module):
    """A residual block with batch norm, its sum written as +."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def resnet() -> nn.Module:
    stem = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
    blocks = Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    residual = _warmed(resnet(), torch.randn(64, 3, 32, 32))
    nets = {
        "the demo's CNN, 1×28×28": (small_cnn((1, 28, 28), 10).eval(), torch.rand(BATCH, 1, 28, 28)),
        "residual net with batch norm, 3×32×32": (residual, torch.randn(BATCH, 3, 32, 32)),
    }
    try:
        model, inputs, _ = photograph()
    except ModuleNotFoundError as error:
        print(f"EfficientNet-Lite0 is left out: {error.name} is not installed here; `make oracles` brings it")
        return nets
    return nets | {"EfficientNet-Lite0, 3×224×224": (model, inputs)}


def measure() -> list[dict]:
    nets, rows = networks(), []
    for name in (*NAMES, *DIFFERENCES):
        row = {"rule": name}
        for net, (model, x) in nets.items():
            floor, seconds = _times(model, x, name)
            row[net] = f"{seconds / floor:.2f} ({1e3 * seconds:.0f} ms)"
        rows.append(row)
    return rows


def _warmed(model: nn.Module, x: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        for _ in range(20):
            model.train()(x)
    return model.eval()


def _times(model: nn.Module, x: torch.Tensor, name: str) -> tuple[float, float]:
    def forward_backward() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), [leaf, *model.parameters()])

    def relevance() -> None:
        if name in DIFFERENCES:
            DIFFERENCES[name].attribute(model, x, 0, batch_size=len(x))
            return
        passed = trace(model, x, composite(name))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            passed.propagate(gradient=torch.ones_like(passed.logits))

    rivals = {forward_backward: [], relevance: []}
    for _ in range(ROUNDS):
        for run, seconds in rivals.items():
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
    floor, seconds = (min(times) for times in rivals.values())
    return floor, seconds
