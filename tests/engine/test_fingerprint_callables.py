"""Fingerprints of callables: the same for the same name, source and values, another for any change."""

import enum
import functools
import importlib.util
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.fingerprint import callable_fingerprint


def logit(output: Tensor, target: Tensor) -> Tensor:
    return output[:, 0]


def other(output: Tensor, target: Tensor) -> Tensor:
    return output[:, 0]


def power(output: Tensor, exponent: float = 2.0) -> Tensor:
    return output**exponent


def closing_over(value: Any) -> Callable:
    def inner(output: Tensor) -> Tensor:
        return output * value

    return inner


def with_default(value: Any, keyword: Any = 0) -> Callable:
    def inner(output: Tensor, scale: Any = value, *, offset: Any = keyword) -> Tensor:
        return output * scale + offset

    return inner


def calling_itself() -> Callable:
    def inner(depth: int) -> int:
        return 0 if depth == 0 else inner(depth - 1)

    return inner


def doubled(fn: Callable) -> Callable:
    @functools.wraps(fn)
    def inner(*args: Any) -> Any:
        return 2 * fn(*args)

    return inner


@doubled
def decorated(output: Tensor) -> Tensor:
    return output


class Mode(enum.Enum):
    HARD = 1
    SOFT = 2


@dataclass(frozen=True)
class Contrast:
    first: int
    second: int = 0
    mode: Mode = Mode.HARD
    weights: Any = None
    names: dict = field(default_factory=dict)

    def __call__(self, output: Tensor) -> Tensor:
        return output[:, self.first] - output[:, self.second]

    def method(self, output: Tensor) -> Tensor:
        return output


@dataclass(frozen=True)
class Same:
    first: int
    second: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        return output[:, self.first]


class OwnLoss(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(output, target)


class Plain:
    def __call__(self, output: Tensor) -> Tensor:
        return output

    def method(self, output: Tensor) -> Tensor:
        return output


def make_callables() -> list[Callable]:
    return [
        *(logit, other, power, F.cross_entropy, F.mse_loss, torch.relu, torch.tanh, operator.neg, abs, decorated),
        *(closing_over(value) for value in (1, 2, 1.0, True, "1", (1,), [1], None, torch.ones(1), np.ones(1), logit)),
        *(closing_over(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, torch.float32, Mode.HARD, Contrast(1))),
        *(with_default(1), with_default(2), with_default(1, 2), calling_itself()),
        *(functools.partial(power, exponent=2.0), functools.partial(power, exponent=3.0), functools.partial(power, 2)),
        *(Contrast(1), Contrast(2), Contrast(1, 1), Contrast(1, mode=Mode.SOFT), Same(1), Contrast(1).method),
        *(Contrast(1, weights=torch.ones(2)), Contrast(1, weights=torch.zeros(2)), Contrast(1, names={"a": 0})),
        *(nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(label_smoothing=0.1)),
        *(
            nn.CrossEntropyLoss(weight=torch.ones(2)),
            nn.NLLLoss(),
            OwnLoss(1.0),
            OwnLoss(2.0),
            Plain,
            Contrast(2).method,
        ),
    ]


def test_any_change_makes_another_callable():
    hashes = [callable_fingerprint(fn) for fn in make_callables()]
    assert len(set(hashes)) == len(hashes)


def test_the_same_callable_made_anew_is_the_same():
    assert [callable_fingerprint(fn) for fn in make_callables()] == [
        callable_fingerprint(fn) for fn in make_callables()
    ]


SOURCES = {
    "function": "def made(output):\n    return output * {}\n",
    "dataclass": "@dataclass(frozen=True)\nclass Made:\n    def __call__(self, output):\n        return {} * output\n",
    "module": "class Made(nn.Module):\n    def forward(self, output):\n        return output * {}\n",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_another_source_makes_another_callable(tmp_path: Path, monkeypatch, kind: str):
    fingerprints = []
    for number, factor in enumerate((2, 2, 3)):
        path = tmp_path / f"{number}.py"
        path.write_text("from dataclasses import dataclass\nfrom torch import nn\n" + SOURCES[kind].format(factor))
        spec = importlib.util.spec_from_file_location("made", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "made", module)  # where inspect looks up a class's file
        spec.loader.exec_module(module)
        fingerprints.append(callable_fingerprint(module.made if kind == "function" else module.Made()))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_lambdas_and_what_has_no_source_or_state_are_refused():
    with pytest.raises(ValueError, match="expected a named function.*lambda.*use def"):
        callable_fingerprint(lambda output: output)
    with pytest.raises(ValueError, match="use def"):
        callable_fingerprint(closing_over(lambda output: output))
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def typed(output):\n    return output", namespace)
    with pytest.raises(ValueError, match="no source to read; use a named function"):
        callable_fingerprint(namespace["typed"])
    for fn in (Plain(), Plain().method, closing_over(Plain())):
        with pytest.raises(ValueError, match="frozen dataclass"):
            callable_fingerprint(fn)
    with pytest.raises(ValueError, match="it holds a object, which has no stable bytes"):
        callable_fingerprint(closing_over(object()))
