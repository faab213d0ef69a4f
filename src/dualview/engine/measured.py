"""The measured output of a few samples, as a function of parts of their inputs or of activations inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from dualview.engine.batches import (
    Inputs,
    arguments,
    call_model,
    logits_of,
    map_tensors,
    num_rows,
    tensors_in,
    with_parts,
)
from dualview.engine.isolation import device_of
from dualview.engine.labels import columns_of
from dualview.engine.site import Site, intercepted
from dualview.engine.task import Task
from dualview.errors import NonFiniteError

Parts = dict[Any, Tensor]
"""Tensors "row ..." by where they stand: the place of an input ("" for a lone tensor, else "0", "mask",
"0.x"), or a `Site` inside the model, whose activation they replace."""


class Measured:
    """The measured output f of each sample of a batch.

    Everything is evaluated for rows: row r belongs to sample `samples[r]`, so that a pass may hold many
    versions of one sample. Weights are constants unless `differentiable`.

    Args:
        task: with a single output.
        inputs: a batch as the model takes it.
        targets: the labels of its samples, or None for the network's predictions.
        start: position of its first sample among all that are explained.
        total: how many those are; None where this batch is all.
        size: rows a pass.
        differentiable: keep the graph from results to the model's weights.
    """

    def __init__(
        self,
        task: Task,
        inputs: Inputs,
        targets: Any,
        *,
        start: int = 0,
        total: int | None = None,
        size: int,
        differentiable: bool = False,
    ) -> None:
        self.task, self.start, self.size, self.differentiable = task, start, size, differentiable
        self.device = device_of(task.model)
        self.inputs: Inputs = map_tensors(self._own, inputs)
        self.num_samples = num_rows(inputs)
        self.total = self.num_samples if total is None else total
        self._targets = targets
        weights = () if differentiable else task.model.named_parameters()
        self._constant = {name: weight.detach() for name, weight in weights if weight.requires_grad}

    def __len__(self) -> int:
        return self.num_samples

    def measuring(self, task: Task) -> Measured:
        """Return the same samples for a task of another output; the model is not run again."""
        other = Measured(
            task,
            self.inputs,
            self._targets,
            start=self.start,
            total=self.total,
            size=self.size,
            differentiable=self.differentiable,
        )
        other.see(self.raw)
        return other

    def see(self, raw: Float[Tensor, "sample logit"]) -> None:
        """Take the model's raw outputs on the inputs as they are, where a method has made them anyway."""
        self.raw = self._detached(raw)

    @cached_property
    def raw(self) -> Float[Tensor, "sample logit"]:
        """The model's raw outputs on the inputs as they are: one forward pass."""
        chunks = [self.outputs(rows, {}) for rows in self.chunks(len(self))]
        return self._detached(torch.cat(chunks))

    @cached_property
    def predicted(self) -> Int[Tensor, " sample"]:
        """The output column that the network prefers for each sample; of a regression the one that is explained."""
        if self.task.problem == "regression" and self._targets is not None:
            return self.columns
        return self.task.predicted(self.raw)

    @cached_property
    def columns(self) -> Int[Tensor, " sample"]:
        """The output column that is explained for each sample."""
        if self._targets is None:
            return self.predicted
        num_columns = self.task.logits(self.raw).shape[1]
        names = self.task.named(num_columns).class_names
        columns = columns_of(self._targets, num_columns, self.task.classes, names=names, start=self.start)
        return columns.to(self.device)

    @cached_property
    def values(self) -> Float[Tensor, " sample"]:
        """The measured output of each sample as it is."""
        return self.measure(self.raw, self.samples)

    @cached_property
    def parts(self) -> Parts:
        """The floating-point inputs by their place: what can be changed and has gradients.

        Raises:
            TypeError: there is none (token ids), or one that is neither float32 nor float64.
        """
        found = {
            place: part for place, part in tensors_in(self.inputs).items() if part.is_floating_point() and part.ndim
        }
        if not found:
            raise TypeError(
                "`inputs` hold no floating-point tensor, and token ids have no gradient. Give the embedding layer as "
                "site, to a method that takes one, and the ids that stand for absence, e.g. "
                "IntegratedGradients({'input_ids': 0}, site='bert.embeddings.word_embeddings') with the names in your "
                "inputs and model, or Occlusion(baseline={'input_ids': 0})"
            )
        for place, part in found.items():
            if part.dtype not in (torch.float32, torch.float64):
                name = f"`inputs`[{place!r}]" if place else "`inputs`"
                raise TypeError(f"{name} are {part.dtype}; expected float32 or float64: convert model and inputs")
        return found

    @property
    def samples(self) -> Int[Tensor, " sample"]:
        """One row for each sample."""
        return torch.arange(len(self), device=self.device)

    def chunks(self, rows: int) -> Iterator[Tensor]:
        """Yield 0 to rows − 1 in pieces that fit into a pass."""
        yield from torch.arange(rows, device=self.device).split(self.size)

    def at(self, samples: Int[Tensor, " row"], parts: Parts) -> Float[Tensor, " row"]:
        """Return f for rows whose inputs, or activations, are replaced in part."""
        return self.measure(self.outputs(samples, parts), samples)

    def gradients(self, samples: Int[Tensor, " row"], parts: Parts) -> tuple[Float[Tensor, " row"], Parts]:
        """Return f and its gradient with respect to the parts that were put in, shaped like them."""
        with torch.enable_grad():
            leaves = {place: self._leaf(part) for place, part in parts.items()}
            values = self.at(samples, leaves)
            return self._detached(values), self._derivatives(values, leaves)

    def gradients_at(
        self, sites: Iterable[Site], samples: Int[Tensor, " row"], parts: Parts
    ) -> tuple[Float[Tensor, " row"], Parts, Parts]:
        """Return f, the activations at these sites, and f's gradient with respect to each of them."""
        held: Parts = {}

        def hold(site: Site, activation: Tensor) -> Tensor:
            held[site] = activation if activation.requires_grad else self._leaf(activation)
            return held[site].clone()  # what follows may write in place

        with torch.enable_grad():
            acts = {site: partial(hold, site) for site in sites}
            values = self.measure(self.outputs(samples, parts, acts), samples)
            gradients = self._derivatives(values, held)
        return self._detached(values), {site: self._detached(held[site]) for site in held}, gradients

    def activations(self, sites: Iterable[Site], samples: Int[Tensor, " row"], parts: Parts) -> Parts:
        """Return the activations at these sites."""
        seen: Parts = {}

        def see(site: Site, activation: Tensor) -> Tensor:
            seen[site] = self._detached(activation).clone()
            return activation

        with torch.set_grad_enabled(self.differentiable):
            self.outputs(samples, parts, {site: partial(see, site) for site in sites})
        return seen

    def outputs(
        self,
        samples: Tensor,
        parts: Parts,
        acts: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """Return the raw outputs "row logit"; what a site is replaced by comes before what looks at it."""
        model = self.task.model
        taken = {
            place: parts[place] if place in parts else tensor[samples]
            for place, tensor in tensors_in(self.inputs).items()
            if tensor.ndim
        }
        inputs = with_parts(self.inputs, taken)
        replaced = {site: partial(_put, value) for site, value in parts.items() if isinstance(site, Site)}
        with intercepted(model, replaced), intercepted(model, dict(acts or {})):
            if self._constant:
                output = functional_call(model, self._constant, *arguments(model, inputs))
            else:
                output = call_model(model, inputs)
        return logits_of(output, len(samples))

    def measure(self, raw: Tensor, samples: Tensor) -> Tensor:
        """Return f "row" of raw outputs "row logit"."""
        one_logit = self.task.problem == "classification" and raw.shape[1] == 1
        values = self.task.measure(self.task.logits(raw), self.columns[samples], one_logit=one_logit)
        if values.shape != (len(samples),):
            raise ValueError(
                f"`output` must give one number per sample, shape ({len(samples)},); it gave {tuple(values.shape)}"
            )
        if not bool(values.isfinite().all()):
            bad = sorted({self.start + int(k) for k in samples[~values.isfinite()]})
            raise NonFiniteError(f"the measured output is NaN or infinite for samples {bad[:5]}", tuple(bad))
        return values

    def _derivatives(self, values: Tensor, leaves: Parts) -> Parts:
        if not values.requires_grad:
            raise ValueError(
                "the measured output does not depend on what is attributed to by differentiable operations: does the "
                "model detach it, or run under torch.no_grad()?"
            )
        found = torch.autograd.grad(
            values.sum(), list(leaves.values()), create_graph=self.differentiable, materialize_grads=True
        )
        return dict(zip(leaves, found, strict=True))

    def _own(self, tensor: Tensor) -> Tensor:
        """Return an input on the model's device, without the caller's graph and not of its inference mode."""
        return (tensor.clone() if tensor.is_inference() else tensor.detach()).to(self.device)

    def _leaf(self, part: Tensor) -> Tensor:
        """Return what to differentiate by: an activation that is a function of the weights stays one."""
        return part if self.differentiable and part.requires_grad else part.detach().requires_grad_()

    def _detached(self, tensor: Tensor) -> Tensor:
        return tensor if self.differentiable else tensor.detach()


def _put(value: Tensor, activation: Tensor) -> Tensor:
    if value.shape != activation.shape:
        raise ValueError(f"an activation of shape {tuple(activation.shape)} cannot become {tuple(value.shape)}")
    return value.clone()  # what follows may write in place


def one_each(targets: Any, total: int) -> Any:
    """Return targets, one for each sample or one for all, as one for each.

    Raises:
        ValueError: another number of them.
    """
    if targets is None:
        return None
    if np.ndim(targets) == 0:
        return [targets.item() if hasattr(targets, "item") else targets] * total
    if len(targets) != total:
        raise ValueError(f"`targets` hold {len(targets)} labels for {total} samples")
    return targets
