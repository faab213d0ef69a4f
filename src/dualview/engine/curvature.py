"""Curvature of the mean training loss in the parameters of a model, by running the model on its samples again.

The Hessian is H = (1/n) Σ_i ∇²ℓ_i; the generalised Gauss-Newton matrix, which leaves out the curvature of the model,
is G = (1/n) Σ_i J_iᵀ A_i J_i, with J_i the Jacobian of a sample's logits and A_i the Hessian of its loss in these
(Schraudolph 2002). Products with vectors: Pearlmutter 1994, and J v as the derivative of u ↦ Jᵀu.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dualview.engine import outputs
from dualview.engine.batches import take_rows
from dualview.engine.gradients import GradientPlan, plan_gradients
from dualview.engine.gradients.capture import differentiable, fresh, upcast
from dualview.engine.replay import Batch
from dualview.engine.tables import Table
from dualview.engine.task import Task
from dualview.ops.gradients import dense, squared_norms
from dualview.ops.layout import Layout, dense_width_of

Kind = Literal["gauss-newton", "hessian"]

PROBE_ROWS = 4
VECTORS_AT_ONCE = 32  # in one vectorised backward pass
NUMBERS_AT_ONCE = 2**23  # of Jacobians, in float64: 64 MB
MOST_EXACT, SIGNS = 16, 4
"""Outputs up to which a mean diagonal is exact, and random directions a sample beyond."""


class Jacobians(NamedTuple):
    """What the Gauss-Newton matrix is made of, for some samples, in float64.

    Attributes:
        gradients: "row cls param", J.
        curvatures: "row cls cls", A.
    """

    gradients: Float[Tensor, "row cls param"]
    curvatures: Float[Tensor, "row cls cls"]


@dataclass(frozen=True, eq=False)
class LossCurvature:
    """A curvature matrix of the mean loss of some training samples, known by its products with vectors.

    Vectors are dense gradients as `ops.gradients.dense` lays them out. The model runs in evaluation mode and is left as
    it was.

    Attributes:
        table: recorded training rows, with the samples behind them.
        positions: samples whose mean loss it is.
        layout: of the recorded gradients of one member.
        kind: of the matrix.
    """

    table: Table
    positions: Int[Tensor, " row"]
    layout: Layout
    kind: Kind

    @property
    def size(self) -> int:
        """Numbers of a vector."""
        return dense_width_of(self.layout)

    @cached_property
    def task(self) -> Task:
        self.table.batches(self.positions)  # refuses a table without samples
        assert self.table.replay is not None
        return self.table.replay.task

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The model's parameters, in the order of the vectors."""
        named = dict(self.task.model.named_parameters())
        names: list[str] = []
        for part in self.layout:
            names += [part.name, f"{part.name.removesuffix('weight')}bias"] if part.bias else [part.name]
        return {name: named[name] for name in names}

    def product(
        self, vectors: Float[Tensor, "k param"], positions: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "k param"]:
        """Multiply vectors by the matrix in one pass over the samples, or over `positions` in their place.

        Sums over batches are taken in the precision of the vectors.
        """
        positions = self.positions if positions is None else positions
        total = torch.zeros_like(vectors)
        for batch in self.table.batches(positions):
            self._add(total, vectors, batch, vectorised=self._vectorises)
        return total.div_(len(positions))

    def matrix(self) -> Float[Tensor, "param param"]:
        """Return the whole matrix, in float64."""
        if self.kind == "gauss-newton":
            return gauss_newton(self.jacobians(), len(self.positions))
        whole = self.product(torch.eye(self.size, dtype=torch.float64))
        return (whole + whole.T) / 2

    def jacobians(self) -> Iterator[Jacobians]:
        """Walk the samples' Jacobians in blocks: one backward pass a class."""
        plan, columns = self._plan(), self._num_columns
        for some in self.positions.split(max(1, NUMBERS_AT_ONCE // (columns * self.size))):
            for batch in self.table.batches(some):
                directions = torch.eye(columns).expand(len(batch.index), -1, -1)
                rows = [
                    plan.record(batch.inputs, batch.targets, directions=directions[:, c])[0] for c in range(columns)
                ]
                gradients = torch.stack([dense(plan.layout, row).double() for row in rows], dim=1)
                yield Jacobians(gradients, self._logit_curvatures(batch))

    def mean_diagonal(self, seed: int = 0) -> tuple[float, bool]:
        """Return the mean diagonal of the Gauss-Newton matrix, whatever the kind, and whether it is exact.

        tr JᵀAJ = Σ_u ⟨Jᵀu, JᵀAu⟩ over the unit vectors u of up to 16 logits, else its mean over random signs u; each
        inner product is a difference of two squared norms, of rows that are not made dense.
        """
        plan, columns = self._plan(), self._num_columns
        exact, generator, total = columns <= MOST_EXACT, torch.Generator().manual_seed(seed), 0.0
        for batch in self.table.batches(self.positions):
            raw = self.table.rows(batch.index).outputs
            if exact:
                probes = torch.eye(columns, dtype=raw.dtype)[:, None].expand(-1, len(raw), -1)
            else:
                signs = torch.randint(2, (SIGNS, len(raw), columns), generator=generator)
                probes = (2 * signs - 1).to(raw.dtype)
            images = logit_products(self.task, raw, batch.targets, probes)
            for probe, image in zip(probes, images, strict=True):
                # of one size, so that rounding is small beside their product; in float64, where no square underflows
                probe, image = probe.double(), image.double()
                ratio = (image.norm(dim=1, keepdim=True) / probe.norm(dim=1, keepdim=True)).sqrt()
                left, right = probe * ratio, image / ratio.clamp(min=torch.finfo(ratio.dtype).tiny)
                for sign in (1, -1):
                    rows, _, _ = plan.record(batch.inputs, batch.targets, directions=left + sign * right)
                    total += sign / 4 * float(squared_norms(plan.layout, rows).double().sum())
        return total / (len(self.positions) * self.size * (1 if exact else SIGNS)), exact

    # ── one batch ────────────────────────────────────────────────────────────────────────────────

    def _add(self, total: Tensor, vectors: Tensor, batch: Batch, *, vectorised: bool) -> None:
        """Add the sum over one batch: one forward pass, and backward passes for each vector through its graph."""
        chosen = list(self.parameters.values())
        widths = [parameter.numel() for parameter in chosen]
        with twice_differentiable(self.task.model, chosen):
            raw = upcast(self.task.forward(fresh(batch.inputs))).cpu()
            multiply = self._graph(raw, batch.targets, chosen, vectorised)
            for start in range(0, len(vectors), VECTORS_AT_ONCE):
                some = slice(start, start + VECTORS_AT_ONCE)
                pieces = [
                    piece.reshape(-1, *parameter.shape).to(parameter)
                    for piece, parameter in zip(vectors[some].split(widths, dim=1), chosen, strict=True)
                ]
                found = [piece.detach().flatten(1).to(total) for piece in multiply(pieces)]
                total[some] += torch.cat(found, dim=1)

    def _graph(
        self, raw: Tensor, targets: Tensor, chosen: list[nn.Parameter], vectorised: bool
    ) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
        """Return what multiplies vectors, cut into parameters, by the sum over a batch."""
        logits = self.task.logits(raw)
        if self.kind == "hessian":
            losses = self.task.losses(logits, targets, one_logit=_one_logit(self.task, raw))
            slopes = _gradients(losses.sum(), chosen)
            return lambda pieces: _backward(slopes, chosen, pieces, vectorised)
        seed = torch.zeros_like(logits, requires_grad=True)
        pulled = _gradients(logits, chosen, seed)

        def multiply(pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
            (pushed,) = _backward(pulled, [seed], pieces, vectorised)
            curved = logit_products(self.task, raw.detach(), targets, pushed.detach(), vectorised=vectorised)
            return _backward([logits], chosen, [curved], vectorised)

        return multiply

    @cached_property
    def _vectorises(self) -> bool:
        """Whether backward passes of several vectors at once give what single ones give, tried on a few samples."""
        batch = next(self.table.batches(self.positions[:PROBE_ROWS]))
        batch = batch._replace(inputs=take_rows(batch.inputs, 0, PROBE_ROWS))
        first = next(iter(self.parameters.values()))
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(2, self.size, generator=generator, dtype=torch.float64).to("cpu", upcast(first).dtype)
        found = torch.zeros_like(vectors), torch.zeros_like(vectors)
        self._add(found[0], vectors, batch, vectorised=False)
        try:
            self._add(found[1], vectors, batch, vectorised=True)
        except (RuntimeError, TypeError, ValueError):  # the model does what vmap cannot follow
            return False
        return bool((found[0] - found[1]).norm() <= torch.finfo(first.dtype).eps ** 0.5 * found[0].norm())

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def _num_columns(self) -> int:
        return self.task.logits(self.table.parts[0].outputs[:1]).shape[1]

    def _plan(self) -> GradientPlan:
        """Plan per-sample gradients on the samples that the recording was planned with."""
        batch = next(self.table.batches(torch.arange(min(PROBE_ROWS, len(self.table)))))
        return plan_gradients(self.task, batch.inputs, of=outputs.logit, parameters=list(self.parameters))

    def _logit_curvatures(self, batch: Batch) -> Tensor:
        return logit_curvatures(self.task, self.table.rows(batch.index).outputs, batch.targets)


def gauss_newton(blocks: Iterable[Jacobians], num_rows: int) -> Float[Tensor, "param param"]:
    """Return (1/n) Σ_i J_iᵀ A_i J_i."""
    total: Tensor | None = None
    for gradients, curvatures in blocks:
        part = (curvatures @ gradients).flatten(0, 1).T @ gradients.flatten(0, 1)
        total = part if total is None else total.add_(part)
    assert total is not None
    return (total + total.T) / (2 * num_rows)


def logit_curvatures(task: Task, raw: Float[Tensor, "row logit"], targets: Tensor) -> Float[Tensor, "row cls cls"]:
    """Return A, the Hessian of each row's training loss in its logits, as float64.

    A loss of the user's may hold numbers of its own precision, such as class weights, and is asked in that of `raw`.
    """
    raw = raw.double() if task.loss == outputs.loss else raw
    columns = task.logits(raw[:1]).shape[1]
    probes = torch.eye(columns, dtype=raw.dtype)[:, None].expand(-1, len(raw), -1)
    return logit_products(task, raw, targets, probes).transpose(0, 1).double()


def logit_products(
    task: Task,
    raw: Float[Tensor, "row logit"],
    targets: Tensor,
    vectors: Float[Tensor, "k row cls"],
    *,
    vectorised: bool = False,
) -> Float[Tensor, "k row cls"]:
    """Return A u for several vectors u of each row's logits."""
    with torch.enable_grad():
        logits = task.logits(raw).detach().clone().requires_grad_()
        losses = task.losses(logits, targets, one_logit=_one_logit(task, raw))
        return _backward(_gradients(losses.sum(), [logits]), [logits], [vectors], vectorised)[0].detach()


def _one_logit(task: Task, raw: Tensor) -> bool:
    return task.problem == "classification" and raw.shape[1] == 1


@contextmanager
def twice_differentiable(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Run as under `differentiable`, attention by operations whose gradients can be differentiated again."""
    with ExitStack() as stack:
        stack.enter_context(differentiable(model, parameters))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "There is a performance drop")  # a loop inside one vectorised operation
        yield


def _gradients(output: Tensor, inputs: Sequence[Tensor], direction: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return gradients that can be differentiated again; zeros where there is no dependence."""
    if not output.requires_grad:
        return tuple(torch.zeros_like(one) for one in inputs)
    return torch.autograd.grad(output, inputs, direction, create_graph=True, allow_unused=True, materialize_grads=True)


def _backward(
    results: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Float[Tensor, "k ..."]], vectorised: bool
) -> tuple[Float[Tensor, "k ..."], ...]:
    """Return Σ vectors_kᵀ ∂results/∂inputs for each k, by one vectorised backward pass or k single ones."""
    pairs = [(one, vector) for one, vector in zip(results, vectors, strict=True) if one.requires_grad]
    number = len(vectors[0])
    if not pairs:
        return tuple(one.new_zeros(number, *one.shape) for one in inputs)
    given, along = zip(*pairs, strict=True)

    def back(directions: Sequence[Tensor], batched: bool) -> list[Tensor]:
        found = torch.autograd.grad(
            given, inputs, directions, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )
        shape = (number,) if batched else ()
        return [
            one.new_zeros(*shape, *one.shape) if gradient is None else gradient
            for one, gradient in zip(inputs, found, strict=True)
        ]

    if vectorised:
        return tuple(back(along, True))
    singles = [back([vector[k] for vector in along], False) for k in range(number)]
    return tuple(torch.stack(one) for one in zip(*singles, strict=True))
