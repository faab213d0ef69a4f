"""pandas, where it is missing."""

import sys

import pandas
import pytest

from dualview.engine.frames import imported_pandas


def test_the_message_is_the_command_that_brings_it(monkeypatch):
    assert imported_pandas() is pandas
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="to_pandas needs pandas: pip install pandas$"):
        imported_pandas()
