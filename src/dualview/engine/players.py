"""Players: which numbers of an input are present or absent together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dualview.engine.measured import Parts
from dualview.engine.removal import Removal, described, same_values


@dataclass(frozen=True)
class Patches:
    """Squares of an image, all channels together; runs of a series. Those at the far border may be smaller.

    Args:
        size: edge, in pixels or time steps.
    """

    size: int


@dataclass(frozen=True)
class Pixels:
    """Pixels of an image, or time steps of a series, all channels (the first axis of a sample) together."""


@dataclass(frozen=True)
class Numbered:
    """Players as a user numbers them, as a setting: compared by value and printed by shape, which tensors are not.

    Args:
        numbers: whole numbers, or a map from an input's place to them; see `as_players`.
    """

    numbers: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbered) and repr(self) == repr(other) and same_values(self.numbers, other.numbers)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return described(self.numbers)


def as_grouping(players: Any) -> Pixels | Patches | Numbered | None:
    """Return what a user gave as `players`, as a setting of a method.

    Raises:
        TypeError: they are a baseline.
    """
    if _is_baseline(players):
        raise TypeError(f"`players` is a baseline: give it as baseline={players!r}")
    return players if players is None or isinstance(players, (Pixels, Patches, Numbered)) else Numbered(players)


@dataclass(frozen=True, eq=False)
class Players:
    """Which player each number of one sample belongs to.

    Attributes:
        masks: place → whole numbers shaped like one sample's input; −1 belongs to nobody and is always present.
        count: how many players there are, numbered from 0.
    """

    masks: dict[str, Tensor]
    count: int

    def sums(self, values: Parts) -> Float[Tensor, "row player"]:
        """Return the sum of each player's values."""
        first = next(iter(values.values()))
        total = first.new_zeros(len(first), self.count + 1)
        for place, mask in self.masks.items():
            index = mask.to(first.device).flatten() % (self.count + 1)  # −1 is the last column
            total = total.index_add(1, index, values[place].reshape(len(first), -1))
        return total[:, :-1]

    def spread(self, scores: Float[Tensor, "row player"], *, shared: bool) -> Parts:
        """Return scores on the numbers that make up each player, shaped like the inputs; 0 where there is nobody.

        Args:
            scores: one for each player.
            shared: divide each score equally among the player's numbers, so that they add up to it.
        """
        if shared:
            sizes = sum(
                torch.bincount(mask.flatten() + 1, minlength=self.count + 1)[1:] for mask in self.masks.values()
            )
            scores = scores / torch.as_tensor(sizes).to(scores).clamp(min=1)
        padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
        return {
            place: padded[:, mask.to(scores.device).flatten() % (self.count + 1)].reshape(-1, *mask.shape)
            for place, mask in self.masks.items()
        }

    def present(self, presence: Bool[Tensor, "row player"], inputs: Parts, reference: Parts) -> Parts:
        """Return rows in which the players that are present have their own values, the others the reference's."""
        padded = torch.cat([presence, presence.new_ones(len(presence), 1)], dim=1)
        found = {}
        for place, mask in self.masks.items():
            keep = padded[:, mask.to(presence.device).flatten() % (self.count + 1)].reshape(-1, *mask.shape)
            found[place] = torch.where(keep, inputs[place], reference[place])
        return found


def as_players(players: Any, parts: Mapping[str, Tensor]) -> Players:
    """Return the players of a task's inputs.

    Args:
        players: None for every number by itself; `Pixels()`, `Patches(size)`; whole numbers shaped like
            one sample's input, or that broadcast to one (segments "height width"), −1 for nobody; or a
            map from an input's place to such numbers.
        parts: "sample ..." the inputs by place.

    Raises:
        TypeError: a baseline, or something else that is no numbers.
        ValueError: numbers of another shape, below −1, or that leave out a number in between.
    """
    shapes = {place: part.shape[1:] for place, part in parts.items()}
    players = as_grouping(players)
    players = players.numbers if isinstance(players, Numbered) else players
    if players is None or isinstance(players, (Pixels, Patches)):
        masks, count = {}, 0
        for place, shape in shapes.items():
            own = _numbered(shape, players)
            masks[place], count = own + count, count + int(own.max()) + 1
        return Players(masks, count)
    given = players if isinstance(players, Mapping) else dict.fromkeys(parts, players)
    if not isinstance(players, Mapping) and len(parts) > 1:
        raise ValueError(f"the model takes several inputs: give `players` as a map from {', '.join(map(repr, parts))}")
    strangers = [place for place in given if place not in shapes]
    if strangers:
        raise ValueError(f"`players` name {strangers[0]!r}; what can be absent is {', '.join(map(repr, shapes))}")
    masks = {place: _mask(given.get(place, -1), shape, place) for place, shape in shapes.items()}
    found = torch.cat([mask.flatten() for mask in masks.values()])
    count = int(found.max()) + 1
    if count < 1 or len(found[found >= 0].unique()) != count:
        raise ValueError("`players` must be numbered 0, 1, 2, … without a gap; −1 belongs to nobody")
    return Players(masks, count)


def _is_baseline(players: Any) -> bool:
    """Tell a `Removal`, or a map to single numbers that do not count whole inputs as players 0, 1, …, at least two."""
    if not isinstance(players, Mapping):
        return isinstance(players, Removal)
    if not all(isinstance(value, (int, float)) for value in players.values()):
        return False
    numbers = set(players.values()) - {-1}
    return len(numbers) < 2 or numbers != set(range(len(numbers)))


def _numbered(shape: torch.Size, players: Pixels | Patches | None) -> Tensor:
    if players is None:
        return torch.arange(math.prod(shape)).reshape(shape)
    size = 1 if isinstance(players, Pixels) else players.size
    if size < 1:
        raise ValueError(f"`Patches` of size {size}; expected at least 1")
    grid = shape[1:] if len(shape) > 1 else shape
    counts = [math.ceil(length / size) for length in grid]
    index = torch.zeros(grid, dtype=torch.int64)
    for axis, (length, count) in enumerate(zip(grid, counts, strict=True)):
        place = torch.arange(length) // size
        index = index * count + place.reshape(-1, *[1] * (len(grid) - axis - 1))
    return index.expand(shape)


def _mask(given: Any, shape: torch.Size, place: str) -> Tensor:
    name = f"`players`[{place!r}]" if place else "`players`"
    try:
        mask = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must be None, Pixels(), Patches(size), or whole numbers shaped like one sample's input; they are "
            f"{given!r}"
        ) from None
    if mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, one for each player; they are {mask.dtype}")
    try:
        mask = mask.long().cpu().expand(shape)
    except RuntimeError:
        message = f"{name} have shape {tuple(mask.shape)}; expected {tuple(shape)} as one sample's input, or less axes"
        raise ValueError(message) from None
    if int(mask.min()) < -1:
        raise ValueError(f"{name} hold {int(mask.min())}; players are numbered from 0, and −1 belongs to nobody")
    return mask
