"""Groups of training samples, one source or annotator, say, and what each did to a prediction as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import BLOCK
from dualview.data._method import DataMethod, Prepared
from dualview.engine.frames import imported_pandas
from dualview.engine.outputs import Kind
from dualview.engine.tables import Rows

if TYPE_CHECKING:
    import pandas

    from dualview.data._explainer import Explainer


@dataclass(frozen=True, eq=False)
class GroupAttribution:
    """Scores of groups of training samples for test samples.

    Attributes:
        scores: "test group", in units of the measured output; positive speaks for a larger one.
        groups: a name for each.
        sizes: "group", how many training samples each holds.
        joint: whether a score is the effect of the group together; else it is the sum of its samples' scores.
        kind: "share" or "effect".
        measured: name of the measured output.
        lower_is_better: whether proponents are the negative scores (a loss).
        test_index: "test", rows of the explained inputs.
        targets: "test", the output column each row was explained for.
        predicted: "test", the network's predictions.
        method: how the method was set, as Python prints it.
    """

    scores: Float[Tensor, "test group"]
    groups: tuple[Any, ...]
    sizes: Int[Tensor, " group"]
    joint: bool
    kind: Kind
    measured: str
    lower_is_better: bool
    test_index: Int[Tensor, " test"]
    targets: Int[Tensor, " test"]
    predicted: Int[Tensor, " test"]
    method: str

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        how = "joint effects" if self.joint else f"sums of {self.kind}s"
        return (
            f"GroupAttribution({len(self)} test × {len(self.groups)} groups; {how} on {self.measured}, {self.method})"
        )

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one line for each test sample and group, strongest first within each test sample.

        Columns: test, group, size, score, target, predicted.
        """
        pandas = imported_pandas()
        order = self.scores.abs().argsort(dim=1, descending=True, stable=True)
        rows = torch.arange(len(self)).repeat_interleave(len(self.groups))
        column = order.flatten()
        return pandas.DataFrame(
            {
                "test": self.test_index[rows].numpy(),
                "group": [self.groups[k] for k in column.tolist()],
                "size": self.sizes[column].numpy(),
                "score": self.scores.gather(1, order).flatten().numpy(),
                "target": self.targets[rows].numpy(),
                "predicted": self.predicted[rows].numpy(),
            }
        )


def scored_groups(method: DataMethod, groups: Any, num_train: int) -> dict[Any, Int[Tensor, " member"]]:
    """Return the positions of each group's samples (see `members_of`), where the method's scores can be added up."""
    if method.kind == "similarity":
        raise ValueError(f"sums of similarities mean nothing: {method!r} scores no groups; use shares or effects")
    return members_of(groups, num_train)


def group_attribution(
    explainer: Explainer, rows: Rows, tests: Iterable[Prepared], members: Mapping[Any, Int[Tensor, " member"]]
) -> GroupAttribution:
    """Score groups for recorded test samples; see `Explainer.explain_groups`.

    Args:
        explainer: whose scores.
        rows: the test samples.
        tests: the same, prepared, block by block.
        members: positions of each group's samples.
    """
    method, task, table = explainer.method, explainer.task, explainer.table
    scored = method.scored(explainer.state)
    found: list[Tensor] = []
    joint = False
    for test in tests:
        columns = []
        for group in members.values():
            group = group[torch.isin(group, scored)]
            scores = method.joint_scores(explainer.state, test, group, table) if len(group) else None
            joint = joint or scores is not None
            if scores is None:
                scores = test.values.new_zeros(len(test.values))
                for block in table.blocks(BLOCK, group):
                    scores += method.score(explainer.state, test, block).sum(1)
            columns.append(scores)
        found.append(torch.stack(columns, dim=1))
    return GroupAttribution(
        scores=torch.cat(found),
        groups=tuple(members),
        sizes=torch.tensor([len(group) for group in members.values()]),
        joint=joint,
        kind=method.kind,
        measured=task.measured,
        lower_is_better=getattr(task.single_output, "lower_is_better", False),
        test_index=rows.index,
        targets=rows.targets,
        predicted=explainer.predictions(rows),
        method=repr(method),
    )


def members_of(groups: Any, num_train: int) -> dict[Any, Int[Tensor, " member"]]:
    """Return the positions of each group's samples, rising.

    Args:
        groups: a mask "train", for one group; a mapping from names to masks or positions; or a column of metadata,
            one value a training sample, whose values name the groups. None and NaN stand for no group.
        num_train: number of training samples.

    Raises:
        ValueError: a group has no members, or masks and positions that are none of this training set.
    """
    groups = _as_plain(groups)
    if isinstance(groups, Mapping):
        found = {name: _positions(given, num_train, f"groups[{name!r}]") for name, given in groups.items()}
    elif (mask := _as_tensor(groups)) is not None and mask.dtype == torch.bool:
        found = {"group": _positions(mask, num_train, "groups")}
    else:
        found = _by_value(groups, num_train)
    if not found:
        raise ValueError("`groups` names no group")
    for name, positions in found.items():
        if not len(positions):
            raise ValueError(f"`groups`: {name!r} has no members among the {num_train} training samples")
    return found


def _by_value(column: Any, num_train: int) -> dict[Any, Tensor]:
    values = column.tolist() if hasattr(column, "tolist") else list(column) if isinstance(column, Sequence) else None
    if values is None or isinstance(column, str) or getattr(column, "ndim", 1) != 1:
        raise ValueError(
            "`groups` must be a mask, a mapping from names to masks or positions, or one value for each training "
            f"sample; it is {column!r}"
        )
    if len(values) != num_train:
        raise ValueError(f"`groups` holds {len(values)} values for {num_train} training samples")
    found: dict[Any, list[int]] = {}
    for position, value in enumerate(values):
        if value is not None and type(value).__name__ != "NAType" and value == value:  # NaN is not
            found.setdefault(value, []).append(position)
    return {name: torch.tensor(positions) for name, positions in found.items()}


def _positions(given: Any, num_train: int, name: str) -> Int[Tensor, " member"]:
    tensor = _as_tensor(_as_plain(given))
    if tensor is None or tensor.ndim != 1 or (len(tensor) and tensor.is_floating_point()):
        raise ValueError(f"`{name}` must be a mask or positions of training samples; it is {given!r}")
    if tensor.dtype == torch.bool:
        if len(tensor) != num_train:
            raise ValueError(f"`{name}` is a mask of {len(tensor)} values for {num_train} training samples")
        return tensor.nonzero().flatten()
    positions = tensor.long().unique()
    if len(positions) < len(tensor):
        raise ValueError(f"`{name}` names a training sample twice")
    if len(positions) and not (0 <= int(positions[0]) and int(positions[-1]) < num_train):
        raise ValueError(f"`{name}` holds positions outside 0 to {num_train - 1}")
    return positions


def _as_plain(given: Any) -> Any:
    """Return an array or a pandas column as an array, of truths where it holds nothing else."""
    if not isinstance(given, np.ndarray) and not hasattr(given, "to_numpy"):
        return given
    array = np.array(given)  # a copy: torch takes none that cannot be written to
    truths = array.dtype == object and len(array) > 0 and all(isinstance(value, bool) for value in array)
    return array.astype(bool) if truths else array


def _as_tensor(given: Any) -> Tensor | None:
    """Return what torch can read as numbers or truths, or None."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        return None
