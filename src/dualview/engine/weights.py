"""Whether a model still is the one that was fitted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dualview.engine.fingerprint import model_fingerprint


@dataclass(eq=False)
class Weights:
    """A model's parameters and buffers, as they were.

    Attributes:
        content: fingerprint of the model.
        glimpse: where each tensor lies and how often it was written, which costs nothing to look at; it is brought up
            to date where the content turns out to be the same.
    """

    content: str
    glimpse: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, model: nn.Module, content: str | None = None) -> Weights:
        """Look at a model; `content` is its fingerprint, where that is known already."""
        return cls(model_fingerprint(model) if content is None else content, _glimpse(model))

    def check(self, model: nn.Module) -> None:
        """Compare with the model as it is now.

        Raises:
            ValueError: a parameter or a buffer has another value.
        """
        now = _glimpse(model)
        if now == self.glimpse:
            return
        if model_fingerprint(model) != self.content:
            raise ValueError(
                f"the weights of {type(model).__name__}, or its running statistics, are others than at its fit. "
                "In training mode a model's batch norm changes whenever it is run: call model.eval() before you run it "
                "yourself, load its checkpoint again and fit. A model that was trained further needs a fit of its own."
            )
        self.glimpse = now


def _glimpse(model: nn.Module) -> tuple[tuple[int, int], ...]:
    tensors = (*model.parameters(), *model.buffers())
    return tuple((tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)
