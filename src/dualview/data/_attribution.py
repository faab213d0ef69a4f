"""Results of data methods. They are values: they slice, save, load and convert, and compute no score."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview._display import png
from dualview.engine.files import load_tensors, save_tensors
from dualview.engine.frames import imported_pandas
from dualview.engine.outputs import Kind
from dualview.engine.source import Source
from dualview.errors import DamagedFile

if TYPE_CHECKING:
    import pandas

_RESULT = "DataAttribution"
_TENSORS = ("scores", "train_index", "bias", "bias_shares", "test_index", "targets", "predicted", "train_targets")


class Ranked(NamedTuple):
    """Training samples in order, one row a test sample; short rows end with index −1 and score 0.

    Attributes:
        train_index: "test k" positions in the training set.
        scores: "test k" their scores.
    """

    train_index: Int[Tensor, "test k"]
    scores: Float[Tensor, "test k"]


class Top(NamedTuple):
    """The strongest training samples for and against the behaviour of each test sample.

    Attributes:
        proponents: strongest first. They raise the measured output, or lower it where less is
            better (a loss).
        opponents: strongest first.
    """

    proponents: Ranked
    opponents: Ranked


@dataclass(frozen=True, eq=False)
class DataAttribution:
    """Scores of training samples for test samples.

    Column j of `scores` belongs to training sample train_index[j] for every test row; or, where
    `train_index` has two axes (a running top k), scores[t, j] belongs to train_index[t, j], and −1
    pads short rows. Samples that are not named score exactly zero, or stand below the top k.

    Attributes:
        scores: "test entry", in units of the measured output; positive speaks for a larger one.
        train_index: "entry" or "test entry", positions in the training set.
        num_train: number of training samples.
        kind: "share" (scores and bias add up), "effect" or "similarity".
        measured: name of the measured output.
        linearised: whether that output was replaced by its gradient at the network's logits.
        lower_is_better: whether proponents are the negative scores (a loss).
        bias: "test", the part of the explained output that belongs to no pair.
        bias_shares: each named sample's part of the bias, laid out as `scores`.
        test_index: "test", rows of the explained inputs.
        targets: "test", the output column each row was explained for.
        predicted: "test", the network's predictions.
        train_targets: "train", training labels as output columns; "train output", numbers, where the task is no
            classification.
        method: how the method was set, as Python prints it.
        certificate: facts on the fit (gap, support, ...).
        checks: facts on this explanation.
        names: a name per training sample, or None.
        class_names: a name per output column, or None.
        top_k: k where only a running top k was kept, else None.
        version: of dualview.
        source: the task and samples behind it; not saved.
    """

    scores: Float[Tensor, "test entry"]
    train_index: Int[Tensor, "*test entry"]
    num_train: int
    kind: Kind
    measured: str
    linearised: bool
    lower_is_better: bool
    bias: Float[Tensor, " test"]
    bias_shares: Float[Tensor, "test entry"]
    test_index: Int[Tensor, " test"]
    targets: Int[Tensor, " test"]
    predicted: Int[Tensor, " test"]
    train_targets: Int[Tensor, " train"] | Float[Tensor, "train output"]
    method: str
    certificate: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    names: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    top_k: int | None = None
    version: str = ""
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> DataAttribution:
        """Return the same result for some of its test rows; an integer keeps one row."""
        index = torch.arange(len(self))[rows].reshape(-1)
        per_test = ("scores", "bias", "bias_shares", "test_index", "targets", "predicted")
        taken = {name: getattr(self, name)[index] for name in per_test}
        if self.train_index.ndim == 2:
            taken["train_index"] = self.train_index[index]
        return dataclasses.replace(self, **taken)

    def __repr__(self) -> str:
        kept = "every non-zero score" if self.top_k is None else f"the top {self.top_k} of each sign"
        return (
            f"DataAttribution({len(self)} test × {self.num_train} train, {kept}; {self.kind} of "
            f"{self.measured}{' (linearised)' if self.linearised else ''}, {self.method})"
        )

    def _repr_png_(self) -> bytes | None:
        """Show the neighbours of the first row in a notebook, where `dualview.plot` was imported."""
        return png(self)

    def index_rows(self) -> Int[Tensor, "test entry"]:
        """Return the training position of every score, laid out as `scores`; −1 pads."""
        return self.train_index if self.train_index.ndim == 2 else self.train_index.expand(len(self), -1)

    def top(self, k: int = 5) -> Top:
        """Return the k strongest proponents and opponents of each test row.

        Only samples with a score of the right sign count: rows with fewer end with index −1, score 0.

        Raises:
            ValueError: more were asked than a running top k kept.
        """
        if k < 1:
            raise ValueError(f"`k` must be at least 1; it is {k}")
        if self.top_k is not None and k > self.top_k:
            raise ValueError(f"only the top {self.top_k} of each sign were kept; explain again with top={k}")
        sign = -1.0 if self.lower_is_better else 1.0
        return Top(self._strongest(sign, k), self._strongest(-sign, k))

    def _strongest(self, sign: float, k: int) -> Ranked:
        from dualview.ops.ranking import top_k

        kept = min(k, self.scores.shape[1])
        best, where = top_k(self.scores * sign, kept)
        index = self.index_rows().gather(1, where)
        index = torch.where(best > 0, index, -1)
        best = torch.where(best > 0, best * sign, 0.0)
        if kept < k:
            index = torch.nn.functional.pad(index, (0, k - kept), value=-1)
            best = torch.nn.functional.pad(best, (0, k - kept))
        return Ranked(index, best)

    def dense(self) -> Float[Tensor, "test train"]:
        """Return all scores as one tensor "test train"; samples that are not named get zero."""
        whole = self.scores.new_zeros(len(self), self.num_train)
        if self.train_index.ndim == 1:
            whole[:, self.train_index] = self.scores
        else:
            rows, columns = (self.train_index >= 0).nonzero(as_tuple=True)
            whole[rows, self.train_index[rows, columns]] = self.scores[rows, columns]
        return whole

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one line per non-zero score, strongest first within each test row.

        Columns: test, train, score, bias_share, target, predicted, train_target, and where known
        train_name, target_name, train_target_name.
        """
        pandas = imported_pandas()
        index = self.index_rows()
        rows, columns = ((index >= 0) & (self.scores != 0)).nonzero(as_tuple=True)
        train = index[rows, columns]
        frame = pandas.DataFrame(
            {
                "test": self.test_index[rows].numpy(),
                "train": train.numpy(),
                "score": self.scores[rows, columns].numpy(),
                "bias_share": self.bias_shares[rows, columns].numpy(),
                "target": self.targets[rows].numpy(),
                "predicted": self.predicted[rows].numpy(),
                "train_target": self.train_targets[train].numpy()
                if self.train_targets.ndim == 1
                else self.train_targets[train, self.targets[rows]].numpy(),  # of the explained column
            }
        )
        if self.names is not None:
            frame["train_name"] = [self.names[position] for position in train.tolist()]
        if self.class_names is not None:
            for column in ("target", "train_target")[: 1 + (self.train_targets.ndim == 1)]:
                frame[f"{column}_name"] = [self.class_names[c] for c in frame[column]]
        order = frame.assign(row=rows.numpy(), strength=frame["score"].abs()).sort_values(
            ["row", "strength"], ascending=[True, False], kind="stable"
        )
        return order.drop(columns=["row", "strength"]).reset_index(drop=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save everything but `source` as one safetensors file."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in (*_TENSORS, "source")}
        for name in ("names", "class_names"):
            facts[name] = None if facts[name] is None else list(facts[name])
        save_tensors(path, tensors, {"result": _RESULT, "facts": facts})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DataAttribution:
        """Load what `save` wrote; it has no source, so pictures need one.

        Raises:
            DamagedFile: the file is truncated, altered, or holds something else.
        """
        tensors, info = load_tensors(path)
        if not isinstance(info, dict) or info.get("result") != _RESULT:
            raise DamagedFile(f"{path} holds no DataAttribution")
        return cls(**tensors, **info["facts"])
