"""The inputs themselves as rows: their numbers, what an encoder makes of them, or their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dualview.engine.batches import Inputs, map_tensors, num_rows, tensors_in
from dualview.engine.fingerprint import callable_fingerprint
from dualview.engine.isolation import device_of, untouched
from dualview.engine.record import Plan, Recorded, Representation
from dualview.engine.task import Task
from dualview.ops.layout import Layout, plain

NO_TOKEN = -1
MOST_TOKENS = 2**24  # beyond, single precision does not hold every whole number
MASK = "attention_mask"


@dataclass(frozen=True)
class InputNumbers(Representation):
    """All numbers of the inputs behind each other, or what an encoder makes of the inputs.

    Attributes:
        encoder: a function or module, batch of inputs → "row dim"; a module runs in evaluation mode.
    """

    encoder: Callable[[Any], Tensor] | None = None

    def describe(self) -> dict[str, Any]:
        encoder = None if self.encoder is None else callable_fingerprint(self.encoder)
        return {"representation": "InputNumbers", "encoder": encoder}

    def plan(self, task: Task, inputs: Inputs) -> Plan:
        with untouched(task.model):
            width = self.rows(inputs).shape[1]
        return _InputPlan((plain("inputs", width),), task, self.rows)

    def rows(self, inputs: Inputs) -> Tensor:
        """Return one row a sample."""
        if self.encoder is not None:
            return self._encoded(inputs)
        parts = {place: part for place, part in sorted(tensors_in(inputs).items()) if part.ndim}
        for place, part in parts.items():
            if not part.is_floating_point():
                raise ValueError(
                    f"`inputs`{f'[{place!r}]' if place else ''} are {part.dtype}, whose values are not compared as "
                    "numbers. For token ids use BM25(), or give encoder=; for numbers convert them with .float()"
                )
        return torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts.values()], dim=1)

    def _encoded(self, inputs: Inputs) -> Tensor:
        assert self.encoder is not None
        if isinstance(self.encoder, nn.Module):
            device = device_of(self.encoder)
            with untouched(self.encoder):
                found = self.encoder(map_tensors(lambda part: part.to(device), inputs))
        else:
            found = self.encoder(inputs)
        rows = num_rows(inputs)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != rows or not found.is_floating_point():
            came = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"`encoder` must return floats (row, dim) for a batch of {rows} inputs; it returned {came}"
            )
        return found


@dataclass(frozen=True)
class InputTokens(Representation):
    """The token ids of the inputs, −1 where there is none.

    They are integers "row token": the inputs themselves, their entry "input_ids", or the only such entry.

    Attributes:
        padding: the id that stands for no token; where there is an "attention_mask", a zero in it does too.
    """

    padding: int = 0

    def describe(self) -> dict[str, Any]:
        return {"representation": "InputTokens", "padding": self.padding}

    def plan(self, task: Task, inputs: Inputs) -> Plan:
        return _InputPlan((plain("tokens", self.rows(inputs).shape[1]),), task, self.rows)

    def rows(self, inputs: Inputs) -> Tensor:
        """Return one row a sample."""
        parts = tensors_in(inputs)
        mask = parts.get(MASK)
        ids = {
            place: part
            for place, part in parts.items()
            if part.ndim == 2 and place != MASK and not part.is_floating_point() and part.dtype != torch.bool
        }
        if "input_ids" not in ids and len(ids) != 1:
            held = {place: (str(part.dtype), tuple(part.shape)) for place, part in parts.items()}
            raise ValueError(
                f"`inputs` must hold token ids, integers (row, token), under 'input_ids' or as their only such entry; "
                f"they hold {held}. For word counts give BM25(counts=True)"
            )
        tokens = ids.get("input_ids", next(iter(ids.values())))
        present = tokens != self.padding
        if mask is not None:
            present &= mask.to(tokens.device) != 0
        tokens = torch.where(present, tokens.long(), NO_TOKEN)
        least, most = int(tokens.min()), int(tokens.max())
        if least < NO_TOKEN or most >= MOST_TOKENS:
            raise ValueError(f"token ids must lie in 0 to {MOST_TOKENS - 1:,}; they lie in {least} to {most}")
        return tokens


@dataclass(frozen=True, eq=False)
class _InputPlan(Plan):
    layout: Layout
    task: Task
    rows: Callable[[Inputs], Tensor]
    coverage: Mapping[str, str] = field(default_factory=dict)
    noun: ClassVar[str] = "inputs"

    def record(self, inputs: Inputs, targets: Tensor | None) -> Recorded:
        values, raw = self.rows(inputs), self.task.forward(inputs)
        (part,) = self.layout
        if not values.is_floating_point():
            values = pad(values, (0, max(0, part.width - values.shape[1])), value=NO_TOKEN)
            values = values.to(torch.float64 if raw.dtype == torch.float64 else torch.float32)
        if values.shape[1] != part.width:
            padding = ", e.g. DataCollatorWithPadding(tokenizer, padding='max_length', max_length=...)"
            raise ValueError(
                f"{part.name} hold {values.shape[1]} numbers a sample in this batch, and held {part.width} for the "
                f"first samples: pad or cut all inputs alike{padding if part.name == 'tokens' else ''}"
            )
        return Recorded(values, raw, targets)
