"""Linear operations as the rules see them: an input, a weight, and a map that is linear in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dualview.engine.propagation.account import Place

OpKind = Literal["linear", "convolution", "batch_norm"]


class LinearOp:
    """One use of a linear operation, z = apply(x, weight), in a forward pass.

    Attributes:
        place: where it stands.
        kind: which entry of a composite it falls under.
        source: the input, still part of the graph.
        weight: the constant operand.
        bias: what is added to z, broadcastable to it; None for nothing.
        apply: (input, weight) → output.
        spellings: the torch functions that do this, as a user's map may name them.
        rescale: (weight, one factor a channel of the output) → the weight of the scaled operation.
        shadow: see `shadows`; None where anything but rearranging stands below.
        by_sample: whether the first axis is known to be the sample.
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
        transpose: Callable[[Tensor, Tensor, torch.Size], Tensor] | None = None,
        spellings: tuple[Callable, ...] = (),
        rescale: Callable[[Tensor, Tensor], Tensor] | None = None,
        shadow: Tensor | None = None,
        by_sample: bool = True,
    ) -> None:
        self.place, self.source, self.shadow, self.by_sample = place, source, shadow, by_sample
        self.kind: OpKind = kind
        self.spellings = spellings
        self.weight, self.apply, self.rescale = weight.detach(), apply, rescale
        self.bias = None if bias is None else bias.detach()
        self._transpose = transpose
        self._signed: dict[bool, Tensor] = {}
        self._negative: bool | None = None
        self._read = [(tensor, tensor._version) for tensor in (self.weight, self.bias) if tensor is not None]
        with torch.no_grad():
            self.z = apply(self.x, self.weight)
        if self.z.dtype != source.dtype:
            raise TypeError(
                f"{place} turns {source.dtype} into {self.z.dtype}: relevance needs one precision throughout"
            )

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
        folded._signed = {}
        folded.z = self.z * scale
        return folded

    def check_unchanged(self) -> None:
        """Raise where weights were written to since the forward pass; writes through `.data` leave no trace."""
        if any(tensor._version != version for tensor, version in self._read):
            raise ValueError(f"the weights of {self.place} were changed after the trace: trace again")

    def pull_back(self, coefficients: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return Σ_j w_ij s_j for coefficients s of the outputs, with its own weight or another of that shape."""
        weight = self.weight if weight is None else weight
        if self._transpose is not None:
            return self._transpose(coefficients, weight, self.source.shape)
        with torch.enable_grad():
            leaf = torch.zeros_like(self.x, requires_grad=True)
            return torch.autograd.grad(self.apply(leaf, weight), leaf, coefficients)[0]

    def signed(self, positive: bool) -> Tensor:
        """Return Σ_i z⁺_ij for each output j, or Σ_i z⁻_ij; made once and kept."""
        if positive not in self._signed:
            x, (same, other) = self.x, self._weights(positive)
            found = self.apply(x.clamp(min=0), same)
            self._signed[positive] = found + self.apply(x.clamp(max=0), other) if self._has_negative() else found
        return self._signed[positive]

    def pull_back_signed(self, positive: Tensor | None, negative: Tensor | None) -> Tensor:
        """Return Σ_j (z⁺_ij s⁺_j + z⁻_ij s⁻_j) / x_i; at x = 0 its limit from above."""
        pairs = [(s, self._weights(sign)) for sign, s in ((True, positive), (False, negative)) if s is not None]
        found = _summed([self.pull_back(s, same) for s, (same, _) in pairs])
        if not self._has_negative():
            return found
        return torch.where(self.x < 0, _summed([self.pull_back(s, other) for s, (_, other) in pairs]), found)

    def _weights(self, positive: bool) -> tuple[Tensor, Tensor]:
        """Return the weights that make contributions of this sign: where x > 0, and where x < 0."""
        up, down = self.weight.clamp(min=0), self.weight.clamp(max=0)
        return (up, down) if positive else (down, up)

    def _has_negative(self) -> bool:
        if self._negative is None:
            self._negative = bool((self.x < 0).any())
        return self._negative


def _summed(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]
