"""Choosing C along the solution path: for fidelity to the network, or for a share of support samples."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._curve import Curve
from dualview.data._faithful import (
    MAX_HELD_OUT,
    TOLERANCE,
    HeldRows,
    agreements,
    has_fallen,
    shortfalls,
    sparsest,
    undominated,
)
from dualview.data._setting import Setting
from dualview.errors import DualViewWarning, GapWarning
from dualview.solvers import DualSolution, path
from dualview.solvers.losses import named

GAP = 1e-4
FIRST = 1.0  # C·Σ‖phi_i‖² from which on rows may stop counting; below, all surrogates are alike
LAST = 30.0  # C·mean ‖f_i − mean f‖² beyond which only rows that no C can satisfy are at their bounds
MIN_SPREAD = 0.01, 1e-8  # of mean ‖phi_i‖²: spread is taken as no less, at first and while larger C still matter
MATTERS = 0.95  # ratio of the support shares of two C a decade apart, below which the larger one matters
SPARSE = 0.95  # support share above which surrogates are all but alike, so that none is behind for its C
NARROW = 1.02  # ratio of two C whose support shares are taken as one
CLOSE = 0.01  # of the asked share, at which the search for it ends
ASIDE, MIN_ASIDE = 0.1, 1_000

BLOCK = 4096

DENSE = ("softmax", "squared")  # losses of which every row has a dual variable


class Step(NamedTuple):
    """One solution on the path, as far as the choice looks at it.

    Attributes:
        C: its C.
        support_share: share of the rows that take part.
        seconds: wall time.
        num_bound: rows at their bound.
        last: whether a larger C would be in vain: a loss with a kink has no row at its bound, or the solver did not
            reach the gap.
        agreement: "row" 1 where surrogate and network predict the same class, else 0; empty without held-out rows.
        smoothed: the same, smoothed; see `agreements`.
    """

    C: float
    support_share: float
    seconds: float
    num_bound: int
    last: bool
    agreement: Float[Tensor, " row"]
    smoothed: Float[Tensor, " row"]


def by_fidelity(setting: Setting, held_out: HeldRows) -> Curve:
    """Choose the sparsest surrogate among those that are about as faithful to the network as the best.

    C rises by half decades from where every row counts, until a larger one would be in vain or fidelity
    has fallen; `sparsest` chooses, unless `undominated` finds a setting that is better in both.

    Warns:
        DualViewWarning: the features hardly differ for their size, and the largest C that this allows was taken.
    """
    first, usual, last = _ends(setting)

    def rising(steps: list[Step]) -> Iterator[float]:
        for C in _half_decades(first, last):
            yield C
            dense = setting.loss in DENSE
            if steps[-1].last or has_fallen([step.smoothed for step in steps if dense or step.support_share < SPARSE]):
                return
            if C >= usual and len(steps) > 2 and (dense or not _matters(steps[-1], steps[-3])):
                return

    steps = _solve(setting, rising, held_out)
    agreement, smoothed = (torch.stack([getattr(step, name) for step in steps]) for name in ("agreement", "smoothed"))
    support_shares = [step.support_share for step in steps]
    chosen = undominated(sparsest(smoothed, support_shares), agreement, support_shares)
    hardly_differ = last > 0.99 * usual * MIN_SPREAD[0] / MIN_SPREAD[1]
    if hardly_differ and chosen == len(steps) - 1 and steps[-1].num_bound:
        warnings.warn(
            "the features hardly differ from sample to sample for their size, or are tiny beside the bias's constant "
            f"1: the choice ends at C={steps[-1].C:.3g}, and larger values may serve better; scale them, or give C",
            DualViewWarning,
            stacklevel=6,
        )
    return _curve(steps, chosen, "fidelity")


def by_support(setting: Setting, share: float, held_out: HeldRows | None = None) -> Curve:
    """Choose the surrogate whose support share is nearest to the one asked for.

    C rises by decades until the share is below the asked one, then the last decade is halved (in log C)
    until the share is within a hundredth of it, or two C lie so close that their supports hardly differ.
    The share need not fall as C rises: of all that was solved the nearest is taken.

    Warns:
        DualViewWarning: the asked share lies outside of what was reached.
    """
    first, usual, last = _ends(setting)
    close = max(1 / int((setting.weights > 0).sum()), CLOSE * share)

    def bracketing(steps: list[Step]) -> Iterator[float]:
        for C in _decades(first, last):
            yield C
            if abs(steps[-1].support_share - share) <= close or steps[-1].last and steps[-1].support_share > share:
                return
            if steps[-1].support_share < share:
                break
            if C >= usual and len(steps) > 1 and not _matters(steps[-1], steps[-2]):
                return
        if len(steps) < 2 or steps[-1].support_share > share:
            return
        low, high = steps[-2].C, steps[-1].C
        while high / low > NARROW and abs(steps[-1].support_share - share) > close:
            yield math.sqrt(low * high)
            low, high = (steps[-1].C, high) if steps[-1].support_share > share else (low, steps[-1].C)

    steps = sorted(_solve(setting, bracketing, held_out), key=lambda step: step.C)
    chosen = min(range(len(steps)), key=lambda entry: abs(steps[entry].support_share - share))
    curve = _curve(steps, chosen, "support", share)
    low, high = curve.reachable_support
    if not low - close <= share <= high + close:
        warnings.warn(
            f"no C from {curve.C[0]:.3g} to {curve.C[-1]:.3g} makes support={share:g} of these samples support "
            f"samples: the share was from {low:.3g} to {high:.3g}; the nearest is taken, at C={curve.C[chosen]:.3g}",
            DualViewWarning,
            stacklevel=6,
        )
    return curve


def set_aside(targets: Tensor, weights: Float[Tensor, " train"], seed: int) -> Int[Tensor, " aside"]:
    """Draw the rows that C is chosen on where no others are held out.

    They are a tenth of those that take part; more where that is less than a thousand, up to a fifth.
    Each class keeps a row.

    Raises:
        ValueError: each class has one row.
    """
    rows = (weights > 0).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    kept = [0] if targets.is_floating_point() else np.unique(targets[rows].numpy(), return_index=True)[1]
    number = max(round(ASIDE * len(rows)), min(len(rows) // 5, MIN_ASIDE), 1)
    spare = np.delete(rows.numpy(), kept)[: min(number, MAX_HELD_OUT)]
    if len(rows) == 0:
        raise ValueError("the weights of all training samples are zero: there is nothing to fit")
    if len(spare) == 0:
        raise ValueError(
            'C="auto" chooses C on samples that the fit does not see, and each class has a single training sample: '
            "give held_out=, or a number for C"
        )
    return torch.from_numpy(spare).sort().values


# ── the path ─────────────────────────────────────────────────────────────────────────────────────


def _ends(setting: Setting) -> tuple[float, float, float]:
    """Return the C that a path starts from, where it usually ends, and where it does at most, by the scale of the data.

    What classes are told apart by is how features differ, so that the ends follow their spread, not their size.
    """
    total, weight = 0.0, float(setting.weights.sum())
    center = torch.zeros(setting.features.shape[1], dtype=torch.float64)
    for rows, weights in zip(setting.features.split(BLOCK), setting.weights.split(BLOCK), strict=True):
        total += float(((rows.double().square().sum(1) + 1) * weights).sum())
        center += weights @ rows.double() / weight
    spread = total - weight * (1 + float(center.square().sum()))
    usual, last = (LAST * int((setting.weights > 0).sum()) / max(spread, share * total) for share in MIN_SPREAD)
    scale = _kernel_scale(setting)
    return FIRST / total / scale, usual / scale, last / scale


def _kernel_scale(setting: Setting) -> float:
    """Return the mean of phi' M⁻¹ phi over some rows and all classes, over the mean of phi' phi."""
    if setting.metric.factors is None:
        return 1.0
    rows = setting.features[torch.linspace(0, len(setting.features) - 1, min(len(setting.features), 64)).long()]
    phi = torch.nn.functional.pad(rows.double(), (0, 1), value=1.0)[:, None]
    phi = phi.expand(-1, setting.num_classes if setting.metric.by_class else 1, -1)
    return float((phi * setting.metric.solve(phi)).sum(2).mean() / phi.square().sum(2).mean())


def _matters(step: Step, decade_ago: Step) -> bool:
    """Say whether the last decade of C still made a difference: all rows count yet, or fewer do, or fidelity rose."""
    if step.support_share >= SPARSE or step.support_share < MATTERS * decade_ago.support_share:
        return True
    return len(step.smoothed) > 0 and float((step.smoothed - decade_ago.smoothed).mean()) > TOLERANCE


def _half_decades(first: float, last: float) -> Iterator[float]:
    """Count up 10^(k/2), from the first one above `first` to the last one below `last`."""
    for k in range(math.ceil(2 * math.log10(first)), math.floor(2 * math.log10(last)) + 1):
        yield 10.0 ** (k / 2)


def _decades(first: float, last: float) -> Iterator[float]:
    """Count up from `first` in steps of at most a decade, to `last`."""
    while first < last:
        yield first
        first *= 10
    yield last


def _solve(setting: Setting, values: Callable[[list[Step]], Iterator[float]], held_out: HeldRows | None) -> list[Step]:
    """Solve for one C after another, each from where the last one ended; `values` sees the steps so far.

    Raises:
        KeyboardInterrupt: a solution was interrupted; there is no choice without it.
    """
    steps: list[Step] = []
    taking_part = int((setting.weights > 0).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GapWarning)  # of the fit itself the user is warned
        if setting.by_path and held_out is not None:
            held_out = held_out._replace(values=setting.metric.whiten(held_out.values))
        for solution in _solutions(setting, values(steps)):
            if solution.status == "interrupted":
                raise KeyboardInterrupt
            steps.append(_step(solution, taking_part, held_out, setting))
    if solution.status != "converged":
        warnings.warn(
            f"the choice of C ends at {solution.C:.3g}, where the solver came no nearer than a relative gap of "
            f"{solution.gap:.1e}; larger values were not tried",
            DualViewWarning,
            stacklevel=7,
        )
    return steps


def _solutions(setting: Setting, values: Iterator[float]) -> Iterator[DualSolution]:
    if not setting.by_path:
        yield from (setting.solve(C, GAP) for C in values)
        return
    yield from path(
        setting.metric.whiten(setting.features),
        setting.targets,
        values,
        gap=GAP,
        num_classes=setting.num_classes,
        sample_weight=setting.weights,
        seed=setting.seed,
        low_memory=setting.low_memory,
    )


def _step(solution: DualSolution, num_rows: int, held_out: HeldRows | None, setting: Setting) -> Step:
    support = len(solution.coefficients.indices()[0].unique_consecutive())
    agreement = smoothed = torch.zeros(0, dtype=torch.float64)
    if held_out is not None:
        logits = [rows.double() @ solution.weights[:, :-1].T for rows in held_out.values.split(BLOCK)]
        agreement, smoothed = agreements(
            torch.cat(logits) + solution.weights[:, -1], held_out.network.double(), setting.problem
        )
    satisfied = solution.bound == 0 and named(setting.loss).kinked  # smooth losses can always be fitted harder
    last = satisfied or solution.status != "converged"
    return Step(solution.C, support / num_rows, solution.seconds, solution.bound, last, agreement, smoothed)


def _curve(steps: Sequence[Step], chosen: int, by: str, asked_support: float | None = None) -> Curve:
    columns = {name: tuple(getattr(step, name) for step in steps) for name in ("C", "support_share", "seconds")}
    curve = Curve(**columns, chosen=chosen, by=by, asked_support=asked_support)  # type: ignore[arg-type]
    agreement, smoothed = (torch.stack([getattr(step, name) for step in steps]) for name in ("agreement", "smoothed"))
    if agreement.shape[1] == 0:
        return curve
    spread = agreement.std(1, correction=0) / math.sqrt(agreement.shape[1])
    behind, errors = shortfalls(smoothed)
    return dataclasses.replace(
        curve,
        num_held_out=agreement.shape[1],
        fidelity=tuple(agreement.mean(1).tolist()),
        fidelity_error=tuple(spread.tolist()),
        shortfall=tuple(behind.tolist()),
        shortfall_error=tuple(errors.tolist()),
    )
