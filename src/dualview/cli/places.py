"""Where a command writes: looked at before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FIGURES = (".png", ".pdf", ".svg")


def check_places(files: Sequence[Path | None], figures: Sequence[Path | None]) -> None:
    """Refuse what could not be written; None is nothing to write.

    Raises:
        ValueError: there is no such folder, or a figure ends otherwise than figures do.
    """
    for path in filter(None, [*files, *figures]):
        if not path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    for path in filter(None, figures):
        if path.suffix not in FIGURES:
            raise ValueError(f"figures are written as .png, .pdf or .svg; {path} ends otherwise")
