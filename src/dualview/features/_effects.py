"""Effects of players: what each alone, and several together, change of the measured output.

Player p moves from its reference b_p to its value: t_p = 0 or 1, and φ(t) = f(b + Σ_p t_p Δ_p). Its Taylor
series at t = 0, with κ a multiset of players (a player as often as its power), has the effects

    I(κ) = 1 / Π κ_p! · ∂^|κ| φ / ∂t^κ (0),        f(x) − f(b) = Σ_κ I(κ).

A κ of one player is an independent effect of it, first-order where |κ| = 1; of several, an interaction.
All orders of one player together are ψ_p = f(b + Δ_p) − f(b), of a set S its Harsanyi dividend
J(S) = Σ_{T ⊆ S} (−1)^{|S| − |T|} f(b + Δ_T), which need no derivative (Deng et al. 2024, in their notation).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dualview.engine.coalitions import coalition_values
from dualview.engine.measured import Measured, Parts
from dualview.engine.path import Straight, integrate
from dualview.engine.players import Players
from dualview.engine.removal import Reference
from dualview.ops.quadrature import quadrature

KINKED = 0.1  # share of the gradient's change that curvature misses: beyond, orders above one mean nothing

Kappa = tuple[int, ...]
"""A multiset of players in ascending order: (0, 0, 2) is t_0² t_2."""


def ways(measured: Measured, reference: Reference, samples: Tensor, draws: Tensor) -> tuple[Parts, Parts]:
    """Return the references and the ways from there to the inputs, "row ..."."""
    starts = reference.rows(samples, draws)
    return starts, {place: measured.parts[place][samples] - start for place, start in starts.items()}


def first_order(measured: Measured, reference: Reference, players: Players) -> Float[Tensor, "sample player"]:
    """Return Σ_{i ∈ p} Δ_i ∂_i f(b): one forward and backward pass for each draw of the reference."""
    found = []
    for rows in measured.chunks(len(measured) * reference.draws):
        starts, way = ways(measured, reference, rows // reference.draws, rows % reference.draws)
        _, gradients = measured.gradients(rows // reference.draws, starts)
        found.append(players.sums({place: gradient * way[place] for place, gradient in gradients.items()}))
    return torch.cat(found).unflatten(0, (len(measured), reference.draws)).mean(1)


def alone(
    measured: Measured, reference: Reference, players: Players
) -> tuple[Float[Tensor, "sample player"], Float[Tensor, " sample"]]:
    """Return ψ_p = f(b + Δ_p) − f(b), and f(b): a forward pass for each player, and one."""
    values = coalition_values(measured, reference, players, singles(players.count))
    return values[:, 1:] - values[:, :1], values[:, 0]


def singles(count: int) -> Bool[Tensor, "coalition player"]:
    """Return nobody, then each player alone."""
    return torch.cat([torch.zeros(1, count, dtype=torch.bool), torch.eye(count, dtype=torch.bool)])


def pairs(
    measured: Measured, reference: Reference, players: Players, single: Tensor, nobody: Tensor
) -> Float[Tensor, "sample player player"]:
    """Return J({p, q}) of all orders, symmetric with zeros on the diagonal: a forward pass for each pair."""
    count = players.count
    first, second = torch.triu_indices(count, count, 1)
    presence = torch.zeros(len(first), count, dtype=torch.bool)
    rows = torch.arange(len(first))
    presence[rows, first] = presence[rows, second] = True
    found = single.new_zeros(len(measured), count, count)
    if len(first):
        values = coalition_values(measured, reference, players, presence)
        joint = values - nobody[:, None] - single[:, first] - single[:, second]
        found[:, first, second] = found[:, second, first] = joint
    return found


def along_the_ray(
    measured: Measured, reference: Reference, players: Players, orders: int, num_nodes: int
) -> Float[Tensor, "order sample player"]:
    """Return the part of each order of integrated gradients, IG^(K)_p = Δ_p c_{K,p} / K.

    ∇f(b + aΔ) = Σ_K a^{K−1} c_K along the ray.
    The c_K are those of the polynomial of degree `num_nodes` − 1 through the gradient at as many
    Chebyshev-Lobatto points: Taylor's own where the gradient is such a polynomial, and the first always.
    """
    points = 0.5 - 0.5 * torch.cos(torch.pi * torch.arange(num_nodes, dtype=torch.float64) / (num_nodes - 1))
    powers = points[:, None] ** torch.arange(num_nodes, dtype=torch.float64)
    solve = torch.linalg.inv(powers)[:orders] / torch.arange(1, orders + 1, dtype=torch.float64)[:, None]
    draws = reference.draws
    total: Tensor | None = None
    for rows in measured.chunks(len(measured) * draws * num_nodes):
        samples, node = rows // (draws * num_nodes), rows % num_nodes
        starts, way = ways(measured, reference, samples, rows // num_nodes % draws)
        at = {place: _further(start, points[node.cpu()], way[place]) for place, start in starts.items()}
        _, gradients = measured.gradients(samples, at)
        sums = players.sums({place: gradient.double() * way[place].double() for place, gradient in gradients.items()})
        if total is None:
            total = sums.new_zeros(orders, len(measured), players.count)
        total = total.index_add(1, samples, solve[:, node.cpu()].to(sums)[:, :, None] * sums / draws)
    assert total is not None
    return total


def kinks(measured: Measured, reference: Reference, num_nodes: int = 16) -> Float[Tensor, " sample"]:
    """Return which share of the gradient's change along the ray its second derivative does not account for.

    |∇f(x) − ∇f(b) − ∫ H(b + aΔ) Δ da| / |∇f(x) − ∇f(b)|, of the first draw: near 0 for smooth networks,
    near 1 for piecewise linear ones, whose second derivative is zero wherever it exists. What rounding of the
    gradients may leave counts as nothing. It costs `num_nodes` products with the Hessian.
    """
    nodes, weights = quadrature("gauss-legendre", num_nodes)
    found = []
    for samples in measured.chunks(len(measured)):
        starts, way = ways(measured, reference, samples, torch.zeros_like(samples))
        ends = {place: starts[place] + way[place] for place in starts}
        _, before = measured.gradients(samples, starts)
        _, after = measured.gradients(samples, ends)
        change = {place: after[place] - before[place] for place in before}
        missing = dict(change)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            at = {place: starts[place] + node * way[place] for place in starts}
            curved = curvature_along(measured, samples, at, way)
            missing = {place: missing[place] - weight * curved[place] for place in missing}
        size, left = _norm(change), _norm(missing)
        rounding = 64 * torch.finfo(size.dtype).eps * (_norm(before) + _norm(after))
        found.append(torch.where(left > rounding, left / size, 0.0))
    return torch.cat(found)


def curvature_along(measured: Measured, samples: Tensor, at: Parts, way: Parts) -> Parts:
    """Return H(at) · way for each row: a forward and two backward passes."""
    with torch.enable_grad():
        leaves = {place: part.detach().requires_grad_() for place, part in at.items()}
        values = measured.at(samples, leaves)
        gradients = torch.autograd.grad(values.sum(), list(leaves.values()), create_graph=True, materialize_grads=True)
        slope = sum((gradient * way[place]).sum() for place, gradient in zip(leaves, gradients, strict=True))
        if not isinstance(slope, Tensor) or not slope.requires_grad:  # linear pieces: no curvature anywhere
            return {place: torch.zeros_like(part) for place, part in at.items()}
        found = torch.autograd.grad(slope, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def segments(
    measured: Measured, reference: Reference, players: Players, count: int
) -> tuple[Float[Tensor, "sample player"], Float[Tensor, "sample player"]]:
    """Return Σ_s d ⊙ g_s and Σ_s ½ d ⊙ H_s d over the starts of `count` segments d = Δ / count of the ray."""
    slope = curvature = torch.zeros(len(measured), players.count, device=measured.device)
    draws = reference.draws
    for rows in measured.chunks(len(measured) * draws * count):
        samples = rows // (draws * count)
        starts, way = ways(measured, reference, samples, rows // count % draws)
        step = {place: part / count for place, part in way.items()}
        at = {place: _further(start, rows % count, step[place]) for place, start in starts.items()}
        _, gradients = measured.gradients(samples, at)
        curved = curvature_along(measured, samples, at, step)
        first = players.sums({place: step[place] * gradients[place] for place in step}) / draws
        second = players.sums({place: step[place] * curved[place] / 2 for place in step}) / draws
        slope, curvature = (
            slope.to(first).index_add(0, samples, first),
            curvature.to(second).index_add(0, samples, second),
        )
    return slope, curvature


def monomials(count: int, order: int) -> list[Kappa]:
    """Return every κ of up to this order."""
    return [kappa for k in range(1, order + 1) for kappa in itertools.combinations_with_replacement(range(count), k)]


def taylor_effects(
    measured: Measured, reference: Reference, players: Players, order: int
) -> Float[Tensor, "sample kappa"]:
    """Return I(κ) of every κ in `monomials`, by differentiating φ(t) at t = 0 again and again, for the first draw."""
    found = []
    for samples in measured.chunks(len(measured)):
        with torch.enable_grad():
            starts, way = ways(measured, reference, samples, torch.zeros_like(samples))
            t = next(iter(way.values())).new_zeros(len(samples), players.count, requires_grad=True)
            spread = players.spread(t, shared=False)
            values = measured.at(samples, {place: starts[place] + spread[place] * way[place] for place in starts})
            found.append(torch.stack(_derivatives(values, t, players.count, order), dim=1).detach())
    return torch.cat(found)


def _derivatives(values: Tensor, t: Tensor, count: int, order: int) -> list[Tensor]:
    """Return I(κ) "row" of each κ, in the order of `monomials`."""
    level: dict[Kappa, Tensor] = {(): values}
    effects = []
    for k in range(1, order + 1):
        following: dict[Kappa, Tensor] = {}
        for kappa, derivative in level.items():
            if derivative.requires_grad:
                (gradient,) = torch.autograd.grad(
                    derivative.sum(), t, create_graph=True, retain_graph=True, materialize_grads=True
                )
            else:
                gradient = torch.zeros_like(t)
            for player in range(kappa[-1] if kappa else 0, count):
                following[(*kappa, player)] = gradient[:, player]
        level = following
        effects += [
            level[kappa] / _factorials(kappa) for kappa in itertools.combinations_with_replacement(range(count), k)
        ]
    return effects


def _factorials(kappa: Sequence[int]) -> int:
    return math.prod(math.factorial(kappa.count(player)) for player in set(kappa))


def _further(start: Tensor, share: Tensor, way: Tensor) -> Tensor:
    """Return start + share · way, a share for each row."""
    return start + share.to(start).reshape(-1, *[1] * (start.ndim - 1)) * way


def _norm(parts: Parts) -> Tensor:
    return torch.stack([part.reshape(len(part), -1).square().sum(1) for part in parts.values()]).sum(0).sqrt()


def shared_gradients(
    measured: Measured, reference: Reference, players: Players, steps: int
) -> Float[Tensor, "sample player"]:
    """Return integrated gradients of the players: the sum over each one's numbers."""
    end = {place: measured.parts[place] for place in reference.parts}
    return players.sums(integrate(measured, Straight(reference, end, "gauss-legendre", steps)))
