"""What checks annotations in these tests misses none: plain functions, those inside others, methods, shapes."""

import importlib
import os
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

from dualview.data._numbers import whole
from dualview.ops.ranking import spearman

pytestmark = pytest.mark.skipif(os.environ.get("DUALVIEW_TYPECHECK") == "0", reason="annotations are not checked")

PROBE = """
from __future__ import annotations
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from jaxtyping import Float
from torch import Tensor

def plain(number: int, *, name: str = "x") -> str:
    return name * number if number < 9 else number

def count(number: int) -> Iterator[int]:
    yield from range(number)

def outer(held: list) -> Callable[[int], int]:
    def inner(number: int) -> int:
        return held[number]
    return inner

def shaped(left: Float[Tensor, "row"], right: Float[Tensor, "row"] | None = None) -> Float[Tensor, "row"]:
    return left if len(left) < 3 else left[:1]

def shaped_inside(held: Tensor) -> Callable[[Tensor], Tensor]:
    def inner(value: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        return held
    return inner

def untyped(value, *rest):
    return value, rest

class Place:
    def __init__(self, number: int) -> None:
        self.number = number
    def itself(self) -> Place:
        return self
    @property
    def half(self) -> int:
        return self.number / 2
    @classmethod
    def made(cls, number: int) -> "Place":
        return cls(number)
    @staticmethod
    def twice(number: int) -> int:
        return 2 * number

@dataclass(frozen=True)
class Pair:
    number: int
    rows: Float[Tensor, "row column"]
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    (folder / "checked_probe.py").write_text(PROBE)
    with pytest.MonkeyPatch.context() as patch, install_import_hook("checked_probe", "beartype.beartype"):
        patch.syspath_prepend(folder)
        yield importlib.import_module("checked_probe")


def test_what_fits_passes(probe):
    row, rows = torch.ones(2), torch.ones(2, 3)
    assert probe.plain(2, name="ab") == "abab" and list(probe.count(2)) == [0, 1]
    assert [probe.outer([number])(0) for number in range(3)] == [0, 1, 2]  # each with what it holds
    assert probe.shaped(row, row) is row and probe.untyped(1, 2) == (1, (2,))
    assert [probe.shaped_inside(number * row)(row)[0] for number in range(3)] == [0, 1, 2]
    place = probe.Place(4)
    assert place.itself() is place and probe.Place.made(3).number == 3 and probe.Place.twice(4) == 8
    assert probe.Pair(1, rows).rows is rows
    assert probe.plain.__wrapped__.__name__ == probe.plain.__name__ == "plain" and probe.plain(1) == "x"


@pytest.mark.parametrize(
    "call",
    [
        lambda probe: probe.plain("2"),
        lambda probe: probe.plain(2, name=3),
        lambda probe: probe.plain(9),
        lambda probe: probe.count(2.0),
        lambda probe: probe.outer(3),
        lambda probe: probe.outer([1])("0"),
        lambda probe: probe.outer(["1"])(0),
        lambda probe: probe.shaped(torch.ones(2), torch.ones(3)),
        lambda probe: probe.shaped(torch.ones(2).long()),
        lambda probe: probe.shaped(torch.ones(2, 2)),
        lambda probe: probe.shaped(torch.ones(4)),
        lambda probe: probe.shaped_inside(torch.ones(2))(torch.ones(2, 1)),
        lambda probe: probe.shaped_inside(torch.ones(3))(torch.ones(2)),
        lambda probe: probe.Place("4"),
        lambda probe: probe.Place(3).half,
        lambda probe: probe.Place.made(3.5),
        lambda probe: probe.Place.twice("a"),
        lambda probe: probe.Pair("1", torch.ones(1, 1)),
        lambda probe: probe.Pair(1, torch.ones(1)),
    ],
)
def test_what_does_not_fit_is_refused(probe, call):
    """The second time too: what is known of a definition from before is used again."""
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            call(probe)


def test_the_library_is_checked():
    nameless: Any = 2
    with pytest.raises(TypeCheckError):
        whole(1, name=nameless, least=0)
    with pytest.raises(TypeCheckError):
        spearman(torch.ones(2, 3), torch.ones(3, 2))
