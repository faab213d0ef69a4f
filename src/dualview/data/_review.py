"""Samples that a person should look at: training samples under suspicion, and the network's worst errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dualview.data._gradients import BLOCK
from dualview.data._predicted import predicted_columns
from dualview.data._ranking import Ranking
from dualview.engine.datasets import as_samples
from dualview.engine.source import Source

if TYPE_CHECKING:
    from dualview.data._explainer import Explainer

SUSPECTS_BY = ("slack", "self_influence", "loss")


def suspects(explainer: Explainer, top: int | None, by: str | None) -> Ranking:
    """Rank training samples; see `Explainer.suspects`."""
    method, table = explainer.method, explainer.table
    if top is not None and top < 1:
        raise ValueError(f"`top` must be at least 1; it is {top}")
    by = by or ("slack" if method.has_surrogate else "self_influence")
    known = [name for name in SUSPECTS_BY if name != "slack" or method.has_surrogate]
    if by not in known:
        raise ValueError(f"`by` is {by!r}; choose from {', '.join(map(repr, known))}")
    columns = {"self_influence": explainer.self_influence(), **predicted_columns(explainer.task, table)}
    if method.has_surrogate:
        slacks = [method.slacks(explainer.state, rows) for rows in table.blocks(BLOCK)]
        columns = {"slack": torch.cat(slacks), "importance": explainer.importance(), **columns}
    order = columns[by]
    if by == "self_influence":  # what the fit did not see has none, and comes last
        unseen = torch.ones(len(table), dtype=torch.bool)
        unseen[method.scored(explainer.state)] = False
        order = torch.where(unseen, -torch.inf, order)
    rank = order.argsort(descending=True, stable=True)[:top]
    names = None if explainer.names is None else [explainer.names[int(i)] for i in rank]
    return Ranking(
        rank, {name: column[rank] for name, column in columns.items()}, by, len(table), names,
        what="Training samples under suspicion", of="train", class_names=explainer.task.class_names,
        source=Source(explainer.task, None, explainer.samples, explainer.thumbnails),
    )  # fmt: skip


def errors(explainer: Explainer, data: Any) -> Ranking:
    """Rank wrong predictions; see `Explainer.errors`."""
    problem = explainer.task.problem
    if problem != "classification":
        raise ValueError(
            f"a {problem} task has no wrong classes to rank: name samples yourself, or use suspects(by='loss')"
        )
    given = None if data is None else as_samples(data, name="data")
    table = explainer.record(given)
    columns = predicted_columns(explainer.task, table)
    wrong = columns["target"] != columns["predicted"]
    of_train = table is explainer.table
    if given is not None:
        where = ""
    elif not of_train:
        where = " on the held-out data"
        given = table.shown
    elif len(explainer.positions) < len(table):
        where = " on the held-out share of the training set"
        wrong[explainer.positions] = False
    else:
        where = " on the training set"
    wrong = wrong.nonzero().squeeze(1)
    rank = wrong[columns["loss"][wrong].argsort(descending=True, stable=True)]
    names = explainer.names if of_train else None
    return Ranking(
        rank, {name: column[rank] for name, column in columns.items()}, "loss", len(table),
        None if names is None else [names[int(position)] for position in rank],
        what=f"Wrong predictions{where}", of="train" if of_train else "data", class_names=explainer.task.class_names,
        source=Source(explainer.task, given, explainer.samples, explainer.thumbnails),
    )  # fmt: skip
