"""Rows in parts are the same rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualview.engine.tables import Rows, Table, join_rows

NUM_ROWS = 11


def whole_rows(num_rows: int = NUM_ROWS) -> Rows:
    index = torch.arange(num_rows)
    return Rows(torch.stack([index, -index], 1).float(), 10.0 * torch.stack([index] * 3, 1), index % 3, index)


def parted(cuts: list[int]) -> Table:
    """The same rows, cut before each of these positions."""
    edges = [0, *sorted(set(cuts)), NUM_ROWS]
    return Table([Rows(*(column[a:b] for column in whole_rows())) for a, b in zip(edges, edges[1:], strict=False)])


def assert_equal(found: Rows, expected: Rows) -> None:
    for name, a, b in zip(Rows._fields, found, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


cuts = st.lists(st.integers(1, NUM_ROWS - 1), max_size=4)


@given(cuts, st.lists(st.integers(0, NUM_ROWS - 1), max_size=30))
def test_rows_are_gathered_in_any_order_with_repeats_whatever_the_parts(cuts, index):
    gathered = torch.tensor(index, dtype=torch.int64)
    assert_equal(parted(cuts).rows(gathered), Rows(*(column[gathered] for column in whole_rows())))


@given(cuts, st.integers(1, NUM_ROWS + 1), st.none() | st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=30))
def test_blocks_behind_each_other_are_the_rows(cuts, block_size, index):
    table = parted(cuts)
    index = None if index is None else torch.tensor(index)
    blocks = list(table.blocks(block_size, index))
    wanted = torch.arange(NUM_ROWS) if index is None else index
    assert [len(block.index) for block in blocks[:-1]] == [block_size] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1].index) <= block_size
    assert_equal(join_rows(blocks), Rows(*(column[wanted] for column in whole_rows())))


def test_whole_columns_and_facts():
    for table in (parted([]), parted([1, 4])):
        assert len(table) == NUM_ROWS
        assert (table.width, table.num_classes, table.dtype) == (2, 3, torch.float32)
        for name in ("values", "outputs", "targets"):
            assert torch.equal(getattr(table, name), getattr(whole_rows(), name))
    assert list(parted([3]).blocks(4, torch.empty(0, dtype=torch.int64))) == []


@pytest.mark.parametrize(
    "index", [[[1, 2, 3]], [[0, 1], [3, 4]], [[0, 1], [0, 1]], [[0, 5, 5, 3]], [[0, 2, 1, 3]], [[0], []]], ids=str
)
def test_parts_that_do_not_count_on_are_refused(index):
    parts = [
        Rows(
            torch.zeros(len(part), 1),
            torch.zeros(len(part), 2),
            torch.zeros(len(part)).long(),
            torch.tensor(part).long(),
        )
        for part in index
    ]
    with pytest.raises(ValueError, match="rows of a table must count on from"):
        Table(parts)


def test_no_parts_and_positions_outside_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        Table([])
    for table in (parted([]), parted([4])):
        for outside in (-1, NUM_ROWS):
            with pytest.raises(IndexError, match="outside 0 to 10"):
                table.rows(torch.tensor([0, outside]))
