"""Path integrals: the gradient along a path from a reference to the input, times the way.

For a path γ from γ(0) = x' to γ(1) = x the integral ∫ ∂f/∂x_i(γ(α)) · γ_i'(α) dα shares
f(x) − f(x') among the inputs i, whatever the path. A `Path` is a list of nodes, each with a point
γ(α_k) and a step, the quadrature weight times γ'(α_k), of every sample; `integrate` runs through
samples × nodes in passes of a fixed number of rows and keeps running sums, so that memory does not
grow with the nodes. Paths whose next point depends on the gradient are walked (`walk`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.engine.measured import Measured, Parts
from dualview.engine.removal import Reference
from dualview.ops.quadrature import Rule, quadrature


class Path(ABC):
    """Where an integral is evaluated, the same number of nodes for each sample."""

    num_nodes: int

    @abstractmethod
    def at(self, samples: Int[Tensor, " row"], nodes: Int[Tensor, " row"]) -> tuple[Parts, Parts]:
        """Return the points "row ..." and the steps, weight · γ'(α), of some nodes of some samples."""


@dataclass(eq=False)
class Straight(Path):
    """Straight lines from each draw of a reference to `end`; with several draws their mean.

    Args:
        reference: where the lines begin.
        end: "sample ...", where they end.
        rule: of the quadrature.
        steps: nodes on each line.
    """

    reference: Reference
    end: Parts
    rule: Rule = "gauss-legendre"
    steps: int = 50

    def __post_init__(self) -> None:
        self.alphas, self.weights = quadrature(self.rule, self.steps)
        self.num_nodes = self.steps * self.reference.draws

    def at(self, samples: Tensor, nodes: Tensor) -> tuple[Parts, Parts]:
        starts = self.reference.rows(samples, nodes // self.steps)
        node = (nodes % self.steps).cpu()
        points, steps = {}, {}
        for place, start in starts.items():
            end = self.end[place][samples]
            way = end - start
            points[place] = start + _per_row(self.alphas[node], way) * way
            steps[place] = _per_row(self.weights[node] / self.reference.draws, way) * way
        return points, steps


@dataclass(eq=False)
class Curve(Path):
    """Any path, given by its points; the step of node k leads from γ(k/n) to γ((k+1)/n), its point is midway.

    The rule is the midpoint's, with an error of order n⁻² on smooth paths and functions.

    Args:
        point: (samples "row", α "row") → the points of these rows.
        steps: n.
    """

    point: Callable[[Tensor, Tensor], Parts]
    steps: int

    def __post_init__(self) -> None:
        self.num_nodes = self.steps

    def at(self, samples: Tensor, nodes: Tensor) -> tuple[Parts, Parts]:
        alphas = nodes.to(torch.float64) / self.steps
        before, after = self.point(samples, alphas), self.point(samples, alphas + 1 / self.steps)
        middle = self.point(samples, alphas + 0.5 / self.steps)
        return middle, {place: after[place] - before[place] for place in after}


def integrate(measured: Measured, path: Path) -> Parts:
    """Return Σ_k ∂f/∂x(γ(α_k)) · step_k for each sample, shaped like what is integrated over.

    It costs one forward and backward pass for each node of each sample, `measured.size` rows at a time.
    """
    total: Parts = {}
    for rows in measured.chunks(len(measured) * path.num_nodes):
        samples = rows // path.num_nodes
        points, steps = path.at(samples, rows % path.num_nodes)
        _, gradients = measured.gradients(samples, points)
        for place, gradient in gradients.items():
            so_far = total.get(place)
            if so_far is None:
                so_far = gradient.new_zeros(len(measured), *gradient.shape[1:])
            total[place] = so_far.index_add(0, samples, gradient * steps[place])
    return total


Move = Callable[[int, Tensor, Parts, Parts], Parts]
"""(step, samples "row", points, gradients) → the next points."""


def walk(measured: Measured, start: Parts, move: Move, steps: int) -> tuple[Parts, Parts]:
    """Follow a path whose next point depends on the gradient: return Σ_k ∂f/∂x(x_k) · (x_{k+1} − x_k), and its end.

    It costs `steps` forward and backward passes for each sample.

    Args:
        measured: f.
        start: "sample ...", where the walk begins.
        move: where it goes next.
        steps: how many times it moves.
    """
    totals, ends = [], []
    for samples in measured.chunks(len(measured)):
        points = {place: part[samples] for place, part in start.items()}
        total = {place: torch.zeros_like(part) for place, part in points.items()}
        for step in range(steps):
            _, gradients = measured.gradients(samples, points)
            following = move(step, samples, points, gradients)
            total = {place: total[place] + gradients[place] * (following[place] - points[place]) for place in total}
            points = following
        totals.append(total)
        ends.append(points)
    return _joined(totals), _joined(ends)


def reference_values(measured: Measured, reference: Reference) -> Float[Tensor, " sample"]:
    """Return f at the reference of each sample, its mean where there are several draws: one forward pass a draw."""
    total = measured.values.new_zeros(len(measured))
    for rows in measured.chunks(len(measured) * reference.draws):
        samples = rows // reference.draws
        values = measured.at(samples, reference.rows(samples, rows % reference.draws))
        total = total.index_add(0, samples, values / reference.draws)
    return total


def _per_row(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number a row, shaped so as to multiply `like`."""
    return numbers.to(like).reshape(-1, *[1] * (like.ndim - 1))


def _joined(parts: list[Parts]) -> Parts:
    return {place: torch.cat([part[place] for part in parts]) for place in parts[0]}
