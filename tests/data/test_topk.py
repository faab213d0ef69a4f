"""The running top k against sorting everything at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualview.data._topk import RunningTop


def strongest(scores: list[float], index: list[int], k: int, sign: int) -> list[int]:
    """Columns of the k strongest scores of one sign; among equal ones the lower position."""
    columns = [c for c in range(len(scores)) if sign * scores[c] > 0]
    return sorted(columns, key=lambda c: (-sign * scores[c], index[c]))[:k]


@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 12),
    k=st.integers(1, 14),
    seed=st.integers(0, 10**6),
    cuts=st.sets(st.integers(1, 11)),
)
def test_it_keeps_what_sorting_would(rows: int, columns: int, k: int, seed: int, cuts: set[int]):
    """Scores from −2 to 2 in whole steps: ties everywhere, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (rows, columns), generator=generator).double()
    shares = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    index = torch.randperm(50, generator=generator)[:columns].sort().values
    kept = RunningTop(rows, k, torch.float64)
    bounds = [0, *sorted(cut for cut in cuts if cut < columns), columns]
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        for row in range(rows):  # test blocks of one row
            block = slice(row, row + 1)
            kept.add(block, scores[block, start:stop], shares[block, start:stop], index[start:stop])
    found, found_index, found_shares = kept.result()
    for row in range(rows):
        for side, sign in enumerate((1, -1)):
            wanted = strongest(scores[row].tolist(), index.tolist(), k, sign)
            empty = k - len(wanted)
            half = slice(side * k, (side + 1) * k)
            assert found_index[row, half].tolist() == index[wanted].tolist() + [-1] * empty
            assert found[row, half].tolist() == scores[row, wanted].tolist() + [0.0] * empty
            assert found_shares[row, half].tolist() == shares[row, wanted].tolist() + [0.0] * empty


@pytest.mark.parametrize("k", [0, -3])
def test_fewer_than_one_is_refused(k: int):
    with pytest.raises(ValueError, match=f"`top` must be at least 1; it is {k}"):
        RunningTop(2, k, torch.float32)
