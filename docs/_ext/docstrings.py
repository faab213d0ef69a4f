"""Docstrings are plain text with `code` in backticks; this makes reStructuredText of them before napoleon reads on."""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")


def escaped(text: str) -> str:
    """Return text in which only what stands in backticks is markup, also where a letter follows it (`x`s)."""
    parts = _CODE.split(text)
    for i, part in enumerate(parts):
        parts[i] = part if i % 2 else _MARKUP.sub(lambda found: "\\" + found[0], part)
        if i % 2 and re.match(r"\w", parts[i + 1]):  # `x`s
            parts[i] += "\\ "
    return "".join(parts)


def rewritten(lines: list[str]) -> list[str]:
    """Return the lines with markup escaped, and blocks that are indented after a blank line as literal ones."""
    found: list[str] = []
    start, literal, after_blank, example = 0, None, True, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            after_blank = True
            found.append("")
            continue
        if literal is not None and indent < literal:
            literal = None
        if indent == 0:
            example = line.strip() in ("Example:", "Examples:")
        if after_blank and literal is None and indent > start and not example:
            literal = indent
            found += [" " * start + "::", ""]
        if after_blank and literal is None:
            start = indent
        elif indent and found and found[-1].strip().endswith(":") and not found[-1].startswith(" "):
            start = indent  # the first line of a section such as "Args:"
        after_blank = False
        found.append(line if literal is not None or example else escaped(line))
    return found


def shortened(annotation: str, namespace: dict[str, object]) -> str:
    """Return an annotation without the modules of others, axes such as `*batch` as text, and our classes linked."""

    def linked(found: re.Match[str]) -> str:
        value = namespace.get(found[0])
        ours = inspect.isclass(value) and value.__module__.startswith("dualview.")
        return f"~{value.__module__}.{value.__qualname__}" if ours else found[0]

    text = re.sub(r"~?\b(?:collections\.abc|jaxtyping|pathlib|torch(?:\.\w+)*|typing)\.(?=[A-Z])", "", annotation)
    text = re.sub(r"(?<![~.\w])dualview\.", "~dualview.", text)
    return re.sub(r"(?<![\w.~'\"])[A-Z]\w*\b(?!\()", linked, text)  # a call is a default


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = rewritten(lines)


def _process_types(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Shorten the types that napoleon has taken from annotations."""
    for i, line in enumerate(lines):
        if found := re.match(r"\s*:vartype \w+: ", line):
            lines[i] = found[0] + shortened(line[found.end() :], _namespace(obj)).replace("*", r"\*")


def _process_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Shorten annotations, and write defaults so that Python can read them: an output by its name, a factory as ..."""
    space = _namespace(obj)
    if signature:
        named = re.sub(r"Output\(name='(\w+)'[^)]*\)", r"\1", signature)
        signature = shortened(re.sub(r"<function (\w+)>", r"\1", named).replace("<factory>", "..."), space)
    return signature, returns and shortened(returns, space)


def _namespace(obj: object) -> dict[str, object]:
    return vars(sys.modules.get(getattr(obj, "__module__", None) or "", object))


def setup(app: Sphinx) -> dict[str, bool]:
    from sphinx.domains.python import PyObject

    app.connect("autodoc-process-docstring", _process, priority=400)  # napoleon's has 500
    app.connect("autodoc-process-docstring", _process_types, priority=600)
    app.connect("autodoc-process-signature", _process_signature)
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
