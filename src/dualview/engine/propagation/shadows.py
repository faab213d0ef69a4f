"""The second path down to the input, for rules that write relevance themselves.

A modified gradient reaches a zero input as relevance 0. The flat, w² and z-box rules give relevance
to zeros as well, so it travels apart: a tensor that comes from the input by rearranging alone has a
*shadow*, zeros made from a second leaf by the same rearrangement. A terminal rule writes R onto the
shadow; the gradient at that leaf is the relevance written to the input. Adding or multiplying
constants (an input's normalisation) moves no relevance from one element to another, and keeps it.
Where a constant took the input's place, by a factor of 0 too, what is written there is booked.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Shadows:
    """Which tensors of a forward pass have a shadow."""

    def __init__(self) -> None:
        self._found = WeakIdKeyDictionary()

    def of(self, tensor: Tensor) -> Tensor | None:
        """Return the tensor's shadow; None if it has none, or was changed in place since."""
        found: tuple[Tensor, int] | None = self._found.get(tensor)
        return found[0] if found is not None and found[1] == tensor._version else None

    def cast(self, tensor: Tensor, shadow: Tensor | None) -> None:
        """Give the tensor this shadow, spread over its shape where a constant made it larger.

        It lies in memory as the tensor does: `tensor.view(...)` must be possible for it as well.
        """
        if shadow is None:
            return
        shadow = shadow.expand(tensor.shape)
        if shadow.stride() != tensor.stride():
            shadow = shadow.new_empty_strided(tensor.shape, tensor.stride()).copy_(shadow)
        self._found[tensor] = (shadow, tensor._version)
