"""Look at the site once it is built: it loads nothing from elsewhere, and its own links lead somewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# Attributes by which a page fetches something when it is opened, or leads elsewhere when it is clicked.
_LOADED = {
    ("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src"), ("link", "href"),
}  # fmt: skip
_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)")


class Page(HTMLParser):
    """What a page loads, where it leads to, and which anchors it has."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)
        self.loaded += _STYLE.findall(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in _LOADED:
                self.loaded.append(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.append(value or "")
            elif name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value or "")


def faults(root: Path) -> list[str]:
    """Name what pages and styles load from elsewhere, links into nothing, and outside addresses of a wrong form."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}
    found = [
        f"{path.relative_to(root)} loads {address}"
        for path in sorted(root.rglob("*.css"))
        for address in _STYLE.findall(path.read_text(encoding="utf-8"))
    ]
    for path, page in pages.items():
        here = path.relative_to(root)
        found += [f"{here} loads {address}" for address in page.loaded if urlsplit(address).netloc]
        for link in dict.fromkeys(page.links + page.loaded):
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                if not re.fullmatch(r"[\w.-]+\.[a-z]{2,}(:\d+)?", parts.netloc) or re.search(r"\s", link):
                    found.append(f"{here} leads to {link}, which is no address")
            elif (
                not parts.scheme and not parts.netloc and (reason := _missing(path, parts.path, parts.fragment, pages))
            ):
                found.append(f"{here} leads to {link}, {reason}")
    return found


def _missing(path: Path, target: str, anchor: str, pages: dict[Path, Page]) -> str:
    goal = (path.parent / unquote(target)).resolve() if target else path
    if not goal.exists():
        return "which does not exist"
    if anchor and goal in pages and unquote(anchor) not in pages[goal].anchors:
        return "which has no such anchor"
    return ""


def _finish(app: Sphinx, exception: Exception | None) -> None:
    from sphinx.util import logging

    if exception is not None or app.builder.name != "html":
        return
    root = Path(app.outdir).resolve()
    entry = app.builder.get_target_uri(app.config.root_doc)
    front = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={entry}">'
    (root / "index.html").write_text(
        f'{front}<title>dualview</title><a href="{entry}">dualview</a>\n', encoding="utf-8"
    )
    for fault in faults(root):
        logging.getLogger(__name__).warning(fault)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", _finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
