"""Results of feature methods. They are values: they slice and convert, and compute no score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview._display import png
from dualview.engine.outputs import Kind
from dualview.engine.propagation.account import Account
from dualview.engine.site import Site
from dualview.engine.source import Source


@dataclass(frozen=True, eq=False)
class FeatureAttribution:
    """Scores of input features for predictions.

    Attributes:
        values: "test ..." scores shaped like the inputs, in units of the measured output; positive
            speaks for a larger one. Where the model takes several floating-point inputs, one tensor
            for each, by its place ("0", "mask").
        kind: "share" (scores and what was absorbed add up), "effect" or "similarity".
        measured: name of the measured output.
        linearised: whether that output was replaced by its gradient at the network's logits.
        lower_is_better: whether less of it speaks for the model (a loss).
        targets: "test", the output column each sample was explained for.
        predicted: "test", the network's predictions.
        method: how the method was set, as Python prints it.
        account: where the explained output went, sample by sample, where the method keeps books.
        sites: the same scores at places inside the model that were asked for, "test ...".
        class_names: a name per output column, or None.
        version: of dualview.
        source: the task and samples behind it.
    """

    values: Float[Tensor, "test ..."] | dict[str, Tensor]
    kind: Kind
    measured: str
    linearised: bool
    lower_is_better: bool
    targets: Int[Tensor, " test"]
    predicted: Int[Tensor, " test"]
    method: str
    account: Account | None = None
    sites: Mapping[Site, Tensor] = field(default_factory=dict)
    class_names: Sequence[str] | None = None
    version: str = ""
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> FeatureAttribution:
        """Return the same result for some of its samples; an integer keeps one."""
        index = torch.arange(len(self))[rows].reshape(-1)
        values = self.values
        return dataclasses.replace(
            self,
            values=values[index]
            if isinstance(values, Tensor)
            else {name: part[index] for name, part in values.items()},
            targets=self.targets[index],
            predicted=self.predicted[index],
            account=None if self.account is None else self.account.of_samples(index),
            sites={site: part[index] for site, part in self.sites.items()},
            source=None if self.source is None else self.source.of_test(index),
        )

    def __repr__(self) -> str:
        parts = {"": self.values} if isinstance(self.values, Tensor) else self.values
        shapes = ", ".join(
            f"{name} " * bool(name) + "×".join(map(str, part.shape[1:])) + " features" for name, part in parts.items()
        )
        measured = f"{self.measured}{' (linearised)' if self.linearised else ''}"
        return f"FeatureAttribution({len(self)} test, {shapes}; {self.kind} of {measured}, {self.method})"

    def _repr_png_(self) -> bytes | None:
        """Show the maps of the first row in a notebook, where `dualview.plot` was imported."""
        return png(self)
