"""What one forward pass leaves for its backward passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from dualview.engine.propagation.account import Ledger, Place, check_finite
from dualview.engine.propagation.composites import Composite
from dualview.engine.propagation.constants import Constant, LostShadow
from dualview.engine.propagation.linear_ops import LinearOp
from dualview.engine.propagation.shadows import Shadows
from dualview.engine.site import Site


class Tape:
    """The graph's nodes and who made them, the books, and what handlers need of each other.

    Attributes:
        composite: which rule stands where.
        ledger: the books.
        nodes: every autograd node that a rule made, with its place.
        shadows: see `shadows`.
        used: keys of the composite that chose a rule so far.
        noted: nodes at which relevance is to be read, with the sites that asked for it.
    """

    def __init__(self, composite: Composite, num_samples: int, like: Tensor) -> None:
        self.composite, self.ledger = composite, Ledger(num_samples)
        self.nodes: dict[Any, Place] = {}
        self.shadows = Shadows()
        self.used: set[Any] = set()
        self.noted: dict[Any, Site] = {}
        self.anchor = torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=True)
        self.anchor_edge = get_gradient_edge(self.anchor)
        self.is_in_sight = False
        self._memory: dict[int, StorageWeakRef] = {}
        self._readers: dict[int, list[LinearOp]] = {}
        self._moved = WeakIdKeyDictionary()

    def constant(self, value: Tensor, place: Place) -> Tensor:
        """Return the constant as a part of the graph that books its relevance; zeros have none."""
        if not value.is_floating_point() or not bool(value.any()):
            return value
        return Constant.apply(self.anchor, value, place, self.ledger)  # type: ignore[no-any-return]

    def lost_shadow(self, like: Tensor, place: Place) -> Tensor:
        """Return a constant's shadow: what a terminal rule writes there is booked."""
        return LostShadow.apply(self.anchor, like, place, self.ledger)  # type: ignore[no-any-return]

    def by_sample(self, tensor: Tensor) -> bool:
        """Tell whether the tensor's first axis is known to be the sample."""
        return tensor.ndim > 0 and tensor.shape[0] == self.ledger.num_samples and tensor not in self._moved

    def follow_samples(self, given: list[Tensor], results: Any, place: Place) -> None:
        """Remember results whose first axis may be another than the sample: what they book is known in total only."""
        for tensor in tensors_of(results):
            kept = tensor.ndim > 0 and tensor.shape[0] == self.ledger.num_samples
            if kept and tensor._is_view():  # of the same length by chance, as after x.transpose(0, 1)?
                kept = all(x.stride()[:1] == tensor.stride()[:1] for x in given if storage_of(x) == storage_of(tensor))
            if not kept or any(x in self._moved for x in given):
                self.moved(tensor, place)

    def moved(self, tensor: Tensor, place: Place) -> None:
        """Remember that a result's first axis may be another than the sample."""
        self._moved[tensor] = True
        self.ledger.unsure.add(place)

    def depends(self, tensor: Tensor) -> None:
        """Remember the memory of a tensor that depends on the input."""
        if is_tracked(tensor):
            storage = tensor.untyped_storage()
            self._memory[storage.data_ptr()] = StorageWeakRef(storage)

    @contextmanager
    def in_sight(self) -> Iterator[None]:
        """Say that what runs inside is known: a call that the function mode saw, or our own looking."""
        before, self.is_in_sight = self.is_in_sight, True
        try:
            yield
        finally:
            self.is_in_sight = before

    def depends_on_input(self, tensor: Tensor) -> bool:
        """Tell whether a tensor looks at memory that depends on the input."""
        if not tensor.is_floating_point() or tensor.layout != torch.strided or not tensor.numel():
            return False
        found = self._memory.get(tensor.untyped_storage().data_ptr())
        return found is not None and not found.expired()

    def reads(self, op: LinearOp) -> None:
        """Remember which memory an operation will look at during backward."""
        self._readers.setdefault(storage_of(op.source), []).append(op)

    def before_writing(self, tensor: Tensor) -> None:
        """Let operations that read this memory keep a copy of it, for it is about to change."""
        for op in self._readers.pop(storage_of(tensor), ()):
            source = op.source
            op.source = source.clone()
            self.made(op.place, [op.source], nodes_of([source]))

    def made(self, place: Place, results: Any, before: set[Any]) -> None:
        """Sign the nodes between the results and what was there before as this operation's."""
        for tensor in tensors_of(results):
            self.depends(tensor)
        pending = list(nodes_of(tensors_of(results)))
        while pending:
            node = pending.pop()
            if node is None or node in before or node in self.nodes or is_leaf(node):
                continue
            self.nodes[node] = place
            _watch_for_overflow(node, place)
            pending.extend(next_node for next_node, _ in node.next_functions)


def _watch_for_overflow(node: Any, place: Place) -> None:
    def look(grad_inputs: tuple[Tensor | None, ...], _grad_outputs: tuple[Tensor | None, ...]) -> None:
        for gradient in grad_inputs:
            if gradient is not None:
                check_finite(gradient, str(place))

    node.register_hook(look)


def is_leaf(node: Any) -> bool:
    """Tell whether a node stands for a leaf of the graph."""
    return node.name().endswith("AccumulateGrad")


def is_tracked(value: Any) -> bool:
    """Tell whether a value depends on the input: leaves that ask for gradients are weights."""
    return isinstance(value, Tensor) and value.requires_grad and value.grad_fn is not None


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_of(part)


def nodes_of(tensors: Iterable[Tensor]) -> set[Any]:
    """Return the nodes that made the tensors, and those behind the tensors they are views of."""
    found = set()
    for tensor in tensors:
        found.add(tensor.grad_fn)
        if tensor._is_view() and tensor._base is not None:
            found.add(tensor._base.grad_fn)
    return found - {None}


def storage_of(tensor: Tensor) -> int:
    """Return what two tensors share if they share memory."""
    return tensor.untyped_storage()._cdata
