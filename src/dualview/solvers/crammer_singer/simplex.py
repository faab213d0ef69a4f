"""What each row does on its simplex: compiled where numba is there, in torch where it is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Arithmetic(NamedTuple):
    """Functions of a block of rows, as the compiled loops of the same names describe them, on tensors."""

    assess: Callable[..., tuple[float, float, float]]
    settle: Callable[..., tuple[float, float, float]]
    contract: Callable[..., None]
    expand: Callable[..., None]


def has_numba() -> bool:
    """Say whether loops can be compiled here."""
    return importlib.util.find_spec("numba") is not None


def arithmetic(*, compiled: bool | None = None) -> Arithmetic:
    """Return the functions, compiled or in torch; by default compiled where numba is installed."""
    if not (has_numba() if compiled is None else compiled):
        return Arithmetic(assess, settle, contract, expand)
    from dualview.solvers.crammer_singer import _loop

    return Arithmetic(*(_on_arrays(getattr(_loop, name)) for name in Arithmetic._fields))


def _on_arrays(loop: Any) -> Callable[..., Any]:
    def on_tensors(*arguments: Any) -> Any:
        return loop(*(given.numpy() if isinstance(given, Tensor) else given for given in arguments))

    return on_tensors


def assess(
    scores: Tensor, targets: Tensor, costs: Tensor, coefficients: Tensor, margins: Tensor
) -> tuple[float, float, float]:
    """Sum the rows' losses, gap terms and alpha of the target, and write each row's margin; see the loop."""
    own = targets[:, None]
    scores.scatter_add_(1, own, scores.new_full(own.shape, -1.0))
    exact = scores.to(torch.float64)
    below = exact.amax(1, keepdim=True) - exact
    simplex = -coefficients.to(torch.float64)
    simplex.scatter_add_(1, own, simplex.new_ones(own.shape))
    losses = below.gather(1, own).squeeze(1)
    corner = simplex.argmax(1, keepdim=True)
    others = scores.scatter(1, corner, -torch.inf).amax(1)
    margin = scores.gather(1, corner).squeeze(1) - others
    margins.copy_(torch.where((simplex > 0).sum(1) == 1, margin, -torch.inf))
    weights = costs.to(torch.float64)
    alpha = coefficients.gather(1, own).squeeze(1).to(torch.float64)
    return float(weights @ losses), float(weights @ (simplex * below).sum(1)), float(weights @ alpha)


def settle(
    scores: Tensor,
    steps: Tensor,
    length: float,
    rows: Tensor,
    targets: Tensor,
    costs: Tensor,
    anchors: Tensor,
    reach: float,
    coefficients: Tensor,
) -> tuple[float, float, float]:
    """Write each row's best coefficients near its anchor, and sum up as the loop does."""
    own, weights = targets[rows, None], costs[rows]
    margins = scores + length * steps
    margins.scatter_add_(1, own, margins.new_full(own.shape, -1.0))
    margins -= margins.amax(1, keepdim=True)
    # r + e_y is projected; its 1 is kept apart by taking the target's bound to be tau - 1 instead of tau.
    r = reach * margins - anchors[rows]
    lifted = r.scatter_add(1, own, r.new_ones(own.shape))
    order = lifted.argsort(dim=1, descending=True, stable=True)
    tops = r.gather(1, order)
    is_own = order == own
    counts = torch.arange(1, r.shape[1] + 1, dtype=r.dtype, device=r.device)
    # With the first j entries inside, their sum less tau each must make up the simplex's 1, which is e_y's own
    # where the target is among them.
    missing = 1.0 - is_own.to(r.dtype).cumsum(1)
    taus = (tops.cumsum(1) - missing) / counts
    valid = (lifted.gather(1, order) > taus).to(torch.int64).cumprod(1)
    inside = valid.sum(1, keepdim=True)
    tau = taus.gather(1, inside - 1)
    shares = (r - tau).clamp(0, 1).scatter(1, own, 0.0)
    shares = torch.where((inside == 1) & (shares > 0), 1.0, shares)
    total = shares.sum(1, keepdim=True).clamp(max=1.0)
    torch.neg(shares, out=coefficients)
    coefficients.scatter_(1, own, total)
    simplex = shares.scatter(1, own, 1 - total)
    slope = float(weights @ (coefficients * steps).sum(1))
    return slope, -float(weights @ (simplex * margins).sum(1)), float(weights @ total.squeeze(1))


def contract(rows: Tensor, owner: Tensor, directions: Tensor, weights: Tensor, products: Tensor) -> None:
    """Write each pair's product with its row; see the loop."""
    products.copy_(((rows.to(weights.dtype) @ weights.T)[owner] * directions).sum(1))


def expand(rows: Tensor, owner: Tensor, directions: Tensor, products: Tensor, weights: Tensor) -> None:
    """Add each pair's multiple of its row; see the loop."""
    weights += (directions * products[:, None]).T @ rows[owner].to(weights.dtype)
