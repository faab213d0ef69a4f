"""All the library may know of the user's model: what goes in, what comes out, what is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dualview.engine import outputs
from dualview.engine.batches import Inputs, call_model, logits_of, map_tensors, num_rows, split_batch
from dualview.engine.isolation import device_of
from dualview.engine.labels import Problem
from dualview.engine.site import Site
from dualview.errors import NonFiniteError

Measure = Callable[[Tensor, Tensor], Tensor]

MAX_CLASSES_TRIED = 256


@dataclass(frozen=True, eq=False)
class Task:
    """Describe a trained classifier to the library. A bare model serves where every default fits.

    Args:
        model: the trained network; it is never changed, moved or wrapped.
        readout: the last linear layer, by name or as a `Site`; None finds the one Linear whose
            output is the model's output.
        output: what is measured for a target: `dv.logit`, `dv.margin`, `dv.log_probability`,
            `dv.contrast(a, b)`, `dv.loss`, an `Output`, or a function (logits "row cls", targets
            "row") → "row". A one-logit network counts as two columns, (−z/2, z/2).
        loss: the training loss, (model output, targets) → one value per sample, or their sum or
            mean, which is detected. A one-logit network's loss is called with outputs and float
            targets of shape "row".
        split: batch → (inputs, targets). The default takes the last element of a tuple as targets,
            or the entry called labels, label, targets, target or y of a dict or dataclass. Inputs
            are a tensor, a tuple (model(*inputs)) or a dict (model(**inputs)).
        classes: label → output column, where labels are not columns already.
        checkpoints: for methods that use several.
        class_names: a name per output column, for people, and for `targets=`. None takes those of a Hugging Face
            model's `config.id2label`, where there is one for each output column and not LABEL_0, LABEL_1, ...
        display: one sample's input → image (H×W, H×W×3 or ×4 array, or a C×H×W tensor) or text;
            undo normalisation here.
        problem: what labels are. "classification": one class a sample. "regression": a number for each output
            column; the default loss is then half the squared error, summed over columns. "multi-label": 0 or 1
            for each output column; the default loss is binary cross-entropy, summed over columns. Of the last
            two a test sample's target is the output column that is explained.

    Example:
        >>> task = Task(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), output=outputs.margin)
    """

    model: nn.Module
    readout: Site | str | None = None
    output: Measure | tuple[Measure, ...] = outputs.logit
    loss: Measure = outputs.loss
    split: Callable[[Any], tuple[Any, Any]] = split_batch
    classes: Mapping[Any, int] | None = None
    checkpoints: Sequence[Any] = ()
    _: KW_ONLY
    class_names: Sequence[str] | None = None
    display: Callable[[Any], Any] | None = None
    problem: Problem = "classification"

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module; it is {type(self.model).__name__}")
        measures = self.output if isinstance(self.output, tuple) else (self.output,)
        if not measures:
            raise ValueError("`output` is an empty tuple; expected at least one output, such as dv.logit")
        named = [("output", measure) for measure in measures] + [("loss", self.loss), ("split", self.split)]
        for name, value in named:
            if not callable(value):
                raise TypeError(f"`{name}` must be a function; it is {value!r}")
        if self.problem not in ("classification", "regression", "multi-label"):
            raise ValueError(
                f"`problem` is {self.problem!r}; choose from 'classification', 'regression' and 'multi-label'"
            )
        if self.problem != "classification":
            self._check_numbers(measures)
        if isinstance(self.checkpoints, str) or not isinstance(self.checkpoints, Sequence):
            raise TypeError(
                f"`checkpoints` must be a list of states or models; it is a {type(self.checkpoints).__name__}"
            )
        if self.classes is not None and not isinstance(self.classes, Mapping):
            kind = type(self.classes).__name__
            raise TypeError(f"`classes` must map each label to its output column; it is a {kind}")

    def __repr__(self) -> str:
        number = sum(weight.numel() for weight in self.model.parameters() if not is_lazy(weight))
        measures = self.output if isinstance(self.output, tuple) else (self.output,)
        names = " and ".join(map(_name, measures))
        known = "no class names" if self.class_names is None else f"{len(self.class_names)} class names"
        return (
            f"{type(self).__name__}({type(self.model).__name__} of {number:,} parameters, readout={self.readout!r}, "
            f"problem={self.problem!r}, output={names}, {known})"
        )

    def named(self, num_columns: int) -> Task:
        """Return the task with class names: its own, or those that the model's config has for so many columns."""
        names = None if self.class_names is not None else _names_in_config(self.model)
        return self if names is None or len(names) != num_columns else replace(self, class_names=names)

    def forward(self, inputs: Inputs) -> Float[Tensor, "row logit"]:
        """Return the network's raw outputs for a batch of inputs; a one-logit network has one column."""
        device = device_of(self.model)
        placed = map_tensors(lambda tensor: tensor.to(device), inputs)
        return logits_of(call_model(self.model, placed), num_rows(inputs))

    def _check_numbers(self, measures: Sequence[Measure]) -> None:
        refused = [one for one in measures if one in (outputs.margin, outputs.log_probability, outputs.loss)]
        if refused:
            raise ValueError(
                f"output={getattr(refused[0], 'name', refused[0])!r} measures a class against its rivals, or with its "
                f"label; a {self.problem} task measures an output column: dv.logit, dv.contrast, or a function of yours"
            )
        if self.classes is not None:
            raise ValueError(f"`classes` map labels of a classification; this task's problem is {self.problem!r}")

    def logits(self, raw: Float[Tensor, "row logit"]) -> Float[Tensor, "row cls"]:
        """Return one column for each class or number; one logit for two classes becomes two (see `class_logits`)."""
        return class_logits(raw) if self.problem == "classification" else raw

    def predicted(self, raw: Float[Tensor, "row logit"]) -> Int[Tensor, " row"]:
        """Return the output column that stands for each row: the highest one; of a regression there is only one.

        Raises:
            ValueError: a regression has several output columns, of which none can be preferred.
        """
        if self.problem == "regression" and self.single_output == outputs.mean_square:
            return torch.zeros(len(raw), dtype=torch.int64, device=raw.device)
        if self.problem == "regression" and raw.shape[1] > 1:
            raise ValueError(f"give targets=: which of the {raw.shape[1]} output columns is to be explained")
        return self.logits(raw).argmax(1)

    def losses(
        self, logits: Float[Tensor, "row cls"], targets: Tensor, *, one_logit: bool = False
    ) -> Float[Tensor, " row"]:
        """Return the training loss of each row, for logits with one column a class (see `class_logits`)."""
        if self.loss == outputs.loss:  # in float64: of a sample that is fitted well, float32 leaves no gradient
            return self.training_loss(logits.double(), targets).to(logits.dtype)
        if self.problem != "classification":
            targets = targets.to(logits.dtype)
            if reduction_of(self.loss, logits, targets) == "none":
                return self.loss(logits, targets).reshape(len(logits))
            return _one_by_one(self.loss, logits, targets)
        return per_sample(self.loss, *_as_trained(logits, targets, one_logit))

    def loss_reduction(self, logits: Float[Tensor, "row cls"], targets: Tensor, *, one_logit: bool = False) -> str:
        """Tell what the task's loss returns for several samples: "none" (one value each), their "sum" or "mean".

        It is also asked about other labels than these, on smaller logits, so that class weights inside
        it show even where the given samples, the first of a sorted data set, are all of one class.
        """
        if self.loss == outputs.loss:
            return "none"
        if self.problem != "classification":
            return reduction_of(self.loss, logits, targets.to(logits.dtype))
        others = torch.arange(min(logits.shape[1], MAX_CLASSES_TRIED))
        small = logits[others % len(logits)] / logits.abs().max().clamp(min=1)
        logits, targets = torch.cat([logits, small]), torch.cat([targets, others])
        loss = _without_reduction(self.loss)
        found = reduction_of(loss, *_as_trained(logits, targets, one_logit))
        return found if loss is self.loss or found != "none" else str(getattr(self.loss, "reduction", found))

    @property
    def training_loss(self) -> Measure:
        """The training loss: where none was given, the one that goes with the problem."""
        return _LOSSES[self.problem] if self.loss == outputs.loss else self.loss

    @property
    def measured(self) -> str:
        """Name of what is measured."""
        return _name(self.single_output)

    @property
    def single_output(self) -> Measure:
        """The output, where there is one; several at once are refused."""
        if isinstance(self.output, tuple):
            if len(self.output) != 1:
                raise ValueError(
                    f"`output` is a tuple of {len(self.output)}; attribution explains one output a call: "
                    "use dataclasses.replace(task, output=...) for each"
                )
            return self.output[0]
        return self.output

    def measure(
        self, logits: Float[Tensor, "row cls"], targets: Tensor, *, one_logit: bool = False
    ) -> Float[Tensor, " row"]:
        """Return the measured output of each row, for logits with one column a class."""
        if self.single_output == outputs.loss:
            return self.losses(logits, targets, one_logit=one_logit)
        return self.single_output(logits, targets)

    def directions(self, raw: Float[Tensor, "row logit"], targets: Tensor) -> Float[Tensor, "row cls"]:
        """Return the gradient of each row's measured output with respect to its class logits."""
        one_logit = self.problem == "classification" and raw.shape[1] == 1
        return outputs.directions(partial(self.measure, one_logit=one_logit), self.logits(raw), targets)

    def loss_directions(self, raw: Float[Tensor, "row logit"], targets: Tensor) -> Float[Tensor, "row cls"]:
        """Return the gradient of each row's training loss with respect to its class logits, at its own label."""
        one_logit = self.problem == "classification" and raw.shape[1] == 1
        return outputs.directions(partial(self.losses, one_logit=one_logit), self.logits(raw), targets)


def _squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1)


def _binary_cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none").sum(1)


_LOSSES: dict[str, Measure] = {
    "classification": outputs.loss,
    "regression": _squared_errors,
    "multi-label": _binary_cross_entropies,
}


def _name(output: Measure) -> str:
    return getattr(output, "name", None) or getattr(output, "__name__", repr(output))


def _names_in_config(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names that a Hugging Face model carries; None where it has only the placeholders for them."""
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(labels, Mapping):
        return None
    by_column = {str(column): str(name) for column, name in labels.items()}  # read from JSON, the columns are words
    columns = [str(column) for column in range(len(by_column))]
    if set(by_column) != set(columns) or all(by_column[column] == f"LABEL_{column}" for column in columns):
        return None
    return tuple(by_column[column] for column in columns)


def as_task(task: Task | nn.Module) -> Task:
    """Return a task; a bare model becomes one with every default."""
    return task if isinstance(task, Task) else Task(task)


def class_logits(raw: Float[Tensor, "row logit"]) -> Float[Tensor, "row cls"]:
    """Return one column a class: one logit z for two classes becomes (−z/2, z/2), else `raw` itself.

    The softmax of the two columns is (1 − sigmoid(z), sigmoid(z)).
    """
    return torch.cat([-raw / 2, raw / 2], dim=1) if raw.shape[1] == 1 else raw


def per_sample(loss: Measure, logits: Float[Tensor, "row ..."], targets: Tensor) -> Float[Tensor, " row"]:
    """Return the loss of each row, whether `loss` gives rows, their sum, or their mean.

    A loss module is asked without its reduction, which keeps class weights; any other loss that
    returns one number is called row by row, after `reduction_of` found it to be their sum or mean.

    Raises:
        ValueError: the loss is neither per row, nor the sum or mean over rows.
    """
    loss = _without_reduction(loss)
    if reduction_of(loss, logits, targets) == "none":
        return loss(logits, targets).reshape(len(logits))
    return _one_by_one(loss, logits, targets)


def reduction_of(loss: Measure, logits: Float[Tensor, "row ..."], targets: Tensor) -> str:
    """Tell what `loss` returns for these rows: "none" (one value a row), their "sum" or their "mean".

    Raises:
        ValueError: it returns something else.
        NonFiniteError: a row's loss is NaN or infinite.
    """
    rows = len(logits)
    with torch.no_grad():
        value = loss(logits, targets)
        if value.ndim > 0 and value.numel() == rows:
            return "none"
        if value.numel() != 1:
            shape = tuple(value.shape)
            raise ValueError(f"`loss` returned shape {shape} for {rows} samples; expected ({rows},) or one number")
        singles = _one_by_one(loss, logits, targets)
        if not bool(singles.isfinite().all()):
            bad = (~singles.isfinite()).nonzero().flatten().tolist()
            message = f"`loss` is NaN or infinite at rows {bad[:5]} of the {rows} that it was tried on"
            raise NonFiniteError(message, tuple(bad))
        tolerance = 1e-4 * singles.abs().sum() + 1e-6 * rows  # float32 sums, with room
        if (value * rows - singles.sum()).abs() <= tolerance:
            return "mean"
        if (value - singles.sum()).abs() <= tolerance:
            return "sum"
    raise ValueError(
        "`loss` returns one number that is neither the sum nor the mean of its per-sample values "
        "(class weights, or a coupling between samples?): give a loss with reduction='none'"
    )


def _without_reduction(loss: Measure) -> Measure:
    """Return a loss module that reduces by its `reduction` attribute as a copy that does not; else `loss` itself."""
    if not isinstance(loss, nn.Module) or getattr(loss, "reduction", "none") == "none":
        return loss
    loss = copy.copy(loss)
    loss.reduction = "none"  # type: ignore[assignment]
    return loss


def _as_trained(logits: Tensor, targets: Tensor, one_logit: bool) -> tuple[Tensor, Tensor]:
    """Return what the user's loss is called with: for one logit, that logit and float targets, both "row"."""
    if not one_logit:
        return logits, targets
    return logits[:, 1] - logits[:, 0], targets.to(logits.dtype)


def _one_by_one(loss: Measure, logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([loss(logits[i : i + 1], targets[i : i + 1]).reshape(()) for i in range(len(logits))])
