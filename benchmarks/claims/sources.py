"""Look up what the comments of a document name: rows of a results table, the output of a command, a test."""

import ast
import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from pathlib import Path

from benchmarks.claims.documents import MARKDOWN, Number, numbers

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


class SourceError(ValueError):
    """What a comment names is not there, or not one thing."""


@dataclass(frozen=True)
class Row:
    """One row of a table: its cells, the names of its columns, and the headings above it."""

    cells: tuple[str, ...]
    columns: tuple[str, ...]
    headings: tuple[str, ...]


def found(source: str, run: bool = True) -> list[Number] | None:
    """Return the numbers that a source holds; None where any will do, or where its command is not to be run."""
    kind, _, rest = (part.strip() for part in source.partition(":"))
    match kind:
        case "from":
            name, _, rows = (part.strip() for part in rest.partition(":"))
            return [number for labels in _groups(rows) for number in _numbers_of_row(name, labels)]
        case "run" if run:
            command, _, lines = (part.strip() for part in rest.partition("|"))
            return [number for labels in _groups(lines) for number in _numbers_of_lines(command, labels)]
        case "test":
            return _numbers_of_test(rest)
        case "run" | "set":
            return None
    raise SourceError(f'"{source}" begins with none of "from:", "run:", "test:" and "set"')


def commandless() -> list[str]:
    """Return the tables of results whose text names no command of today; a CSV file may be named by another page."""
    with_command = {page: page.read_text() for page in sorted(RESULTS.glob("*.md")) if _names_a_command(page)}
    tables = [path for path in sorted(RESULTS.iterdir()) if path.suffix in (".csv", ".md")]
    return [
        path.name
        for path in tables
        if path.with_suffix(".md") not in with_command and not any(path.name in text for text in with_command.values())
    ]


def _names_a_command(page: Path) -> bool:
    text = page.read_text() if page.exists() else ""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    modules = {path.stem for path in (ROOT / "benchmarks").iterdir()}
    return (
        not targets.isdisjoint(re.findall(r"`make ([a-z-]+)", text))
        or not modules.isdisjoint(re.findall(r"`python -m benchmarks[. ](\w+)", text))
        or "`dualview evaluate" in text
    )


def _groups(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the labels of each row or line: groups are parted by "; ", labels by commas, choices by " or "."""
    for group in text.split("; "):
        [labels] = csv.reader([group], skipinitialspace=True)  # a label that holds a comma stands in quotes
        yield from product(*(label.strip().split(" or ") for label in labels))


def _numbers_of_row(name: str, labels: tuple[str, ...]) -> list[Number]:
    """Return the numbers of the one row that has all labels; of one column, where a label is a column's name."""
    matches = {row: [_matched(row, label) for label in labels] for row in _rows(name)}
    exact = {row: sum(whole for whole, _ in one) for row, one in matches.items() if all(places for _, places in one)}
    best = [row for row, count in exact.items() if count == max(exact.values())]
    if len(best) != 1:
        shown = "".join(f"\n    {' | '.join(row.cells)}"[:160] for row in best[:4])
        raise SourceError(f"{len(best) or 'no'} rows of {name} have {', '.join(labels)!r}: one is expected{shown}")
    [row] = best
    named = {place for _, places in matches[row] for place in places}
    picked = [place for place, column in enumerate(row.columns) if column in labels] or range(len(row.cells))
    return [number for place in picked if place not in named for number in numbers(row.cells[place])]


def _matched(row: Row, label: str) -> tuple[bool, list[int]]:
    """Tell whether a label is exactly a cell, column or heading of a row; and which cells it names, −1 for others."""
    for exact in (True, False):
        places = [place for place, cell in enumerate(row.cells) if (cell == label if exact else label in cell)]
        others = [-1 for text in row.columns + row.headings if (text == label if exact else label in text)]
        if places or others:
            return exact, places or others
    return False, []


@cache
def _rows(name: str) -> tuple[Row, ...]:
    path = RESULTS / name
    if path.suffix not in (".csv", ".md") or not path.is_file():
        raise SourceError(f"benchmarks/results has no table {name!r}: a .csv or .md file is expected")
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            columns, *lines = (tuple(line) for line in csv.reader(file))
        return tuple(Row(cells, columns, ()) for cells in lines)
    return tuple(_rows_of_page(path.read_text()))


def _rows_of_page(text: str) -> Iterator[Row]:
    headings: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    cells: list[str] = []
    tokens = MARKDOWN.parse(text)
    for before, token in pairwise(tokens):
        match token.type:
            case "inline" if before.type == "heading_open":
                headings = (*headings[: int(before.tag[1]) - 1], token.content)
            case "tr_open":
                cells = []
            case "inline" if before.type in ("th_open", "td_open"):
                cells.append("".join(child.content for child in token.children or ()))
            case "thead_close":
                columns = tuple(cells)
            case "tr_close" if before.type == "td_close":
                yield Row(tuple(cells), columns, headings)


def _numbers_of_lines(command: str, labels: tuple[str, ...]) -> list[Number]:
    lines = [line for line in output(command).splitlines() if all(label in line for label in labels)]
    if not lines:
        raise SourceError(f"no line of what `{command}` prints has {', '.join(labels)!r}")
    return [number for line in lines for number in numbers(line)]


@cache
def output(command: str) -> str:
    """Run a cheap command in the project's root, once, and return what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        shlex.split(command), cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SourceError(f"`{command}` ends with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout


def _numbers_of_test(address: str) -> list[Number]:
    """Return the numerals of a test, and of the constants and functions of its file that it goes by."""
    name, _, function = (part.strip() for part in address.partition("::"))
    if not (ROOT / name).is_file():
        raise SourceError(f"there is no file {name}")
    defined = {}
    for node in ast.parse((ROOT / name).read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        defined |= {getattr(target, "id", getattr(target, "name", None)): node for target in targets}
    if function not in defined:
        raise SourceError(f"{name} has no test {function}")
    seen, ahead, values = set(), {function}, []
    while ahead:
        seen |= ahead
        nodes = [node for name in ahead for node in ast.walk(defined[name])]
        values += [node.value for node in nodes if isinstance(node, ast.Constant) and type(node.value) in (int, float)]
        ahead = {node.id for node in nodes if isinstance(node, ast.Name) and node.id in defined} - seen
    return [Number(str(value), value, 0.0, percent=False, measured=True, place=0) for value in values]
