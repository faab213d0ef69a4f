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


def warn_if_probabilities(task: Task, raws: Iterable[Float[Tensor, "_ logit"]], *, stacklevel: int) -> None:
    """Warn where raw outputs of a classification look like probabilities: rows that sum to 1, or a column in [0, 1].

    Args:
        task: the model, and what is measured.
        raws: its outputs, in any number of parts; of fewer than 20 samples nothing is said.
        stacklevel: as in `warnings.warn`, counted from here.
    """
    if task.problem != "classification":
        return
    rows, several, lowest, highest = 0, True, 1.0, 0.0
    for block in (block for raw in raws for block in raw.split(BLOCK)):  # of other models the first one ends it
        rows, several, sums = rows + len(block), block.shape[1] > 1, block.sum(1)
        fits = (sums - 1).abs() <= TOLERANCE if several else sums <= 1
        if bool((block < 0).any()) or not bool(fits.all()):
            return
        lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
    if rows < LEAST_ROWS or lowest == highest:
        return
    seen = "no number is negative and each row sums to 1" if several else "all lie between 0 and 1"
    last, otherwise = ("softmax", "") if several else ("sigmoid", ' (or of a regression say problem="regression")')
    warnings.warn(
        f"the model's outputs look like probabilities: {seen}. A classification task needs logits: leave the {last} "
        f"out, for instance by a model that ends before it{otherwise}. Else losses and margins apply it twice, and "
        "gradients vanish where the model is sure",
        ProbabilityWarning,
        stacklevel=stacklevel + 1,
    )
