"""Errors in the user's own file name file, line and type; the library's own stay as they are."""

import shlex
import sys
from pathlib import Path

import pytest

from dualview import cli
from dualview.cli.faults import line_of, place_of
from tests.cli.running import TOY, refused

FIT = "fit toy.py:task --data toy.py:data --store s"


def with_line(code: str) -> tuple[str, int]:
    """Return the toy project with some lines at its end, and the number of the last one."""
    text = f"{TOY}\n{code}\n"
    return text, len(text.splitlines())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("settings = {}\nsize = settings['hidden']", "KeyError: 'hidden'"),
        ("import nosuchlib", "ModuleNotFoundError: No module named 'nosuchlib'"),
        ("import json\njson.loads('{')", "JSONDecodeError: Expecting property name enclosed in double quotes"),
        ("torch.load('nowhere.pt')", "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.pt'"),
        ("torch.zeros(2) @ torch.zeros(3)", "RuntimeError: inconsistent tensor size"),
        ("model.nothing", "AttributeError: 'Linear' object has no attribute 'nothing'"),
        ("assert not len(data)", "AssertionError"),
        ("def broken(:", "SyntaxError: invalid syntax"),
    ],
)
def test_an_error_while_the_file_is_imported_has_its_place_and_type(capsys, toy, code: str, said: str):
    text, line = with_line(code)
    (toy / "toy.py").write_text(text)
    assert refused(capsys, *FIT.split()).startswith(f"dualview: toy.py, line {line}: {said}")


def test_the_place_is_the_deepest_of_the_users_own_files(capsys, toy, monkeypatch):
    """What another file of the user's raises is named there, by its full path where it stands elsewhere."""
    (toy / "parts").mkdir()
    (toy / "parts" / "toy_sizes.py").write_text("def hidden(sizes):\n    return max(sizes)\n")
    monkeypatch.syspath_prepend(str(toy / "parts"))
    (toy / "toy.py").write_text(with_line("import toy_sizes\ntoy_sizes.hidden([])")[0])
    try:
        message = refused(capsys, *FIT.split())
    finally:
        sys.modules.pop("toy_sizes", None)
    place = Path("parts/toy_sizes.py")
    assert message.startswith(f"dualview: {place}, line 2: ValueError: max()")
    sys.modules.pop("toy", None)
    (toy / "toy.py").write_text(with_line("{}['hidden']")[0])
    (toy / "elsewhere").mkdir()
    monkeypatch.chdir(toy / "elsewhere")
    said = refused(capsys, *f"fit {toy}/toy.py:task --data {toy}/toy.py:data --store s".split())
    assert said.startswith(f"dualview: {toy.resolve() / 'toy.py'}, line ") and said.endswith("KeyError: 'hidden'")


def test_what_the_library_calls_is_named_too(capsys, toy):
    """A data set that fails while it is read: called by this library, raised by the user's code."""
    text, line = with_line("class Broken(list):\n    def __getitem__(self, index):\n        return {}['pixels']")
    (toy / "toy.py").write_text(f"{text}\nbroken = Broken(data)\n")
    message = refused(capsys, *shlex.split("fit toy.py:task --data toy.py:broken --store s"))
    assert message == f"dualview: toy.py, line {line}: KeyError: 'pixels'"


def test_the_librarys_own_messages_stay_as_they_are(capsys, toy):
    (toy / "toy.py").write_text(with_line("dv.DualView(C=-1.0)")[0])
    message = refused(capsys, *FIT.split())
    assert message == 'dualview: `C` must be a positive number, or "auto"; it is -1.0'


def test_a_fault_of_the_library_keeps_its_traceback(toy, monkeypatch):
    """Of the errors that are no errors of use, only those of the user's code become one line."""
    monkeypatch.delattr(cli, "_weight")
    with pytest.raises(NameError, match="_weight"):
        cli.main(FIT.split())
    assert place_of(ValueError("never raised")) is None and line_of(KeyError("said")) == "said"
