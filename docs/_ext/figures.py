"""Show the library's figures in sphinx-gallery; pyplot does not know them, so they are found among the variables."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_SCALE = 0.8  # a figure of the library's full width then fills the page's column, and letters are as large in all
_SHOWN: weakref.WeakSet[Figure] = weakref.WeakSet()


def scraper(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figures that a block left in a variable or as its last expression, each of them once."""
    shown = []
    for value in list(block_vars["example_globals"].values()):
        if isinstance(value, Figure) and value not in _SHOWN:
            _SHOWN.add(value)
            path = Path(block_vars["image_path_iterator"].next())
            value.savefig(path, dpi=2 * value.dpi)
            width = round(_SCALE * value.get_figwidth() * value.dpi)
            source = path.relative_to(gallery_conf["src_dir"]).as_posix()
            words = [text.get_text() for text in value.texts] or [path.stem]
            shown += ["", f".. image:: /{source}", f"   :alt: {words[0]}", f"   :width: {width}px", ""]
    return "\n".join(shown)
