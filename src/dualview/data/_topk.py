"""The strongest scores of each sign, kept while blocks of training samples pass."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.ops.ranking import top_k


class RunningTop:
    """Keep the k largest positive and the k most negative scores of each test row.

    Blocks must come with rising training positions for each test row; among equal scores the lower
    position wins, so that the result does not depend on the block size.

    Args:
        num_test: test rows.
        k: scores of each sign.
        dtype: of the scores.
    """

    def __init__(self, num_test: int, k: int, dtype: torch.dtype) -> None:
        if k < 1:
            raise ValueError(f"`top` must be at least 1; it is {k}")
        self._signs = (1.0, -1.0)
        self._k = k
        # one leading axis for the sign; scores are kept with their sign turned, so that larger is stronger
        self._scores = torch.zeros(2, num_test, k, dtype=dtype)
        self._shares = torch.zeros(2, num_test, k, dtype=dtype)
        self._index = torch.full((2, num_test, k), -1)

    def add(
        self,
        test: slice,
        scores: Float[Tensor, "test train"],
        shares: Float[Tensor, "test train"],
        train_index: Int[Tensor, " train"],
    ) -> None:
        """Take in a block of scores of the test rows `test`."""
        for s, sign in enumerate(self._signs):
            best, where = top_k(scores * sign, min(self._k, scores.shape[1]))
            values = torch.cat([self._scores[s, test], best], 1)
            parts = torch.cat([self._shares[s, test], shares.gather(1, where)], 1)
            index = torch.cat([self._index[s, test], train_index[where]], 1)
            best, where = top_k(values, self._k)
            self._scores[s, test] = best
            self._shares[s, test] = parts.gather(1, where)
            self._index[s, test] = index.gather(1, where)

    def result(self) -> tuple[Float[Tensor, "test entry"], Int[Tensor, "test entry"], Float[Tensor, "test entry"]]:
        """Return scores, training positions and bias shares: proponents, then opponents; −1 pads."""
        held = self._scores > 0
        signs = torch.tensor(self._signs, dtype=self._scores.dtype)[:, None, None]
        scores = torch.where(held, self._scores * signs, 0.0)
        index = torch.where(held, self._index, -1)
        shares = torch.where(held, self._shares, 0.0)
        return tuple(torch.cat(part.unbind(0), 1) for part in (scores, index, shares))  # type: ignore[return-value]
