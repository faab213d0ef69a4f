"""Gradients as rows: of one model or several, of an output or of each class, as they are or projected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.engine.batches import Inputs, num_rows
from dualview.engine.checkpoints import Checkpoint
from dualview.engine.fingerprint import callable_fingerprint, model_fingerprint
from dualview.engine.gradients.plan import GradientPlan
from dualview.engine.gradients.planner import plan_gradients
from dualview.engine.isolation import untouched
from dualview.engine.record import Plan, Recorded, Representation
from dualview.engine.task import Measure, Task
from dualview.ops.layout import Layout, plain, width_of
from dualview.ops.projection import Kind, project, projected_layout

OUTPUTS = "outputs"
ROWS_AT_ONCE, BYTES_AT_ONCE = 4096, 2**28
"""Rows that are projected together, by number and by size: each time the projection is made anew."""


class Member(NamedTuple):
    """The part of each row that comes from one checkpoint, or speaks of one class.

    Attributes:
        layout: of its gradients.
        gradients: "row unit".
        outputs: "row logit", the raw outputs of that checkpoint; nothing where the member speaks of a class.
    """

    layout: Layout
    gradients: Float[Tensor, "row unit"]
    outputs: Float[Tensor, "row logit"]


def members(layout: Layout, values: Float[Tensor, "row unit"]) -> list[Member]:
    """Cut rows of gradients into their members; these are views."""
    found, start, stop, parts = [], 0, 0, []
    for part in layout:
        if part.name == OUTPUTS:
            found.append(Member(tuple(parts), values[:, start:stop], values[:, stop : stop + part.width]))
            start, parts = stop + part.width, []
        else:
            parts.append(part)
        stop += part.width
    return found


@dataclass(frozen=True)
class Gradients(Representation):
    """Per-sample gradients with respect to parameters; behind those of each checkpoint, its raw outputs.

    Attributes:
        measure: what is differentiated, (logits "row cls", targets "row") → "row".
        checkpoints: states of the model.
        parameters: names of parameters or modules; None: all that require gradients.
        loss: the training loss, where it is what is differentiated; it keys the store.
        each_class: differentiate every logit in turn instead, one member for each.
        width: numbers that a member is projected to; None: it is not projected.
        kind: of the projection.
        seed: of the projection; each member has its own.
    """

    measure: Measure
    checkpoints: tuple[Checkpoint, ...]
    parameters: tuple[str, ...] | None = None
    loss: Measure | None = None
    each_class: bool = False
    width: int | None = None
    kind: Kind = "khatri-rao"
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        return {
            "representation": "Gradients",
            "of": "each class" if self.each_class else callable_fingerprint(self.loss or self.measure),
            "checkpoints": [model_fingerprint(one.model) for one in self.checkpoints],
            "parameters": None if self.parameters is None else list(self.parameters),
            "projection": None if self.width is None else [self.kind, self.width, self.seed],
        }

    def plan(self, task: Task, inputs: Inputs) -> Plan:
        with untouched(task.model):
            raw = task.forward(inputs)
        plans = []
        for k, one in enumerate(self.checkpoints):
            of_model = dataclasses.replace(task, model=one.model)
            with untouched(one.model):
                columns = of_model.forward(inputs).shape[1]
            if columns != raw.shape[1]:
                raise ValueError(
                    f"`checkpoints[{k}]` has {columns} output columns, and the task's model has {raw.shape[1]}"
                )
            plans.append(plan_gradients(of_model, inputs, of=self.measure, parameters=self.parameters))
        num_columns = task.logits(raw).shape[1]
        classes = list(range(num_columns)) if self.each_class else [None]
        recorded = tuple(_Recorded(plan, column) for plan in plans for column in classes)
        behind = plain(OUTPUTS, 0 if self.each_class else raw.shape[1])
        layout = tuple(part for one in recorded for part in (*self.projected(one.plan.layout), behind))
        whole = tuple(part for one in recorded for part in (*one.plan.layout, behind))
        names = [""] if len(plans) == 1 else [f"checkpoints[{k}]: " for k in range(len(plans))]
        coverage = {
            f"{at}{name}": how for at, plan in zip(names, plans, strict=True) for name, how in plan.coverage.items()
        }
        at_once = 1 if self.width is None else max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE // (4 * width_of(whole))))
        return _GradientsPlan(layout, coverage, task, self, recorded, whole, num_columns, at_once, not self.each_class)

    def projected(self, layout: Layout) -> Layout:
        """Return the layout of one member as it is stored."""
        return layout if self.width is None else projected_layout(layout, width=self.width, kind=self.kind)


class _Recorded(NamedTuple):
    plan: GradientPlan
    column: int | None


@dataclass(frozen=True, eq=False)
class _GradientsPlan(Plan):
    layout: Layout
    coverage: Mapping[str, str]
    task: Task
    representation: Gradients
    recorded: tuple[_Recorded, ...]
    whole: Layout
    num_columns: int
    rows_at_once: int
    of_target: bool
    noun: ClassVar[str] = "gradients"

    @property
    def recorded_layout(self) -> Layout:
        return self.whole

    def record(self, inputs: Inputs, targets: Tensor | None) -> Recorded:
        raw = None
        if self.recorded[0].plan.task.model is not self.task.model:  # whose predictions the targets are
            raw = self.task.forward(inputs)
            targets = self.task.predicted(raw.cpu()) if targets is None else targets
        rows = []
        for plan, column in self.recorded:
            directions = None
            if column is not None:
                directions = torch.zeros(num_rows(inputs), self.num_columns)
                directions[:, column] = 1
            values, outputs, targets = plan.record(inputs, targets, directions=directions)
            rows += [values] if self.representation.each_class else [values, outputs]
            raw = outputs if plan.task.model is self.task.model else raw
        assert raw is not None
        return Recorded(torch.cat(rows, dim=1), raw, targets)

    def finish(self, values: Tensor) -> Tensor:
        chosen = self.representation
        if chosen.width is None:
            return values
        rows = []
        for k, member in enumerate(members(self.whole, values)):
            small = project(member.layout, member.gradients, width=chosen.width, kind=chosen.kind, seed=chosen.seed + k)
            rows += [small, member.outputs]
        return torch.cat(rows, dim=1)
