"""Random projections of recorded rows, generated piece by piece from a seed.

P is never stored: each of its columns, one for each number of the dense row, is a stretch of a random stream that
can be entered anywhere. So P depends on the seed, the part's place in the layout, the kind and the width alone, and
stays the same whatever the batches, the threads and the installed versions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dualview.ops.layout import Layout, Part, dense_width_of, plain, split_factors, split_parts

Kind = Literal["rademacher", "gaussian", "sparse", "khatri-rao", "two-sided"]

COLUMNS, ROWS = 2048, 512
"""Columns of P made at a time, and rows whose dense numbers in these columns are built at a time: 4 MB."""
NONZEROS = 4
"""Entries in each column of a sparse P."""


def project(
    layout: Layout, rows: Float[Tensor, "row unit"], *, width: int, kind: Kind = "rademacher", seed: int
) -> Float[Tensor, "row projected"]:
    """Project the dense rows to `width` numbers, so that on average ⟨Px, Py⟩ = ⟨x, y⟩.

    - rademacher, gaussian: P has independent entries ±1/√width or N(0, 1/width). The dense numbers of a part held
      by its factors are built block by block.
    - sparse: each column has 4 entries ±1/2, one in each quarter of P's rows (the block construction of Kane and
      Nelson 2014). The same standard error as the dense signs at a cost free of `width`.
    - khatri-rao: P's column for output o and input i is u_o ∘ w_i, of independent signs, divided by √width: a part's
      factors give Σ_k Σ_o δ_ko u_o ∘ Σ_i a_ki w_i. Little more noise than dense signs, at rank·(inputs + outputs) in
      place of inputs·outputs products for each number. Plain parts are projected by dense signs.
    - two-sided: Σ_k δ_k ⊗ a_k becomes Σ_k P_out δ_k ⊗ P_in a_k by two small matrices of signs, a constant 1 behind
      a_k for the bias (Choe et al. 2024, LoGra). Cheaper still, and much noisier: see `noise`. Each part has
      numbers of its own; plain ones are projected by signs.

    Rows of no more than `width` numbers stay as they are, dense, and so do two-sided parts and sides that are small.

    Args:
        layout: what the numbers of a row are.
        rows: the rows, in this layout. P is made anew in each call, so give some thousand at once.
        width: numbers that a row may have afterwards.
        kind: of P.
        seed: of P. Only rows projected with the same layout, width, kind and seed can be compared.

    Returns:
        The rows, in the layout that `projected_layout` returns.

    Raises:
        ValueError: two-sided, and the layout has more parts than `width` numbers.
    """
    values = split_parts(layout, rows)
    if kind == "two-sided":
        sides = _sides(layout, width)
        return torch.cat([_two_sided(part, values[i], *sides[i], seed, i) for i, part in enumerate(layout)], dim=1)
    if dense_width_of(layout) <= width:
        return torch.cat([_dense(part, values[i], *span) for i, part in enumerate(layout) for span in _spans(part)], 1)
    projected = rows.new_zeros(width, len(rows)).T
    for i, part in enumerate(layout):
        if kind != "khatri-rao":
            _add(projected, part, values[i], kind, seed, (i,))
        elif part.rank:
            _add_by_factors(projected, part, values[i], seed, i)
        else:
            _add(projected, part, values[i], "rademacher", seed, (i,))
    return projected.contiguous()


def projected_layout(layout: Layout, *, width: int, kind: Kind = "rademacher") -> Layout:
    """Return the layout of rows after `project`: plain numbers, at most `width`; two-sided they keep their parts."""
    if kind == "two-sided":
        return tuple(plain(part.name, m * n) for part, (m, n) in zip(layout, _sides(layout, width), strict=True))
    return (plain("projection", min(width, dense_width_of(layout))),)


def noise(
    products: Float[Tensor, "test train"],
    test_norms: Float[Tensor, " test"],
    train_norms: Float[Tensor, " train"],
    *,
    width: int,
    kind: Kind = "rademacher",
) -> Float[Tensor, "test train"]:
    """Return the standard error of ⟨Px, Py⟩ over seeds: √((‖x‖²‖y‖² + ⟨x, y⟩²) / width).

    It is exact for gaussian; for signs it is less by 2 Σ_j x_j² y_j² under the root, which counts for few large
    numbers only. The kinds that project factors do worse the more alike these are. Measured on per-sample gradients
    of perceptrons with three layers at widths 512 and 2048: khatri-rao 1.1 to 1.3 times this, two-sided 2.3 to 4
    times; the larger figure is taken.

    Args:
        products: ⟨x, y⟩, or what the projected rows say of it.
        test_norms: ‖x‖, likewise.
        train_norms: ‖y‖, likewise.
        width: numbers of a projected row.
        kind: of P.
    """
    variance = ((test_norms[:, None] * train_norms).square() + products.square()) / width
    return variance.sqrt() * {"khatri-rao": 1.3, "two-sided": 4.0}.get(kind, 1.0)


# ── one matrix for the dense row ─────────────────────────────────────────────────────────────────


def _add(projected: Tensor, part: Part, values: Tensor, kind: Kind, seed: int, key: tuple[int, ...]) -> None:
    """Add the part's projection to the projected rows."""
    width = projected.shape[1]
    for start, stop in _spans(part):
        matrix = _MATRICES[kind](seed, key, start, stop, width).to(projected)
        for row in range(0, len(values), ROWS):
            target, dense = projected[row : row + ROWS], _dense(part, values[row : row + ROWS], start, stop)
            if kind == "sparse":
                target.T.add_(matrix @ dense.T.contiguous())  # four times as fast as strided
            else:
                target.addmm_(dense, matrix)


def _add_by_factors(projected: Tensor, part: Part, values: Tensor, seed: int, position: int) -> None:
    width = projected.shape[1]
    step = max(1, 4 * ROWS // part.rank)
    for row in range(0, len(values), step):
        inputs, outputs = _factors(part, values[row : row + step], constant=part.bias)
        inputs = _by_signs(inputs, width, seed, (position, 0))
        outputs = _by_signs(outputs, width, seed, (position, 1))
        projected[row : row + step].add_((inputs * outputs).sum(1), alpha=width**0.5)


def _spans(part: Part) -> Iterator[tuple[int, int]]:
    """Yield stretches of at most COLUMNS dense numbers, those of weights whole outputs or a piece of one."""
    edges = [0, part.dense_width]
    if part.rank:
        weights = part.outputs * part.inputs
        edges = [*range(0, weights, max(1, COLUMNS // part.inputs) * part.inputs), weights]
        edges += [part.dense_width] if part.bias else []
    for first, last in pairwise(edges):
        yield from ((start, min(start + COLUMNS, last)) for start in range(first, last, COLUMNS))


def _dense(part: Part, values: Tensor, start: int, stop: int) -> Tensor:
    """Return one stretch of the dense numbers."""
    if not part.rank:
        return values[:, start:stop]
    inputs, outputs = _factors(part, values)
    weights = part.outputs * part.inputs
    if start >= weights:
        return outputs[:, :, start - weights : stop - weights].sum(1)
    first, offset = divmod(start, part.inputs)
    outputs = outputs[:, :, first : first + math.ceil((stop - start) / part.inputs)]
    return (outputs.mT @ inputs[:, :, offset : offset + stop - start]).flatten(1)


def _factors(
    part: Part, values: Tensor, *, constant: bool = False
) -> tuple[Float[Tensor, "row rank input"], Float[Tensor, "row rank output"]]:
    """Return all a_k, with a constant 1 behind each if asked, and all δ_k."""
    inputs, outputs = split_factors(part, values)
    return F.pad(inputs, (0, 1), value=1.0) if constant else inputs, outputs


# ── two matrices for each part ───────────────────────────────────────────────────────────────────


def _sides(layout: Layout, width: int) -> list[tuple[int, int]]:
    """Return how many numbers stand for the outputs and for the inputs of each part; plain ones have one output.

    The error's variance is about Σ_p s_p² / k_p with s_p the squared norm of part p, so k_p in proportion to s_p is
    best; s_p is taken to grow as the root of the part's size. Within a part it is about c_in² / k_out + c_out² / k_in
    with c the cosines between two samples' factors, and behind a ReLU inputs are the more alike: the outputs get four
    times as many numbers. On perceptrons both rules were the best of five. No part or side gets more than it has.
    """
    if width < len(layout):
        raise ValueError(f"width={width} must be at least {len(layout)}: a two-sided projection keeps all parts apart")
    sides: dict[int, tuple[int, int]] = {}
    left = width
    order = sorted(range(len(layout)), key=lambda i: layout[i].dense_width)
    for place, i in enumerate(order):
        part, size = layout[i], layout[i].dense_width
        outputs, inputs = (part.outputs, part.inputs + part.bias) if part.rank else (1, part.width)
        share = left * size**0.5 / sum(layout[j].dense_width ** 0.5 for j in order[place:])
        share = min(size, max(1, int(share + 1e-6)))
        kept = min(inputs, share // min(outputs, share, math.isqrt(4 * share)))
        sides[i] = min(outputs, share // kept), kept
        left -= sides[i][0] * sides[i][1]
    return [sides[i] for i in range(len(layout))]


def _two_sided(part: Part, values: Tensor, num_outputs: int, num_inputs: int, seed: int, position: int) -> Tensor:
    if not part.rank:
        return _one_side(values, num_inputs, seed, (position, 0))
    inputs, outputs = _factors(part, values, constant=part.bias)
    inputs = _one_side(inputs, num_inputs, seed, (position, 0))
    outputs = _one_side(outputs, num_outputs, seed, (position, 1))
    return (outputs.mT @ inputs).flatten(1)


def _one_side(vectors: Tensor, width: int, seed: int, key: tuple[int, ...]) -> Tensor:
    return vectors if vectors.shape[-1] <= width else _by_signs(vectors, width, seed, key)


def _by_signs(vectors: Tensor, width: int, seed: int, key: tuple[int, ...]) -> Tensor:
    """Project the last axis."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    projected = rows.new_zeros(len(rows), width)
    _add(projected, plain("", rows.shape[1]), rows, "rademacher", seed, key)
    return projected.reshape(*vectors.shape[:-1], width)


# ── columns of P ─────────────────────────────────────────────────────────────────────────────────


def _words(seed: int, key: tuple[int, ...], start: int, stop: int, each: int) -> np.ndarray:
    """Return the random words of 64 bits of columns `start` to `stop`, `each` for a column."""
    stream = np.random.PCG64DXSM(np.random.SeedSequence(seed, spawn_key=key))
    return stream.advance(start * each).random_raw((stop - start) * each).reshape(-1, each)


def _signs(seed: int, key: tuple[int, ...], start: int, stop: int, width: int) -> Float[Tensor, "column projected"]:
    octets = _words(seed, key, start, stop, math.ceil(width / 64)).astype("<u8", copy=False).view(np.uint8)
    bits = torch.as_tensor(np.unpackbits(octets, axis=1, count=width)).view(torch.int8)
    return bits.mul_(2).sub_(1).float().mul_(width**-0.5)


def _normal(seed: int, key: tuple[int, ...], start: int, stop: int, width: int) -> Float[Tensor, "column projected"]:
    """Make two normal numbers of each word (Box and Muller 1958)."""
    words = _words(seed, key, start, stop, math.ceil(width / 2))
    radius, angle = (torch.as_tensor(half.astype(np.float32)) / 2**32 for half in (words >> 32, words & (2**32 - 1)))
    radius = radius.add_(2.0**-33).log_().mul_(-2 / width).sqrt_()
    angle = angle.mul_(2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :width]


def _few_signs(seed: int, key: tuple[int, ...], start: int, stop: int, width: int) -> Float[Tensor, "projected column"]:
    """Place one sign in each of some equal ranges of the projected numbers, by the word's upper half; sparse."""
    edges = np.linspace(0, width, min(NONZEROS, width) + 1).astype(np.uint64)
    words = _words(seed, key, start, stop, len(edges) - 1)
    places = edges[:-1] + ((words >> 32) * np.diff(edges) >> 32)
    columns = np.broadcast_to(np.arange(stop - start)[:, None], words.shape)
    signs = torch.as_tensor(2 * (words & 1).astype(np.float32) - 1).flatten() / words.shape[1] ** 0.5
    index = torch.as_tensor(np.stack([places.astype(np.int64), columns]).reshape(2, -1))
    return torch.sparse_coo_tensor(  # pyright: ignore[reportUnknownMemberType]
        index, signs, (width, stop - start), check_invariants=False
    )


_MATRICES = {"rademacher": _signs, "gaussian": _normal, "sparse": _few_signs}
