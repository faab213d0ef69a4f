"""The measured output with some players present and the others absent."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dualview.engine.measured import Measured
from dualview.engine.players import Players
from dualview.engine.removal import Reference


def coalition_values(
    measured: Measured, reference: Reference, players: Players, presence: Bool[Tensor, "coalition player"]
) -> Float[Tensor, "sample coalition"]:
    """Return f of each sample for some coalitions: what is present keeps its values, the rest has the reference's.

    Over several draws of the reference it is the mean. It costs one forward pass for each sample,
    coalition and draw, `measured.size` rows at a time.
    """
    presence = presence.to(measured.device)
    draws = reference.draws
    inputs = {place: measured.parts[place] for place in players.masks}
    found = []
    for rows in measured.chunks(len(measured) * len(presence) * draws):
        samples, which = rows // (len(presence) * draws), rows // draws % len(presence)
        absent = reference.rows(samples, rows % draws)
        own = {place: part[samples] for place, part in inputs.items()}
        points = players.present(presence[which], own, absent)
        found.append(measured.at(samples, points))
    return torch.cat(found).reshape(len(measured), len(presence), draws).mean(2)
