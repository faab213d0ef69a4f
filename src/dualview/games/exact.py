"""Games of few players, solved exactly from the values of all their coalitions.

All coalitions of n players stand along an axis of 2ⁿ, in the order of their bit masks: bit p of the
index says whether player p is present. Whatever axes come before it are games of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dualview.games._game import Game

MOST_PLAYERS = 20

Halves = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def coalitions(num_players: int) -> Bool[Tensor, "coalition player"]:
    """Return who is present in each coalition.

    Raises:
        ValueError: more than 20 players.
    """
    if num_players > MOST_PLAYERS:
        raise ValueError(
            f"{num_players} players have 2^{num_players} coalitions; exact values take at most {MOST_PLAYERS} players: "
            "group players that belong together, or use an estimator that samples coalitions"
        )
    return (torch.arange(2**num_players)[:, None] >> torch.arange(num_players)) % 2 == 1


def coalition_values(game: Game, batch: int) -> Float[Tensor, "... coalition"]:
    """Return the value of every coalition, float64, asking the game for `batch` of them at a time.

    Raises:
        ValueError: more than 20 players.
    """
    found = [game.value(presence).double() for presence in torch.split(coalitions(game.num_players), batch)]
    return torch.cat(found).movedim(0, -1)


def dividends(values: Float[Tensor, "... coalition"]) -> Float[Tensor, "... coalition"]:
    """Return Harsanyi's dividends J(S) = Σ_{T ⊆ S} (−1)^{|S| − |T|} v(T), the Möbius transform: n 2ⁿ⁻¹ subtractions.

    What a set is worth beyond the worth of its parts; J(∅) = v(∅), and v(S) is the sum over all T ⊆ S.
    """
    return _over_players(values, lambda absent, present: (absent, present - absent))


def values_of(dividends: Float[Tensor, "... coalition"]) -> Float[Tensor, "... coalition"]:
    """Return v(S) = Σ_{T ⊆ S} J(T), the zeta transform: the inverse of `dividends`."""
    return _over_players(dividends, lambda absent, present: (absent, present + absent))


def shapley(values: Float[Tensor, "... coalition"]) -> Float[Tensor, "... player"]:
    """Return Shapley values φ_p = Σ_{S ∌ p} |S|! (n − |S| − 1)! / n! · (v(S ∪ p) − v(S)) (Shapley 1953).

    They add up to v(everyone) − v(nobody); each dividend J(S) is shared equally among S.
    """
    num_players = _num_players(values)
    by_size = [1 / (num_players * math.comb(num_players - 1, size)) for size in range(num_players)]
    return _mean_gains(values, torch.tensor(by_size, dtype=values.dtype)[coalitions(num_players - 1).sum(1)])


def banzhaf(values: Float[Tensor, "... coalition"]) -> Float[Tensor, "... player"]:
    """Return Banzhaf values β_p = 2^{1−n} Σ_{S ∌ p} (v(S ∪ p) − v(S)) (Banzhaf 1965): a plain mean over coalitions."""
    others = 2 ** (_num_players(values) - 1)
    return _mean_gains(values, torch.full((others,), 1 / others, dtype=values.dtype))


def _mean_gains(values: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_S w_S (v(S ∪ p) − v(S)) for each p; weights "coalition" of the other players, the same for all p."""
    gains = values.new_zeros(*values.shape[:-1], _num_players(values))
    for player in range(gains.shape[-1]):
        absent, present = _halves(values, player)
        gains[..., player] = ((present - absent).flatten(-2) * weights.to(values)).sum(-1)
    return gains


def _over_players(values: Tensor, change: Halves) -> Tensor:
    for player in range(_num_players(values)):
        values = torch.stack(change(*_halves(values, player)), dim=-2).flatten(-3)
    return values


def _halves(values: Tensor, player: int) -> tuple[Tensor, Tensor]:
    """Return the values without and with a player, "... above below": bits above its own, and below."""
    both = values.reshape(*values.shape[:-1], -1, 2, 2**player)
    return both[..., 0, :], both[..., 1, :]


def _num_players(values: Tensor) -> int:
    num_players = values.shape[-1].bit_length() - 1
    if num_players < 1 or values.shape[-1] != 2**num_players:
        raise ValueError(f"`values` hold {values.shape[-1]} coalitions; expected 2^n for n players, 1 or more")
    return num_players
