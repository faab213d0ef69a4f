"""Counts among the first of a ranking, on examples counted by hand."""

import math

import pytest
import torch

from dualview.evaluation.retrieval import by_highest, found_among, share_among

WANTED = torch.tensor([False, True, False, True, True])


@pytest.mark.parametrize(("k", "found"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_found_among(k: int, found: int):
    assert found_among(torch.tensor([3, 0, 1, 2, 4]), WANTED, k) == found


def test_found_among_a_short_ranking():
    assert found_among(torch.tensor([4, 2]), WANTED, 2) == 1


@pytest.mark.parametrize("k", [0, 6, -1])
def test_found_among_more_than_there_are_is_refused(k: int):
    with pytest.raises(ValueError, match=f"`k` is {k}; expected 1 to 5"):
        found_among(torch.arange(5), WANTED, k)


def test_share_among_leaves_out_empty_places():
    neighbours = torch.tensor([[1, 0, -1], [3, 4, 2], [-1, -1, -1]])
    assert share_among(neighbours, WANTED) == pytest.approx(3 / 5)
    assert share_among(neighbours[:1], WANTED) == 0.5
    assert math.isnan(share_among(neighbours[2:], WANTED))


def test_by_highest_breaks_ties_by_position():
    assert by_highest(torch.tensor([1.0, 3.0, -2.0, 3.0, 1.0])).tolist() == [1, 3, 0, 4, 2]
