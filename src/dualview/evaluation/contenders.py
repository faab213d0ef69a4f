"""What is judged: data methods as they are set, and the baselines that every table needs by names of their own."""

from __future__ import annotations

import ast
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

import dualview.data
from dualview.data._explainer import Explainer
from dualview.data._fit import fit
from dualview.data._method import DataMethod
from dualview.data.confidence import Confidence
from dualview.data.loss import Loss
from dualview.data.random import Random
from dualview.data.same_class import SameClass
from dualview.engine.outputs import Kind
from dualview.engine.task import Task
from dualview.evaluation._scores import Scores


class Fitted(NamedTuple):
    """A contender that has seen the training set.

    Attributes:
        explain: (test inputs, output columns "test") → scores "test train"; in a tensor larger is a stronger
            proponent, whatever is measured.
        suspicions: returns, by name, how suspicious each training sample's label is, "train"; larger is more.
        seconds: time of the fit.
        num_bytes: returns what is kept between fit and explanation.
    """

    explain: Callable[[Any, Tensor], Scores]
    suspicions: Callable[[], dict[str, Tensor]]
    seconds: float
    num_bytes: Callable[[], int]


class Contender(ABC):
    """Something that scores training samples for test samples."""

    kind: Kind

    @property
    @abstractmethod
    def name(self) -> str:
        """As tables call it."""

    @abstractmethod
    def fit(self, task: Task, train: Any, train_targets: Int[Tensor, " train"]) -> Fitted:
        """See the training set.

        Args:
            task: the model and what is measured of it.
            train: labelled training set, as `dualview.fit` takes it.
            train_targets: its labels as output columns.
        """


@dataclass(frozen=True)
class Method(Contender):
    """A data method.

    Attributes:
        method: with its settings.
        label: as tables call it; None: by its settings.
    """

    method: DataMethod
    label: str | None = None

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """Of the method's scores."""
        return self.method.kind

    @property
    def name(self) -> str:
        """The label, or the method with the settings that are not at their defaults."""
        if self.label is not None:
            return self.label
        settings = {field.name: getattr(self.method, field.name) for field in fields(self.method)}  # type: ignore[arg-type]
        changed = [field for field in fields(self.method) if settings[field.name] != field.default]  # type: ignore[arg-type]
        listed = ", ".join(f"{field.name}={settings[field.name]!r}" for field in changed)
        return type(self.method).__name__ + (f"({listed})" if listed else "")

    def fit(self, task: Task, train: Any, train_targets: Int[Tensor, " train"]) -> Fitted:
        """Fit the method and rank the training samples by what it offers."""
        started = time.perf_counter()
        explainer = fit(self.method, task, train, progress=False)
        seconds = time.perf_counter() - started
        label_of = None if task.classes is None else {column: label for label, column in task.classes.items()}

        def explain(inputs: Any, columns: Tensor) -> Scores:
            labels = columns if label_of is None else [label_of[column] for column in columns.tolist()]
            return explainer.explain(inputs, labels)

        return Fitted(explain, partial(_suspicions, explainer), seconds, partial(_kept_bytes, explainer))


@dataclass(frozen=True)
class Best:
    """The one of several contenders with the highest linear datamodelling score.

    It is chosen on half of a bank's subsets, which no score that is reported in the same judgement then uses.

    Attributes:
        candidates: two or more.
    """

    candidates: tuple[Contender, ...]


@dataclass(frozen=True)
class Chosen(Contender):
    """A contender that was chosen from several.

    Attributes:
        contender: which.
        num_candidates: from how many.
    """

    contender: Contender
    num_candidates: int

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """Of the contender's scores."""
        return self.contender.kind

    @property
    def name(self) -> str:
        """The contender's, and that it was chosen."""
        return f"{self.contender.name}, best of {self.num_candidates}"

    def fit(self, task: Task, train: Any, train_targets: Int[Tensor, " train"]) -> Fitted:
        """Fit the contender."""
        return self.contender.fit(task, train, train_targets)


def _suspicions(explainer: Explainer) -> dict[str, Tensor]:
    """Return self-influence, and slack where there is a surrogate; a number that all samples share suspects none."""
    ranking = explainer.suspects()
    found = {name: ranking.columns[name] for name in ("self_influence", "slack") if name in ranking.columns}
    return {
        name: torch.empty_like(column).scatter_(0, ranking.index, column)
        for name, column in found.items()
        if bool((column != column[0]).any())
    }


def _kept_bytes(explainer: Explainer) -> int:
    kept = [explainer.state, *explainer.table.parts]
    return sum(tensor.nbytes for tensors in kept for tensor in tensors)


BASELINES: dict[str, Method] = {
    "random": Method(Random(), "random"),
    "same-class": Method(SameClass(), "same class"),
    "loss": Method(Loss(), "loss"),
    "confidence": Method(Confidence(), "confidence"),
}
_BASELINE_CLASSES = {type(baseline.method).__name__ for baseline in BASELINES.values()}
NAMES = (*BASELINES, *(name for name in dualview.data.__all__ if name not in _BASELINE_CLASSES))
"""Every method once: what a table holds unless asked for less."""


def contender(given: str | DataMethod | Contender | Best) -> Contender | Best:
    """Return what a text names: a baseline, a method of `dualview.data` with its settings, or the best of several.

    Example:
        >>> contender("DualView(C=1e-3)").name
        'DualView(C=0.001)'
        >>> contender("RelatIF(of=DataInf(), form='loss')").name
        'RelatIF(of=DataInf())'
        >>> len(contender("best(DualView(C=1e-3), DualView(C=0.1))").candidates)
        2

    Raises:
        ValueError: there is no such method, or its settings cannot be read.
    """
    if isinstance(given, (Contender, Best)):
        return given
    if isinstance(given, DataMethod):
        return Method(given)
    if given in BASELINES:
        return BASELINES[given]
    known = ", ".join((*NAMES, "best(...)"))
    try:
        call = ast.parse(_with(given.strip(), "-", "_"), mode="eval").body
        called = call.func if isinstance(call, ast.Call) else call
        several = isinstance(call, ast.Call) and isinstance(called, ast.Name) and called.id == "best"
        settings = {} if several else _settings(call) if isinstance(call, ast.Call) else {}
    except (SyntaxError, _Unreadable) as error:
        raise ValueError(
            f"{given!r} is no method with plain settings, like 'DualView(C=1e-3)'; known: {known}"
        ) from error
    except TypeError as error:  # of a method among the settings
        raise ValueError(f"{given!r}: {error}") from error
    if several and isinstance(call, ast.Call):
        return _best(given, [contender(_with(ast.unparse(one), "_", "-")) for one in call.args])
    if not isinstance(called, ast.Name) or called.id not in dualview.data.__all__:
        raise ValueError(f"{given!r} names no method; known: {known}")
    try:
        return Method(getattr(dualview.data, called.id)(**settings))
    except TypeError as error:
        raise ValueError(f"{given!r}: {error}") from error


def _with(text: str, found: str, instead: str) -> str:
    """Write the baselines' names with another hyphen: Python would take theirs for a minus."""
    for name in BASELINES:
        text = text.replace(name.replace("-", found), name.replace("-", instead))
    return text


def _best(given: str, candidates: list[Contender | Best]) -> Best:
    single = [one for one in candidates if isinstance(one, Contender)]
    if len(single) < max(2, len(candidates)):
        raise ValueError(f"{given!r} must name two or more methods to choose from")
    return Best(tuple(single))


class _Unreadable(Exception):
    """Words that are no plain settings."""


def _settings(call: ast.Call) -> dict[str, Any]:
    if call.args:
        raise _Unreadable("settings are named")
    return {str(word.arg): _value(word.value) for word in call.keywords}


def _value(node: ast.expr) -> Any:
    """Read a setting: a literal, or a method by its call."""
    called = node.func if isinstance(node, ast.Call) else node
    if isinstance(called, ast.Name) and called.id in dualview.data.__all__:
        return getattr(dualview.data, called.id)(**(_settings(node) if isinstance(node, ast.Call) else {}))
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise _Unreadable(str(error)) from error


def contenders(given: Sequence[str | DataMethod | Contender | Best]) -> list[Contender | Best]:
    """Return each one named; see `contender`."""
    return [contender(one) for one in given]
