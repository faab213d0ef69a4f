"""Model inputs taken apart into named tensors and a JSON skeleton, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualview.engine.batches import Inputs


def pack(inputs: Inputs) -> tuple[dict[str, Tensor], Any]:
    """Take inputs apart.

    Returns:
        tensors: by their number, as text.
        skeleton: JSON values that say where each one stands.
    """
    tensors: dict[str, Tensor] = {}

    def visit(part: Any) -> Any:
        if isinstance(part, Tensor):
            tensors[str(len(tensors))] = part
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(part, (tuple, list)):
            return {"tuple": [visit(item) for item in part]}
        if isinstance(part, Mapping):
            return {"dict": [[key, visit(item)] for key, item in part.items()]}
        return {"value": part}

    return tensors, visit(inputs)


def unpack(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    """Put inputs together again."""
    (kind, content), *_ = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unpack(tensors, item) for item in content)
    if kind == "dict":
        return {key: unpack(tensors, item) for key, item in content}
    return content
