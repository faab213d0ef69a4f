"""When a fast gradient counts as right."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dualview.engine.gradients.capture import upcast


def agreeing(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the gradients "row ..." that agree with the truth in every row.

    The error may be sqrt(eps) of the gradient's norm, eps being the machine precision: rounding makes some hundred
    eps of it in a deep network, a wrong formula far more. Where a gradient is zero but for rounding (a bias that a
    softmax takes out again), 64 eps of the norm over all parameters pass too.
    """
    norms = {name: _norms(one) for name, one in truth.items()}
    total = torch.stack(list(norms.values())).norm(dim=0)
    right = set[str]()
    for name in found.keys() & truth.keys():
        eps = torch.finfo(truth[name].dtype).eps
        error = _norms(upcast(found[name]) - upcast(truth[name]))
        if bool((error <= eps**0.5 * norms[name] + 64 * eps * total).all()):
            right.add(name)
    return right


def _norms(gradients: Tensor) -> Tensor:
    return torch.linalg.vector_norm(upcast(gradients).reshape(len(gradients), -1), dim=1)
