"""Path integrals: the gradient along a path from a reference to the input, times the way.

For a path γ from γ(0) = x' to γ(1) = x the integral ∫ ∂f/∂x_i(γ(α)) · γ_i'(α) dα shares
f(x) − f(x') among the inputs i, whatever the path. A `Path` is a list of nodes, each with a point
γ(α_k) and a step, the quadrature weight times γ'(α_k), of every sample; `integrate` runs through
nodes × samples in passes of a fixed number of rows and keeps running sums, so that memory does not
grow with the nodes. Paths whose next point depends on the gradient are walked (`walk`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.engine.batches import tensors_in
from dualview.engine.measured import Measured, Parts
from dualview.engine.removal import Drawn, Reference
from dualview.engine.site import Site
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
            way = self.end[place][samples] - start
            points[place] = start + per_row(self.alphas[node], way) * way
            steps[place] = per_row(self.weights[node] / self.reference.draws, way) * way
        return points, steps


@dataclass(eq=False)
class Curve(Path):
    """A path given by its points, followed in straight pieces from γ(k/n) to γ((k+1)/n).

    The gradient is taken in the middle of each piece. The pieces are a path themselves: of a quadratic
    f they share the whole of f(x) − f(x'), and else the error is of order n⁻² on smooth f.

    Args:
        point: (samples "row", α "row", float64) → the points of these rows.
        steps: n.
    """

    point: Callable[[Tensor, Tensor], Parts]
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` is {self.steps}; expected at least 1")
        self.num_nodes = self.steps

    def at(self, samples: Tensor, nodes: Tensor) -> tuple[Parts, Parts]:
        nodes = nodes.to(torch.float64)  # k / n is exactly 1 at the end
        before, after = self.point(samples, nodes / self.steps), self.point(samples, (nodes + 1) / self.steps)
        middle = {place: (before[place] + after[place]) / 2 for place in before}
        return middle, {place: after[place] - before[place] for place in before}


def passes(measured: Measured, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (samples "row", items "row") for every item from 0 to `count` − 1 of every sample, in rows of a pass.

    All samples come before the next item.
    """
    for rows in measured.chunks(len(measured) * count):
        yield rows % len(measured), rows // len(measured)


class Term(NamedTuple):
    """Some terms of a path's sum: node `nodes[r]` of sample `samples[r]` has f and ∂f/∂x · step."""

    samples: Tensor
    nodes: Tensor
    values: Tensor
    contributions: Parts


def terms(measured: Measured, path: Path) -> Iterator[Term]:
    """Yield the terms of a path integral, those of one pass at a time: a forward and a backward pass for each."""
    for samples, nodes in passes(measured, path.num_nodes):
        points, steps = path.at(samples, nodes)
        values, gradients = measured.gradients(samples, points)
        yield Term(samples, nodes, values, {place: gradients[place] * steps[place] for place in points})


def integrate(measured: Measured, path: Path) -> Parts:
    """Return Σ_k ∂f/∂x(γ(α_k)) · step_k for each sample, shaped like what is integrated over.

    It costs one forward and backward pass for each node of each sample, `measured.size` rows at a time.
    """
    total: Parts = {}
    for term in terms(measured, path):
        accumulate(total, term.contributions, term.samples, len(measured))
    return total


def integrate_image(measured: Measured, path: Straight, site: Site) -> Parts:
    """Return Σ_k ½ (∂f/∂h_k + ∂f/∂h_{k+1}) · (h_{k+1} − h_k) over the activations h_k that a line makes at a site.

    With several draws it is the mean over their lines. It costs one forward and backward pass for each node of
    each sample. The nodes are to be the trapezoid rule's, with both ends; of each sample one node is kept
    from a pass to the next.
    """
    total: Parts = {}
    kept: list[Tensor] = []  # activations and slopes of the last rows, one for each sample
    for samples, nodes in passes(measured, path.num_nodes):
        points, _ = path.at(samples, nodes)
        _, activations, gradients = measured.gradients_at([site], samples, points)
        now = [activations[site], gradients[site]]
        held, slopes = [torch.cat(pair) for pair in zip(kept, now, strict=True)] if kept else now
        kept = [held[-len(measured) :], slopes[-len(measured) :]]
        before, after = slice(None, -len(measured)), slice(len(measured), None)  # the same samples, a node apart
        pieces = (slopes[before] + slopes[after]) / (2 * path.reference.draws) * (held[after] - held[before])
        samples, nodes = (index[len(index) - len(pieces) :] for index in (samples, nodes))
        on_line = nodes % path.steps > 0  # from the end of a line to the next one's start there is no way
        accumulate(total, {site: pieces[on_line]}, samples[on_line], len(measured))
    return total


def accumulate(total: Parts, parts: Parts, samples: Int[Tensor, " row"], num_samples: int) -> None:
    """Add rows to the running sums of their samples, which begin at zero."""
    for place, part in parts.items():
        if place not in total:
            total[place] = part.new_zeros(num_samples, *part.shape[1:])
        total[place].index_add_(0, samples, part)


class Stand(NamedTuple):
    """Where a walk is: "row feature", the numbers of all inputs side by side.

    Attributes:
        step: how many have been made.
        points: where it is.
        ends: where it goes.
        slopes: the gradient here, or its running mean.
        length: "row", the L1 distance from the start to the end.
    """

    step: int
    points: Tensor
    ends: Tensor
    slopes: Tensor
    length: Tensor


Move = Callable[[Stand], Tensor]


def rounding(numbers: Float[Tensor, "row feature"]) -> Float[Tensor, "row 1"]:
    """Return by how much numbers may differ and still count as equal: at a constant baseline whole areas are."""
    finite = numbers.abs().nan_to_num(0, 0, 0)
    return 100 * torch.finfo(numbers.dtype).eps * finite.amax(1, keepdim=True)


class Walked(NamedTuple):
    """What a walk found.

    Attributes:
        shares: Σ_k ½ (∂f/∂x(x_k) + ∂f/∂x(x_{k+1})) · (x_{k+1} − x_k), shaped like the inputs.
        change: "sample", f(end) − f(start).
        missed: "sample", Σ_k |f(x_{k+1}) − f(x_k) − the sum of that step's terms|.
    """

    shares: Parts
    change: Tensor
    missed: Tensor


def walk(
    measured: Measured, start: Parts, end: Parts, move: Move, *, momentum: float = 0.0, complete: bool = False
) -> Walked:
    """Follow a path whose next point depends on the gradient, and integrate along it by the trapezoid rule.

    The gradient at a point serves both the piece that leads there and the next one, so that the rule,
    with an error of order n⁻², costs one forward and backward pass more than the walk has steps.

    Args:
        measured: f.
        start: "sample ...", where the walk begins.
        end: "sample ...", where it ends; it goes on until every sample is there exactly.
        move: where it goes next.
        momentum: μ of the running mean of gradients, μ · mean + (1 − μ) · gradient, that `move` sees.
        complete: share what a step's terms miss of its change of f among them, in proportion to their size.
    """
    found = []
    for samples in measured.chunks(len(measured)):
        points, goal = (_side_by_side(parts, samples) for parts in (start, end))
        length = (goal - points).abs().sum(1)
        first, slopes = _slopes(measured, samples, points, start)
        total, missed, mean, last, step = torch.zeros_like(points), torch.zeros_like(length), slopes.detach(), first, 0
        while bool(((points != goal) & ~points.isnan()).any()):
            following = move(Stand(step, points, goal, mean, length))
            value, after = _slopes(measured, samples, following, start)
            gains = (slopes + after) / 2 * (following - points)
            miss = value - last - gains.sum(1)
            missed = missed + miss.detach().abs()
            if complete:
                size = gains.abs()
                gains = gains + size * (miss / size.sum(1).clamp(min=torch.finfo(size.dtype).tiny))[:, None]
            total = total + gains
            mean = momentum * mean + (1 - momentum) * after.detach()
            points, slopes, last, step = following, after, value, step + 1
        found.append((total, last - first, missed))
    total, change, missed = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Walked(_split(total, start), change, missed)


def _slopes(measured: Measured, samples: Tensor, points: Tensor, like: Parts) -> tuple[Tensor, Tensor]:
    values, gradients = measured.gradients(samples, _split(points, like))
    return values, torch.cat([part.flatten(1) for part in gradients.values()], dim=1)


def _side_by_side(parts: Parts, samples: Tensor) -> Tensor:
    return torch.cat([part[samples].flatten(1) for part in parts.values()], dim=1)


def _split(rows: Tensor, like: Parts) -> Parts:
    """Return numbers that stand side by side as parts shaped like these."""
    widths = [part[0].numel() for part in like.values()]
    pieces = rows.split(widths, dim=1)
    return {
        place: piece.reshape(-1, *part.shape[1:]).to(part.dtype)
        for (place, part), piece in zip(like.items(), pieces, strict=True)
    }


def walk_draws(
    measured: Measured, reference: Reference, move: Move, *, backwards: bool = False, **settings: Any
) -> Walked:
    """Return the mean over a reference's draws of walks from it to the inputs, or of those back with signs turned."""
    goal = ends(measured, reference)
    shares: Parts = {}
    change = missed = torch.zeros_like(measured.values)
    for draw in range(reference.draws):
        start = reference.rows(measured.samples, torch.full_like(measured.samples, draw))
        found = walk(measured, *((goal, start) if backwards else (start, goal)), move, **settings)
        accumulate(shares, found.shares, measured.samples, len(measured))
        change, missed = change + found.change, missed + found.missed
    scale = (-1 if backwards else 1) / reference.draws
    return Walked({place: scale * part for place, part in shares.items()}, scale * change, missed / reference.draws)


def reference_values(measured: Measured, reference: Reference | Drawn) -> Float[Tensor, " sample"]:
    """Return f at the reference of each sample, its mean where there are several draws.

    It costs a forward pass for each draw of each sample; for each draw alone where all samples have the
    same references, and these are all that the model takes.
    """
    total = torch.zeros_like(measured.values)
    taken = {place for place, tensor in tensors_in(measured.inputs).items() if tensor.ndim}
    if reference.shared and taken <= set(reference.places):
        for draws in measured.chunks(reference.draws):
            nobody = torch.zeros_like(draws)
            for raw in measured.outputs(nobody, reference.rows(nobody, draws)):
                total = total + measured.measure(raw.expand(len(measured), -1), measured.samples)
    else:
        for samples, draws in passes(measured, reference.draws):
            total = total.index_add(0, samples, measured.at(samples, reference.rows(samples, draws)))
    return total / reference.draws


def ends(measured: Measured, reference: Reference | Drawn) -> Parts:
    """Return the inputs as they are, where a reference stands in for them: the ends of paths from it.

    Raises:
        TypeError: the reference names an input of whole numbers, on which there is no path.
    """
    whole = [place for place in reference.places if place not in measured.parts]
    if whole:
        raise TypeError(f"`baseline` names {whole[0]!r}, which holds whole numbers: a path there needs a site inside")
    return {place: measured.parts[place] for place in reference.places}


def per_row(numbers: Tensor, like: Tensor) -> Tensor:
    """Return one number a row, shaped so as to multiply `like`."""
    return numbers.to(like).reshape(-1, *[1] * (like.ndim - 1))
