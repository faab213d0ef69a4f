"""Directives that list what is there: a page of the reference, a view's methods with their cards, tables of results."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from docutils import nodes
from front_door import VIEWS, Entry, methods, sections
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "docs" / "methods"
RESULTS = ROOT / "benchmarks" / "results"


class FrontDoor(SphinxDirective):
    """All entries of one page of the reference; the argument names the page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = []
        for section in sections(self.arguments[0]):
            if section.title:
                text += [f"## {section.title.removeprefix('dualview.')}", section.text]
            text += ["````{eval-rst}", *map(_documented, section.entries), "````"]
        return self.parse_text_to_nodes("\n\n".join(text), allow_section_headings=True)


def _documented(entry: Entry) -> str:
    if entry.kind != "data":
        members = f"\n   :members: {', '.join(entry.members)}" if entry.members else ""
        return f".. auto{entry.kind}:: {entry.name}{members}"
    name = entry.name.split(".")[-1]
    analyzer = ModuleAnalyzer.for_module(entry.home)
    said = analyzer.find_attr_docs().get(("", name)) or [inspect.getdoc(importlib.import_module(entry.home)) or ""]
    return f".. py:data:: {entry.name}\n   :canonical: {entry.home}.{name}\n\n   {' '.join(said)}"


class MethodCards(SphinxDirective):
    """One row for each method of a view: its card and reference, kind, summary, when to use it, and cost."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        rows = ["| method | what it does, when to use it, what it costs |", "|---|---|"]
        for name, card in methods(self.arguments[0]).items():
            said = (CARDS / f"{card}.md").read_text(encoding="utf-8")
            method = getattr(VIEWS[self.arguments[0]], name)
            cells = [_first_sentence(inspect.getdoc(method) or "")]
            for label, word in (("When to use it", "When"), ("cost", "Cost")):
                if found := re.search(rf"^\*\*[^*]*{label}\.\*\*\s+(.*?)(?:\n\n|\Z)", said, re.M | re.S | re.I):
                    cells.append(f"*{word}.* {_first_sentence(found[1])}")
            title = f"[{name}]({card}.md)<br>{method.kind}<br>{{py:class}}`reference <dualview.{name}>`"
            rows.append(f"| {title} | {'<br>'.join(cells)} |")
        toctree = ["", "```{toctree}", ":hidden:", "", *methods(self.arguments[0]).values(), "```"]
        return self.parse_text_to_nodes("\n".join(rows + toctree))


class ResultTables(SphinxDirective):
    """A link to each committed table of results, with the sentence that it begins with."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for path in sorted(RESULTS.glob("*.md")):
            said = path.read_text(encoding="utf-8").split("\n\n")[1]
            lines.append(f"- [{path.stem}](../benchmarks/results/{path.name}): {_first_sentence(said)}")
        return self.parse_text_to_nodes("\n".join(lines))


def _first_sentence(text: str) -> str:
    """Return the first sentence, on one line of a table."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", paragraph)[0].replace("|", "\\|")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("front-door", FrontDoor)
    app.add_directive("method-cards", MethodCards)
    app.add_directive("result-tables", ResultTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
