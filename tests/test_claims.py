"""The audit of claims: what counts as a measured number, whom a comment speaks for, and what a source holds."""

from pathlib import Path

import pytest

from benchmarks.claims import sources
from benchmarks.claims.__main__ import audit, documents, failures
from benchmarks.claims.documents import DocumentError, claims, numbers

TABLE = """task,metric,contender,value,low,high
digits,lds,DualView,0.8449,0.80,0.89
digits,lds,"DualView, response",0.9,0.85,0.95
mnist,lds,DualView,0.2,0.1,0.3
mnist,lds,Random,-0.026,-0.05,0.01
mnist,recall,Random,0.05,0.04,0.06
"""
PAGE = r"""# page

Made by `make bench-page`.

## digits-mlp

| method, 40 steps | area | seconds |
| --- | --- | --- |
| **DualView** | 0.91 (0.87 to 0.95) | ~17.2 (3.1×) |
| Random | 50 % | 1.33e+03 |

## mnist-mlp

| method, 40 steps | area | seconds |
| --- | --- | --- |
| DualView | 0.71 | 2 |
"""
TEST = """
BOUND = 1e-10


def close(found, expected):
    assert abs(found - expected) < BOUND


def test_it():
    close(1.0, 1.0)


def test_other():
    assert 0.25 < 1
"""


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tree with results and a test; nothing of the project's is read."""
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "table.md").write_text("Written by `python -m benchmarks.table`.")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "table.py").touch()
    (tmp_path / "Makefile").write_text("bench-page: .venv\n")
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "test_made_up.py").write_text(TEST)
    monkeypatch.setattr(sources, "RESULTS", tmp_path)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    sources._rows.cache_clear()
    sources.output.cache_clear()
    return tmp_path


def wrong(text: str, run: bool = False) -> list[str]:
    return [why for claim in claims(text) for _, why in failures(claim, run)]


# ── what counts ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two commands, 5 strongest, 2,048 units, 8×8 pixels, 100 × 2 seeds, since 2019", []),
        ("0.85, .5 and −0.26", [0.85, 0.5, -0.26]),
        ("x − 0.5, 1−0.5", [0.5, 0.5]),
        ("5 % of 4,000, 12% and 3 per cent", [5, 12, 3]),
        ("17 s, 36 ms, 9ms, 1,200 MB, 2 hours, 3 passes, 4 minutes", [17, 36, 9, 1200, 2, 3, 4]),
        ("5 sites, 3 models, 2 heads, 4 passengers", []),
        ("3× faster, 2x, 2 times as long, 4 × the rest, 5 x 5", [3, 2, 2, 4]),
        ("1e-10, 2·10⁻⁴, 10⁴ samples, 10⁻³, 5 × 10³", [1e-10, 2e-4, 1e4, 1e-3, 5e3]),
        ("1 to 9 s, 2–5 %, 3 and 4 MB", [1, 9, 2, 5, 3, 4]),
        ("5 networks and 3 s", [3]),
        ("Python 3.11, torch >= 2.6, kronfluence 1.0.1, section 4.2, (arXiv 2402.12118), Apache-2.0, v0.2", []),
    ],
)
def test_numbers_that_are_measured(text: str, expected: list[float]):
    assert [number.value for number in numbers(text) if number.measured] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "exact", "right"),
    [
        ("0.84", "0.845", True),
        ("0.85", "0.845", True),
        (".84", "0.845", True),
        ("0.83", "0.845", False),
        ("0.845", "0.84", False),
        ("1", "1.49", True),
        ("2", "1.49", False),
        ("−0.26", "-0.257", True),
        ("0.26", "-0.257", False),
        ("91 %", "0.9149", True),
        ("91 %", "0.92", False),
        ("0.5 %", "0.52%", True),
        ("91 %", "91.3", True),
        ("0.91", "91.3%", True),
        ("0.91", "91.3", False),
        ("2·10⁻⁴", "0.00024", True),
        ("1,330", "1.33e+03", True),
    ],
)
def test_a_number_is_rounded_to_the_digits_it_is_written_with(written: str, exact: str, right: bool):
    [number], [other] = numbers(written), numbers(exact)
    assert number.is_rounded(other) is right


@pytest.mark.parametrize(
    "text",
    [
        "# 0.5 of it",
        "`cut=0.45` and $\\alpha = 0.3$, $$0.2$$",
        "    0.5\n",
        "```python\nx = 0.5\n```",
        "```{code-block} python\nx = 0.5\n```",
        "[a page](https://x.org/0.5%) and <https://x.org/0.25>",
        "<!-- 0.5 is no claim -->\n",
    ],
)
def test_what_is_no_prose_is_not_read(text: str):
    assert list(claims(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "It was\nonly 0.5 then.",
        "- one\n- only *0.5* then",
        "> 0.5",
        "| a | b |\n|---|---|\n| x | 0.5 |",
        "```{note}\nOnly 0.5.\n```",
        "<p>0.5</p>",
        "0.5 <!-- a comment of another kind -->",
        "![a share of 0.5](x.png)",
    ],
)
def test_a_number_without_a_source(text: str):
    assert wrong(text) == ["0.5: no source"]


# ── whom a comment speaks for ────────────────────────────────────────────────────────────────────


def found(text: str) -> list[tuple[int, list[float], tuple[str, ...]]]:
    return [(claim.line, [number.value for number in claim.numbers], claim.sources) for claim in claims(text)]


def test_a_comment_speaks_for_what_stands_between_the_last_one_and_itself():
    text = "First.\n\nIt was 0.5\nand 0.6 <!-- set --> then 0.7,\n0.8 <!-- from: a -->\n<!-- test: b -->\n\n0.9 and 3"
    assert found(text.replace("\n<!-- test", " <!-- test")) == [
        (3, [0.5, 0.6], ("set",)),
        (4, [0.7, 0.8], ("from: a", "test: b")),
        (7, [0.9], ()),
    ]


def test_comments_below_speak_for_the_rest_of_the_paragraph_or_table():
    assert found("0.1 <!-- set -->, 0.2\n<!-- from: a -->\n<!-- from: b -->\n\n0.3") == [
        (1, [0.1], ("set",)),
        (1, [0.2], ("from: a", "from: b")),
        (5, [0.3], ()),
    ]
    rows = "| a | 0.1 |\n|---|---|\n| b | 0.2 |\n| c | 0.3 <!-- set --> |\n| d | 4 |\n"
    assert found(rows) == [(1, [0.1], ()), (3, [0.2], ()), (4, [0.3], ("set",))]
    assert found(rows + "<!-- from: a -->\n") == [
        (1, [0.1], ("from: a",)),
        (3, [0.2], ("from: a",)),
        (4, [0.3], ("set",)),
    ]


COMMENT = "<!-- test: test_made_up.py::test_it -->"


@pytest.mark.parametrize("text", [f"Five. {COMMENT}", f"1 {COMMENT}\n{COMMENT}\n", f"{COMMENT}\n\nFive."])
def test_a_comment_without_a_number(tables: Path, text: str):
    assert wrong(text) == [f"no number stands before {COMMENT}"]


def test_whole_numbers_are_checked_where_they_stand_alone(tables: Path):
    source = "<!-- from: page.md: mnist-mlp -->"
    assert wrong(f"2 of them {source}") == [] == wrong("3 of them <!-- set -->, few <!-- set -->")
    assert "3 is not in" in wrong(f"3 of them {source}")[0]
    assert wrong(f"3 of them take 2 s {source}") == []


@pytest.mark.parametrize("text", ["0.5\n<!-- set --> and more", "0.5\n<!-- set -->\nand more"])
def test_a_comment_that_would_part_a_paragraph(text: str):
    with pytest.raises(DocumentError, match="end a line with it"):
        list(claims(text))


# ── what a source holds ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "0.84 (0.80 to 0.89) <!-- from: table.csv: digits, lds, DualView -->",
        '0.9 <!-- from: table.csv: digits, "DualView, response" -->',
        "0.845 and 0.2 <!-- from: table.csv: digits, lds, DualView, value; mnist, DualView, value -->",
        "0.845 and 0.2 <!-- from: table.csv: digits or mnist, lds, DualView, value -->",
        "−0.03 <!-- from: table.csv: mnist, lds, Rand -->",
        "5 % <!-- from: table.csv: recall -->",
        "17 s, 3.1 times, 0.87 <!-- from: page.md: digits-mlp, DualView -->",
        "0.5 <!-- from: page.md: Random, area -->",
        "0.71 and .84 <!-- from: page.md: mnist-mlp --> <!-- from: table.csv: digits, lds, DualView -->",
        "1e-10 <!-- test: test_made_up.py::test_it -->",
        "0.3 <!-- set: anything -->",
    ],
)
def test_what_is_right_passes(tables: Path, text: str):
    assert wrong(text) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.83 <!-- from: table.csv: digits, lds, DualView -->", "0.83 is not in from: table.csv: digits"),
        ("0.80 <!-- from: table.csv: digits, lds, DualView, value -->", "0.80 is not in"),
        ("0.845 and 0.7 <!-- from: table.csv: digits, lds, DualView -->", "0.7 is not in"),
        ("40 s <!-- from: page.md: digits-mlp, DualView -->", "40 s is not in"),
        ("0.5 <!-- from: table.csv: digits, lds, TRAK -->", "no rows of table.csv have 'digits, lds, TRAK'"),
        ("0.5 <!-- from: table.csv: mnist, Random -->", "2 rows of table.csv have"),
        ("0.5 <!-- from: page.md: DualView -->", "2 rows of page.md have"),
        ("0.5 <!-- from: other.csv: digits -->", "no table 'other.csv'"),
        ("0.5 <!-- test: test_none.py::test_it -->", "no file test_none.py"),
        ("0.5 <!-- test: test_made_up.py::test_none -->", "test_made_up.py has no test test_none"),
        ("1e-10 <!-- test: test_made_up.py::test_other -->", "1e-10 is not in test: test_made_up.py::test_other"),
    ],
)
def test_what_is_wrong_fails(tables: Path, text: str, why: str):
    [said] = wrong(text)
    assert why in said


def test_a_command_is_run_once_and_its_lines_are_read(tables: Path):
    (tables / "count.py").write_text("print('slack 91 %\\nloss 0.5'); open('runs', 'a').write('x')")
    command = "run: python count.py"
    assert wrong(f"91 % and 0.5 <!-- {command} --> 91 % <!-- {command} | slack -->", run=True) == []
    assert (tables / "runs").read_text() == "x"
    assert "91 % is not in" in wrong(f"91 % <!-- {command} | loss -->", run=True)[0]
    assert "no line of what `python count.py` prints has 'area'" in wrong(f"0.5 <!-- {command} | area -->", run=True)[0]
    assert wrong(f"0.7 <!-- {command} | area -->", run=False) == []


def test_a_command_that_fails(tables: Path):
    (tables / "broken.py").write_text("raise SystemExit('no data')")
    [said] = wrong("0.5 <!-- run: python broken.py -->", run=True)
    assert "`python broken.py` ends with 1" in said and "no data" in said


def test_a_table_names_a_command_that_is_there(tables: Path):
    assert sources.commandless() == []
    (tables / "table.md").write_text("Written by hand.")
    (tables / "page.md").write_text("Written by `make bench-pages`.")
    assert sources.commandless() == ["page.md", "table.csv", "table.md"]


def test_places_are_told(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("One.\n\nTwo, and\nthen 0.5 of it.\n")
    counts, failed = audit([page], run=False)
    assert not counts and failed == [f"{page}:4: 0.5: no source\n    Two, and then 0.5 of it."]


def test_every_number_of_the_documentation_has_its_source():
    """Commands are left to `make claims`."""
    _, failed = audit(documents(), run=False)
    assert failed == [], "\n".join(failed)
    assert sources.commandless() == []
