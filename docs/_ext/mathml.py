"""Mathematics as MathML, which browsers draw themselves: no script, no fonts, no LaTeX; docutils translates."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator
from tex import plain

logger = logging.getLogger(__name__)


def _visit(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    tex, block = plain(node.astext()), isinstance(node, nodes.math_block)
    mathml = ""
    try:
        mathml = tex2mathml(tex, as_block=block)
    except MathError as error:
        logger.warning("%r cannot be written as MathML: %s", tex, error, location=node)
    if block:
        anchor = f' id="{node["ids"][0]}"' if node["ids"] else ""
        number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
        mathml = f'<div class="math"{anchor}>{number}{mathml}</div>'
    self.body.append(mathml)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(_visit, None), block_renderers=(_visit, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
