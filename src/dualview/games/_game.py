"""What a game is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Game:
    """A value for every set (coalition) of players.

    Attributes:
        value: presence "row player", bool → the value "row ..." of the coalition in each row.
        num_players: how many players there are, numbered from 0.
    """

    value: Callable[[Tensor], Tensor]
    num_players: int
