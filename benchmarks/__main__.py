"""Run the benchmarks and write their tables: `python -m benchmarks [name ...]`.

Each file beside this one measures one claim: `measure()` returns rows (dicts with the same keys), its
docstring says what is measured and how. Tables go to `benchmarks/results/<name>.md`.
"""

import importlib
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).parent


def machine() -> str:
    """Return processor, cores and versions in one line."""
    import numpy
    import torch

    processor = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s); Python "
        f"{platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}"
    )


def table(rows: list[dict]) -> str:
    """Return rows as a Markdown table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(names: list[str]) -> None:
    for name in names or sorted(path.stem for path in HERE.glob("[a-z]*.py")):
        module = importlib.import_module(f"benchmarks.{name}")
        rows = module.measure()
        text = f"# {name}\n\n{module.__doc__}\n`python -m benchmarks {name}` on {machine()}.\n\n{table(rows)}\n"
        (HERE / "results" / f"{name}.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
