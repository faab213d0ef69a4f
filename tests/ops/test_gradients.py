"""Products, norms and sums of gradients held by factors, against the gradients themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualview.ops import gradients
from dualview.ops.layout import Part, dense_width_of, factors, plain, width_of

# float64 sums of a few hundred products of numbers around 1
CLOSE = {"rtol": 1e-11, "atol": 1e-11}
MIXED = (
    plain("p", 5),
    factors("f", 1, 4, 3, bias=True),
    factors("g", 3, 2, 4, bias=False),
    factors("h", 2, 3, 1, bias=True),
)

sizes = st.integers(1, 4)
parts = st.one_of(
    st.builds(plain, st.just("plain"), st.integers(0, 5)),
    st.builds(
        lambda rank, ins, outs, bias: factors("map", rank, ins, outs, bias=bias), sizes, sizes, sizes, st.booleans()
    ),
)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def slow_dense(layout: tuple[Part, ...], row: torch.Tensor) -> torch.Tensor:
    """Write out what `Part` says, number by number."""
    numbers, start = [], 0
    for part in layout:
        piece = row[start : start + part.width].tolist()
        start += part.width
        if not part.rank:
            numbers += piece
            continue
        a = [piece[k * part.inputs : (k + 1) * part.inputs] for k in range(part.rank)]
        behind = piece[part.rank * part.inputs :]
        delta = [behind[k * part.outputs : (k + 1) * part.outputs] for k in range(part.rank)]
        numbers += [
            sum(delta[k][o] * a[k][i] for k in range(part.rank))
            for o in range(part.outputs)
            for i in range(part.inputs)
        ]
        numbers += [sum(delta[k][o] for k in range(part.rank)) for o in range(part.outputs)] if part.bias else []
    return torch.tensor(numbers, dtype=torch.float64)


@given(st.lists(parts, max_size=4), st.integers(0, 5), st.integers(0, 4))
def test_everything_equals_the_dense_gradients_arithmetic(layout, num_rows, num_vectors):
    layout = tuple(layout)
    rows, others = draw(num_rows, width_of(layout)), draw(num_vectors, width_of(layout))
    dense = torch.stack([*(slow_dense(layout, row) for row in rows), rows.new_zeros(dense_width_of(layout))])[:-1]
    other_dense = gradients.dense(layout, others)
    weights, vectors = draw(num_vectors, num_rows), draw(num_vectors, dense_width_of(layout))
    torch.testing.assert_close(gradients.dense(layout, rows), dense, **CLOSE)
    torch.testing.assert_close(gradients.products(layout, rows, others), dense @ other_dense.T, **CLOSE)
    torch.testing.assert_close(gradients.squared_norms(layout, rows), dense.square().sum(1), **CLOSE)
    torch.testing.assert_close(gradients.combine(layout, weights, rows), weights @ dense, **CLOSE)
    torch.testing.assert_close(gradients.apply(layout, rows, vectors), dense @ vectors.T, **CLOSE)


@pytest.mark.parametrize(("factors_in_block", "numbers_in_block"), [(1, 1), (7, 30)])
def test_blocks_change_nothing(monkeypatch, factors_in_block, numbers_in_block):
    rows, others, vectors = draw(11, width_of(MIXED)), draw(9, width_of(MIXED)), draw(4, dense_width_of(MIXED))
    whole = [
        gradients.products(MIXED, rows, others),
        gradients.squared_norms(MIXED, rows),
        gradients.apply(MIXED, rows, vectors),
    ]
    monkeypatch.setattr(gradients, "BLOCK_FACTORS", factors_in_block)
    monkeypatch.setattr(gradients, "BLOCK_NUMBERS", numbers_in_block)
    blocked = [
        gradients.products(MIXED, rows, others),
        gradients.squared_norms(MIXED, rows),
        gradients.apply(MIXED, rows, vectors),
    ]
    torch.testing.assert_close(blocked, whole, **CLOSE)


def test_vectors_need_not_be_contiguous():
    rows, vectors = draw(6, width_of(MIXED)), draw(dense_width_of(MIXED), 3)
    expected = gradients.dense(MIXED, rows) @ vectors
    torch.testing.assert_close(gradients.apply(MIXED, rows, vectors.T), expected, **CLOSE)


def test_float32_stays_float32_and_loses_only_its_own_rounding():
    rows = draw(8, width_of(MIXED))
    found = gradients.products(MIXED, rows.float(), rows.float())
    assert found.dtype == torch.float32
    expected = gradients.products(MIXED, rows, rows)
    scale = expected.diagonal().sqrt()  # an inner product rounds by about eps of the two norms' product
    assert ((found - expected).abs() <= 1e-6 * scale[:, None] * scale).all()
