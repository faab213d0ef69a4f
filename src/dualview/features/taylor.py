"""The Taylor framework: each player's first-order, independent and interactive effects, and who allots them how."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from dualview.engine.coalitions import coalition_values, moving
from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.engine.path import ends
from dualview.engine.players import Players, as_grouping, as_players
from dualview.engine.removal import Reference, as_removal
from dualview.engine.task import Task
from dualview.errors import DualViewWarning
from dualview.features import _effects
from dualview.features._allocation import Allocation, allocated
from dualview.features._method import Explained, FeatureMethod, Instead
from dualview.games import exact

Form = Literal["split", "orders", "segments", "pairs", "exact"]
FORMS: tuple[str, ...] = get_args(Form)

MOST_ALONE = 4096  # players that are each put in alone: one forward pass for each
MOST_PAIRED = 256
LOBATTO = 8  # nodes of the polynomial along the ray: more would cost more digits than they give

Terms = dict[str, Tensor]
"""Named terms "sample player" that add up to each player's score."""


@dataclass(frozen=True, repr=False)
class Taylor(FeatureMethod):
    """Split each player's share of f(x) − f(b) by Taylor effects at the baseline b (Deng et al. 2021, 2024).

    With players p that move from b_p to x_p by Δ_p, every term of f's Taylor series at b is an effect of
    the players in it: of one player of first order, of one player of higher order (independent), or of
    several (interactive). Integrated gradients hand a term κ to its players as κ_p / |κ|; the forms
    say which part of each player's score comes from where:

    - "split" (default): `first_order` Δ_p ∂_p f(b), `higher_order` ψ_p − first_order with
      ψ_p = f(b + Δ_p) − f(b), `interactive` IG_p − ψ_p. The last two are finite differences, so they hold
      for networks of ReLUs too. A forward pass for each player, and integrated gradients.
    - "orders": `order_1` … `order_K` of integrated gradients and their `remainder`, along the ray
      from b to x. Gradients at 8 points in all.
    - "segments": integrated gradients from `steps` segments of the ray, each with its `slope` and
      `curvature`; converges as steps⁻².
    - "pairs": `alone` ψ_p, `pairs` half of Σ_q J({p, q}), and `beyond`, the rest of IG_p; the
      matrix J "test player player" is `tables["interactions"]`.
    - "exact": `alone` and `size_2` … `size_n`, the shares J(S) / |S| of the Shapley value, whose sum is the
      score; all dividends "test coalition" (bit p of the index: player p) are `tables["dividends"]`. 2ⁿ
      forward passes, up to 20 players.

    The effects and their weights follow the framework's published form (AAAI 2021) in the notation of
    its extension (TPAMI 2024); the first version (arXiv 2008.09695v1) has other principles. The forms
    "split", "orders" and "segments" are this library's own, as are averages over several baselines.

    Networks of ReLUs have no derivatives above the first: "orders" and "segments" test for that, warn, and
    answer with "split".

    Args:
        form: see above.
        baseline: b, as `IntegratedGradients` takes it; over several draws the terms are averaged.
        players: what moves together: None for each number, `Pixels()`, `Patches(size)`, or whole numbers
            shaped like one sample's input.
        steps: nodes of integrated gradients; of "segments" how many.
        orders: how many orders are told apart by "orders", up to 6.

    Example:
        >>> parts = Taylor(players=Patches(16)).attribute(model, images).split  # doctest: +SKIP
        >>> parts["interactive"].sum(1)  # "test height width"  # doctest: +SKIP
    """

    form: Form | str = "split"  # checked below, with the choices
    _: KW_ONLY
    baseline: Any = 0.0
    players: Any = None
    steps: int = 32
    orders: int = 3

    kind: ClassVar[Kind] = "share"

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        object.__setattr__(self, "players", as_grouping(self.players))
        if self.form not in FORMS:
            raise ValueError(f"`form` is {self.form!r}; choose from {', '.join(map(repr, FORMS))}")
        if self.steps < 1:
            raise ValueError(f"`steps` is {self.steps}; expected at least 1")
        if not 1 <= self.orders <= LOBATTO - 2:
            raise ValueError(f"`orders` is {self.orders}; expected 1 to {LOBATTO - 2}")

    def explain(self, measured: Measured) -> Explained:
        return self._explain(measured, self.form)

    def _explain(self, measured: Measured, form: str) -> Explained:
        reference = self.baseline.reference(measured)
        players = as_players(self.players, ends(measured, reference))
        _check(players, form)
        reference = moving(measured, reference, players)
        checks: dict[str, Tensor] = {}
        if self.form in ("orders", "segments"):
            checks["kinks"] = _effects.kinks(measured, reference)
            worst = float(checks["kinks"].max())
            if form != "split" and worst > _effects.KINKED:
                warnings.warn(
                    f"curvature misses {worst:.0%} of the gradient's change from baseline to input: the network is "
                    "piecewise linear, has kinks or saturates, so orders above one mean nothing; the finite "
                    'differences of form="split" are given instead',
                    DualViewWarning,
                    stacklevel=6,
                )
                raise Instead(partial(self._explain, form="split"))
        terms, tables, nobody = _FORMS[form](self, measured, reference, players)
        scores = torch.stack(list(terms.values())).sum(0)
        return Explained(
            players.spread(scores, shared=True),
            split={name: players.spread(term, shared=True) for name, term in terms.items()},
            change=measured.values - nobody,
            checks=checks,
            players=players,
            tables={"players": scores, **tables},
        )

    def allocation(
        self,
        method: FeatureMethod,
        task: Task | nn.Module,
        inputs: Any,
        targets: Any = None,
        *,
        family: str = "auto",
        order: int = 2,
        batch_size: int | None = None,
    ) -> Allocation:
        """Express another method's scores as weights on the effects, and say which principles it keeps.

        The weight w_{p,κ} of a method is what it gives player p of the monomial Π_q t_q^{κ_q} of the
        players' coordinates (t_q = 0 at the baseline, 1 at the input), by itself: it is asked, so that
        any method may come. Its scores of f are then Σ_κ w_{p,κ} I(κ) if it is linear in f, up to the
        effects left out; what is left over is reported.

        Args:
            method: any feature method whose scores stand at the inputs. Its own baseline is the
                expansion's, where it has a single one, else this method's.
            task: the model and what is measured.
            inputs: the samples.
            targets: as in `attribute`.
            family: "derivatives": every κ up to `order`, by differentiating the network; "coalitions":
                ψ_p and the dividends J(S) up to `order` players, finite differences, for networks of
                ReLUs. "auto" takes derivatives unless the network has kinks.
            order: highest order, or most players, of an effect.
            batch_size: as in `attribute`.

        Raises:
            ValueError: too many players for this order.
            TypeError: scores that do not stand at the inputs.
        """
        return allocated(self, method, task, inputs, targets, family, order, batch_size)


def _check(players: Players, form: str) -> None:
    most = {"split": MOST_ALONE, "pairs": MOST_PAIRED, "exact": exact.MOST_PLAYERS}.get(form)
    if most is not None and players.count > most:
        raise ValueError(
            f"form={form!r} takes at most {most} players and there are {players.count}: give `players` that "
            "move together, e.g. Patches(16) of an image or whole numbers for its segments"
        )


Found = tuple[Terms, Terms, Tensor]  # terms, tables, f(b)


def _split(method: Taylor, measured: Measured, reference: Reference, players: Players) -> Found:
    first = _effects.first_order(measured, reference, players)
    single, nobody = _effects.alone(measured, reference, players)
    shares = _effects.shared_gradients(measured, reference, players, method.steps)
    return {"first_order": first, "higher_order": single - first, "interactive": shares - single}, {}, nobody


def _orders(method: Taylor, measured: Measured, reference: Reference, players: Players) -> Found:
    found = _effects.along_the_ray(measured, reference, players, method.orders, LOBATTO)
    shares = _effects.shared_gradients(measured, reference, players, method.steps)
    found = found.to(shares)
    terms = {f"order_{k + 1}": part for k, part in enumerate(found)}
    return {**terms, "remainder": shares - found.sum(0)}, {}, _nobody(measured, reference, players)


def _segments(method: Taylor, measured: Measured, reference: Reference, players: Players) -> Found:
    slope, curvature = _effects.segments(measured, reference, players, method.steps)
    return {"slope": slope, "curvature": curvature}, {}, _nobody(measured, reference, players)


def _pairs(method: Taylor, measured: Measured, reference: Reference, players: Players) -> Found:
    single, nobody = _effects.alone(measured, reference, players)
    joint = _effects.pairs(measured, reference, players, single, nobody)
    shares = _effects.shared_gradients(measured, reference, players, method.steps)
    halves = joint.sum(2) / 2
    terms = {"alone": single, "pairs": halves, "beyond": shares - single - halves}
    return terms, {"interactions": joint}, nobody


def _exact(method: Taylor, measured: Measured, reference: Reference, players: Players) -> Found:
    presence = exact.coalitions(players.count)
    values = coalition_values(measured, reference, players, presence)
    effects = exact.dividends(values.double())  # sums of up to 2ⁿ terms of both signs
    presence = presence.to(effects.device)
    sizes, member = presence.sum(1), presence.to(effects)
    terms = {}
    for size in range(1, players.count + 1):
        own = effects * (sizes == size).to(effects) / size
        terms["alone" if size == 1 else f"size_{size}"] = (own @ member).to(values)
    return terms, {"dividends": effects}, values[:, 0]


def _nobody(measured: Measured, reference: Reference, players: Players) -> Tensor:
    absent = torch.zeros(1, players.count, dtype=torch.bool)
    return coalition_values(measured, reference, players, absent)[:, 0]


_FORMS: dict[str, Callable[[Taylor, Measured, Reference, Players], Found]] = {
    "split": _split,
    "orders": _orders,
    "segments": _segments,
    "pairs": _pairs,
    "exact": _exact,
}
