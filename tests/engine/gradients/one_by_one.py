"""The oracle of this folder: `backward()` on a copy of the model, one sample at a time."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.batches import call_model, take_rows
from dualview.engine.gradients import GradientPlan, plan_gradients
from dualview.engine.task import Task
from dualview.ops import gradients


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def one_by_one(
    model: nn.Module, inputs, targets: Tensor, measure: Callable[[Tensor, Tensor], Tensor] = cross_entropy
) -> dict[str, Tensor]:
    """Return "row param" for each parameter; `measure` takes the logits and the target of one row."""
    model = copy.deepcopy(model).eval().requires_grad_()
    samples = []
    for row, target in enumerate(targets):
        model.zero_grad()
        logits = call_model(model, take_rows(inputs, row, row + 1)).reshape(1, -1)
        measure(logits, target[None]).backward()
        grads = ((name, one, one.grad) for name, one in model.named_parameters())
        samples.append(
            {
                name: torch.zeros_like(one).flatten() if grad is None else grad.to_dense().flatten()
                for name, one, grad in grads
            }
        )
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def assert_right(model: nn.Module, inputs, how: dict[str, str], *, rows: int | None = None) -> GradientPlan:
    """Compare the recorded loss gradients with the oracle's, in float64; `how` is the coverage that is expected."""
    rows = rows or len(inputs)
    model = model.double()
    targets = torch.arange(rows) % 3
    plan = plan_gradients(Task(model), inputs, of="loss")
    assert plan.coverage == how
    values, raw, _ = plan.record(inputs, targets)
    truth = one_by_one(model, inputs, targets)
    expected = torch.cat(
        [truth[name] for name, by in plan.coverage.items() if by in ("factors", "direct", "vmap", "loop")], dim=1
    )
    # Both are float64 sums of the same terms in another order; the gradients are of size 1.
    torch.testing.assert_close(gradients.dense(plan.layout, values), expected, rtol=1e-9, atol=1e-11)
    assert values.dtype == torch.float64
    assert not values.requires_grad
    assert expected.abs().max() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(raw, call_model(model.eval(), inputs).reshape(rows, -1), rtol=1e-12, atol=1e-12)
    return plan
