"""A folder with the example project in it, and nothing of it left behind."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import TOY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clean_imports() -> Iterator[None]:
    """References to .py files import them and put their folders first in the path: undo that."""
    modules, path = set(sys.modules), sys.path.copy()
    yield
    sys.path[:] = path
    for name in ("my_project", "toy"):
        if name not in modules:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def project(tmp_path_factory, clean_imports) -> Path:
    """A folder with the example project in it, as a user would copy it, but that its networks see the data once.

    The network and three more of `audit --verify` are poorer, and all there; tests/test_examples.py runs it as it is.
    """
    folder = tmp_path_factory.mktemp("project")
    text = (ROOT / "examples" / "my_project.py").read_text(encoding="utf-8")
    assert "epochs=2" in text
    (folder / "my_project.py").write_text(text.replace("epochs=2", "epochs=1"), encoding="utf-8")
    return folder


@pytest.fixture
def inside(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def toy(tmp_path, monkeypatch, clean_imports) -> Iterator[Path]:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("toy", None)
