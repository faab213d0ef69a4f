"""Effects as models: a monomial of the players' coordinates, by itself or added to the user's network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dualview.engine.batches import call_model, logits_of, num_rows, tensors_in
from dualview.engine.measured import Parts
from dualview.engine.players import Players
from dualview.engine.task import Task


class Monomials(nn.Module):
    """The functions Π_q t_q^{κ_q} of one sample's coordinates, one output column each, and a last one that is 0.

    t_q = ⟨x_q − b_q, Δ_q⟩ / |Δ_q|² is 0 at the baseline and 1 at the input; of a player that does not move
    it is 0.

    Args:
        starts: "1 ...", b.
        way: "1 ...", Δ.
        players: q.
        effects: κ of each, in ascending order of their length.
        is_tuple: whether the inputs are a tuple.
    """

    def __init__(
        self, starts: Parts, way: Parts, players: Players, effects: Sequence[tuple[int, ...]], *, is_tuple: bool
    ) -> None:
        super().__init__()
        self.starts, self.players, self.is_tuple = starts, players, is_tuple
        sizes = players.sums({place: part.square() for place, part in way.items()})
        moved = players.spread(torch.where(sizes > 0, sizes, 1), shared=False)
        self.slopes = {place: torch.where(moved[place] > 0, part / moved[place], 0) for place, part in way.items()}
        orders = sorted({len(kappa) for kappa in effects})
        self.index = [torch.tensor([kappa for kappa in effects if len(kappa) == order]) for order in orders]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return "row effect"."""
        tensors = tensors_in(kwargs or (args if self.is_tuple else args[0]))
        moved = {place: (tensors[place] - start) * self.slopes[place] for place, start in self.starts.items()}
        t = self.players.sums(moved)
        columns = []
        for index in self.index:
            product = t[:, index[:, 0]]
            for k in range(1, index.shape[1]):
                product = product * t[:, index[:, k]]
            columns.append(product)
        return torch.cat([*columns, torch.zeros_like(t[:, :1])], dim=1)


class Sum(nn.Module):
    """The network's class logits beside the monomials, so that an output can measure both together."""

    def __init__(self, task: Task, monomials: Monomials) -> None:
        super().__init__()
        self.model, self.monomials = task.model, monomials
        self._logits = task.logits

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return "row column"."""
        inputs = kwargs or (args if self.monomials.is_tuple else args[0])
        raw = logits_of(call_model(self.model, inputs), num_rows(inputs))
        return torch.cat([self._logits(raw), self.monomials(*args, **kwargs)], dim=1)


def beside(task: Task, both: Sum, column: int, raw: Tensor) -> tuple[Task, int]:
    """Return a task whose output is the network's for this column plus the monomial that the target names.

    Returns:
        The task, and the first column of the monomials: target `first + k` adds the k-th.
    """
    width = task.logits(raw).shape[1]
    one_logit = task.problem == "classification" and raw.shape[1] == 1

    def output(outputs: Tensor, targets: Tensor) -> Tensor:
        own = torch.full_like(targets, column)
        measured = task.measure(outputs[:, :width], own, one_logit=one_logit)
        return measured + outputs.gather(1, targets[:, None]).squeeze(1)

    return Task(both, output=output, loss=task.loss, split=task.split), width
