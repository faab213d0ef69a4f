"""The relation drawn on both samples: which features of which training sample speak to which of this input.

For a pair (x_i, x) the share of unit k is R_k = alpha_i f_k(x_i) f_k(x) (`Relation.pair`). It is
relevance at the readout's input, and propagating it from there to the input gives two heat maps, one
on each sample. Each one's sum plus what its operations absorbed is the pair's score (XDA: Yolcu et
al. 2025, with alpha·f·f' in place of a quotient that is 0/0 where the inner product vanishes). Under
a metric each side has unit shares of its own (`Relation.factors`), which make its map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview._display import png
from dualview.engine.batches import batch_size_for
from dualview.engine.propagation.account import Account, warn_of
from dualview.engine.propagation.composites import Composite
from dualview.engine.propagation.passes import Passes, relevance
from dualview.engine.propagation.trace import Trace
from dualview.engine.site import Site
from dualview.features._attribution import FeatureAttribution
from dualview.features._method import BATCH_BYTES, attributed
from dualview.features.lrp import LRP
from dualview.relations.relation import Relation, Side

Features = Tensor | dict[str, Tensor]
Picked = int | Sequence[int] | Tensor

BLOCK = 256  # pairs whose factors are held at once

AGREE = {torch.float32: 1e-3, torch.float64: 1e-8}  # of Σ|shares|: features made again in another batch


@dataclass(frozen=True, eq=False)
class Maps:
    """Heat maps of pairs of a test and a training sample, on both.

    Attributes:
        test: "pair ..." relevance on the test sample, shaped like the inputs, in units of the measured
            output; positive speaks for a larger one. Where the model takes several floating-point
            inputs, one tensor for each, by its place.
        train: the same on the training sample.
        scores: "pair", each pair's score, or the share of its one `unit`.
        test_index: "pair", rows of the relation.
        train_index: "pair", positions in the training set.
        test_account: where each score went on the test side: map's sum plus what was absorbed.
        train_account: the same on the training side.
        own: the test samples' own relevance, of the network's measured output, one for each distinct
            test sample, in the order of their first pair.
        unit: the one unit that was rendered, or None.
        method: the rule, as Python prints it.
        relation: what was rendered.
    """

    test: Features
    train: Features
    scores: Float[Tensor, " pair"]
    test_index: Int[Tensor, " pair"]
    train_index: Int[Tensor, " pair"]
    test_account: Account
    train_account: Account
    own: FeatureAttribution
    unit: int | None
    method: str
    relation: Relation

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        unit = "" if self.unit is None else f", unit {self.unit} alone"
        return f"Maps({len(self)} pairs of {len(self.own)} test samples{unit}, {self.method})"

    def _repr_png_(self) -> bytes | None:
        """Show the first test sample in a notebook, where `dualview.plot` was imported and there is one input."""
        return png(self) if isinstance(self.test, Tensor) else None

    @property
    def test_rows(self) -> list[int]:
        """Rows of the relation that are drawn, each once, in the order of `own`."""
        return _distinct(self.test_index)

    def of_test(self, row: int) -> Maps:
        """Return the maps of one test sample's pairs."""
        if row not in self.test_rows:
            raise KeyError(f"test row {row} was not rendered; rendered are {self.test_rows}")
        index = (self.test_index == row).nonzero().squeeze(1)
        return dataclasses.replace(
            self,
            test=_taken(self.test, index),
            train=_taken(self.train, index),
            scores=self.scores[index],
            test_index=self.test_index[index],
            train_index=self.train_index[index],
            test_account=self.test_account.of_samples(index),
            train_account=self.train_account.of_samples(index),
            own=self.own[self.test_rows.index(row)],
        )


def render(
    relation: Relation,
    rule: LRP,
    test: Picked = 0,
    train: Picked | None = None,
    *,
    unit: int | None = None,
    k: int = 4,
    batch_size: int | None = None,
) -> Maps:
    """Draw pairs of the relation on the inputs of both samples.

    Args:
        relation: what `relate` returned.
        rule: how relevance goes from units to inputs, e.g. `LRP("epsilon-plus-flat")`.
        test: rows of the relation: one, or several.
        train: positions in the training set: one, several, or one for each of `test`; a single one on
            either side stands for all of the other. None takes the `k` strongest proponents and
            opponents of each test row.
        unit: render this unit's share alone.
        k: see `train`.
        batch_size: pairs per pass, which sets the memory needed; None chooses by the samples' size.

    Returns:
        Both maps of every pair, with their accounts, and the test samples' own relevance.

    Raises:
        IndexError: there is no such row, position or unit.
        ValueError: the training samples themselves are not at hand (after `open` without `train=`), or
            the network gives a sample other features now than were recorded.
        NotImplementedError: an operation has no rule; it is named with its module.
    """
    return maps_of(relation, rule, test, train, unit=unit, k=k, batch_size=batch_size, stacklevel=3)


def maps_of(
    relation: Relation,
    rule: LRP,
    test: Picked,
    train: Picked | None,
    *,
    unit: int | None = None,
    k: int = 4,
    batch_size: int | None = None,
    stacklevel: int,
) -> Maps:
    """Do as `render` says; warnings point to the line `stacklevel` calls up, counted from here."""
    if not isinstance(relation, Relation):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`relation` must be what `relate` returned; it is a {type(relation).__name__}")
    if not isinstance(rule, LRP):  # pyright: ignore[reportUnnecessaryIsInstance]  # users are not checked
        raise TypeError(f"`rule` must be an LRP, e.g. LRP('epsilon-plus-flat'); it is {rule!r}")
    _check_unit(unit, relation)
    test_index, train_index = _pairs(relation, test, train, k)
    drawn = _Drawn(relation, rule.composite(), test_index, train_index, unit, batch_size)
    on_test, on_train = drawn.on("test"), drawn.on("train")
    rows = _distinct(test_index)
    source = relation.source
    task = dataclasses.replace(relation.explainer.task, classes=None)  # targets are output columns already
    own = attributed(rule, rule.explain, task, source.test_inputs(rows), relation.targets[rows], batch_size)
    sides = {"on the test side": on_test, "on the training side": on_train, "of the network's own output": own}
    warn_of({what: one.account for what, one in sides.items() if one.account is not None}, stacklevel=stacklevel)
    return Maps(
        test=_alone(on_test.inputs),
        train=_alone(on_train.inputs),
        scores=drawn.scores("test"),
        test_index=test_index,
        train_index=train_index,
        test_account=on_test.account,
        train_account=on_train.account,
        own=own,
        unit=unit,
        method=repr(rule),
        relation=relation,
    )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Pairs to be drawn, and the passes that draw them."""

    relation: Relation
    composite: Composite
    test_index: Tensor
    train_index: Tensor
    unit: int | None
    batch_size: int | None

    def factors(self, side: Side, pairs: slice) -> tuple[Tensor, Tensor]:
        """Return relevance per activation, of the one unit or of all, and the activations, both "pair unit"."""
        gradients, features = self.relation.factors(self.test_index[pairs], self.train_index[pairs], side=side)
        if self.unit is not None:
            only = torch.zeros_like(gradients)
            only[:, self.unit] = gradients[:, self.unit]
            gradients = only
        return gradients, features

    def scores(self, side: Side) -> Tensor:
        """Return the sum of each pair's shares."""
        blocks = [self.factors(side, slice(at, at + BLOCK)) for at in range(0, len(self.test_index), BLOCK)]
        return torch.cat([(gradients * features).sum(1) for gradients, features in blocks])

    def on(self, side: Side) -> Passes:
        """Propagate every pair's shares to the inputs of one side."""
        task, source = self.relation.explainer.task, self.relation.source
        index = self.test_index if side == "test" else self.train_index
        positions = [int(position) for position in index]
        read = source.test_inputs if side == "test" else source.train_inputs
        size = self.batch_size or batch_size_for(read(positions[:1]), BATCH_BYTES)
        if size < 1:
            raise ValueError(f"`batch_size` is {size}; expected at least 1")
        assert isinstance(task.readout, Site)  # a fitted explainer's task

        def seed(pairs: slice, passed: Trace) -> Tensor:
            gradients, recorded = self.factors(side, pairs)
            _check_same(passed.at(readout), recorded, gradients, positions[pairs], side)
            return gradients.reshape(passed.at(readout).shape)

        readout = task.readout
        batches = (read(positions[at : at + size]) for at in range(0, len(positions), size))
        return relevance(task.model, batches, self.composite, seed, at=readout)


def _pairs(relation: Relation, test: Picked, train: Picked | None, k: int) -> tuple[Tensor, Tensor]:
    """Return the rows and training positions of the pairs asked for."""
    rows = _positions("test", test, len(relation))
    if train is not None:
        positions = _positions("train", train, len(relation.explainer.table))
        if len(rows) != len(positions) and 1 not in (len(rows), len(positions)):
            raise ValueError(
                f"`test` names {len(rows)} rows and `train` {len(positions)} positions; expected as many of both, or "
                "a single one on either side"
            )
        count = max(len(rows), len(positions))
        return rows.expand(count).contiguous(), positions.expand(count).contiguous()
    return relation.strongest(rows, k)


def _distinct(index: Tensor) -> list[int]:
    return list(dict.fromkeys(int(position) for position in index))


def _positions(name: str, picked: Picked, size: int) -> Tensor:
    try:
        found = torch.as_tensor(picked)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"`{name}` must be a position, or several; it is {picked!r}") from None
    if found.is_floating_point() or found.dtype == torch.bool or found.ndim > 1 or not found.numel():
        raise ValueError(f"`{name}` must be a position, or several; it is {picked!r}")
    found = found.reshape(-1).long()
    outside = found[(found < 0) | (found >= size)]
    if len(outside):
        raise IndexError(f"`{name}` holds {int(outside[0])}; positions go from 0 to {size - 1}")
    return found


def _check_unit(unit: int | None, relation: Relation) -> None:
    size = relation.test.values.shape[1]
    if unit is not None and not isinstance(unit, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`unit` must be a unit's number or None; it is {unit!r}")
    if unit is not None and not 0 <= unit < size:
        raise IndexError(f"`unit` is {unit}; units go from 0 to {size - 1}")


def _check_same(now: Tensor, recorded: Tensor, gradients: Tensor, positions: list[int], side: Side) -> None:
    """Refuse samples whose features, as the pass has them, are not those that the relation was made of."""
    now = now.detach().reshape(len(recorded), -1).to(recorded)
    if now.shape != recorded.shape:
        raise ValueError(f"the readout sees {now.shape[1]} features; {recorded.shape[1]} were recorded")
    size = (gradients * recorded).abs().sum(1)
    differs = (gradients * (now - recorded)).abs().sum(1) > AGREE[recorded.dtype] * size
    if bool(differs.any()):
        position = positions[int(differs.nonzero()[0])]
        raise ValueError(
            f"{side} sample {position} has other features now than when it was recorded: did the data set or the "
            "model's weights change, does it augment, or does the model's output depend on chance?"
        )


def _alone(parts: dict[str, Tensor]) -> Features:
    return next(iter(parts.values())) if len(parts) == 1 else parts


def _taken(features: Features, index: Tensor) -> Features:
    return features[index] if isinstance(features, Tensor) else {name: part[index] for name, part in features.items()}
