"""Judgements kept on disk, so that a long run that was killed goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dualview.engine.files import write_atomically
from dualview.engine.fingerprint import hash_bytes
from dualview.evaluation._estimate import Estimate
from dualview.evaluation._table import Cost, Line

_PASSES = ("fit_passes", "explain_passes")


def key_of(*parts: Any) -> str:
    """Name what was measured: all that decides it, and the code of this library, to the last character."""
    return hash_bytes(_code(), str(torch.__version__), *map(repr, parts))[:32]


def load_kept(path: Path) -> tuple[list[Line], list[Cost]] | None:
    """Return lines and costs that were kept; None where there are none."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    lines = [Line(**{**line, "estimate": _estimate(line["estimate"])}) for line in kept["lines"]]
    costs = [Cost(**{**cost, **{name: tuple(cost[name]) for name in _PASSES}}) for cost in kept["costs"]]
    return lines, costs


def save_kept(path: Path, lines: list[Line], costs: list[Cost]) -> None:
    """Keep lines and costs; a kill leaves all of them or none."""
    content = {"lines": [_plain(line) for line in lines], "costs": [dataclasses.asdict(cost) for cost in costs]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content).encode())


def _plain(line: Line) -> dict[str, Any]:
    found = line.estimate
    estimate = None if found is None else {**vars(found), "values": found.values.tolist()}
    return {**vars(line), "estimate": estimate}


def _estimate(plain: dict[str, Any] | None) -> Estimate | None:
    if plain is None:
        return None
    values = torch.tensor(plain["values"], dtype=torch.float64)
    return Estimate(**{**plain, "values": values, "notes": tuple(plain["notes"])})


@cache
def _code() -> str:
    folder = Path(__file__).parents[1]
    return hash_bytes(*(path.read_bytes() for path in sorted(folder.rglob("*.py"))))
