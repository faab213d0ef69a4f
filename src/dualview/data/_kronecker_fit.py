"""Fitting a factored curvature: two walks over the training samples, for the eigenvectors and for the eigenvalues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualview.data._fisher import Fisher
from dualview.data._kronecker_blocks import Shape
from dualview.engine.gradients import plan_gradients
from dualview.engine.gradients.factored import Factors, factored, factored_layers
from dualview.engine.gradients.plan import GradientPlan
from dualview.engine.tables import Table
from dualview.ops.kronecker import Basis, eigenvectors, second_moment, squares, token_squares
from dualview.ops.layout import Layout

Form = Literal["ekfac", "kfac", "diagonal", "identity"]
PROBE_ROWS = 4  # as the rows were planned


class Curved(NamedTuple):
    """What is known of a block before it is damped.

    Attributes:
        name: of the layer, or of a parameter whose curvature is taken to be diagonal.
        shape: of the block.
        basis: eigenvectors, float64.
        eigenvalues: Λ, float64.
    """

    name: str
    shape: Shape
    basis: Basis
    eigenvalues: Float[Tensor, "j k"]


class Walk(NamedTuple):
    """The samples to walk, and the directions of their pseudo-gradients."""

    plan: GradientPlan
    train: Table
    positions: Int[Tensor, " train"]
    fisher: Fisher

    def factors(self) -> Iterator[Factors]:
        for inputs, targets, index in self.train.batches(self.positions):
            yield from factored(self.plan, inputs, lambda raw: self.fisher.directions(raw, targets, index))  # noqa: B023

    def squared_gradients(self, parameters: tuple[str, ...]) -> Float[Tensor, " param"]:
        """Return E Σ g² of parameters that no layer's factors give, over samples and directions, in float64."""
        first = next(self.train.batches(torch.arange(min(PROBE_ROWS, len(self.train)))))
        plan = plan_gradients(self.plan.task, first.inputs, of="loss", parameters=parameters)
        total = torch.zeros(sum(part.width for part in plan.layout), dtype=torch.float64)
        for inputs, targets, index in self.train.batches(self.positions):
            for one in self.fisher.directions(self.train.rows(index).outputs, targets, index):
                total += plan.record(inputs, targets, directions=one)[0].double().square().sum(0)
        return total / len(self.positions)


class _Moments:
    """Sums over samples that the eigenvectors of a layer come from."""

    def __init__(self) -> None:
        self.inputs: Tensor | float = 0.0
        self.outputs: Tensor | float = 0.0
        self.positions = 0


def fitted(
    form: Form,
    plan: GradientPlan,
    layout: Layout,
    train: Table,
    positions: Int[Tensor, " train"],
    fisher: Fisher | None,
) -> list[Curved]:
    """Return the undamped curvature, block by block: layers, then parameters by themselves.

    Args:
        form: of the curvature.
        plan: of the loss gradients.
        layout: of the recorded rows.
        train: the samples.
        positions: which of them.
        fisher: the directions of pseudo-gradients; None for "identity".
    """
    shapes = block_shapes(plan, layout, bases=form in ("kfac", "ekfac"))
    nothing = torch.empty(0, 0, dtype=torch.float64)
    if fisher is None:
        ones = (torch.ones(one.outputs, one.inputs, dtype=torch.float64) for one in shapes.values())
        return [
            Curved(name, shape, Basis(nothing, nothing), one)
            for (name, shape), one in zip(shapes.items(), ones, strict=True)
        ]
    walk = Walk(plan, train, positions, fisher)
    layers = {name: shape for name, shape in shapes.items() if name in factored_layers(plan)}
    found = [Curved(name, shape, Basis(nothing, nothing), nothing) for name, shape in layers.items()]
    if form in ("kfac", "ekfac") and layers:
        found = _turned(walk, layers)
    if form in ("diagonal", "ekfac") and layers:
        found = _corrected(walk, found)
    rest = {name: shape for name, shape in shapes.items() if name not in layers}
    if rest:
        values = walk.squared_gradients(tuple(rest)).split([shape.inputs for shape in rest.values()])
        alone = zip(rest.items(), values, strict=True)
        found += [Curved(name, shape, Basis(nothing, nothing), one[None]) for (name, shape), one in alone]
    return found


def block_shapes(plan: GradientPlan, layout: Layout, *, bases: bool = True) -> dict[str, Shape]:
    """Return the blocks of a plan's layers by name, and behind them one for each part that belongs to none."""
    place = {part.name: k for k, part in enumerate(layout)}
    shapes, taken = dict[str, Shape](), set[int]()
    for name, layer in factored_layers(plan).items():
        weight = place[layer.parameters["weight"]]
        bias = place.get(layer.parameters.get("bias", ""), -1)
        part, module = layout[weight], plan.task.model.get_submodule(name)
        has_bias = part.bias if part.rank else bias >= 0
        if isinstance(module, nn.Embedding):
            shapes[name] = Shape(weight, bias, module.embedding_dim, module.num_embeddings, 1, int(bases), 0)
        else:
            outs = len(module.weight)  # type: ignore[arg-type]
            ins = module.weight[0].numel()  # type: ignore[index, union-attr, operator]
            shapes[name] = Shape(weight, bias, outs, ins + has_bias, 0, int(bases), int(bases))
        taken |= {weight, bias}
    return shapes | {part.name: Shape(k, -1, 1, part.width) for k, part in enumerate(layout) if k not in taken}


def _turned(walk: Walk, shapes: dict[str, Shape]) -> list[Curved]:
    """Return eigenvectors of the covariances of both sides, with the eigenvalues of their Kronecker product."""
    moments = {name: _Moments() for name in shapes}
    for one in walk.factors():
        shape, sums = shapes[one.layer], moments[one.layer]
        if one.first and shape.transposed:
            padding = walk.plan.task.model.get_submodule(one.layer).padding_idx
            tokens = one.inputs.flatten() if padding is None else one.inputs[one.inputs != padding]
            sums.inputs += torch.bincount(tokens.cpu(), minlength=shape.inputs).double()
            sums.positions += len(tokens)
        elif one.first:
            sums.inputs += second_moment(one.inputs, bias=shape.inputs > one.inputs.shape[2])
            sums.positions += one.inputs.shape[0] * one.inputs.shape[1]
        for delta in one.deltas:
            sums.outputs += second_moment(delta)
    found = []
    for name, sums in moments.items():
        assert isinstance(sums.inputs, Tensor) and isinstance(sums.outputs, Tensor)
        of_outputs, output_basis = eigenvectors(sums.outputs / max(1, sums.positions))
        of_inputs, input_basis = sums.inputs / len(walk.positions), torch.empty(0, 0, dtype=torch.float64)
        if not shapes[name].transposed:
            of_inputs, input_basis = eigenvectors(of_inputs)
        basis = Basis(output_basis, input_basis)
        found.append(Curved(name, shapes[name], basis, torch.outer(of_outputs, of_inputs)))
    return found


def _corrected(walk: Walk, blocks: list[Curved]) -> list[Curved]:
    """Return the blocks with the second moments of pseudo-gradients in their basis as eigenvalues."""
    by_name = {block.name: block for block in blocks}
    sums = {
        name: torch.zeros(one.shape.outputs, one.shape.inputs, dtype=torch.float64) for name, one in by_name.items()
    }
    bases = dict[str, Basis]()
    for one in walk.factors():
        shape = by_name[one.layer].shape
        if one.layer not in bases:
            bases[one.layer] = Basis(*(matrix.to(one.deltas[0]) for matrix in by_name[one.layer].basis))
        if shape.transposed:
            sums[one.layer] += token_squares(bases[one.layer].outputs, one.inputs, one.deltas, shape.inputs)
        else:
            bias = shape.inputs > one.inputs.shape[2]
            sums[one.layer] += squares(bases[one.layer], one.inputs, one.deltas, bias=bias)
    return [block._replace(eigenvalues=sums[block.name] / len(walk.positions)) for block in blocks]
