"""What feature methods' tests share: rows that pass a network, and fields that nothing checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn


@contextmanager
def counted(model: nn.Module) -> Iterator[SimpleNamespace]:
    """Count the rows of forward and backward passes through a network."""
    rows = SimpleNamespace(forward=0, backward=0)

    def backward(gradient: Tensor) -> None:
        rows.backward += len(gradient)

    def forward(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        rows.forward += len(output)
        if output.requires_grad:
            output.register_hook(backward)

    handle = model.register_forward_hook(forward)
    try:
        yield rows
    finally:
        handle.remove()


def unchecked(kind: type, **fields: Any) -> Any:
    """Build a frozen dataclass as where annotations are not checked at run time: its own check has to answer."""
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made
