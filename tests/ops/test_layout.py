"""Layouts of rows: widths, parts and factors of a small example, and the way through JSON."""

import json

import torch

from dualview.ops.layout import as_layout, dense_width_of, factors, plain, split_factors, split_parts, width_of

LAYOUT = (plain("a", 2), factors("b", 2, 3, 1, bias=True))
ROW = torch.arange(10.0)[None]  # a: 0 1; a_1: 2 3 4; a_2: 5 6 7; δ_1: 8; δ_2: 9


def test_widths_count_recorded_and_dense_numbers():
    assert width_of(LAYOUT) == 2 + 2 * (3 + 1)
    assert dense_width_of(LAYOUT) == 2 + 1 * (3 + 1)
    assert dense_width_of((factors("b", 2, 3, 1, bias=False),)) == 3
    assert width_of(()) == dense_width_of(()) == 0


def test_factors_stand_pair_by_pair_inputs_first():
    first, second = split_parts(LAYOUT, ROW)
    inputs, deltas = split_factors(LAYOUT[1], second)
    assert first.tolist() == [[0, 1]]
    assert inputs.tolist() == [[[2, 3, 4], [5, 6, 7]]]
    assert deltas.tolist() == [[[8], [9]]]


def test_parts_and_factors_are_views():
    rows = ROW.repeat(3, 1)
    inputs, deltas = split_factors(LAYOUT[1], split_parts(LAYOUT, rows)[1])
    inputs.zero_()
    deltas.zero_()
    assert rows.count_nonzero() == 3  # the 1 of the plain part; its 0 is one anyway


def test_a_layout_comes_back_from_json():
    assert as_layout(json.loads(json.dumps(LAYOUT))) == LAYOUT
