"""How faithful surrogates are to the network on held-out rows, and which of several is faithful enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.data._method import HeldOut
from dualview.engine.labels import Problem
from dualview.engine.task import Task

SMOOTHING = 0.15  # of the decision boundary, in units of the margins' root mean square
TOLERANCE = 0.0025  # of fidelity that sparsity may cost at most
MAX_HELD_OUT = 20_000  # samples; more would cost time and say nothing more


class HeldRows(NamedTuple):
    """Samples that fidelity is measured on.

    Attributes:
        values: "row unit" their features.
        network: "row cls" the network's logits, or numbers.
    """

    values: Float[Tensor, "row unit"]
    network: Float[Tensor, "row cls"]


def held_rows(held_out: HeldOut, task: Task) -> HeldRows:
    """Gather the rows that fidelity is measured on; of very many, evenly spaced ones."""
    table = held_out.table
    positions = torch.arange(len(table)) if held_out.positions is None else held_out.positions
    if len(positions) > MAX_HELD_OUT:
        positions = positions[torch.linspace(0, len(positions) - 1, MAX_HELD_OUT).long()]
    rows = table.rows(positions)
    return HeldRows(rows.values, task.logits(rows.outputs))


def agreements(
    logits: Float[Tensor, "row cls"], network: Float[Tensor, "row cls"], problem: Problem = "classification"
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Say row by row whether the surrogate predicts the network's class, sharply and smoothed.

    With the margin m of the network's class over the best other one, the sharp measure is [m > 0]. The
    smoothed one is the probability that the class survives normal noise on m, of SMOOTHING times the root
    mean square of all m: decisions close to the boundary count in part, so that settings can be compared on
    fewer samples. Several labels of a sample count alike, each with the margin of its sign. For a regression both
    measures are 1 − (surrogate − network)² / (variance of the network).

    Raises:
        ValueError: the network of a regression does not vary.
    """
    if problem == "regression":
        variance = network.var(0, correction=0).mean()
        if variance == 0:
            raise ValueError(
                'C="auto" looks at how much of the network\'s variation the surrogate explains, and on the held-out '
                "samples the outputs are all alike: give a number for C"
            )
        errors = (logits - network).square().mean(1) / variance
        return 1 - errors, 1 - errors
    if problem == "multi-label":
        margins = logits * network.sign()
    else:
        predicted = network.argmax(1, keepdim=True)
        margins = logits.gather(1, predicted) - logits.scatter(1, predicted, -torch.inf).amax(1, keepdim=True)
    noise = SMOOTHING * margins.square().mean().sqrt().clamp(min=torch.finfo(margins.dtype).tiny)
    sharp = (
        margins > 0 if problem == "multi-label" else logits.argmax(1, keepdim=True) == network.argmax(1, keepdim=True)
    )
    return sharp.to(margins.dtype).mean(1), torch.special.ndtr(margins / noise).mean(1)


def shortfalls(smoothed: Float[Tensor, "setting row"]) -> tuple[Float[Tensor, " setting"], Float[Tensor, " setting"]]:
    """Return how far each setting is behind the best one in the mean, and the standard error of that.

    The error is of the paired difference, sample by sample: two settings mostly err on the same samples, so
    that it is far smaller than the error of either mean. Settings with NaN are never the best.
    """
    means = smoothed.mean(1)
    differences = smoothed[means.nan_to_num(-torch.inf).argmax()] - smoothed
    errors = differences.std(1) if smoothed.shape[1] > 1 else torch.zeros_like(means)
    return differences.mean(1), errors / math.sqrt(smoothed.shape[1])


def sparsest(smoothed: Float[Tensor, "setting row"], support_shares: Sequence[float]) -> int:
    """Return the setting with the least support among those close to the best.

    Close is: behind by at most one standard error of the paired difference, and by at most TOLERANCE. Among
    equals in support the one that is behind least wins, then the first.
    """
    behind, errors = shortfalls(smoothed)
    close = (behind <= errors.clamp(max=TOLERANCE)).nonzero().squeeze(1).tolist()
    return min(close, key=lambda entry: (support_shares[entry], float(behind[entry])))


def undominated(chosen: int, sharp: Float[Tensor, "setting row"], support_shares: Sequence[float]) -> int:
    """Return the chosen setting, or one that is sparser and by the sharp measure clearly more faithful as well.

    Clearly is: by more than one standard error of the paired difference. Smoothing compares decisions at the scale of a
    setting's margins; where a few margins are far larger than all others it counts decisions as close that are not, and
    can prefer a setting that nothing speaks for. Of several the most faithful is returned, then the sparsest.
    """
    ahead = sharp - sharp[chosen]
    means = ahead.mean(1)
    errors = ahead.std(1) / math.sqrt(sharp.shape[1]) if sharp.shape[1] > 1 else torch.full_like(means, torch.inf)
    clearly = means > errors * (1 + 1e-9)  # one sample more and none less is exactly one error
    better = [entry for entry in clearly.nonzero().flatten().tolist() if support_shares[entry] < support_shares[chosen]]
    return max(better, key=lambda entry: (float(means[entry]), -support_shares[entry]), default=chosen)


def has_fallen(smoothed: Sequence[Float[Tensor, " row"]]) -> bool:
    """Say whether the last two settings are clearly behind an earlier one: by two errors and the tolerance."""
    if len(smoothed) < 3:
        return False
    behind, errors = shortfalls(torch.stack(list(smoothed)))
    return bool((behind > (2 * errors).clamp(min=TOLERANCE))[-2:].all())
