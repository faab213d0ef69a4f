"""Dual encoders: which features of one input make it similar to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualview.engine.batches import as_inputs, num_rows, tensors_in
from dualview.engine.isolation import untouched
from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.engine.removal import as_removal, same_values
from dualview.engine.site import Site
from dualview.engine.task import Task
from dualview.features._method import Explained, FeatureMethod
from dualview.features.integrated_gradients import IntegratedGradients

Similarity = Literal["dot", "cosine"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _Matching(Task):
    """A task whose raw outputs are embeddings of the inputs, and whose logits are similarities to candidates.

    Attributes:
        others: the candidates' embeddings, as similarities need them.
        references: the embedding that stands for no candidate, one for each.
    """

    others: Float[Tensor, "candidate dim"]
    references: Float[Tensor, "candidate dim"]

    def logits(self, raw: Float[Tensor, "row dim"]) -> Float[Tensor, "row candidate"]:
        return self._products(raw, self.others - self.references)

    def predicted(self, raw: Float[Tensor, "row dim"]) -> Int[Tensor, " row"]:
        return self._products(raw, self.others).argmax(1)

    def _products(self, raw: Tensor, embeddings: Tensor) -> Tensor:
        if raw.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"`others` have {embeddings.shape[1]} numbers each; the model's embeddings have {raw.shape[1]}"
            )
        return raw @ embeddings.to(raw).T


@dataclass(frozen=True)
class DualEncoder(FeatureMethod):
    """The similarity ⟨e(a), e(b)⟩ of two encoded inputs, attributed to a: one side of Möller, Nikolaev and Padó (2023).

    With the task's model as e and references r_a, r_b: integrated gradients of a ↦ ⟨e(a), e(b) − e(r_b)⟩. They sum to

        s(a, b) − s(a, r_b) − s(r_a, b) + s(r_a, r_b) = ⟨e(a) − e(r_a), e(b) − e(r_b)⟩

    and are the sums over b's features of the published matrix A over pairs of features, without its Jacobians: the
    integrated Jacobian of b's side times b − r_b is e(b) − e(r_b). Several candidates b stand in place of classes:
    `targets` picks one for each sample, by default the most similar; `dv.contrast` compares two.

    Args:
        others: the candidates, as `encoder` takes them, or their embeddings "candidate dim".
        reference: r_b, one for all candidates or one each: a batch as `encoder` takes it; without one embeddings.
        encoder: a function of `others` as they are, or a module, which is called as the model is (a tuple by
            position, a dict by name): embeddings "candidate dim". None where embeddings were given. For one network
            on both sides, the model itself.
        similarity: "dot", or "cosine": all terms are divided by |e(a)| |e(b)| of the inputs as they are.
        baseline: r_a, as `IntegratedGradients` takes it.
        steps: nodes on the path from r_a to a.
        site: where the path runs inside the model, e.g. the embedding layer of tokens; None for the inputs.

    Costs what `IntegratedGradients` does, `steps` forward and backward passes of the model a sample and draw above
    all, and a forward pass of `encoder` for each candidate and reference.

    Example:
        >>> texts = DualEncoder(captions, empty, encoder=text_encoder, similarity="cosine")  # doctest: +SKIP
        >>> texts.attribute(image_encoder, images, targets=0).values  # doctest: +SKIP
    """

    others: Any
    reference: Any
    _: KW_ONLY
    encoder: Callable[[Any], Tensor] | None = None
    similarity: Similarity = "dot"
    baseline: Any = 0.0
    steps: int = 50
    site: Site | str | None = None

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        self._integrated()
        if self.similarity not in get_args(Similarity):
            raise ValueError(f"`similarity` is {self.similarity!r}; choose from 'dot' and 'cosine'")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DualEncoder):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        shown = {field.name: _shown(getattr(self, field.name), self.encoder) for field in dataclasses.fields(self)}
        return f"DualEncoder({', '.join(f'{name}={value}' for name, value in shown.items() if name != '_')})"

    def explain(self, measured: Measured) -> Explained:
        if not isinstance(measured.task, _Matching):
            raise TypeError("DualEncoder explains similarities, not the task's own output: call its `attribute`")
        found = self._integrated().explain(measured)
        if self.similarity == "dot":
            return found
        assert found.change is not None
        norms = measured.raw.norm(dim=1)
        values = {place: part / norms.reshape(-1, *[1] * (part.ndim - 1)) for place, part in found.values.items()}
        return Explained(values, change=found.change / norms)

    def _integrated(self) -> IntegratedGradients:
        return IntegratedGradients(self.baseline, steps=self.steps, site=self.site)

    def explained_task(self, task: Task) -> Task:
        outputs = task.output if isinstance(task.output, tuple) else (task.output,)
        if self.similarity == "cosine" and not all(getattr(output, "linear", False) for output in outputs):
            raise ValueError(
                "similarity='cosine' holds for outputs that are linear in similarities: give the task dv.logit or "
                "dv.contrast, or similarity='dot' of an encoder that normalises its embeddings"
            )
        others, reference = self._embedded("others"), self._embedded("reference")
        if others.ndim != 2 or not len(others):
            raise ValueError(f"`others` have embeddings of shape {tuple(others.shape)}; expected (candidate, dim)")
        try:
            references = reference.expand_as(others)
        except RuntimeError:
            raise ValueError(
                f"`reference` has embeddings of shape {tuple(reference.shape)}; expected ({others.shape[1]},) for all "
                f"candidates or {tuple(others.shape)} with one for each"
            ) from None
        norms = others.norm(dim=1, keepdim=True) if self.similarity == "cosine" else 1.0
        fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
        return _Matching(**fields, others=others / norms, references=references / norms)

    def _embedded(self, name: str) -> Tensor:
        given, encoder = as_inputs(getattr(self, name)), self.encoder
        if isinstance(encoder, nn.Module):
            with untouched(encoder):
                return Task(encoder).forward(given)
        found = given if encoder is None else encoder(given)
        try:
            return 1.0 * torch.as_tensor(found).detach()  # whole numbers have no norm
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"`{name}` must be embeddings (candidate, dim), or what `encoder` makes such of; they are of type "
                f"{type(found).__name__}"
            ) from None


def _shown(value: Any, encoder: Any) -> str:
    """Write a field as Python prints it, but data and networks by their size and name."""
    if value is not None and value is encoder:
        return f"<{getattr(value, '__name__', type(value).__name__)}>"
    parts = tensors_in(value)
    return f"<{num_rows(parts)} rows>" if any(part.ndim for part in parts.values()) else repr(value)


def _same(a: Any, b: Any) -> bool:
    """Compare values that may be tensors, which answer number by number."""
    if a is b:
        return True
    return same_values(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)
