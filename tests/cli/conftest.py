"""A folder with the example project in it, and nothing of it left behind."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    """A folder with the example project in it, as a user would copy it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "examples" / "my_project.py", folder)
    return folder


@pytest.fixture
def inside(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project
