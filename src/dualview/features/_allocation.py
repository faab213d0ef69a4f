"""How a method allots Taylor effects to players: its weights, asked of the method itself, and three principles."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualview._display import png
from dualview.engine.batches import map_tensors
from dualview.engine.coalitions import coalition_values, moving
from dualview.engine.isolation import untouched
from dualview.engine.measured import Measured
from dualview.engine.path import ends
from dualview.engine.players import Players, as_players
from dualview.engine.removal import Constant, Reference, Removal
from dualview.engine.task import Task, as_task
from dualview.features import _effects
from dualview.features._attribution import FeatureAttribution
from dualview.features._effects import Kappa
from dualview.features._method import FeatureMethod, attributed, measured_batches
from dualview.features._probes import Monomials, Sum, beside

if TYPE_CHECKING:
    from dualview.features.taylor import Taylor

Family = Literal["derivatives", "coalitions"]

KEPT = 0.05  # a principle that is missed by no more is kept
MOST_EFFECTS = 4096
TRIED = 3  # effects that are added to the network to see whether the method is linear in it
FAINT = 1e-3  # of the scores: what a method gives an effect is no less, for the test whether it is linear


class Principle(NamedTuple):
    """One of the three principles, on one input.

    Attributes:
        name: of the principle.
        missed: by how much, as a share; NaN where it cannot be told.
        kept: whether that is at most a twentieth.
        meaning: in a sentence.
    """

    name: str
    missed: float
    kept: bool
    meaning: str


@dataclass(frozen=True, eq=False)
class Allocation:
    """A method's scores as weights on effects, sample by sample.

    Attributes:
        method: as Python prints it.
        measured: name of the measured output.
        baseline: where effects begin, as Python prints it.
        family: "derivatives" (I(κ), by differentiating) or "coalitions" (ψ and J(S), by differences).
        how: "probed", the weights are the method's answers to each effect alone; or "fitted", it could not be
            asked (its rules refuse products, or its scores belong to a site), and one weight for each kind
            of effect was fitted to its scores by least squares over players.
        effects: κ of each, as players in ascending order: (0, 0, 2) is t_0² t_2; of coalitions the set S.
        amounts: "test effect", I(κ) or J(S), in units of the measured output.
        weights: "test player effect", what the player gets of the effect, as a share.
        scores: "test player", the method's own scores.
        change: "test", f(x) − f(b).
        additivity: "test", by how much the method misses a(f + g) = a(f) + a(g) for effects g of size 1, as a
            share of a(g), or of a thousandth of a(f) where that is more. Where it is not about 0 the weights
            depend on f, and the probed ones need not be those on this network. NaN where it was not probed.
        players: which player each number of the input belongs to.
        targets: "test", the output columns.
    """

    method: str
    measured: str
    baseline: str
    family: Family
    how: Literal["probed", "fitted"]
    effects: tuple[Kappa, ...]
    amounts: Float[Tensor, "test effect"]
    weights: Float[Tensor, "test player effect"]
    scores: Float[Tensor, "test player"]
    change: Float[Tensor, " test"]
    additivity: Float[Tensor, " test"]
    players: Players
    targets: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def expressed(self) -> Float[Tensor, "test player"]:
        """Σ_κ w_{p,κ} I(κ): what the weights make of the effects."""
        return torch.einsum("tpe,te->tp", self.weights, self.amounts)

    @property
    def left_out(self) -> Float[Tensor, " test"]:
        """f(x) − f(b) − Σ_κ I(κ): effects of higher order or larger sets, which are not in the list."""
        return self.change - self.amounts.sum(1)

    @property
    def fidelity(self) -> Float[Tensor, "test 2"]:
        """Pearson correlation of own and expressed scores over players, and |own − expressed| / |own|.

        The first is NaN where either is the same for all players.
        """
        own, other = self.scores.double(), self.expressed.double()
        a, b = own - own.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
        correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
        left = (own - other).norm(dim=1)
        return torch.stack([correlation, torch.where(left > 0, left / own.norm(dim=1), 0.0)], dim=1)

    def by_kind(self) -> dict[str, Float[Tensor, "test player"]]:
        """Return each player's score by the kind of effect that it comes from; the terms add up to `scores`."""
        member = torch.zeros(self.scores.shape[1], len(self.effects), dtype=torch.bool)
        size = torch.tensor([len(set(kappa)) for kappa in self.effects])
        order = torch.tensor([len(kappa) for kappa in self.effects])
        for k, kappa in enumerate(self.effects):
            member[list(kappa), k] = True
        given = self.weights * self.amounts[:, None]
        own = "own effect, alone" if self.family == "coalitions" else "own effect, first order"
        kinds = {
            own: member & (order == 1),
            "own effect, higher orders": member & (size == 1) & (order > 1),
            "interactions it takes part in": member & (size > 1),
            "effects of others": ~member,
        }
        found = {name: (given * which).sum(2) for name, which in kinds.items() if bool(which.any())}
        return {**found, "not expressed": self.scores - self.expressed}

    def principles(self, test: int = 0) -> tuple[Principle, Principle, Principle]:
        """Return how far the method keeps the three principles on one input.

        Shares of allotments are weighted by the effects' sizes |I(κ)| on this input.
        """
        amounts, weights = self.amounts[test].double().abs(), self.weights[test].double()
        size, change = float(amounts.sum()), float(self.change[test])
        total = float(self.scores[test].sum())
        member = torch.zeros_like(weights, dtype=torch.bool)
        for k, kappa in enumerate(self.effects):
            member[list(kappa), k] = True
        astray = float(((weights.abs() * ~member).sum(0) * amounts).sum()) / size if size else 0.0
        incomplete = float(((weights.sum(0) - 1).abs() * amounts).sum()) / size if size else 0.0
        error = abs(change - total) / abs(change) if change else float("inf") if total else 0.0
        astray = astray if self.how == "probed" else float("nan")
        return (
            Principle(
                "low approximation error",
                error,
                error <= KEPT,
                f"the scores add up to {total:.4g}, the output changes by {change:.4g}",
            ),
            Principle(
                "no unrelated allocation",
                astray,
                astray <= KEPT,
                "of each effect, this share goes to players that have no part in it"
                if self.how == "probed"
                else "cannot be told from fitted weights",
            ),
            Principle(
                "complete allocation",
                incomplete,
                incomplete <= KEPT,
                "of each effect, its shares miss the whole by this much",
            ),
        )

    def __repr__(self) -> str:
        lines = [f"Allocation({len(self)} test, {self.scores.shape[1]} players; {self.method}, weights {self.how})"]
        for test in range(min(len(self), 3)):
            kept = "; ".join(
                f"{one.name} {'kept' if one.kept else 'unknown' if one.missed != one.missed else 'missed'}"
                f" ({one.missed:.1%})"
                for one in self.principles(test)
            )
            lines.append(f"  test {test}: {kept}; not expressed {float(self.fidelity[test, 1]):.1%}")
        return "\n".join(lines)

    def _repr_png_(self) -> bytes | None:
        """Show the first sample in a notebook, where `dualview.plot` was imported."""
        return png(self)


def allocated(
    taylor: Taylor,
    method: FeatureMethod,
    task: Task | nn.Module,
    inputs: Any,
    targets: Any,
    family: str,
    order: int,
    batch_size: int | None,
) -> Allocation:
    """Do as `Taylor.allocation` says."""
    if family not in ("auto", "derivatives", "coalitions"):
        raise ValueError(f"`family` is {family!r}; choose from 'auto', 'derivatives' and 'coalitions'")
    if not 1 <= order <= 4:
        raise ValueError(f"`order` is {order}; expected 1 to 4")
    if not isinstance(method, FeatureMethod):
        raise TypeError(f"`method` must be a feature method such as IntegratedGradients(); it is {method!r}")
    task = as_task(task)
    native = attributed(method, method.explain, task, inputs, targets, batch_size)
    if native.site is not None or native.outputs:
        raise TypeError(f"{native!r}: an allocation needs scores of input features, for one measured output")
    found = []
    with untouched(task.model):
        for measured in measured_batches(task, inputs, targets, batch_size):
            rows = list(range(measured.start, measured.start + len(measured)))
            found.append(_of_batch(taylor, method, measured, native[rows], family, order))
    families = {one.family for one in found}
    if len(families) > 1:  # one kink anywhere: differences hold everywhere
        return allocated(taylor, method, task, inputs, targets, "coalitions", order, batch_size)
    if len({one.how for one in found}) > 1:  # a method that refuses one sample's effects is fitted on all
        found = [_as_fitted(one) for one in found]
    names = ("amounts", "weights", "scores", "change", "additivity", "targets")
    return dataclasses.replace(found[0], **{name: torch.cat([getattr(one, name) for one in found]) for name in names})


def _of_batch(
    taylor: Taylor, method: FeatureMethod, measured: Measured, native: FeatureAttribution, family: str, order: int
) -> Allocation:
    baseline, reference, is_own = _reference(taylor, method, measured)
    players = as_players(taylor.players, ends(measured, reference))
    reference = moving(measured, reference, players)
    if family == "auto":
        kinked = bool((_effects.kinks(measured, reference) > _effects.KINKED).any())
        family = "coalitions" if kinked else "derivatives"
    effects = _listed(players.count, order, family)
    if family == "derivatives":
        amounts = _effects.taylor_effects(measured, reference, players, order)
    else:
        amounts = _dividends(measured, reference, players, effects)
    scores = native.of_players(players)
    nobody = coalition_values(measured, reference, players, torch.zeros(1, players.count, dtype=torch.bool))[:, 0]
    moved = is_own and "baseline" in vars(method)  # a setting, which can be replaced
    asked = [_probed(method, measured, reference, players, effects, k, moved) for k in range(len(measured))]
    answers = [one for one in asked if one is not None]
    probed = len(answers) == len(asked)
    return Allocation(
        method=repr(method),
        measured=measured.task.measured,
        baseline=repr(baseline),
        family="derivatives" if family == "derivatives" else "coalitions",
        how="probed" if probed else "fitted",
        effects=tuple(effects),
        amounts=amounts.cpu(),
        weights=torch.stack([weights for weights, _ in answers]) if probed else _fitted(scores, amounts.cpu(), effects),
        scores=scores,
        change=(measured.values - nobody).cpu(),
        additivity=torch.tensor([additivity for _, additivity in answers] if probed else [float("nan")] * len(asked)),
        players=players,
        targets=measured.columns.cpu(),
    )


def _reference(taylor: Taylor, method: FeatureMethod, measured: Measured) -> tuple[Any, Reference, bool]:
    """Return the method's own baseline where it has a single one, else Taylor's, at its first draw; and which it is."""
    own = getattr(method, "baseline", None)
    if isinstance(own, Removal):
        reference = own.reference(measured)
        if reference.draws == 1:
            return own, reference, True
    reference = taylor.baseline.reference(measured)
    return taylor.baseline, Reference({place: part[:, :1] for place, part in reference.parts.items()}), False


def _listed(count: int, order: int, family: str) -> list[Kappa]:
    powers = family == "derivatives"
    number = sum(math.comb(count + k - 1 if powers else count, k) for k in range(1, order + 1))
    if number > MOST_EFFECTS:
        raise ValueError(
            f"{count} players have {number} effects of up to order {order}, more than {MOST_EFFECTS}: give "
            "`players` that move together, or a lower order="
        )
    if powers:
        return _effects.monomials(count, order)
    return [kappa for k in range(1, order + 1) for kappa in itertools.combinations(range(count), k)]


def _dividends(measured: Measured, reference: Reference, players: Players, effects: Sequence[Kappa]) -> Tensor:
    """Return J(S) of each set, from f of it and of its subsets, which come before it in the list."""
    presence = torch.zeros(len(effects) + 1, players.count, dtype=torch.bool)
    for k, kappa in enumerate(effects):
        presence[k + 1, list(kappa)] = True
    values = coalition_values(measured, reference, players, presence)
    place = {kappa: k for k, kappa in enumerate(effects)}
    found = values[:, 1:] - values[:, :1]
    for k, kappa in enumerate(effects):
        smaller = [place[part] for size in range(1, len(kappa)) for part in itertools.combinations(kappa, size)]
        if smaller:
            found[:, k] -= found[:, smaller].sum(1)
    return found


def _probed(
    method: FeatureMethod,
    measured: Measured,
    reference: Reference,
    players: Players,
    effects: Sequence[Kappa],
    sample: int,
    moved: bool,
) -> tuple[Tensor, float] | None:
    """Return the weights "player effect" of one sample, and how far the method is from linear; None if it refuses.

    Where `moved`, the method's own baseline is that of the effects, and stands in its place as a constant.
    """
    row = torch.tensor([sample], device=measured.device)
    starts, way = _effects.ways(measured, reference, row, torch.zeros_like(row))
    if moved:
        own = Constant({place: start[0] for place, start in starts.items()})
        method = dataclasses.replace(method, baseline=own)  # type: ignore[type-var]
    probe = Monomials(starts, way, players, effects, is_tuple=isinstance(measured.inputs, tuple))

    def asked(task: Task, columns: Sequence[int]) -> Tensor:
        inputs = map_tensors(
            lambda part: part[row].expand(len(columns), *part.shape[1:]) if part.ndim else part, measured.inputs
        )
        found = attributed(method, method.explain, task, inputs, list(columns), measured.size)
        return found.of_players(players)

    try:
        weights = asked(Task(probe), range(len(effects)))
        tried = torch.linspace(0, len(effects) - 1, min(TRIED, len(effects))).long().tolist()
        both, width = beside(measured.task, Sum(measured.task, probe), int(measured.columns[sample]), measured.raw)
        together = asked(both, [width + k for k in tried])
        alone = asked(both, [width + len(effects)])  # the last column adds nothing
    except (NotImplementedError, ValueError):  # an operation without a rule, or a site that only the network has
        return None
    apart = (together - alone - weights[tried]).abs().sum(1)
    given = torch.maximum(weights[tried].abs().sum(1), FAINT * alone.abs().sum(1))
    return weights.T, float((apart / given.clamp(min=torch.finfo(given.dtype).tiny)).max())


def _as_fitted(found: Allocation) -> Allocation:
    weights = _fitted(found.scores, found.amounts, found.effects)
    return dataclasses.replace(
        found, how="fitted", weights=weights, additivity=torch.full_like(found.additivity, torch.nan)
    )


def _fitted(scores: Tensor, amounts: Tensor, effects: Sequence[Kappa]) -> Tensor:
    """Return weights that are the same for all effects of a kind, fitted to the scores over players."""
    count = scores.shape[1]
    kinds = [(len(set(kappa)), len(kappa)) for kappa in effects]
    distinct = sorted(set(kinds))
    member = torch.zeros(count, len(effects), dtype=scores.dtype)
    for k, kappa in enumerate(effects):
        member[list(kappa), k] = 1
    which = torch.tensor([[kind == own for own in kinds] for kind in distinct], dtype=scores.dtype)
    weights = []
    for own, sizes in zip(scores, amounts.to(scores), strict=True):
        terms = torch.einsum("pe,ke,e->pk", member, which, sizes)
        solved = torch.linalg.lstsq(terms.double(), own.double()[:, None], driver="gelsd").solution[:, 0]
        weights.append(member * (solved.to(scores) @ which))
    return torch.stack(weights)
