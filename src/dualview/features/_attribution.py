"""Results of feature methods. They are values: they slice, save and convert, and compute no score."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview._display import png
from dualview.engine.outputs import Kind
from dualview.engine.players import Players
from dualview.engine.propagation.account import Account
from dualview.engine.site import Site
from dualview.engine.source import Source

Values = Tensor | dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class FeatureAttribution:
    """Scores of input features for predictions.

    Of a task with several outputs every tensor but `targets` and `predicted` has a leading axis "output".

    Attributes:
        values: "test ..." scores shaped like the inputs, in units of the measured output; positive
            speaks for a larger one. An axis of length 1 stands for all of the input's (a map for all
            channels). Where the model takes several floating-point inputs, one tensor for each, by its
            place ("0", "mask"). With `site` they are shaped like the activations there.
        kind: "share" (scores and what was absorbed add up), "effect" or "similarity".
        measured: name of the measured output.
        linearised: whether that output, or one of several, was replaced by its gradient at the network's logits.
        lower_is_better: whether less of it speaks for the model (a loss).
        targets: "test", the output column each sample was explained for.
        predicted: "test", the network's predictions.
        method: how the method was set, as Python prints it.
        baseline: what stood in for absent features, as Python prints it; None where nothing did.
        site: the place inside the model that the scores belong to; None for the inputs.
        split: the same scores as a sum of named terms (Taylor's first-order, independent and
            interactive parts), each shaped like `values`.
        change: "test", f(x) − f(baseline), where the scores should add up to it.
        completeness_error: "test", the sum of the scores minus `change`, in units of the measured output.
        checks: what was looked at besides, by name: a number for each sample, "test".
        players: which player each number of an input belongs to, where the scores are those of players.
        tables: what else the method found, by name, "test ..." (Taylor's "interactions" of players).
        account: where the explained output went, sample by sample, where the method keeps books; None
            where several outputs were measured.
        outputs: names of the measured outputs, where the task has a tuple of them.
        each_linearised: `linearised` of each of them.
        each_lower_is_better: `lower_is_better` of each of them.
        accounts: one for each of them, where the method keeps books.
        sites: scores at places inside the model that were asked for besides, "test ...".
        class_names: a name per output column, or None.
        version: of dualview.
        source: the task and samples behind it.
    """

    values: Float[Tensor, " ..."] | dict[str, Tensor]
    kind: Kind
    measured: str
    linearised: bool
    lower_is_better: bool
    targets: Int[Tensor, " test"]
    predicted: Int[Tensor, " test"]
    method: str
    baseline: str | None = None
    site: Site | None = None
    split: Mapping[str, Values] = field(default_factory=dict)
    change: Float[Tensor, "*output test"] | None = None
    completeness_error: Float[Tensor, "*output test"] | None = None
    checks: Mapping[str, Tensor] = field(default_factory=dict)
    players: Players | None = None
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    account: Account | None = None
    outputs: tuple[str, ...] = ()
    each_linearised: tuple[bool, ...] = ()
    each_lower_is_better: tuple[bool, ...] = ()
    accounts: tuple[Account, ...] = ()
    sites: Mapping[Site, Tensor] = field(default_factory=dict)
    class_names: Sequence[str] | None = None
    version: str = ""
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> FeatureAttribution:
        """Return the same result for some of its samples; an integer keeps one."""
        index = torch.arange(len(self))[rows].reshape(-1)
        axis = 1 if self.outputs else 0
        return self._mapped(
            lambda tensor: tensor.index_select(axis, index),
            targets=self.targets[index],
            predicted=self.predicted[index],
            account=None if self.account is None else self.account.of_samples(index),
            accounts=tuple(account.of_samples(index) for account in self.accounts),
            source=None if self.source is None else self.source.of_test(index),
        )

    def of_output(self, output: int) -> FeatureAttribution:
        """Return the result for one of several measured outputs.

        Raises:
            ValueError: only one was measured.
            IndexError: there is no such output.
        """
        if not self.outputs:
            raise ValueError(f"only {self.measured} was measured: there is no axis `output`")
        source = self.source
        if source is not None and isinstance(source.task.output, tuple):
            source = dataclasses.replace(
                source, task=dataclasses.replace(source.task, output=source.task.output[output])
            )
        return self._mapped(
            lambda tensor: tensor[output],
            measured=self.outputs[output],
            linearised=self.each_linearised[output],
            lower_is_better=self.each_lower_is_better[output],
            outputs=(),
            each_linearised=(),
            each_lower_is_better=(),
            account=self.accounts[output] if self.accounts else None,
            accounts=(),
            source=source,
        )

    def of_players(self, players: Players) -> Float[Tensor, "test player"]:
        """Return the scores of other players than the scores were made for: sums over their numbers.

        Each of a method's own players, and each score that stands for a whole axis, is divided among its numbers.
        """
        if self.players is not None:
            values: Values = self.players.spread(self.tables["players"], shared=True)
        else:
            values = self.values
        parts = values if isinstance(values, dict) else dict.fromkeys(players.masks, values)
        full = {}
        for place, mask in players.masks.items():
            own = parts[place]
            full[place] = own.expand(-1, *mask.shape) * (own[0].numel() / mask.numel())
        return players.sums(full)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save everything but `source` as one safetensors file."""
        from dualview.features._saved import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> FeatureAttribution:
        """Load what `save` wrote; it has no source, so pictures need one.

        Raises:
            DamagedFile: the file is truncated, altered, or holds something else.
        """
        from dualview.features._saved import load

        return load(path)

    def _mapped(self, function: Callable[[Tensor], Tensor], **others: Any) -> FeatureAttribution:
        """Return a copy with every tensor of scores changed alike, and other fields as given."""

        def over(values: Any) -> Any:
            if isinstance(values, Mapping):
                return {name: over(part) for name, part in values.items()}
            return None if values is None else function(values)

        names = ("values", "split", "change", "completeness_error", "checks", "tables", "sites")
        return dataclasses.replace(self, **{name: over(getattr(self, name)) for name in names}, **others)

    def __repr__(self) -> str:
        parts = {"": self.values} if isinstance(self.values, Tensor) else self.values
        axes = 2 if self.outputs else 1
        shapes = ", ".join(
            f"{name} " * bool(name) + "×".join(map(str, part.shape[axes:])) + " features"
            for name, part in parts.items()
        )
        measured = f"{self.measured}{' (linearised)' if self.linearised else ''}"
        return f"FeatureAttribution({len(self)} test, {shapes}; {self.kind} of {measured}, {self.method})"

    def _repr_png_(self) -> bytes | None:
        """Show the maps of the first row in a notebook, where `dualview.plot` was imported."""
        return png(self)
