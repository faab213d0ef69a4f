"""A model that ends in a softmax or sigmoid, where logits are needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from dualview.engine.task import Task
from dualview.errors import ProbabilityWarning

LEAST_ROWS = 20  # fewer may look like probabilities by chance
BLOCK = 4096
TOLERANCE = 1e-4
NEAR_BOTH = (0.1, 0.9)  # what one sigmoid column goes below and above; a logit may lie between 0 and 1 by chance


class Signs:
    """Whether all raw outputs seen so far look like probabilities; none of them is kept.

    Args:
        task: the model, and what is measured.
    """

    def __init__(self, task: Task) -> None:
        self._possible = task.problem == "classification"
        self._several = True
        self._rows, self._lowest, self._highest = 0, 1.0, 0.0

    def see(self, raw: Float[Tensor, "_ logit"]) -> bool:
        """Look at some more outputs; tell whether it is worth looking at others."""
        for block in raw.split(BLOCK):
            if not self._possible:
                break
            self._rows, self._several, sums = self._rows + len(block), block.shape[1] > 1, block.sum(1)
            fits = (sums - 1).abs() <= TOLERANCE if self._several else sums <= 1
            self._possible = not bool((block < 0).any()) and bool(fits.all())
            self._lowest = min(self._lowest, float(block.min()))
            self._highest = max(self._highest, float(block.max()))
        return self._possible

    def warn(self, *, stacklevel: int) -> None:
        """Warn where they look so; of fewer than 20 samples nothing is said."""
        if not self._possible or self._rows < LEAST_ROWS or self._lowest == self._highest:
            return
        if not self._several and not (self._lowest < NEAR_BOTH[0] and self._highest > NEAR_BOTH[1]):
            return
        seen = "no number is negative and each row sums to 1" if self._several else "all lie between 0 and 1"
        last, otherwise = (
            ("softmax", "") if self._several else ("sigmoid", ' (or of a regression say problem="regression")')
        )
        warnings.warn(
            f"the model's outputs look like probabilities: {seen}. A classification task needs logits: leave the "
            f"{last} out, for instance by a model that ends before it{otherwise}. Else losses and margins apply it "
            "twice, and gradients vanish where the model is sure",
            ProbabilityWarning,
            stacklevel=stacklevel + 1,
        )


def warn_if_probabilities(task: Task, raws: Iterable[Float[Tensor, "_ logit"]], *, stacklevel: int) -> None:
    """Warn where raw outputs of a classification look like probabilities.

    Rows of several columns sum to 1; one column lies in [0, 1] and comes near both ends.

    Args:
        task: the model, and what is measured.
        raws: its outputs, in any number of parts; of fewer than 20 samples nothing is said.
        stacklevel: as in `warnings.warn`, counted from here.
    """
    signs = Signs(task)
    for raw in raws:
        if not signs.see(raw):  # of most models the first part ends it
            return
    signs.warn(stacklevel=stacklevel + 1)
