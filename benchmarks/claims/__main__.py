"""Check every measured number of README.md and docs/**/*.md against its source: `python -m benchmarks.claims`.

Behind a number, or behind several of the same source, stands a comment that is invisible when the page is rendered:

    <!-- from: influence.csv: mnist-mlp, lds, DualView -->   the row of benchmarks/results/ that has all these labels
    <!-- run: make demo | slack; training loss -->           lines with these labels of what a cheap command prints
    <!-- test: tests/data/test_trak.py::test_name -->        a bound that this test asserts
    <!-- set: defaults of the recipe -->                     a setting, a definition, or a number of the literature

Labels are cells of the row, headings above its table, and columns, which pick that column's cell; whole ones go
before parts of words. "; " parts rows, "digits-mlp or mnist-mlp" stands for a row each, and a label that holds a comma
stands in quotes. Comments that end a line, or stand below a paragraph or table, leave the page as it is.

A number must equal one of its source's after rounding to the digits that it is written with. Which numerals count,
and for which of them a comment speaks, says `documents`. Dear commands are never run: their tables are looked up,
and each table must name the command that made it. `--no-run` leaves cheap commands out, too.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.claims.documents import Claim, DocumentError, Number, claims
from benchmarks.claims.sources import ROOT, SourceError, commandless, found

BUILT = {"_build", "gallery"}  # folders of docs/ that others write


def documents() -> list[Path]:
    """Return the pages that are checked: written by hand, not built."""
    pages = (path for path in sorted((ROOT / "docs").rglob("*.md")) if BUILT.isdisjoint(path.relative_to(ROOT).parts))
    return [ROOT / "README.md", *pages]


def failures(claim: Claim, run: bool = False) -> Iterator[tuple[Number | None, str]]:
    """Yield what does not hold of a claim: the number that it begins with, and why."""
    if not claim.numbers and {named(source) for source in claim.sources} != {"set"}:
        yield None, f"no number stands before <!-- {claim.sources[0]} -->"
    if not claim.sources:
        yield claim.numbers[0], f"{', '.join(number.text for number in claim.numbers)}: no source"
        return
    try:
        sources = [found(source, run) for source in claim.sources]
    except SourceError as error:
        yield (claim.numbers or [None])[0], str(error)
        return
    if None in sources:
        return
    exact = [number for source in sources for number in source or ()]
    for number in claim.numbers:
        if not any(number.is_rounded(other) for other in exact):
            held = ", ".join(other.text for other in exact[:20])
            yield number, f"{number.text} is not in {'; '.join(claim.sources)}, which holds {held}"


def audit(pages: Iterable[Path], run: bool) -> tuple[Counter[str], list[str]]:
    """Check pages; return how many numbers each source has, and what does not hold."""
    counts: Counter[str] = Counter()
    failed = []
    for page in pages:
        name = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
        try:
            for claim in claims(page.read_text(encoding="utf-8")):
                counts.update({named(source): len(claim.numbers) for source in claim.sources})
                for number, why in failures(claim, run):
                    failed.append(f"{name}:{claim.where(number)}: {why}\n    {claim.around(number)}")
        except DocumentError as error:
            failed.append(f"{name}:{error.line}: {error}")
    return counts, failed


def named(source: str) -> str:
    """Return the file, command or test of a source, without its labels or reason."""
    kind, _, rest = source.partition(":")
    return kind if kind == "set" else f"{kind}: {re.split(r'[|]|:', rest)[0].strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-run", action="store_true", help="do not run the cheap commands")
    parser.add_argument("pages", nargs="*", type=Path, help="these pages alone")
    arguments = parser.parse_args()
    counts, failed = audit([page.resolve() for page in arguments.pages] or documents(), run=not arguments.no_run)
    failed += [f"benchmarks/results/{name}: names no command that makes it" for name in commandless()]
    print(*(f"{count:5d}  {source}" for source, count in sorted(counts.items())), *failed, sep="\n")
    unchecked = sum(count for source, count in counts.items() if source.startswith("run:")) if arguments.no_run else 0
    print(f"{counts.total()} numbers with a source, {unchecked} of them not run; {len(failed)} failures")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
