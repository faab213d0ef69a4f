"""Links as the repository's own pages have them: to a script that the site runs, and to a folder that has an index."""

from __future__ import annotations

import posixpath
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class RepositoryLinks(SphinxTransform):
    """Send a link to a script of a gallery to the page that it becomes, and one to a folder to its index page."""

    default_priority = 100

    def apply(self) -> None:
        for link in list(self.document.findall(_is_link)):
            folder = posixpath.dirname(self.env.docname)
            path = posixpath.normpath(posixpath.join(folder, link["reftarget"].removeprefix("/")))
            if page := self._page(path):
                target = addnodes.pending_xref(
                    "",
                    *link.children,
                    refdomain="doc",
                    reftype="myst",
                    reftarget=page,
                    reftargetid=None,
                    refdoc=self.env.docname,
                    refexplicit=True,
                )
                link.replace_self(target)

    def _page(self, path: str) -> str | None:
        for examples, gallery in zip(
            self.config.sphinx_gallery_conf["examples_dirs"],
            self.config.sphinx_gallery_conf["gallery_dirs"],
            strict=True,
        ):
            examples = Path(examples).relative_to(self.env.srcdir).as_posix()
            gallery = Path(gallery).relative_to(self.env.srcdir).as_posix()
            if path == examples:
                return f"{gallery}/index"
            if posixpath.dirname(path) == examples and path.endswith(".py"):
                return f"{gallery}/{posixpath.basename(path).removesuffix('.py')}"
        index = f"{path}/index"
        return index if index in self.env.found_docs else None


def _is_link(node: nodes.Node) -> bool:
    return isinstance(node, addnodes.download_reference | addnodes.pending_xref) and node.get("reftype") == "myst"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
