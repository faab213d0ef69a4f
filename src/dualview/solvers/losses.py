"""Losses of the dual family: their values, residuals, conjugates and curvature, row by row.

Each loss is L(z, t) = max over u of -⟨u, z⟩ - h(u, t), where u is the residual -dL/dz and h(u, t) = L*(-u, t) its
conjugate; a row's dual variable is alpha_i = C_i u_i. The curvature -du/dz is written as a function of u, so that it
can be had from alpha alone. It is diag(s) - s sᵀ/Σs where the classes are coupled and diag(s) where they are not; s
are the `slopes`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

Classes: TypeAlias = Int[Tensor, " row"] | Float[Tensor, "row cls"]

LOSSES = ("hinge", "smooth-hinge", "softmax", "entmax", "sparsemax", "squared", "epsilon")


def entmax(scores: Float[Tensor, "row cls"], order: float) -> Float[Tensor, "row cls"]:
    """Return argmax over the simplex of ⟨p, z⟩ - Ω(p), Ω(p) = (Σ p^order - 1)/(order·(order - 1)), exactly.

    Order 1 is the softmax, order 2 the sparsemax (Martins and Astudillo, 2016), order 1.5 is solved by sorting as
    well (Peters, Niculae and Martins, 2019): p = [z/2 - tau]₊², where tau makes the support's p add up to 1.

    Args:
        scores: z.
        order: 1, 1.5 or 2.
    """
    if order == 1:
        return scores.softmax(1)
    scores = (order - 1) * (scores - scores.amax(1, keepdim=True))
    ordered = scores.sort(1, descending=True).values
    counts = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype)
    means = ordered.cumsum(1) / counts
    if order == 2:
        thresholds = means - 1 / counts
        inside = ordered > thresholds
    else:
        spread = ordered.square().cumsum(1) - counts * means.square()
        thresholds = means - ((1 - spread) / counts).clamp(min=0).sqrt()
        inside = ordered >= thresholds
    threshold = thresholds.gather(1, inside.sum(1, keepdim=True) - 1)
    return (scores - threshold).clamp(min=0).pow(1 / (order - 1))


@dataclass(frozen=True)
class SimplexLoss:
    """A loss between classes, of the Fenchel-Young family (Blondel, Martins and Niculae, 2020) with a margin.

        L(z, y) = max over the simplex of ⟨p, z + margin·(1 - e_y)⟩ - scale·Ω(p) - z_y,    u = e_y - p

    with Ω as in `entmax`. Without a scale it is the hinge of Crammer and Singer, whose residual is a subgradient and
    whose slopes are zero. In place of classes y, targets may be distributions "row cls", which then stand for e_y.

    Attributes:
        order: of Ω: 1 (softmax), 1.5 or 2.
        scale: of Ω, not negative; above zero the loss is smooth.
        margin: by which the class must stand above its rivals.
    """

    order: float
    scale: float = 1.0
    margin: float = 0.0
    serves: ClassVar[str] = "classes"
    coupled: ClassVar[bool] = True
    bound: ClassVar[float] = 1.0

    @property
    def kinked(self) -> bool:
        """Say whether the residual jumps, so that there is no curvature."""
        return self.scale == 0

    def value(self, logits: Float[Tensor, "row cls"], targets: Classes) -> Float[Tensor, " row"]:
        """Return L of each row, not negative."""
        residual = self.residual(logits, targets)
        return -(residual * logits).sum(1) - self.conjugate(residual, targets)

    def residual(self, logits: Float[Tensor, "row cls"], targets: Classes) -> Float[Tensor, "row cls"]:
        """Return u = -dL/dz = e_y - p; rows sum to zero."""
        own = _own(targets, logits.shape[1])
        scores = logits + self.margin * (1 - own)
        if self.scale == 0:
            return (own - one_hot(scores.argmax(1), logits.shape[1])).to(logits.dtype)
        return own - entmax(scores / self.scale, self.order)

    def conjugate(self, residual: Float[Tensor, "row cls"], targets: Classes) -> Float[Tensor, " row"]:
        """Return h(u) = scale·Ω(p) - margin·(1 - p_y) for a feasible u = e_y - p."""
        own = _own(targets, residual.shape[1])
        lost = (own * residual).sum(1)
        if self.scale == 0:
            return -self.margin * lost
        p = own - residual
        if self.order == 1:
            return torch.xlogy(p, p).sum(1) - self.margin * lost
        return self.scale * (p.pow(self.order).sum(1) - 1) / (self.order * (self.order - 1)) - self.margin * lost

    def slopes(self, residual: Float[Tensor, "row cls"], targets: Classes) -> Float[Tensor, "row cls"]:
        """Return s = p^(2 - order)/scale on the support of p and zero off it."""
        if self.scale == 0:
            return torch.zeros_like(residual)
        p = _own(targets, residual.shape[1]) - residual
        return torch.where(p > 0, p.pow(2 - self.order), 0.0) / self.scale

    def smoothed(self, gamma: float) -> SimplexLoss:
        """Return the hinge whose conjugate is h(u) + ½·gamma·|u|²."""
        return replace(self, scale=gamma, margin=self.margin - gamma)


@dataclass(frozen=True)
class DeviationLoss:
    """A loss of the deviation of numbers, each by itself.

        L(z, t) = Σ over outputs of max over |u| ≤ bound of u·(t - z) - epsilon·|u| - ½·scale·u²

    is ½(z - t)² with epsilon = 0, scale = 1 and no bound, and max(0, |z - t| - epsilon) with scale = 0 and bound = 1.

    Attributes:
        epsilon: deviation that costs nothing.
        scale: of the curvature of h, not negative; above zero the loss is smooth.
        bound: of |u|.
    """

    epsilon: float = 0.0
    scale: float = 1.0
    bound: float = torch.inf
    serves: ClassVar[str] = "numbers"
    coupled: ClassVar[bool] = False

    @property
    def kinked(self) -> bool:
        """Say whether the residual jumps, so that there is no curvature."""
        return self.scale == 0

    def value(self, logits: Float[Tensor, "row out"], targets: Float[Tensor, "row out"]) -> Float[Tensor, " row"]:
        """Return L of each row, not negative."""
        residual = self.residual(logits, targets)
        return -(residual * logits).sum(1) - self.conjugate(residual, targets)

    def residual(self, logits: Float[Tensor, "row out"], targets: Float[Tensor, "row out"]) -> Float[Tensor, "row out"]:
        """Return u = -dL/dz; positive where the number is too small."""
        beyond = torch.nn.functional.softshrink(targets - logits, self.epsilon)
        if self.scale == 0:
            return self.bound * beyond.sign()
        return (beyond / self.scale).clamp(-self.bound, self.bound)

    def conjugate(self, residual: Float[Tensor, "row out"], targets: Float[Tensor, "row out"]) -> Float[Tensor, " row"]:
        """Return h(u) = Σ epsilon·|u| + ½·scale·u² - u·t for |u| ≤ bound."""
        return (self.epsilon * residual.abs() + residual * (0.5 * self.scale * residual - targets)).sum(1)

    def slopes(self, residual: Float[Tensor, "row out"], targets: Float[Tensor, "row out"]) -> Float[Tensor, "row out"]:
        """Return s = 1/scale where u is free to move, and zero where it stands at a bound or in the tube."""
        free = (residual.abs() < self.bound) & ((residual != 0) | (self.epsilon == 0))
        return free.to(residual.dtype) / self.scale if self.scale else torch.zeros_like(residual)

    def smoothed(self, gamma: float) -> DeviationLoss:
        """Return the loss whose conjugate is h(u) + ½·gamma·u²."""
        return replace(self, scale=self.scale + gamma)


@dataclass(frozen=True)
class LabelLoss:
    """A loss between two classes for each label by itself, summed over the labels.

    The two classes, absent and present, have the logits (-z/2, z/2), so that the hinge is max(0, 1 - s·z) and the
    softmax log(1 + exp(-s·z)) with s = ±1 the label's sign. The residuals of the two are (-u, u); u alone is kept.

    Attributes:
        pair: the loss between the two.
    """

    pair: SimplexLoss
    serves: ClassVar[str] = "labels"
    coupled: ClassVar[bool] = False
    bound: ClassVar[float] = 1.0

    @property
    def kinked(self) -> bool:
        """Say whether the residual jumps, so that there is no curvature."""
        return self.pair.kinked

    def value(self, logits: Float[Tensor, "row label"], targets: Float[Tensor, "row label"]) -> Float[Tensor, " row"]:
        """Return L of each row, not negative."""
        return self.pair.value(_pairs(logits / 2), _present(targets)).view(logits.shape).sum(1)

    def residual(
        self, logits: Float[Tensor, "row label"], targets: Float[Tensor, "row label"]
    ) -> Float[Tensor, "row label"]:
        """Return u = -dL/dz, not negative for a label that is present and not positive for one that is absent."""
        return self.pair.residual(_pairs(logits / 2), _present(targets))[:, 1].view(logits.shape)

    def conjugate(
        self, residual: Float[Tensor, "row label"], targets: Float[Tensor, "row label"]
    ) -> Float[Tensor, " row"]:
        """Return h(u), summed over the labels."""
        return self.pair.conjugate(_pairs(residual), _present(targets)).view(residual.shape).sum(1)

    def slopes(
        self, residual: Float[Tensor, "row label"], targets: Float[Tensor, "row label"]
    ) -> Float[Tensor, "row label"]:
        """Return s = s_0·s_1/(s_0 + s_1) of the two classes' slopes: bᵀ(diag(s) - s sᵀ/Σs)b for b = (-½, ½)."""
        both = self.pair.slopes(_pairs(residual), _present(targets))
        return (both.prod(1) / both.sum(1).clamp(min=torch.finfo(both.dtype).tiny)).view(residual.shape)

    def smoothed(self, gamma: float) -> LabelLoss:
        """Return the loss whose conjugate is h(u) + ½·gamma·u²: the two residuals make one |u|² of 2u²."""
        return replace(self, pair=self.pair.smoothed(gamma / 2))


Loss: TypeAlias = SimplexLoss | DeviationLoss | LabelLoss


def named(loss: str, *, smoothing: float | None = None, epsilon: float = 0.1) -> SimplexLoss | DeviationLoss:
    """Return the loss of this name.

    Args:
        loss: one of `LOSSES`.
        smoothing: gamma of "smooth-hinge", p = sparsemax((z + 1 - e_y)/gamma); None: 1. Other losses have none.
        epsilon: deviation that costs nothing under "epsilon".

    Raises:
        ValueError: an argument is not as described.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
    if smoothing is not None and (loss != "smooth-hinge" or not 0 < smoothing < torch.inf):
        raise ValueError(f"smoothing must be positive and goes with loss='smooth-hinge'; got {smoothing} and {loss!r}")
    if not 0 <= epsilon < torch.inf:
        raise ValueError(f"epsilon must be finite and not negative; got {epsilon}")
    match loss:
        case "hinge":
            return SimplexLoss(order=2.0, scale=0.0, margin=1.0)
        case "smooth-hinge":
            return SimplexLoss(order=2.0, scale=1.0 if smoothing is None else smoothing, margin=1.0)
        case "squared":
            return DeviationLoss()
        case "epsilon":
            return DeviationLoss(epsilon=epsilon, scale=0.0, bound=1.0)
        case _:
            return SimplexLoss(order={"softmax": 1.0, "entmax": 1.5, "sparsemax": 2.0}[loss])


def _own(targets: Tensor, num_classes: int) -> Tensor:
    """Return e_y of each row, or the distribution that its target is."""
    return targets if targets.is_floating_point() else one_hot(targets, num_classes)


def _pairs(second: Tensor) -> Tensor:
    """Stand each number beside its negative, "row label" → "row·label 2"."""
    flat = second.reshape(-1)
    return torch.stack([-flat, flat], 1)


def _present(targets: Tensor) -> Tensor:
    return targets.reshape(-1).to(torch.int64)
