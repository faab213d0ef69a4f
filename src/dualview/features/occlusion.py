"""Occlusion: what the output loses when a part of the input is removed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dualview.engine.batches import tensors_in
from dualview.engine.coalitions import coalition_values
from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.engine.players import Patches, Players, as_grouping, as_players
from dualview.engine.removal import as_removal
from dualview.features._method import Explained, FeatureMethod


@dataclass(frozen=True, repr=False)
class Occlusion(FeatureMethod):
    """Occlusion (Zeiler and Fergus 2014); over draws of the baseline, prediction difference (Zintgraf et al. 2017).

    φ_p = f(x) − f(x with player p's numbers replaced by the baseline's), averaged over draws. Every
    number of a player holds the player's whole effect: it is not divided among them, so that sums over
    numbers mean nothing. Effects of players do not add up to f(x) − f(x') either: a Taylor effect, or
    dividend, of several players is counted for each of them.

    Args:
        players: what is removed together: None for each number, `Pixels()`, `Patches(size)`, or whole numbers
            shaped like one sample's input (segments), −1 for what is never removed.
        baseline: what removed numbers become, as `IntegratedGradients` takes it; a map from the inputs'
            places may name token ids too.
        stride: with `Patches(size)`, slide one window of that size in steps of `stride` instead; each number
            then holds the mean effect of the windows that cover it.

    Costs a forward pass for each player (or window) and draw of each sample, and one for f(x).

    Example:
        >>> scores = Occlusion(Patches(16), baseline=Blur(10)).attribute(model, images)  # doctest: +SKIP
    """

    players: Any = None
    _: KW_ONLY
    baseline: Any = 0.0
    stride: int | None = None

    kind: ClassVar[Kind] = "effect"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        object.__setattr__(self, "players", as_grouping(self.players))
        if self.stride is None:
            return
        if not isinstance(self.players, Patches):
            raise ValueError("`stride` slides a window: give its size as Patches(size)")
        if not 1 <= self.stride <= self.players.size:
            raise ValueError(f"`stride` is {self.stride}; expected 1 to {self.players.size}, the size of the patches")

    def explain(self, measured: Measured) -> Explained:
        reference = self.baseline.reference(measured)
        tensors = tensors_in(measured.inputs)
        inputs = {place: tensors[place] for place in reference.places}
        if self.stride is None:
            players = as_players(self.players, inputs)
            groups: Sequence[Tensor] = torch.arange(players.count).split(1)
        else:
            players = as_players(Patches(1), inputs)
            groups = windows(players, self.players.size, self.stride)
        total = measured.values.new_zeros(len(measured), players.count)
        covered = total.new_zeros(players.count)
        for index in torch.arange(len(groups)).split(measured.size):
            absent = torch.zeros(len(index), players.count, dtype=torch.bool)
            for row, group in enumerate(index.tolist()):
                absent[row, groups[group]] = True
            effects = measured.values[:, None] - coalition_values(measured, reference, players, ~absent)
            absent = absent.to(total)
            total, covered = total + effects @ absent, covered + absent.sum(0)
        scores = total / covered
        return Explained(players.spread(scores, shared=False), players=players, tables={"players": scores})


def windows(players: Players, size: int, stride: int) -> list[Tensor]:
    """Return the pixels that each position of a sliding window covers; at the far border it may reach beyond."""
    found = []
    for mask in players.masks.values():
        grid = mask[0] if mask.ndim > 1 else mask
        starts = [range(0, max(length - size, 0) + stride, stride) for length in grid.shape]
        for corner in itertools.product(*starts):
            found.append(grid[tuple(slice(start, start + size) for start in corner)].flatten())
    return found
