"""The second path down to the input, for rules that write relevance themselves.

A modified gradient reaches a zero input as relevance 0. The flat, w² and z-box rules give relevance
to zeros as well, so it travels apart: a tensor that comes from the input by rearranging alone has a
*shadow*, zeros made from a second leaf by the same rearrangement. A terminal rule writes R onto the
shadow; the gradient at that leaf is the relevance written to the input. Adding or multiplying
constants (an input's normalisation) moves no relevance from one element to another, and keeps it.
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
        """Give the tensor this shadow, spread over its shape where a constant made it larger."""
        if shadow is None:
            return
        if shadow.shape != tensor.shape:
            shadow = shadow.expand(tensor.shape)
        self._found[tensor] = (shadow, tensor._version)
