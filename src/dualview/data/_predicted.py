"""What the network says of recorded samples: its prediction, its confidence, and its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from dualview.engine.tables import Table
from dualview.engine.task import Task


def predicted_columns(task: Task, table: Table) -> dict[str, Tensor]:
    """Return loss, target, predicted and confidence, one value a row; of several numbers or labels the loss alone."""
    logits = task.logits(table.outputs)
    with torch.no_grad():
        losses = task.losses(logits, table.targets, one_logit=table.num_classes == 1)
    if task.problem != "classification":
        single = table.num_classes == 1
        return {"loss": losses} | ({"target": table.targets[:, 0], "predicted": logits[:, 0]} if single else {})
    confidence, predicted = logits.softmax(1).amax(1), logits.argmax(1)
    return {"loss": losses, "target": table.targets, "predicted": predicted, "confidence": confidence}
