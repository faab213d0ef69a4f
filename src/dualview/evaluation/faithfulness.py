"""Feature attributions judged: how far two agree, and whether scores foretell what removal does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dualview.engine.coalitions import coalition_values, moving
from dualview.engine.datasets import input_batches
from dualview.engine.isolation import untouched
from dualview.engine.players import as_players
from dualview.engine.removal import as_removal
from dualview.engine.task import Task, as_task
from dualview.evaluation._estimate import Estimate, estimate
from dualview.features._attribution import FeatureAttribution
from dualview.features._method import measured_batches
from dualview.ops.ranking import spearman

Comparison = Literal["spearman", "cosine", "sign", "top"]


def agreement(
    first: FeatureAttribution, second: FeatureAttribution, by: str = "spearman", *, k: int | None = None
) -> Estimate:
    """Measure how far two attributions of the same samples agree.

    Args:
        first: scores.
        second: scores of the same samples and inputs; an axis of length 1 stands for all of the other's.
        by: "spearman", the rank correlation over numbers of the input; "cosine"; "sign", the share of
            numbers with the same sign, of those that are zero in neither; "top", the share that the first
            k of both by |score| have in common, where ties count as on average over their orders.
        k: for "top"; a tenth of the numbers by default.

    Returns:
        One value for each sample; chance is what independent random scores would have. It says whether
        two methods agree, not which is right.

    Raises:
        ValueError: other samples, targets or outputs, or scores that do not stand at the same place.
    """
    if by not in get_args(Comparison):
        raise ValueError(f"`by` is {by!r}; choose from {', '.join(map(repr, get_args(Comparison)))}")
    a, b = _side_by_side(first, second)
    size = a.shape[1]
    k = max(1, size // 10) if k is None else k
    if not 1 <= k <= size:
        raise ValueError(f"`k` is {k}; there are {size} numbers in a sample's input")
    if by == "spearman":
        found, chance = spearman(a, b), 0.0
    elif by == "cosine":
        found, chance = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)), 0.0
    elif by == "sign":
        both = (a != 0) & (b != 0)
        found, chance = ((a.sign() == b.sign()) & both).sum(1) / both.sum(1), 0.5
    else:
        found, chance = (_first(a, k) * _first(b, k)).sum(1) / k, k / size
    return estimate(f"agreement, {by}" + (f" {k}" if by == "top" else ""), found, chance=chance)


def infidelity(
    attribution: FeatureAttribution,
    task: Task | nn.Module,
    inputs: Any,
    *,
    baseline: Any = 0.0,
    players: Any = None,
    draws: int = 100,
    share: float = 0.5,
    seed: int = 0,
    batch_size: int | None = None,
) -> Estimate:
    """Measure how far the scores of removed players miss what their removal does (Yeh et al. 2019).

    E_S [(Σ_{p ∈ S} a_p − (f(x) − f(x without S)))²] / E_S [(f(x) − f(x without S))²] over random sets S.
    The paper's infidelity is the numerator with its perturbation "removal to a baseline"; the quotient
    compares samples and networks: 0 is perfect, 1 what scores of zero have.

    Args:
        attribution: scores of kind share or effect; effects of overlapping removals need not add up.
        task: the model, and the output that was measured.
        inputs: the same samples.
        baseline: what removed means, as `IntegratedGradients` takes it.
        players: what is removed together.
        draws: sets S.
        share: of the players in S, each with this probability.
        seed: of the sets.
        batch_size: rows per pass.

    Returns:
        One value for each sample; lower is better, chance (scores of zero) is 1.

    Raises:
        ValueError: scores of another kind, of several outputs, or of other samples.
    """
    if attribution.kind == "similarity" or attribution.outputs or attribution.site is not None:
        raise ValueError(f"{attribution!r}: infidelity needs shares or effects of input features, for one output")
    if not 0 < share <= 1 or draws < 1:
        raise ValueError(f"`share` is {share} and `draws` is {draws}; expected 0 < share <= 1 and draws >= 1")
    task = as_task(task)
    total, _ = input_batches(inputs, task.split, batch_size)
    if total != len(attribution):
        raise ValueError(f"`inputs` hold {total} samples, the attribution {len(attribution)}")
    removal, found = as_removal(baseline), []
    plain = _columns_are_targets(task)
    with untouched(task.model):
        for measured in measured_batches(plain, inputs, attribution.targets, batch_size):
            reference = removal.reference(measured)
            group = as_players(players, {place: measured.parts[place] for place in reference.parts})
            removed = torch.rand(draws, group.count, generator=torch.Generator().manual_seed(seed)) < share
            values = coalition_values(measured, moving(measured, reference, group), group, ~removed)
            change = (measured.values[:, None] - values).cpu().double()
            rows = list(range(measured.start, measured.start + len(measured)))
            foretold = attribution[rows].of_players(group).double() @ removed.T.double()
            found.append((foretold - change).square().mean(1) / change.square().mean(1))
    return estimate("infidelity", torch.cat(found), higher_is_better=False, chance=1.0)


def _columns_are_targets(task: Task) -> Task:
    """Return the task with output columns as labels: an attribution's targets are columns already."""
    return dataclasses.replace(task, classes=None)


def _side_by_side(first: FeatureAttribution, second: FeatureAttribution) -> tuple[Tensor, Tensor]:
    """Return both as "test number", float64."""
    for name in ("outputs", "site"):
        if getattr(first, name) != getattr(second, name):
            raise ValueError(
                f"`first` and `second` differ in {name}: {getattr(first, name)} and {getattr(second, name)}"
            )
    if first.outputs:
        raise ValueError("scores of several outputs: compare .of_output(0) of both, and so on")
    if len(first) != len(second) or not torch.equal(first.targets, second.targets):
        raise ValueError("`first` and `second` explain other samples, or other targets")
    parts = [dict(one.values) if isinstance(one.values, Mapping) else {"": one.values} for one in (first, second)]
    if parts[0].keys() != parts[1].keys():
        raise ValueError(f"`first` has scores of {sorted(parts[0])}, `second` of {sorted(parts[1])}")
    pairs = [torch.broadcast_tensors(parts[0][place].double(), parts[1][place].double()) for place in parts[0]]
    a, b = (torch.cat([pair[side].flatten(1) for pair in pairs], dim=1) for side in (0, 1))
    return a, b


def _first(scores: Tensor, k: int) -> Tensor:
    """Return the chance of each number to be among its row's first k by |score|, over all orders of ties."""
    sizes = scores.abs()
    last = sizes.topk(k, dim=1).values[:, -1:]
    inside, tied = sizes > last, sizes == last
    left = k - inside.sum(1, keepdim=True)
    return inside.double() + tied * left / tied.sum(1, keepdim=True)
