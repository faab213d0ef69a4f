"""What the wheel holds: the package, whole, and nothing else. `make wheel` installs it and tries it."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return set(ZipFile(wheel).namelist())


def test_every_file_of_the_package_is_in_the_wheel(contents: set[str]):
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    wanted = {name for name in files if "__pycache__" not in name}
    assert "dualview/py.typed" in wanted
    assert {name for name in contents if ".dist-info/" not in name} == wanted


def test_the_licence_travels_with_it(contents: set[str]):
    assert [name for name in contents if name.endswith(".dist-info/licenses/LICENSE")] != []
