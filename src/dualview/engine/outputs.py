"""What is measured of a prediction: a scalar per sample, made from the network's logits.

Methods that are linear in the logits explain any of these through its gradient v with respect to
the logits, taken at the network's own logits (`directions`). For `logit` and `contrast` that is the
output itself; for the others it is a linearisation, and results say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dualview.errors import NonFiniteError

Kind = Literal["share", "effect", "similarity"]
"""Of which kind a score is. share: an exact part of an output, the shares and a bias add up. effect: the
estimated change of the measured output by including the player. similarity: neither."""


@dataclass(frozen=True)
class Output:
    """A measured output; call it with logits "row cls" and target columns "row" for a value per row.

    Attributes:
        name: how results call it.
        function: the measurement; must treat each row apart and be differentiable.
        linear: whether it is linear in the logits, so that its gradient loses nothing.
        lower_is_better: whether less of it speaks for the model (a loss).

    Example:
        >>> entropy = Output("entropy", lambda z, y: torch.distributions.Categorical(logits=z).entropy())
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    linear: bool = False
    lower_is_better: bool = False

    def __call__(self, outputs: Float[Tensor, "row cls"], targets: Tensor) -> Float[Tensor, " row"]:
        return self.function(outputs, targets)


def _logit(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.gather(1, targets[:, None]).squeeze(1)


def _margin(outputs: Tensor, targets: Tensor) -> Tensor:
    rivals = outputs.masked_fill(F.one_hot(targets, outputs.shape[1]).bool(), -torch.inf)
    return _logit(outputs, targets) - rivals.logsumexp(1)


def _log_probability(outputs: Tensor, targets: Tensor) -> Tensor:
    return _logit(outputs.log_softmax(1), targets)


def _mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().mean(1)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@dataclass(frozen=True)
class _Contrast:
    a: int
    b: int

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        num_classes = outputs.shape[1]
        for column in (self.a, self.b):
            if not 0 <= column < num_classes:
                raise ValueError(f"contrast({self.a}, {self.b}): the network has output columns 0 to {num_classes - 1}")
        return outputs[:, self.a] - outputs[:, self.b]


logit = Output("logit", _logit, linear=True)
"""The logit of the target column."""

margin = Output("margin", _margin)
"""The target's logit minus the log of the sum over its rivals of exp(logit): log p/(1 − p)."""

log_probability = Output("log_probability", _log_probability)
"""The log-softmax of the target column."""

loss = Output("loss", _cross_entropy, lower_is_better=True)
"""The task's own per-sample training loss (`Task.loss`); cross-entropy by default."""


mean_square = Output("mean_square", _mean_square)
"""The mean of the squared outputs: of a denoiser's prediction what D-TRAK measures."""


def contrast(a: int, b: int) -> Output:
    """Measure the logit of column `a` minus that of column `b`, whatever the targets are."""
    if a == b:
        raise ValueError(f"contrast({a}, {b}) is zero for every input: give two different columns")
    return Output(f"contrast({a}, {b})", _Contrast(a, b), linear=True)


def directions(
    measure: Callable[[Tensor, Tensor], Tensor], logits: Float[Tensor, "row cls"], targets: Tensor
) -> Float[Tensor, "row cls"]:
    """Return v, the gradient of each row's measured output with respect to its logits.

    Raises:
        ValueError: the output is not one number per row, or does not depend on the logits.
        NonFiniteError: its gradient is NaN or infinite; it names the rows.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf, targets = logits.detach().clone().requires_grad_(), targets.clone()  # autograd keeps no inference tensor
        measured = measure(leaf, targets)
        if measured.shape != (len(leaf),):
            shape = tuple(measured.shape)
            raise ValueError(f"the measured output must be one number per sample, shape ({len(leaf)},); it is {shape}")
        gradient = None
        if measured.requires_grad:
            (gradient,) = torch.autograd.grad(measured.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise ValueError("the measured output does not depend on the logits by differentiable operations")
    bad = ~gradient.isfinite().all(1)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise NonFiniteError(f"the measured output has a NaN or infinite gradient at test rows {rows[:5]}", tuple(rows))
    return gradient
