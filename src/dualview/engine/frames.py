"""pandas, for those who have it."""

from __future__ import annotations

from types import ModuleType


def imported_pandas() -> ModuleType:
    """Return pandas.

    Raises:
        ModuleNotFoundError: it is not installed; the message is the command that brings it.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise ModuleNotFoundError("to_pandas needs pandas: pip install pandas") from None
    return pandas
