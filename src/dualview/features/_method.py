"""What a feature method is, and the one loop that runs all of them over a user's inputs."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualview._display import brief
from dualview._version import __version__
from dualview.engine.batches import as_inputs, batch_size_for, map_tensors, num_rows, take_rows, tensors_in
from dualview.engine.datasets import input_batches, is_data_set
from dualview.engine.isolation import untouched
from dualview.engine.measured import Measured, Parts, one_each
from dualview.engine.outputs import Kind
from dualview.engine.players import Players
from dualview.engine.probabilities import Signs
from dualview.engine.propagation.account import Account, joined_account
from dualview.engine.site import Site
from dualview.engine.source import Source
from dualview.engine.task import Task, as_task
from dualview.errors import DualViewWarning, NonFiniteError
from dualview.features._attribution import FeatureAttribution

BATCH_BYTES = 2 * 2**20  # of inputs: a pass keeps every activation of its rows
INCOMPLETE = 0.05  # of what should be shared: a larger error is warned of
LONGEST = 4096  # rows of what may be one sample, where it has more axes; a longer one is not tried as such
DISCARDED = "discarded change"  # the check that says what a method leaves out on purpose


@dataclass(frozen=True, eq=False)
class Explained:
    """What a method found for one batch.

    Attributes:
        values: scores by place of the input, or the one site they stand at; axes after the first may be
            of length 1 where a score stands for all of them.
        split: the same scores as a sum of named terms.
        change: f(x) − f(reference), what the scores should add up to; None where they need not.
        checks: what was looked at, by name: a number for each sample.
        players: which player each number of an input belongs to, where scores are those of players.
        tables: what else was found, by name, "sample ...".
        account: where relevance went, for methods that keep books.
        sites: scores at places that were asked for besides.
    """

    values: Parts
    split: Mapping[str, Parts] = field(default_factory=dict)
    change: Float[Tensor, " sample"] | None = None
    checks: Mapping[str, Float[Tensor, " sample"]] = field(default_factory=dict)
    players: Players | None = None
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    account: Account | None = None
    sites: Mapping[Site, Tensor] = field(default_factory=dict)


Explain = Callable[[Measured], Explained]


class _Columns(NamedTuple):
    """Output columns of a batch's samples, and how many there are: what is kept of it."""

    explained: Tensor
    predicted: Tensor
    number: int


class Instead(Exception):
    """Raised where a batch shows that all have to be explained in another way, so that they have the same terms."""

    def __init__(self, explain: Explain) -> None:
        self.explain = explain


class FeatureMethod(ABC):
    """Attribute predictions to input features. Subclasses are frozen dataclasses; fields are hyper-parameters.

    With `repr=False` they print what differs from the defaults.
    """

    kind: ClassVar[Kind]
    keeps_graph: ClassVar[bool] = False
    """Whether `attribute(..., differentiable=True)` leads back to the model's weights."""
    linearises: ClassVar[bool] = False
    """Whether an output that is not linear in the logits is replaced by its gradient there."""

    def __repr__(self) -> str:
        return brief(self)

    @abstractmethod
    def explain(self, measured: Measured) -> Explained:
        """Score the features of a batch's samples; the model is in evaluation mode and gradients are off."""

    def attribute(
        self,
        task: Task | nn.Module,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int | None = None,
        differentiable: bool = False,
    ) -> FeatureAttribution:
        """Score every input feature of each sample for the task's measured output.

        Args:
            task: the model and what is measured; a bare model serves where every default fits. Of a
                tuple of outputs the results have a leading axis "output".
            inputs: a batch as the model takes it (tensor, tuple or dict; first axis: test), or a data
                set or DataLoader, whose labels are not used.
            targets: label or name of the class to explain, one a sample or one for all; the network's
                predictions by default.
            batch_size: rows per pass (samples, or points on their paths), which sets the memory
                needed; None chooses by their size.
            differentiable: keep the graph from the scores to the model's weights, so that a penalty on
                them trains the model. Weights get gradients, inputs do not.

        Returns:
            Scores shaped like the inputs; positive speaks for a larger measured output.

        Raises:
            ValueError: targets that are no columns, a baseline of another shape, a site that does not
                exist, or `differentiable` of a method that cannot.
            TypeError: no floating-point inputs, or of another precision than 32 or 64 bits.
            NonFiniteError: the measured output or a score is NaN or infinite.
        """
        task = self.explained_task(as_task(task))
        found = attributed(self, self.explain, task, inputs, targets, batch_size, differentiable, stacklevel=2)
        warn_if_incomplete(found, stacklevel=2)
        return found

    def explained_task(self, task: Task) -> Task:
        """Return the task whose output is explained: the user's own, for most."""
        return task


def attributed(
    method: FeatureMethod,
    explain: Explain,
    task: Task | nn.Module,
    inputs: Any,
    targets: Any,
    batch_size: int | None,
    differentiable: bool = False,
    *,
    stacklevel: int | None = None,
) -> FeatureAttribution:
    """Explain batch by batch, for each measured output, and join what was found.

    With `stacklevel`, counted from here, a model that ends in a softmax is warned of.
    """
    if differentiable and not method.keeps_graph:
        raise ValueError(f"{type(method).__name__} keeps no graph to the weights: differentiable=True needs another")
    task = as_task(task)
    outputs = task.output if isinstance(task.output, tuple) else (task.output,)
    tasks = [dataclasses.replace(task, output=output) for output in outputs]
    try:
        found, seen, signs = _explained(explain, task, tasks, inputs, targets, batch_size, differentiable, method)
    except Instead as other:
        found, seen, signs = _explained(other.explain, task, tasks, inputs, targets, batch_size, differentiable, method)
    if stacklevel is not None:
        signs.warn(stacklevel=stacklevel + 1)
    results = [_result(method, single, inputs, parts, seen) for single, parts in zip(tasks, found, strict=True)]
    return _stacked(results, Source.of(task, inputs)) if isinstance(task.output, tuple) else results[0]


def _is_single(task: Task, inputs: Any) -> bool:
    """Tell whether the model takes these inputs as one sample, and not as a batch; a row, and one sample, are tried."""
    given = as_inputs(inputs)
    if is_data_set(inputs) or any(part.ndim > 1 and len(part) > LONGEST for part in tensors_in(given).values()):
        return False

    def runs(batch: Any) -> bool:
        try:
            task.forward(batch)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError, KeyError):
            return False
        return True

    return not runs(take_rows(given, 0, 1)) and runs(map_tensors(lambda part: part[None], given))


def _explained(
    explain: Explain,
    task: Task,
    tasks: Sequence[Task],
    inputs: Any,
    targets: Any,
    batch_size: int | None,
    differentiable: bool,
    method: FeatureMethod,
) -> tuple[list[list[Explained]], list[_Columns], Signs]:
    """Return what was found of each output's task in each batch, the columns that were explained, and their signs."""
    found: list[list[Explained]] = [[] for _ in tasks]
    seen: list[_Columns] = []
    signs = Signs(task)
    with untouched(task.model), torch.set_grad_enabled(differentiable):
        for first in measured_batches(tasks[0], inputs, targets, batch_size, differentiable=differentiable):
            try:
                for k, single in enumerate(tasks):
                    measured = first.measuring(single) if k else first
                    found[k].append(_checked(explain(measured), measured, method))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if not seen and "raw" not in vars(first):  # the model has given nothing yet
                    _tell_if_single(error, task, inputs)
                raise
            seen.append(_Columns(first.columns.cpu(), first.predicted.cpu(), task.logits(first.raw[:1]).shape[1]))
            if first.raw.shape[1] > 1:  # one logit may lie anywhere in [0, 1] for so few samples
                signs.see(first.raw.detach())
    return found, seen, signs


def _tell_if_single(error: Exception, task: Task, inputs: Any) -> None:
    """Raise an error with the way out where the inputs are one sample without its batch axis."""
    if isinstance(error, torch.OutOfMemoryError) or not _is_single(task, inputs):
        return
    shapes = " and ".join(str(tuple(part.shape)) for part in tensors_in(as_inputs(inputs)).values())
    raise ValueError(
        f"the model does not take `inputs` of shape {shapes} ({error}), but does with one more axis before it: "
        "for a single sample give inputs[None]"
    ) from error


def measured_batches(
    task: Task, inputs: Any, targets: Any, batch_size: int | None, *, differentiable: bool = False
) -> Iterator[Measured]:
    """Return the measured output of the samples, batch by batch; to be walked through where the model is `untouched`.

    Without `batch_size` a pass holds as many rows as make about BATCH_BYTES of inputs, the batch itself at least.
    """
    total, batches = input_batches(inputs, task.split, batch_size, BATCH_BYTES)
    targets = one_each(targets, total)
    return _measured(task, batches, targets, total, batch_size, differentiable)


def _measured(
    task: Task, batches: Iterator[Any], targets: Any, total: int, batch_size: int | None, differentiable: bool
) -> Iterator[Measured]:
    start = 0
    for batch in batches:
        stop = start + num_rows(batch)
        own = None if targets is None else targets[start:stop]
        size = batch_size or max(stop - start, batch_size_for(batch, BATCH_BYTES))
        yield Measured(task, batch, own, start=start, total=total, size=size, differentiable=differentiable)
        start = stop


def warn_if_incomplete(found: FeatureAttribution, *, stacklevel: int) -> None:
    """Warn where scores that should add up to f(x) − f(reference) miss it by more than a twentieth."""
    if found.completeness_error is None or found.change is None:
        return
    missed = found.completeness_error.detach() + found.checks.get(DISCARDED, 0)
    error, size = float(missed.abs().sum()), float(found.change.detach().abs().sum())
    if error > INCOMPLETE * size:
        around = "" if found.site is None else "; what goes round the site (a residual) is not in them"
        warnings.warn(
            f"the scores miss what they should add up to by {error:.3g} in all, of {size:.3g}: give more steps (or "
            f"draws), or read `completeness_error`{around}",
            DualViewWarning,
            stacklevel=stacklevel + 1,
        )


def _stacked(results: Sequence[FeatureAttribution], source: Source) -> FeatureAttribution:
    """Join results for several outputs along a leading axis "output"."""
    first = results[0]

    def over(parts: list[Any]) -> Any:
        if isinstance(parts[0], Mapping):
            return {key: over([part[key] for part in parts]) for key in parts[0]}
        return None if parts[0] is None else torch.stack(parts)

    def together(name: str) -> Any:
        return over([getattr(result, name) for result in results])

    return dataclasses.replace(
        first,
        values=together("values"),
        split=together("split"),
        measured=" and ".join(result.measured for result in results),
        outputs=tuple(result.measured for result in results),
        linearised=any(result.linearised for result in results),
        each_linearised=tuple(result.linearised for result in results),
        each_lower_is_better=tuple(result.lower_is_better for result in results),
        change=together("change"),
        completeness_error=together("completeness_error"),
        checks=together("checks"),
        tables=together("tables"),
        sites=together("sites"),
        account=None,
        accounts=tuple(result.account for result in results if result.account is not None),
        source=source,
    )


def _checked(explained: Explained, measured: Measured, method: FeatureMethod) -> Explained:
    """Bring what was found to the CPU; refuse scores that are no numbers."""
    for place, part in explained.values.items():
        bad = ~part.detach().isfinite().reshape(len(part), -1).all(1)
        if bool(bad.any()):
            rows = [measured.start + int(k) for k in bad.nonzero().flatten()]
            where = f" at {place!r}" if place else ""
            raise NonFiniteError(
                f"{type(method).__name__}: scores{where} of samples {rows[:5]} are NaN or infinite", tuple(rows)
            )
    return dataclasses.replace(
        explained,
        values={place: part.cpu() for place, part in explained.values.items()},
        split={term: {place: part.cpu() for place, part in parts.items()} for term, parts in explained.split.items()},
        change=None if explained.change is None else _without_rounding(explained.change, measured.values).cpu(),
        checks={name: check.detach().cpu() for name, check in explained.checks.items()},
        tables={name: table.cpu() for name, table in explained.tables.items()},
        sites={site: part.cpu() for site, part in explained.sites.items()},
    )


def _without_rounding(change: Tensor, values: Tensor) -> Tensor:
    """Return f(x) − f(reference), 0 where it is no more than the rounding of f(x)."""
    rounding = 16 * torch.finfo(values.dtype).eps * values.detach().abs()
    return torch.where(change.detach().abs() <= rounding, 0.0, change)


def _result(
    method: FeatureMethod, task: Task, inputs: Any, parts: Sequence[Explained], seen: Sequence[_Columns]
) -> FeatureAttribution:
    """Join the batches of one output."""
    first = parts[0]
    values = _joined([part.values for part in parts])
    change = None if first.change is None else torch.cat([_known(part.change) for part in parts])
    sums = sum(part.reshape(len(part), -1).sum(1) for part in values.values())
    place = next(iter(values))
    return FeatureAttribution(
        values=_alone(values),
        kind=method.kind,
        measured=task.measured,
        linearised=method.linearises and not getattr(task.single_output, "linear", False),
        lower_is_better=getattr(task.single_output, "lower_is_better", False),
        targets=torch.cat([one.explained for one in seen]),
        predicted=torch.cat([one.predicted for one in seen]),
        method=repr(method),
        baseline=repr(method.baseline) if hasattr(method, "baseline") else None,  # pyright: ignore[reportAttributeAccessIssue]
        site=place if isinstance(place, Site) else None,
        split={term: _alone(_joined([part.split[term] for part in parts])) for term in first.split},
        change=change,
        completeness_error=None if change is None else sums - change,
        checks={name: torch.cat([part.checks[name] for part in parts]) for name in first.checks},
        players=first.players,
        tables={name: torch.cat([part.tables[name] for part in parts]) for name in first.tables},
        account=None if first.account is None else joined_account([_known(part.account) for part in parts]),
        sites={site: torch.cat([part.sites[site] for part in parts]) for site in first.sites},
        class_names=task.named(seen[0].number).class_names,
        version=__version__,
        source=Source.of(task, inputs),
    )


def _joined(parts: Sequence[Parts]) -> Parts:
    return {place: torch.cat([part[place] for part in parts]) for place in parts[0]}


def _alone(parts: Parts) -> Any:
    return next(iter(parts.values())) if len(parts) == 1 else parts


def _known(value: Any) -> Any:
    assert value is not None  # a method finds the same for every batch
    return value
