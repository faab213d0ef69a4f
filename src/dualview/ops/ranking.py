"""Order among scores: the k best of each row, and rank correlations between rows."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def top_k(scores: Float[Tensor, "test entry"], k: int) -> tuple[Float[Tensor, "test k"], Int[Tensor, "test k"]]:
    """Return the k largest scores of each row, largest first, and where they stand.

    Among equal scores the one that stands first wins, so that the answer does not depend on how
    the entries were cut into blocks.

    Args:
        scores: any finite numbers.
        k: how many; at most the number of entries.

    Returns:
        values: "test k", falling.
        positions: "test k", int64 positions along the second axis.
    """
    if k == 0 or k == scores.shape[1]:
        return _in_order(*torch.topk(scores, k, dim=1))
    best, positions = torch.topk(scores, k + 1, dim=1)  # one more, to see where the k-th has an equal outside
    rows = (best[:, k] == best[:, k - 1]).nonzero().squeeze(1)
    best, positions = best[:, :k].contiguous(), positions[:, :k].contiguous()
    if len(rows):
        # topk chooses freely among entries equal to the k-th; put the first of them in place of its choice
        candidates, threshold = scores[rows], best[rows, -1:]
        wanted = (best[rows] == threshold).sum(1, keepdim=True)
        tied = candidates == threshold
        chosen = (candidates > threshold) | (tied & (tied.cumsum(1) <= wanted))
        where = chosen.nonzero()[:, 1].reshape(len(rows), k)
        positions[rows] = where
        best[rows] = candidates.gather(1, where)
    return _in_order(best, positions)


def _in_order(values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    positions, by_position = positions.sort(dim=1)
    values = values.gather(1, by_position)
    values, by_value = values.sort(dim=1, descending=True, stable=True)
    return values, positions.gather(1, by_value)


def kendall_tau(
    first: Float[Tensor, "row cls"], second: Float[Tensor, "row cls"], *, block_pairs: int = 2**20
) -> Float[Tensor, " row"]:
    """Return Kendall's tau-b between the two vectors of each row, from −1 to 1.

    tau-b = Σ sign(a_j − a_k) sign(b_j − b_k) / sqrt(Σ sign(a_j − a_k)² · Σ sign(b_j − b_k)²) over
    all pairs j, k (Kendall 1945); NaN where one of the vectors is constant.
    """
    num_rows, num_classes = first.shape
    block = max(1, block_pairs // max(1, num_classes**2))
    taus: list[Tensor] = []
    for start in range(0, num_rows, block):
        a, b = first[start : start + block], second[start : start + block]
        order_a = (a[:, :, None] - a[:, None, :]).sign().flatten(1)
        order_b = (b[:, :, None] - b[:, None, :]).sign().flatten(1)
        norm = (order_a.square().sum(1) * order_b.square().sum(1)).sqrt()
        taus.append((order_a * order_b).sum(1) / norm)
    return torch.cat(taus)


def ranks(values: Float[Tensor, "row entry"]) -> Float[Tensor, "row entry"]:
    """Return each entry's rank in its row, from 1 for the smallest; equal entries share the mean of their ranks."""
    order, starts = _sorted(values)
    num_entries = values.shape[1]
    places = torch.arange(num_entries, device=values.device)
    if starts.all():
        shared = (places + 1.0).double().expand(values.shape)
    else:
        first = torch.where(starts, places, 0).cummax(1).values
        ends = torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], 1)
        last = torch.where(ends, places, num_entries).flip(1).cummin(1).values.flip(1)
        shared = (first + last).double() / 2 + 1
    return torch.empty(values.shape, dtype=torch.float64, device=values.device).scatter_(1, order, shared)


def _sorted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of each row's entries, rising, and where an entry differs from the one before it."""
    if values.dtype != torch.float32 or values.device.type != "cpu":
        ordered, order = values.sort(dim=1)
        changes = ordered[:, 1:] != ordered[:, :-1]
    else:  # integers with the value's bits above its position sort three times as fast
        bits = (values.detach() + 0.0).numpy().view(np.int32)  # one zero only
        keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32  # rise as the values do
        keys |= np.arange(values.shape[1])
        keys.sort(axis=1)
        order = torch.as_tensor(keys & 0xFFFFFFFF)
        keys >>= 32
        changes = torch.as_tensor(keys[:, 1:] != keys[:, :-1])
    return order, torch.cat([torch.ones_like(changes[:, :1]), changes], 1)


def correlation(first: Float[Tensor, "row entry"], second: Float[Tensor, "row entry"]) -> Float[Tensor, " row"]:
    """Return Pearson's correlation of the two vectors of each row, from −1 to 1; NaN where one of them is constant."""
    centred = [values.double() - values.double().mean(1, keepdim=True) for values in (first, second)]
    norms = [values.square().sum(1).sqrt() for values in centred]
    # A constant row's mean is not exact: what rounding leaves of it is no variation.
    constant = [(values == values[:, :1]).all(1) for values in (first, second)]
    found = (centred[0] * centred[1]).sum(1) / (norms[0] * norms[1])
    return found.clamp(-1, 1).masked_fill(constant[0] | constant[1], torch.nan)


def spearman(first: Float[Tensor, "row entry"], second: Float[Tensor, "row entry"]) -> Float[Tensor, " row"]:
    """Return Spearman's rank correlation of the two vectors of each row, from −1 to 1.

    It is Pearson's correlation of the ranks, equal entries sharing theirs; NaN where a vector is constant.
    """
    return correlation(ranks(first), ranks(second))
