"""Rows as a table in the terminal."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(markup=False, emoji=False, highlight=False)  # names may hold brackets and colons


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a title and rows with equal keys; a number that is not known (NaN) is a dash."""
    print(title)  # as a title of the table it would be wrapped to the table's width
    table = Table()
    for name in rows[0] if rows else []:
        numeric = isinstance(rows[0][name], (int, float))
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_written, row.values()))
    console.print(table)


def _written(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"
