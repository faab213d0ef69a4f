"""What docutils reads otherwise than TeX does, put so that both read the same."""

import re

# An argument without braces is one digit in TeX, and all digits in docutils: \tfrac12 would read 12.
_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)\s*(\d)")
_ONE_DIGIT = re.compile(r"(\\sqrt|[\^_])\s*(\d)(?=\d)")
_DOTS = re.compile(r"\\dots\b")  # unknown there


def plain(tex: str) -> str:
    """Return TeX with braces around arguments that are a single digit followed by another, and dots docutils knows."""
    return _DOTS.sub(r"\\ldots", _ONE_DIGIT.sub(r"\1{\2}", _FRACTION.sub(r"\1{\2}{\3}", tex)))
