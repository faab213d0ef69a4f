"""The numbers behind DeepLIFT's rules, made of values on the input and on the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Elementwise = Callable[[Tensor], Tensor]


def slope(
    f: Elementwise, x: Tensor, x_ref: Tensor, y: Tensor | None = None, *, alike: bool = True, exact: bool = False
) -> Tensor:
    """Return (f(x) - f(x')) / (x - x'), and f' where the difference is too small to say.

    The quotient times x - x' is right to the rounding of f. The quotient of a small difference is noise,
    though, which matters where large contributions cancel in x - x'. There f'((x + x') / 2) replaces it: its
    error (x - x')² f''' / 24, times x - x', is below the rounding of f up to |x - x'| = (unit in the last
    place)^(1/3). Where f has a kink or a pole in between, both differ by more than that rounding
    and (x - x')² explain, and the quotient stays.

    Args:
        f: element by element.
        x: on the input.
        x_ref: on the reference.
        y: f(x), where it is known.
        alike: whether f is one function for all elements, so that it can be asked of some of them.
        exact: whether f hands on x, −x or a constant, so that only equal x and x' need f'.
    """
    y, y_ref = f(x) if y is None else y, f(x_ref)
    gap, eps = x - x_ref, torch.finfo(x.dtype).eps
    found = (y - y_ref).div_(gap)
    small = found.isnan() if exact else (gap.abs() > eps ** (1 / 3)).logical_not_()  # NaN as well: −∞ on both sides
    if not bool(small.any()):
        return found
    which = small.nonzero(as_tuple=True) if alike else ...
    gap, quotient, size = gap[which], found[which], y[which].abs() + y_ref[which].abs()
    middle = derivative(f, x_ref[which] + gap.nan_to_num(0) / 2).nan_to_num(0, 0, 0)  # √ at 0: any number times 0
    agrees = ~((quotient - middle).abs() > gap.square() + 4 * eps * size / gap.abs())  # NaN as well: 0 / 0
    found[which] = torch.where(small[which] & agrees, middle, quotient)
    return found


def derivative(f: Elementwise, x: Tensor) -> Tensor:
    """Return f'(x), element by element."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(f(leaf).sum(), leaf)[0]


def log_sum_exp_weights(x: Tensor, x_ref: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return p with Σ p (x - x') = log Σ eˣ - log Σ eˣ', not negative: ratios of logarithmic means.

    It is the rescale rule for exp and log: p = L(eˣ, eˣ') / L(S, S') with L(a, b) = (a - b) / (log a - log b),
    which does not overflow, since numerator and denominator are made small by the same factor.
    """
    total, total_ref = (part.logsumexp(dim, keepdim=True) for part in (x, x_ref))
    shift = torch.maximum(total, total_ref)
    return slope(torch.exp, x - shift, x_ref - shift) / slope(torch.exp, total - shift, total_ref - shift)


def shares_of_largest(x: Tensor, x_ref: Tensor) -> Tensor:
    """Return the share of the straight line from x' to x on which each element is the largest along the first axis.

    The shares add up to 1, and Σ share (x - x') = max x - max x': it is the Aumann-Shapley value of the
    maximum. Elements that go along share alike.

    Args:
        x: on the input, "element ...".
        x_ref: on the reference.
    """
    throughout = (x == x.amax(0)) & (x_ref == x_ref.amax(0))  # largest at both ends, and so in between
    shares = throughout.to(x.dtype) / throughout.sum(0).clamp_(min=1)
    rest = throughout.any(0).logical_not_()
    if bool(rest.any()):
        shares[:, rest] = _walked(x[:, rest], x_ref[:, rest])
    return shares


def _walked(x: Tensor, x_ref: Tensor) -> Tensor:
    """Return the same along "element row": elements are lines in t, whose upper envelope is walked from t = 0.

    Each step goes from the present line to the one that crosses it first; lines grow steeper, so that it ends.
    """
    gap = torch.where(x == x_ref, 0, x - x_ref)  # 0 for −∞ on both sides as well
    now = torch.where(x_ref == x_ref.amax(0), gap, -torch.inf).argmax(0, keepdim=True)
    start, shares = torch.zeros_like(gap[:1]), torch.zeros_like(gap)
    while True:
        height, steepness = x_ref.gather(0, now), gap.gather(0, now)
        crossing = torch.where(gap > steepness, (height - x_ref) / (gap - steepness), torch.inf)
        end = torch.maximum(crossing.amin(0, keepdim=True), start).clamp_(max=1)
        same = (x_ref == height) & (gap == steepness)
        shares += same * ((end - start) / same.sum(0))
        if not bool((end < 1).any()):
            return shares
        now = torch.where(crossing <= end, gap, -torch.inf).argmax(0, keepdim=True)
        start = end


class Weighted(NamedTuple):
    """A linear operation with weights on the second pass, as reveal-cancel sees it.

    Attributes:
        difference: x - x', which depends on the input as x does.
        weight: its weight.
        apply: (difference, weight) → Δz.
        rescale: (weight, a factor for each channel of the output) → the weight of the scaled operation.
    """

    difference: Tensor
    weight: Tensor
    apply: Callable[[Tensor, Tensor], Tensor]
    rescale: Callable[[Tensor, Tensor], Tensor]

    def scaled(self, scale: Tensor) -> Weighted:
        """Return the operation with each channel of its output scaled."""
        return self._replace(weight=self.rescale(self.weight, scale.flatten()))

    def signed(self) -> tuple[Tensor, Tensor]:
        """Return the sums of positive and of negative contributions w_ij Δx_i.

        Where Δx_i is 0 the weights count half on either side (the paper's convention): differences above
        may cancel in it and still contribute.
        """
        found = self.difference.detach()
        above = torch.where(found == 0, 0.5, (found > 0).to(found.dtype))
        up, down = self.difference * above, self.difference * (1 - above)
        positive, negative = self.weight.clamp(min=0), self.weight.clamp(max=0)
        return (
            self.apply(up, positive) + self.apply(down, negative),
            self.apply(up, negative) + self.apply(down, positive),
        )


def reveal_cancel(between: Callable[..., Tensor], z: Tensor, z_ref: Tensor, operation: Weighted) -> Tensor:
    """Return m⁺ Δz⁺ + m⁻ Δz⁻, which is f(z) - f(z') and depends on the input through Δz⁺ and Δz⁻.

    Δy⁺ = ½ [f(z' + Δz⁺) - f(z')] + ½ [f(z' + Δz⁻ + Δz⁺) - f(z' + Δz⁻)], m⁺ = Δy⁺ / Δz⁺, and likewise the
    negative side (Shrikumar et al. 2017, Section 3.5.3): the Shapley value of two players.

    Args:
        between: (b, a) → (f(b) - f(a)) / (b - a), see `slope`.
        z: on the input.
        z_ref: on the reference.
        operation: what made z.
    """
    plus, minus = operation.signed()
    with_plus, with_minus = z_ref + plus.detach(), z_ref + minus.detach()
    of_plus = (between(with_plus, z_ref) + between(z, with_minus)) / 2
    of_minus = (between(with_minus, z_ref) + between(z, with_plus)) / 2
    return of_plus * plus + of_minus * minus
