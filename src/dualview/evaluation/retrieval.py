"""How many of the samples that should be found stand among the first that a ranking names."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def found_among(ranking: Int[Tensor, " rank"], wanted: Bool[Tensor, " train"], k: int) -> int:
    """Count the wanted samples among the first k of a ranking.

    Args:
        ranking: positions of samples, most suspicious first.
        wanted: whether each sample of the data set is one to be found, e.g. has a flipped label.
        k: how many of the ranking are looked at; at most its length.

    Returns:
        A count from 0 to min(k, number wanted). A random order finds k · (share wanted) on average.
    """
    if not 1 <= k <= len(ranking):
        raise ValueError(f"`k` is {k}; expected 1 to {len(ranking)}, the length of the ranking")
    return int(wanted[ranking[:k]].sum())


def share_among(neighbours: Int[Tensor, "test k"], wanted: Bool[Tensor, " train"]) -> float:
    """Return the share of wanted samples among the neighbours of all test samples; −1 marks an empty place.

    Returns:
        From 0 to 1; NaN where there are no neighbours at all.
    """
    named = neighbours[neighbours >= 0]
    return float(wanted[named].float().mean()) if len(named) else float("nan")


def by_highest(scores: Tensor) -> Int[Tensor, " rank"]:
    """Rank samples by a score, highest first; among equal ones the lower position first."""
    return torch.argsort(scores, descending=True, stable=True)
