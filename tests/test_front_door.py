"""The front door: sorted names, all of them there, and light to open."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import dualview

# Slow to import or optional, and of no use to someone who only reads a result.
LATE = ("IPython", "jinja2", "llvmlite", "matplotlib", "numba", "pandas", "sklearn", "typer")


def test_names_are_sorted_and_stand_once():
    assert list(dualview.__all__) == sorted(set(dualview.__all__))


@pytest.mark.parametrize("name", dualview.__all__)
def test_every_name_is_there(name: str):
    assert getattr(dualview, name) is not None


def test_all_is_the_public_surface():
    """What `dv.` completes to is `__all__`; a room that was imported on the way shows up as a module."""
    rooms = {name for name, value in vars(dualview).items() if isinstance(value, ModuleType)}
    public = {name for name in dir(dualview) if not name.startswith("_")}
    assert public - rooms <= set(dualview.__all__)
    assert {name for name in dualview.__all__ if not name.startswith("_")} <= public


def test_everything_public_is_documented():
    """An implementation that says nothing of its own inherits what the method it implements says."""
    public = {name: getattr(dualview, name) for name in dualview.__all__ if not name.startswith("_")}
    for owner in [value for value in public.values() if inspect.isclass(value)]:
        members = {name: member for name, member in vars(owner).items() if not name.startswith("_")}
        public |= {
            f"{owner.__name__}.{name}": getattr(owner, name)
            for name, member in members.items()
            if inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
        }
    assert [name for name, value in public.items() if not inspect.getdoc(value)] == []


def test_opening_it_loads_nothing_slow():
    program = f"import sys, dualview; print([name for name in {LATE} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
