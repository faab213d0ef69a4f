"""The measured output with some players present and the others absent."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dualview.engine.batches import tensors_in
from dualview.engine.measured import Measured
from dualview.engine.players import Players
from dualview.engine.removal import Reference
from dualview.games._game import Game


def coalition_values(
    measured: Measured,
    reference: Reference,
    players: Players,
    presence: Bool[Tensor, "coalition player"],
    of: Int[Tensor, " sample"] | None = None,
) -> Float[Tensor, "sample coalition"]:
    """Return f of each sample for some coalitions: what is present keeps its values, the rest has the reference's.

    The samples are all of the batch, or those that `of` names. Over several draws of the reference it is
    the mean. It costs one forward pass for each sample, coalition and draw, `measured.size` rows at a time.
    """
    presence, of = presence.to(measured.device), measured.samples if of is None else of.to(measured.device)
    draws = reference.draws
    tensors = tensors_in(measured.inputs)
    inputs = {place: tensors[place] for place in players.masks}
    found = []
    for rows in measured.chunks(len(of) * len(presence) * draws):
        samples, which = of[rows // (len(presence) * draws)], rows // draws % len(presence)
        absent = reference.rows(samples, rows % draws)
        own = {place: part[samples] for place, part in inputs.items()}
        points = players.present(presence[which], own, absent)
        found.append(measured.at(samples, points))
    return torch.cat(found).reshape(len(of), len(presence), draws).mean(2)


def coalition_game(measured: Measured, reference: Reference, players: Players, sample: int) -> Game:
    """Return the game of one sample: a coalition is worth f of the input in which the others are absent."""
    of = torch.tensor([sample])
    return Game(lambda presence: coalition_values(measured, reference, players, presence, of)[0], players.count)


def moving(measured: Measured, reference: Reference, players: Players) -> Reference:
    """Return the reference with the inputs' own values where numbers belong to nobody, and so never move."""
    parts = {}
    for place, mask in players.masks.items():
        part = reference.parts[place]
        if bool((mask < 0).any()):
            part = torch.where(mask.to(part.device) >= 0, part, measured.parts[place][:, None])
        parts[place] = part
    return Reference(parts)
