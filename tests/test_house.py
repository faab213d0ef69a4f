"""The limits of the house: sizes, names, doors, and what may not be written in it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "dualview"

MAX_FILE_LINES = 400
MAX_BODY_LINES = 80
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "wrapper", "misc"}
PICKLING_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def python_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


SOURCES = python_files(SOURCE)
TESTS = python_files(ROOT / "tests")
WRITTEN = SOURCES + TESTS + python_files(ROOT / "benchmarks", ROOT / "examples", ROOT / "docs")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def dotted(node: ast.AST) -> str:
    """Write `torch.load` for the expression `torch.load`, and the last name alone for longer ones."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return f"{owner}.{name}"
        case ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):  # Generic[T]
            return dotted(value)
        case _:
            return ""


def imported_modules(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield every import of the file, in functions too; relative ones cannot leave the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node, node.module


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function's body; the docstring is text, not body."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_files_fit_on_a_few_screens():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in WRITTEN}
    assert SOURCES, f"no source found in {SOURCE}"
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_function_bodies_are_short():
    too_long = {
        f"{place(path, node)} {node.name}": body_lines(node)
        for path in WRITTEN
        if not path.name.endswith("_loop.py")
        for node in ast.walk(parse(path))
        if isinstance(node, FUNCTION) and body_lines(node) > MAX_BODY_LINES
    }
    assert too_long == {}


def test_names_say_what_is_inside():
    parts = {part for path in WRITTEN for part in path.relative_to(ROOT).with_suffix("").parts}
    assert {part for part in parts if part.strip("_").removeprefix("test_") in FORBIDDEN_NAMES} == set()


def class_bases() -> dict[str, tuple[str, list[str]]]:
    """Map each class of ours to where it stands and the last names of its bases."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                found[node.name] = (place(path, node), [dotted(base).split(".")[-1] for base in node.bases])
    return found


def is_exception(name: str, classes: dict[str, tuple[str, list[str]]]) -> bool:
    if name in classes:
        return any(is_exception(base, classes) for base in classes[name][1])
    builtin = getattr(__import__("builtins"), name, None)
    return isinstance(builtin, type) and issubclass(builtin, BaseException)


def test_inheritance_is_one_level_deep():
    classes = class_bases()
    deep = [
        f"{where} {name}({base})"
        for name, (where, bases) in classes.items()
        if not is_exception(name, classes)
        for base in bases
        if base in classes and any(grand in classes for grand in classes[base][1])
    ]
    assert deep == []


def test_doors_open_downward_only():
    """The layers of pyproject.toml hold; a room that is not built yet is optional there."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "doors of the house KEPT" in run.stdout


def test_only_the_compiled_loops_import_numba():
    loops = [path for path in SOURCES if path.name.endswith("_loop.py")]
    imports = [
        place(path, node)
        for path in SOURCES
        if path not in loops
        for node, module in imported_modules(parse(path))
        if module.split(".")[0] in ("numba", "llvmlite")
    ]
    assert loops, "no _loop.py found: where did the compiled loop go?"
    assert imports == []


@pytest.mark.skipif(os.environ.get("DUALVIEW_TYPECHECK") == "0", reason="turned off by DUALVIEW_TYPECHECK")
def test_annotations_are_checked_everywhere_but_in_compiled_loops():
    """The import hook of conftest.py reads every module; packages hold names only, and it leaves them out."""
    modules = [path for path in SOURCES if path.name != "__init__.py"]
    names = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in modules}
    checked = {name for name in names if "Jaxtyping" in type(find_spec(name).loader).__name__}
    assert names - checked == {name for name in names if name.endswith("_loop")}


def test_nothing_is_pickled():
    found = []
    for path in SOURCES:
        tree = parse(path)
        found += [place(path, node) for node, name in imported_modules(tree) if name.split(".")[0] in PICKLING_MODULES]
        for call in calls(tree):
            allows = any(keyword.arg == "allow_pickle" for keyword in call.keywords)
            if allows or dotted(call.func) in PICKLING_CALLS:
                found.append(place(path, call))
    assert found == []


def test_no_exception_is_caught_blindly():
    blind = []
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if any(kind is None or dotted(kind) in ("Exception", "BaseException") for kind in caught):
                    blind.append(place(path, node))
    assert blind == []


def asserts(function: ast.AST, asserting: set[str]) -> bool:
    """Tell whether a function asserts: by itself, by pytest, by `assert_...`, or by one that does."""
    if any(isinstance(node, ast.Assert) for node in ast.walk(function)):
        return True
    names = {dotted(call.func) for call in calls(function)}
    return any(
        name in asserting or name in ("pytest.raises", "pytest.warns") or name.split(".")[-1].startswith("assert_")
        for name in names
    )


@pytest.mark.parametrize("path", [path for path in TESTS if path.name.startswith("test_")], ids=lambda p: p.stem)
def test_every_test_asserts(path: Path):
    functions = [node for node in ast.walk(parse(path)) if isinstance(node, FUNCTION)]
    asserting: set[str] = set()
    while found := {one.name for one in functions if one.name not in asserting and asserts(one, asserting)}:
        asserting |= found
    assert [node.name for node in functions if node.name.startswith("test_") and node.name not in asserting] == []
