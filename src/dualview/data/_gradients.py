"""What methods on per-sample gradients share: which gradients are recorded, and what their rows say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.engine.checkpoints import Checkpoint
from dualview.engine.gradients import Gradients, members
from dualview.engine.outputs import loss, margin
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Measure, Task, class_logits
from dualview.ops.layout import Layout
from dualview.ops.projection import Kind

BLOCK = 4096


class Scored(NamedTuple):
    """The state of methods that learn nothing.

    Attributes:
        positions: "train" positions that are scored.
    """

    positions: Int[Tensor, " train"]


def parameter_names(parameters: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return a field `parameters` as a tuple, which hashes."""
    return (parameters,) if isinstance(parameters, str) else None if parameters is None else tuple(parameters)


def check_projection(width: Any, kind: Any, seed: Any) -> None:
    """Refuse fields that name no projection; a width of None is none."""
    for name, value, least in (("projection", 1 if width is None else width, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            none = ", or None for none" if name == "projection" else ""
            raise ValueError(f"`{name}` must be a whole number, {least} or larger{none}; it is {value!r}")
    if kind not in get_args(Kind):
        raise ValueError(f"`kind_of_projection` is {kind!r}; choose from {', '.join(map(repr, get_args(Kind)))}")


def gradient_sides(
    task: Task,
    train: Measure,
    checkpoints: tuple[Checkpoint, ...],
    *,
    parameters: str | Sequence[str] | None = None,
    width: int | None = None,
    kind: Kind = "khatri-rao",
    seed: int = 0,
) -> Sides:
    """Return the gradients of `train` on the training side, and of the measured output on the other."""

    def of(measure: Measure) -> Gradients:
        training_loss = task.training_loss if measure == loss else None
        return Gradients(
            measure, checkpoints, parameter_names(parameters), training_loss, width=width, kind=kind, seed=seed
        )

    return Sides(of(train), of(task.single_output))


def doubts(outputs: Float[Tensor, "row logit"], targets: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Return 1 − p of each row's label: the slope of its cross-entropy in its margin, but for the sign."""
    return torch.sigmoid(-margin(class_logits(outputs.double()), targets)).to(outputs.dtype)


def check_cross_entropy(task: Task, table: Table, name: str) -> None:
    """Refuse a training loss other than the cross-entropy of the outputs, by its value for every row.

    Raises:
        ValueError: the method would explain a training that did not take place.
    """
    logits = task.logits(table.outputs)
    with torch.no_grad():
        own = task.losses(logits, table.targets, one_logit=table.num_classes == 1)
    expected = torch.nn.functional.cross_entropy(logits, table.targets, reduction="none")
    if not torch.allclose(own, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max() + 1)):
        raise ValueError(
            f"{name} is derived for the cross-entropy of the outputs, and this task's `loss` gives other values "
            "(class weights, label smoothing, another loss?): use TracIn or GradDot, which take any loss"
        )


def member_layout(table: Table, member: int) -> Layout:
    """Return what the numbers of one member's gradients are."""
    return members(table.layout, table.parts[0].values[:0])[member].layout


def member_blocks(table: Table, positions: Int[Tensor, " train"], member: int) -> Iterator[Rows]:
    """Walk one member's gradients and outputs of the rows at these positions."""
    for rows in table.blocks(BLOCK, positions):
        one = members(table.layout, rows.values)[member]
        yield rows._replace(values=one.gradients, outputs=one.outputs)
