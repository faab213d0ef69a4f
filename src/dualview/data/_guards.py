"""What is checked without being asked: sizes of rows, batches, precision, and the noise of projections."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.data._method import DataMethod, Prepared
from dualview.data._newton import Newton, dense_of
from dualview.engine.batches import Inputs, map_tensors, take_rows
from dualview.engine.checkpoints import checkpoints_of
from dualview.engine.gradients import members
from dualview.engine.isolation import untouched
from dualview.engine.labels import targets_of
from dualview.engine.record import Plan, Recorder, finished, record_rows
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.errors import DualViewWarning
from dualview.ops.gradients import products, squared_norms
from dualview.ops.layout import Layout, split_parts
from dualview.ops.projection import Kind, noise
from dualview.ops.ranking import spearman

HALF = (torch.float16, torch.bfloat16)
BLOCK = 4096

DEVIATIONS, LEAST_TIMES = 5.0, 10.0
"""How far an outlier's norm is above the median: so many deviations of its logarithm, and so many times."""
DOMINATING_TIMES = 1000.0
NAMED = 20

COMPARED = 32
LEAST_CORRELATION = 0.9
"""At this correlation 1/0.9² − 1, about a quarter of the variance that is of the scores, is added by rounding."""

PROBES = 32  # random vectors that norms are estimated by, to 1/√64 or 12 %


# ── outliers ─────────────────────────────────────────────────────────────────────────────────────


def outliers(table: Table, noun: str) -> dict[str, Any]:
    """Count and name the rows of outlying norm, and warn of one that outweighs all others.

    Norms of loss gradients spread over orders of magnitude, so their logarithms are judged: a norm is an outlier from
    median · max(10, exp(5σ)) on, with σ = 1.4826 times the median absolute deviation of the logarithms. Five deviations
    are 3e-7 of a log-normal law; ten times the median is the least that shows among scores, whatever the spread.

    Args:
        table: recorded features or gradients; of the latter each member is judged by itself.
        noun: what they are called.

    Returns:
        "count", and of the 20 largest "index" and "times_median".

    Warns:
        DualViewWarning: an outlier is 1,000 times the median and larger than all others together.
    """
    norms = torch.cat(
        [
            torch.stack([squared_norms(*one).clamp(max=torch.finfo(table.dtype).max).sqrt() for one in whole], dim=1)
            for part in table.parts
            for whole in (_by_member(table.layout, values) for values in part.values.split(BLOCK))
        ]
    ).double()
    times, outlying = (torch.stack(part, dim=1) for part in zip(*map(_judged, norms.T), strict=True))
    dominating = outlying & (times > DOMINATING_TIMES) & (norms > norms.sum(0) / 2)
    times = times.amax(1)
    for sample in dominating.any(1).nonzero().flatten().tolist():
        warnings.warn(
            f"the {noun} of training sample {sample} are {times[sample]:,.0f} times the median in size, and larger "
            "than those of all other samples together: it can dominate every score. Is its input out of range?",
            DualViewWarning,
            stacklevel=4,
        )
    index = outlying.any(1).nonzero().flatten()
    index = index[times[index].argsort(descending=True, stable=True)]
    named = index[:NAMED]
    return {"count": len(index), "index": named.tolist(), "times_median": times[named].tolist()}


def _by_member(layout: Layout, values: Tensor) -> list[tuple[Layout, Tensor]]:
    """Cut rows of gradients into members, without the outputs behind them; other rows are one."""
    return [(one.layout, one.gradients) for one in members(layout, values)] or [(layout, values)]


def _judged(norms: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many times the median of those that are not zero each norm is, and whether it is an outlier."""
    logs = norms[norms > 0].log()
    if not len(logs):
        return norms, norms > 0
    median = logs.median()
    deviation = 1.4826 * (logs - median).abs().median()
    times = norms / median.exp()
    return times, times > (DEVIATIONS * deviation).exp().clamp(min=LEAST_TIMES)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


def warn_if_unsteady(task: Task, inputs: Inputs, raw: Float[Tensor, "row logit"]) -> bool:
    """Warn where a sample's output changes when the model runs again, on this sample alone."""
    alone = task.forward(take_rows(inputs, 0, 1)).cpu()
    tolerance = 0.05 if raw.dtype in HALF else 1e-3
    unsteady = not bool((alone[0] - raw[0]).abs().max() <= tolerance * raw.abs().max().clamp(min=1e-6))
    if unsteady:
        warnings.warn(
            f"{type(task.model).__name__} gives a sample another output alone than among others: in evaluation mode "
            "it is still random, or depends on the rest of the batch. Scores then hold for one run of it only",
            DualViewWarning,
            stacklevel=5,
        )
    return unsteady


def warn_if_rows_unsteady(
    task: Task, plan: Plan, inputs: Inputs, logits: Float[Tensor, "row cls"], targets: Tensor, dtype: torch.dtype
) -> None:
    """Warn where what is recorded of a sample is another alone than among others, though its output is the same.

    Rounding differs with the batch. It may switch a unit whose input is almost zero, and with it a small share of a
    gradient: 1 % of a part's norm is allowed, 25 % in half precision, and ten units of rounding of the whole row, for
    parts whose gradient is zero but for rounding. Labels are wrong ones on purpose: where the network is sure of the
    right one, its loss gradient is rounding too.

    Args:
        task: the model.
        plan: how its training rows are recorded.
        inputs: of a few samples.
        logits: of these.
        targets: their labels.
        dtype: that the model computes in.
    """
    wrong = logits.argmin(1) if task.problem == "classification" else 1 - targets
    with untouched(task.model):
        among = plan.record(inputs, wrong).values[:1]
        alone = plan.record(take_rows(inputs, 0, 1), wrong[:1]).values
    rounding, share = 10 * torch.finfo(dtype).eps * among.norm(), 0.25 if dtype in HALF else 0.01
    pairs = zip(split_parts(plan.recorded_layout, among), split_parts(plan.recorded_layout, alone), strict=True)
    differ = [
        part.name
        for part, (one, other) in zip(plan.recorded_layout, pairs, strict=True)
        if not bool((one - other).norm() <= share * one.norm() + rounding)
    ]
    if differ:
        warnings.warn(
            f"{type(task.model).__name__} gives a sample other {plan.noun} alone than among others, at {differ[0]!r}"
            f"{f' and {len(differ) - 1} more' * (len(differ) > 1)}: they are random, or depend on the rest of the "
            "batch. Scores then hold for one run of it only",
            DualViewWarning,
            stacklevel=5,
        )


# ── precision ────────────────────────────────────────────────────────────────────────────────────


def half_precision(method: DataMethod, recorder: Recorder) -> dict[str, Any] | None:
    """Compare the ranks of inner products of some training samples with those of a float32 copy of the model.

    Returns:
        "dtype" and, for each member, "rank_correlation" (Spearman's); None where nothing is in half precision, or
        nothing but outputs is recorded.

    Raises:
        ValueError: a correlation is below 0.9.

    Warns:
        DualViewWarning: the copy cannot be run; "rank_correlation" is None.
    """
    task, total = recorder.task, len(recorder.samples)
    dtype = next((p.dtype for p in task.model.parameters() if p.dtype in HALF), None)
    if dtype is None or not recorder.plan.layout or total < 3:  # two samples have one product: no ranks
        return None
    index = torch.linspace(0, total - 1, min(COMPARED, total)).long()
    with untouched(task.model):
        inputs, labels = task.split(recorder.samples.batch(index.tolist()))
    targets = targets_of(labels, task.problem, recorder.num_classes, task.classes)
    found = _products(task, recorder.plan, inputs, targets, index)
    wide = _as_float32(task)
    inputs = map_tensors(lambda tensor: tensor.float() if tensor.dtype in HALF else tensor, inputs)
    name = str(dtype).removeprefix("torch.")
    try:
        with untouched(wide.model):
            plan = method.representations(wide, inputs).train.plan(wide, inputs)
        expected = _products(wide, plan, inputs, targets, index)
    except RuntimeError as error:  # the model casts to half precision itself, or there is no room for a copy
        warnings.warn(
            f"what {name} does to the ranks of scores is not known: a float32 copy of {type(task.model).__name__} "
            f"cannot be run ({error})",
            DualViewWarning,
            stacklevel=4,
        )
        return {"dtype": name, "rank_correlation": None}
    correlation = spearman(found, expected)
    correlation = torch.where(correlation.isnan(), (expected == expected[:, :1]).all(1).double(), correlation)
    if correlation.amin() < LEAST_CORRELATION:
        raise ValueError(
            f"in {name} the inner products of the {recorder.plan.noun} of {len(index)} "
            f"training samples rank otherwise than in float32: their rank correlation is {correlation.amin():.2f}, and "
            f"expected is at least {LEAST_CORRELATION}. Fit model.float(), with float32 inputs"
        )
    return {"dtype": name, "rank_correlation": correlation.tolist()}


def _as_float32(task: Task) -> Task:
    model = copy.deepcopy(task.model).float()
    states = [one._replace(model=copy.deepcopy(one.model).float()) for one in checkpoints_of(task)]
    checkpoints = [one.model if one.learning_rate is None else tuple(one) for one in states] if task.checkpoints else ()
    return dataclasses.replace(task, model=model, checkpoints=checkpoints)


def _products(task: Task, plan: Plan, inputs: Inputs, targets: Tensor, index: Tensor) -> Float[Tensor, "member pair"]:
    """Return the inner products of each pair of different rows."""
    rows = next(finished(plan, [record_rows(task, plan, inputs, targets, index)]))
    upper = torch.triu_indices(len(index), len(index), 1)
    return torch.stack(
        [products(layout, values, values)[*upper] for layout, values in _by_member(plan.layout, rows.values)]
    )


# ── noise of projections ─────────────────────────────────────────────────────────────────────────


class BelowNoise:
    """Count the scores below the noise of their own projection, while blocks of training samples pass.

    Args:
        num_test: test samples.
        lower_is_better: whether proponents are the negative scores.
    """

    def __init__(self, num_test: int, lower_is_better: bool) -> None:
        self._sign = -1.0 if lower_is_better else 1.0
        self._counted, self._below, self._largest, self._best, self._noise = torch.zeros(
            5, num_test, dtype=torch.float64
        )

    def add(self, test: slice, scores: Float[Tensor, "test train"], noise: Float[Tensor, "test train"] | None) -> None:
        """Count one block; without noise there is nothing to count."""
        if noise is None:
            return
        sizes = scores.abs()
        below = sizes < noise
        self._counted[test] += sizes.count_nonzero(1)
        self._below[test] += (below & (sizes > 0)).sum(1)
        self._largest[test] = self._largest[test].maximum(sizes.mul_(below).amax(1).double())
        best, where = (scores * self._sign).max(1)
        better = best > self._best[test]
        self._best[test] = torch.where(better, best.double(), self._best[test])
        self._noise[test] = torch.where(better, noise.gather(1, where[:, None]).squeeze(1).double(), self._noise[test])

    def checks(self) -> dict[str, list[float]]:
        """Return, for each test sample, "below_noise" and "noise"; nothing where nothing was projected.

        "below_noise" is the share of the non-zero scores that are smaller than their own noise: of nothing but noise
        it is 68 %. "noise" is the size of the largest of these: each score above it is above its own noise.

        Warns:
            DualViewWarning: the strongest proponent is no larger than the largest of as many scores of nothing but
                noise, √(2 ln n) times its own.
        """
        if not bool(self._counted.any()):
            return {}
        shares = self._below / self._counted.clamp(min=1)
        chance = self._noise * (2 * self._counted.clamp(min=1).log()).sqrt()
        doubtful = (self._best < chance.maximum(self._noise)).nonzero().flatten().tolist()
        if doubtful:
            warnings.warn(
                f"the strongest proponents of {len(doubtful)} of {len(shares)} test samples may be noise of the random "
                f"projection; {shares[doubtful[0]]:.0%} of the scores of test sample {doubtful[0]} are below it: raise "
                "projection=",
                DualViewWarning,
                stacklevel=5,
            )
        return {"below_noise": shares.tolist(), "noise": self._largest.tolist()}


def _is_exact(width: int, projection: int | None, kind: Kind) -> bool:
    """Tell whether rows are as they were: none was asked, or they had fewer numbers than were asked."""
    return projection is None or width < projection and kind != "two-sided"


def products_noise(
    test: Prepared,
    train: Rows,
    scores: Float[Tensor, "test train"],
    rates: Sequence[float],
    projection: int | None,
    kind: Kind,
) -> Float[Tensor, "test train"] | None:
    """Return the standard error of sums over members of rate · ⟨Px, Py⟩; see `ops.projection.noise`.

    Each member has a projection of its own. Of several the products are taken to be alike.

    Args:
        test: the projected gradients themselves.
        train: likewise.
        scores: the sums.
        rates: one for each member.
        projection: numbers that were asked for; None: none.
        kind: of the projection.
    """
    parts = []
    pairs = zip(members(test.layout, test.values), members(test.layout, train.values), strict=True)
    for rate, (mine, theirs) in zip(rates, pairs, strict=True):
        width = mine.gradients.shape[1]
        if _is_exact(width, projection, kind):
            return None
        norms = [squared_norms(one.layout, one.gradients).sqrt() for one in (mine, theirs)]
        parts.append(noise(scores / len(rates), rate * norms[0], norms[1], width=width, kind=kind))
    return reduce(torch.hypot, parts)


def cosine_noise(
    test: Prepared, scores: Float[Tensor, "test train"], projection: int | None, kind: Kind
) -> Float[Tensor, "test train"] | None:
    """Return the standard error of the cosine c of Px and Py, (1 − c²)/√width where entries of P are normal.

    It is less than that of ⟨Px, Py⟩/(‖x‖ ‖y‖), since errors of the product and of the norms go together.

    Args:
        test: the projected gradients themselves.
        scores: the cosines.
        projection: numbers that were asked for; None: none.
        kind: of the projection.
    """
    (mine,) = members(test.layout, test.values)
    width, one = mine.gradients.shape[1], scores.new_ones(1)
    if _is_exact(width, projection, kind):
        return None
    return noise(scores.new_zeros(1, 1), one, one, width=width, kind=kind) * (1 - scores.square())


def newton_noise(
    state: Newton, test: Prepared, train: Rows, projection: int | None, kind: Kind
) -> Float[Tensor, "test train"] | None:
    """Return the standard error of a Newton step's scores over projections, from one projection.

    With H = Φᵀ Φ + λI of the projected rows, u = H⁻¹ φ(x) and v = H⁻¹ φ(x_i), the variance of φ(x)ᵀ H⁻¹ φ(x_i) is

        (‖u‖² ‖v‖² + ⟨u, v⟩²) / tr H⁻²,

    the first term in 1/width, H replaced by its deterministic equivalent; without training rows it is that of
    `ops.projection.noise`, at 1/λ. On per-sample gradients of a perceptron at widths 64 to 1024 and ridges 0.001 to 1
    its root was 0.99 to 1.02 of the standard deviation over seeds for dense signs, 0.95 to 1.0 for khatri-rao and 0.42
    to 0.55 for two-sided; the latter two are multiplied as there. Norms of v and the trace are estimated by 32 random
    vectors, to about 12 %.

    Args:
        state: the fitted step.
        test: u of every member, over the number of members.
        train: the projected gradients.
        projection: numbers that were asked for; None: none.
        kind: of the projection.
    """
    width = state.factors.shape[1]
    if _is_exact(width, projection, kind):
        return None
    vectors = torch.randn(PROBES, width, dtype=test.values.dtype, generator=torch.Generator().manual_seed(0))
    vectors /= PROBES**0.5
    parts = []
    for factor, mine, one in zip(
        state.factors, test.values.split(width, dim=1), members(test.layout, train.values), strict=True
    ):
        solved = torch.cholesky_solve(vectors.T, factor)
        theirs, trace = dense_of(one) @ solved, solved.square().sum()
        mine = mine * (width / trace).sqrt()
        near = mine @ vectors.T @ theirs.T
        parts.append(noise(near, mine.norm(dim=1), theirs.norm(dim=1), width=width, kind=kind))
    return reduce(torch.hypot, parts) * state.slopes[train.index].abs()
