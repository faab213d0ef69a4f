"""What the twins of walks share: a small network's gradient at a point."""

import torch
from torch import Tensor, nn

from tests.features.polynomials import points

X = points(4, 10)


def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(net(leaf[None])[0, 1], leaf)[0]
