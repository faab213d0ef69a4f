"""Per-sample gradients of linear maps and embeddings by their factors: what went in, and the gradient at what came out.

Where a plan records the gradient of a convolution, a sequence or an embedding as plain numbers, this gives a and δ at
every position, for several directions of the logits from one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualview.engine.batches import Inputs
from dualview.engine.gradients.capture import differentiable, fresh, tapped
from dualview.engine.gradients.layers import PATCH_NUMBERS, LinearMap, factor_pairs
from dualview.engine.gradients.plan import GradientPlan
from dualview.engine.gradients.planned_layer import PlannedLayer

DIRECTIONS_AT_ONCE = 10
"""Directions whose δ are held together."""


class Factors(NamedTuple):
    """Some rows of one layer; the gradient of each is G = Σ_p δ_p ⊗ a_p, for each direction.

    Attributes:
        layer: name of the module.
        inputs: a of a linear map, "row position input"; of an embedding the tokens that stand for one-hot a.
        deltas: δ, one for each direction; 0 where an embedding has padding.
        first: whether these are the rows' first directions, and not some more of them.
    """

    layer: str
    inputs: Float[Tensor, "row position input"] | Int[Tensor, "row position"]
    deltas: list[Float[Tensor, "row position output"]]
    first: bool


def factored_layers(plan: GradientPlan) -> dict[str, PlannedLayer]:
    """Return the layers that `factored` takes apart: ungrouped linear maps and embeddings, by name."""
    modules = dict(plan.task.model.named_modules())
    return {
        layer.name: layer
        for layer in plan.layers
        if "weight" in layer.parameters
        and isinstance(modules[layer.name], LinearMap | nn.Embedding)
        and getattr(modules[layer.name], "groups", 1) == 1
    }


def factored(plan: GradientPlan, inputs: Inputs, directions: Callable[[Tensor], list[Tensor]]) -> Iterator[Factors]:
    """Yield the factors of a batch, layer by layer and some rows at a time; one forward pass serves all directions.

    Args:
        plan: which layers; what it differentiates does not matter.
        inputs: of the batch.
        directions: the raw outputs "row logit" → gradients with respect to the class logits, each "row cls".

    Raises:
        ValueError: the batch takes another way through the model than the samples the plan was made with.
    """
    model, layers = plan.task.model, factored_layers(plan)
    with differentiable(model):
        with tapped(model, {layer.name: layer.copied for layer in plan.layers}) as calls:
            raw = plan.task.forward(fresh(inputs))
        logits = plan.task.logits(raw)
        wanted = [call.outputs for name in layers for call in calls[name]]
        chosen = directions(raw.detach().cpu())
        for start in range(0, len(chosen), DIRECTIONS_AT_ONCE):
            found = [
                iter(torch.autograd.grad(logits, wanted, one.to(logits), materialize_grads=True, retain_graph=True))
                for one in chosen[start : start + DIRECTIONS_AT_ONCE]
            ]
            for name, layer in layers.items():
                of_calls = [[next(one) for _ in calls[name]] for one in found]
                pairs = [layer.pairs(calls[name], deltas, len(raw)) for deltas in of_calls]
                for a, deltas in _blocks(model.get_submodule(name), pairs):
                    yield Factors(name, a, deltas, first=start == 0)


def _blocks(module: nn.Module, pairs: list[list[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield a and δ of all calls, behind each other along the positions, for a block of rows at a time.

    Args:
        module: the layer.
        pairs: for each direction the inputs and δ of each call.
    """
    rows = len(pairs[0][0][0])
    width = 1 if isinstance(module, nn.Embedding) else module.weight[0].numel()  # type: ignore[index, union-attr, operator]
    outputs = module.embedding_dim if isinstance(module, nn.Embedding) else len(module.weight)  # type: ignore[arg-type]
    positions = sum(delta[0].numel() for _, delta in pairs[0]) // outputs
    size = max(1, PATCH_NUMBERS // (positions * max(width, outputs)))
    for start in range(0, rows, size):
        some = slice(start, start + size)
        sides = [[_factors(module, a[some], delta[some]) for a, delta in calls] for calls in pairs]
        deltas = [_joined([delta for _, delta in calls]) for calls in sides]
        yield _joined([a for a, _ in sides[0]]), deltas


def _joined(of_calls: list[Tensor]) -> Tensor:
    return of_calls[0] if len(of_calls) == 1 else torch.cat(of_calls, dim=1)  # patches are large


def _factors(module: nn.Module, inputs: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(module, nn.Embedding):
        tokens = inputs.reshape(len(inputs), -1)
        deltas = deltas.reshape(*tokens.shape, module.embedding_dim)
        if module.padding_idx is not None:
            deltas = deltas.masked_fill(tokens[:, :, None] == module.padding_idx, 0)
        return tokens, deltas
    assert isinstance(module, LinearMap)
    return factor_pairs(module, inputs, deltas)
