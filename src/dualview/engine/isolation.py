"""Running a user's model and data set without leaving a trace."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module | None = None) -> Iterator[None]:
    """Run in evaluation mode without gradients or autocast; put mode and random states back after.

    The global random states of torch (CPU, and CUDA where it is in use), numpy and Python are
    restored, because reading an augmenting data set draws from them.
    """
    modules = [] if model is None else [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    device = torch.device("cpu") if model is None else device_of(model)
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with (
        torch.random.fork_rng(devices=cuda),
        torch.inference_mode(False),  # comes before no_grad, since it turns gradients on
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        try:
            for module, _ in modules:
                module.training = False
            yield
        finally:
            for module, training in modules:
                module.training = training
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute in the precision of the tensors, whatever autocast the caller stands in."""

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False):  # rows are held on the CPU
            return function(*args, **kwargs)

    return plain
