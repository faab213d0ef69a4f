"""Linear operations as the rules see them: an input, a weight, and a map that is linear in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dualview.engine.propagation.account import Place

OpKind = Literal["linear", "convolution", "batch_norm"]


class Signed(NamedTuple):
    """Sums of the positive and of the negative contributions, with the graph to pull back along.

    Attributes:
        positive: Σ_i z⁺_ij.
        negative: Σ_i z⁻_ij; None where nobody asked for it.
        leaves: the inputs' positive part, and their negative part where they have one.
    """

    positive: Tensor | None
    negative: Tensor | None
    leaves: tuple[Tensor, ...]


class LinearOp:
    """One use of a linear operation, z = apply(x, weight), in a forward pass.

    Attributes:
        place: where it stands.
        kind: which entry of a composite it falls under.
        spellings: the torch functions that do this, as a user's map may name them.
        source: the input, still part of the graph.
        weight: the constant operand.
        bias: what is added to z, broadcastable to it; None for nothing.
        shadow: see `shadows`; None where anything but rearranging stands below.
        z: the output without the bias.
    """

    def __init__(
        self,
        place: Place,
        kind: OpKind,
        source: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        apply: Callable[[Tensor, Tensor], Tensor],
        *,
        spellings: tuple[Callable, ...] = (),
        rescale: Callable[[Tensor, Tensor], Tensor] | None = None,
        shadow: Tensor | None = None,
    ) -> None:
        self.place, self.source, self.shadow = place, source, shadow
        self.kind: OpKind = kind
        self.spellings = spellings
        self.weight, self.apply, self.rescale = weight.detach(), apply, rescale
        self.bias = None if bias is None else bias.detach()
        # Not detach(): the pull-back needs no value of x, so that later in-place changes must not forbid it.
        self._leaf = source.data.requires_grad_()
        self._plain = apply(self._leaf, self.weight)
        self._scale: Tensor | None = None
        self._signed: dict[tuple[bool, bool], Signed] = {}
        self.z = self._plain.detach()

    @property
    def x(self) -> Tensor:
        """The input's values."""
        return self.source.detach()

    def output(self) -> Tensor:
        """Return z plus the bias, as a tensor of its own: what the model sees, and may change in place."""
        return self.z.clone() if self.bias is None else self.z + self.bias

    def scaled(self, scale: Tensor, shift: Tensor, followed_by: str) -> LinearOp:
        """Return the operation whose output is scale · output + shift, per channel (axis 1) of the output.

        Args:
            scale: one factor a channel, shaped to broadcast with the output.
            shift: likewise.
            followed_by: name of the operation that scales.
        """
        if self.rescale is None:
            raise ValueError(f"{self.place} cannot take up a scale")
        folded = object.__new__(LinearOp)
        folded.__dict__.update(self.__dict__)
        folded.place = self.place._replace(operation=f"{self.place.operation} + {followed_by}")
        folded.weight = self.rescale(self.weight, scale.flatten())
        folded.bias = shift if self.bias is None else self.bias * scale + shift
        folded._scale, folded._signed = scale, {}
        folded.z = self.z * scale
        return folded

    def pull_back(self, coefficients: Tensor) -> Tensor:
        """Return Σ_j w_ij s_j for coefficients s of the outputs."""
        if self._scale is not None:
            coefficients = coefficients * self._scale
        return torch.autograd.grad(self._plain, self._leaf, coefficients, retain_graph=True)[0]

    def pull_back_with(self, weight: Tensor, coefficients: Tensor) -> Tensor:
        """Return Σ_j v_ij s_j for another weight v of the same shape."""
        with torch.enable_grad():
            leaf = torch.zeros_like(self._leaf, requires_grad=True)
            return torch.autograd.grad(self.apply(leaf, weight), leaf, coefficients)[0]

    def signed(self, *, positive: bool, negative: bool) -> Signed:
        """Return the sums of positive and of negative contributions, those asked for; made once and kept."""
        key = (positive, negative)
        if key not in self._signed:
            self._signed[key] = self._split(positive, negative)
        return self._signed[key]

    def _split(self, positive: bool, negative: bool) -> Signed:
        x, up, down = self.x, self.weight.clamp(min=0), self.weight.clamp(max=0)
        with torch.enable_grad():
            leaves = (x.clamp(min=0).requires_grad_(),)
            if bool((x < 0).any()):
                leaves += (x.clamp(max=0).requires_grad_(),)
            return Signed(
                self._sum(leaves, (up, down)) if positive else None,
                self._sum(leaves, (down, up)) if negative else None,
                leaves,
            )

    def _sum(self, leaves: tuple[Tensor, ...], weights: tuple[Tensor, Tensor]) -> Tensor:
        found = self.apply(leaves[0], weights[0])
        return found if len(leaves) == 1 else found + self.apply(leaves[1], weights[1])

    def pull_back_signed(self, signed: Signed, positive: Tensor | None, negative: Tensor | None) -> Tensor:
        """Return Σ_j (z⁺_ij s⁺_j + z⁻_ij s⁻_j) / x_i; at x = 0 its limit from above."""
        pairs = [(signed.positive, positive), (signed.negative, negative)]
        sums, coefficients = zip(*[(s, c) for s, c in pairs if s is not None and c is not None], strict=True)
        found = torch.autograd.grad(sums, signed.leaves, coefficients, retain_graph=True)
        return found[0] if len(found) == 1 else torch.where(self.x < 0, found[1], found[0])

    def num_nonzero(self) -> Tensor:
        """Return how many non-zero inputs each output sees."""
        return self.apply((self.x != 0).to(self.z.dtype), torch.ones_like(self.weight))
