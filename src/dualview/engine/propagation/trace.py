"""One forward pass under rules, and as many backward passes of relevance as are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, disable_saved_tensors_hooks, get_gradient_edge

from dualview.engine.batches import Inputs, call_model, logits_of, map_tensors, num_rows, tensors_in
from dualview.engine.isolation import device_of, untouched
from dualview.engine.propagation.account import Account, Place, check_finite
from dualview.engine.propagation.audit import audit, check_visible
from dualview.engine.propagation.composites import Composite
from dualview.engine.propagation.mode import OutOfSight, RelevanceMode
from dualview.engine.propagation.tape import Tape, is_tracked
from dualview.engine.propagation.whereabouts import Passed, Whereabouts
from dualview.engine.site import Site


@dataclass(frozen=True, eq=False)
class Propagation:
    """Relevance of one backward pass.

    Attributes:
        inputs: relevance of every floating-point input, shaped like it, by its place in the inputs:
            "" for a lone tensor, else "0", "mask", "0.x".
        sites: relevance at the sites that were asked for, shaped like the activations there.
        account: where all of it went.
    """

    inputs: dict[str, Tensor]
    sites: dict[Site, Tensor]
    account: Account

    @property
    def relevance(self) -> Tensor:
        """Relevance of the only input."""
        if len(self.inputs) != 1:
            raise ValueError(
                f"there are {len(self.inputs)} inputs: read `.inputs`, by {', '.join(map(repr, self.inputs))}"
            )
        return next(iter(self.inputs.values()))


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass that relevance can be sent back through, any number of times.

    Attributes:
        logits: the model's output, "row cls".
    """

    logits: Tensor
    _inputs: dict[str, Passed]
    _sites: dict[Site, Passed]
    _output: Passed
    _tape: Tape

    def at(self, site: Site) -> Tensor:
        """Return the activation at a site that was asked for."""
        if site not in self._sites:
            raise ValueError(f"site {tuple(site)} was not asked for: give it to trace(..., sites=)")
        return self._sites[site].values

    def propagate(
        self, *, gradient: Tensor | None = None, relevance: Tensor | None = None, at: Site | None = None
    ) -> Propagation:
        """Send relevance back from the logits, or from a site.

        Args:
            gradient: the seed as a modified gradient, relevance / activation: one-hot for a logit.
                Shaped like the activation at the seed. Either this or `relevance`.
            relevance: the seed as relevance; what falls on zero activations is booked.
            at: a site that was asked for; None for the logits.

        Raises:
            NonFiniteError: relevance became NaN or infinite; the operation is named.
            ArithmeticError: the account does not balance.
        """
        with torch.inference_mode(False), torch.no_grad():  # autograd keeps no inference tensor
            return self._propagate(gradient, relevance, at)

    def _propagate(self, gradient: Tensor | None, relevance: Tensor | None, at: Site | None) -> Propagation:
        values = self.logits if at is None else self.at(at)
        start = self._output if at is None else self._sites[at]
        self._tape.ledger.open()
        m = self._seed(values, gradient, relevance)
        seed = m * values if relevance is None else relevance
        ends = {name: passed for name, passed in (self._inputs | self._sites).items() if passed is not start}
        edges = [edge for passed in ends.values() for edge in (passed.edge, passed.shadow_edge) if edge is not None]
        edges.append(self._tape.anchor_edge)
        found = _backward(start.edge, edges, m)
        gradients: dict[GradientEdge, Tensor | None] = dict(zip(edges, found, strict=True))
        arrived = {name: _arrived(passed, gradients) for name, passed in ends.items()}
        inputs = {name: arrived[name] for name in self._inputs}
        for name, values in inputs.items():
            check_finite(values, f"input {name!r}" if name else "the input")
        sites = {site: seed if self._sites[site] is start else arrived[site] for site in self._sites}
        return Propagation(inputs, sites, self._tape.ledger.close(seed, list(inputs.values())))

    def _seed(self, values: Tensor, gradient: Tensor | None, relevance: Tensor | None) -> Tensor:
        """Return the seed as a modified gradient; book relevance on zero activations."""
        if (gradient is None) == (relevance is None):
            raise TypeError("give either `gradient` or `relevance` as the seed")
        name, seed = ("gradient", gradient) if relevance is None else ("relevance", relevance)
        assert seed is not None  # one of the two was given
        if seed.shape != values.shape:
            raise ValueError(f"`{name}` has shape {tuple(seed.shape)}; the seed's place has {tuple(values.shape)}")
        check_finite(values, "the seed, where the activation is so already")
        check_finite(seed, f"the seed: `{name}` is so as given")
        seed = seed.detach().to(values).clone()
        if relevance is None:
            return seed
        self._tape.ledger.book(Place("seed"), "zero denominator", torch.where(values == 0, seed, 0))
        return torch.where(values == 0, 0, seed / torch.where(values == 0, 1, values))


def trace(model: nn.Module, inputs: Inputs, composite: Composite, *, sites: Iterable[Site] = ()) -> Trace:
    """Run the model once in evaluation mode, with the composite's rule behind every operation.

    The model, its mode and its hooks are left as they were found; the inputs are not changed even by
    a model that works in place.

    Args:
        model: the network.
        inputs: a tensor, a tuple (model(*inputs)) or a dict (model(**inputs)); the first axis is the
            sample. Every floating-point tensor among them receives relevance.
        composite: which rule stands where.
        sites: where relevance is to be read, or seeded.

    Raises:
        NotImplementedError: an operation has no rule; it is named with its module.
        TypeError: the numbers are neither float32 nor float64.
        ValueError: weights or inputs are on the meta device, the output does not depend on the
            inputs, or a part of the composite fits nothing.
    """
    check_visible(model)
    device = device_of(model)
    given = tensors_in(inputs)
    weights = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    _check_real({f"inputs {name!r}" if name else "inputs": x for name, x in given.items()} | weights)
    floats = [x for x in given.values() if x.is_floating_point()]
    if not floats:
        raise TypeError(
            "relevance needs at least one floating-point input, and token ids are none. What works, with the names in "
            "your inputs and model: IntegratedGradients({'input_ids': 0}, site='bert.embeddings.word_embeddings'), or "
            "Occlusion(baseline={'input_ids': 0})"
        )
    with untouched(model), torch.enable_grad():
        tape = Tape(composite, num_rows(inputs), floats[0].to(device))
        ends: dict[int, Passed] = {}
        placed = map_tensors(lambda x: _leaf(x, device, tape, ends), inputs)
        names = tensors_in(placed)
        whereabouts = Whereabouts(model, tuple(sites), tape)
        state = {id(tensor): name for name, tensor in weights.items()}
        sight = OutOfSight(tape, whereabouts)
        with (
            whereabouts.followed(),
            torch.compiler.set_stance("force_eager"),  # a compiled module runs as the plain Python it was made from
            disable_saved_tensors_hooks("relevance cannot pass checkpointing, or other hooks on saved tensors"),
            RelevanceMode(tape, whereabouts, state),
            sight,
        ):
            output = logits_of(call_model(model, placed), num_rows(inputs))
        if not is_tracked(output):
            sight.check()
            raise ValueError("the model's output does not depend on its inputs by differentiable operations")
        whereabouts.settled()
        found = {site: whereabouts.passed(site) for site in sites}
        leaves = [edge.node for end in ends.values() for edge in (end.edge, end.shadow_edge) if edge is not None]
        audit([get_gradient_edge(output).node, *(passed.edge.node for passed in found.values())], leaves, tape)
        sight.check()
    composite.check_used(tape.used)
    inputs_ = {name: ends[id(x)] for name, x in names.items() if id(x) in ends}
    logits = output.detach().clone()
    return Trace(logits, inputs_, found, Passed(logits, get_gradient_edge(output), None), tape)


def _leaf(x: Tensor, device: torch.device, tape: Tape, ends: dict[int, Passed]) -> Tensor:
    """Return what the model gets for an input: a copy that it may change in place, with a shadow."""
    if not x.is_floating_point():
        return x.to(device).clone()
    leaf = x.detach().as_subclass(Tensor).to(device, copy=True).requires_grad_()
    shadow_leaf = torch.zeros_like(leaf, requires_grad=True)
    passed = leaf.clone()
    tape.depends(passed)
    tape.shadows.cast(passed, shadow_leaf.clone())
    ends[id(passed)] = Passed(leaf.detach(), get_gradient_edge(leaf), get_gradient_edge(shadow_leaf))
    return passed


def _backward(start: GradientEdge, edges: list[GradientEdge], m: Tensor) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad([start], edges, [m], retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise NotImplementedError(
            "the model changes in place what the backward of an earlier operation needs, as in y = relu(x); y += 1: "
            "it could not be trained either. Write y = y + 1"
        ) from error


def _arrived(passed: Passed, gradients: dict[GradientEdge, Tensor | None]) -> Tensor:
    """Return relevance: modified gradient times activation, plus what terminal rules wrote."""
    m = gradients[passed.edge]
    written = None if passed.shadow_edge is None else gradients[passed.shadow_edge]
    found = torch.zeros_like(passed.values) if m is None else m * passed.values
    return found if written is None else found + written


def _check_real(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values: load the weights first")
        if tensor.dtype in (torch.float16, torch.bfloat16):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise TypeError(f"relevance needs float32 or float64; {name} is {kind}: convert with .float()")
