"""In which order sphinx-gallery lists the scripts."""

from __future__ import annotations

# What is not named comes after these, by name.
FIRST = ("explain_an_image.py", "explain_a_table.py", "your_own_model.py", "compare_methods.py")


class ReadingOrder:
    """Sort key of a gallery's scripts."""

    def __init__(self, src_dir: str):
        self.src_dir = src_dir

    def __call__(self, filename: str) -> tuple[int, str]:
        return (FIRST.index(filename) if filename in FIRST else len(FIRST), filename)

    def __repr__(self) -> str:
        return "<ReadingOrder>"  # written into Sphinx's cache: an address would change with each run
