"""What the documentation's site rests on, without building it: its reference, its cards, and the look at the result."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import dualview
from docs._ext import built_site, docstrings, front_door, tex

ROOT = Path(__file__).resolve().parents[1]
EVALUATION = ROOT / "src" / "dualview" / "evaluation"
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def documented() -> Counter[str]:
    """Every name of the reference, with how often it stands there."""
    return Counter(
        entry.name for page in front_door.PAGES for section in front_door.sections(page) for entry in section.entries
    )


def test_the_reference_has_every_name_of_the_front_door_once(documented: Counter[str]):
    assert {name: documented[f"dualview.{name}"] for name in dualview.__all__} == dict.fromkeys(dualview.__all__, 1)
    assert [name for name, times in documented.items() if times > 1] == []


def test_the_reference_has_every_public_evaluation_function_once(documented: Counter[str]):
    """Counted by what is written in the files, not by what modules say of themselves."""
    functions = {
        (f"dualview.evaluation.{'.'.join(path.relative_to(EVALUATION).with_suffix('').parts)}", node.name)
        for path in EVALUATION.rglob("*.py")
        if not path.name.startswith("_")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    at_the_door = {("dualview.evaluation.significance", "uncertainty")}  # counted above, as dualview.uncertainty
    assert at_the_door < functions
    assert {name: documented[f"{module}.{name}"] for module, name in functions - at_the_door} == {
        name: 1 for _, name in functions - at_the_door
    }


def test_each_page_of_the_reference_is_a_file_that_shows_it():
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")}
    assert set(pages) == {*front_door.PAGES, "index"}
    assert [page for page in front_door.PAGES if f"```{{front-door}} {page}\n```" not in pages[page]] == []


def test_each_method_has_a_card_and_each_card_a_method():
    cards = [card for view in front_door.VIEWS for card in front_door.methods(view).values()]
    assert sorted([*cards, "index"]) == sorted(path.stem for path in (DOCS / "methods").glob("*.md"))


def test_a_site_that_loads_from_elsewhere_or_leads_nowhere_is_found_out(tmp_path: Path):
    (tmp_path / "sound.html").write_text(
        '<a id="here"></a><a href="#here">x</a><a href="https://arxiv.org/abs/1">x</a>'
    )
    (tmp_path / "style.css").write_text("@import url(https://fonts.example.org/a.css);")
    (tmp_path / "faulty.html").write_text(
        '<script src="https://cdn.example.org/a.js"></script><img src="//example.org/a.png"><img src="sound.html">'
        '<a href="sound.html#there">x</a><a href="sound.html#here">x</a><a href="lost.html">x</a>'
        '<a href="https://arxiv">x</a><a href="mailto:someone@example.org">x</a>'
    )
    assert built_site.faults(tmp_path) == [
        "style.css loads https://fonts.example.org/a.css",
        "faulty.html loads https://cdn.example.org/a.js",
        "faulty.html loads //example.org/a.png",
        "faulty.html leads to sound.html#there, which has no such anchor",
        "faulty.html leads to lost.html, which does not exist",
        "faulty.html leads to https://arxiv, which is no address",
    ]


def test_docstrings_become_markup_only_where_they_mean_it():
    plain = [
        "Score |x| by `alpha`s of w_ and a*b.",
        "",
        "    y = a*b",
        "",
        "Args:",
        "    x: numbers *k.",
        "        More.",
    ]
    assert docstrings.rewritten(plain) == [
        r"Score \|x\| by `alpha`\ s of w\_ and a\*b.",
        "",
        "::",
        "",
        "    y = a*b",
        "",
        "Args:",
        r"    x: numbers \*k.",
        "        More.",
    ]


def test_annotations_lose_modules_of_others_and_link_ours():
    space = {"Task": dualview.Task, "Tensor": int}
    given = "jaxtyping.Float[Tensor, 'test train'] | Task | dualview.engine.site.Site"
    linked = "Float[Tensor, 'test train'] | ~dualview.engine.task.Task | ~dualview.engine.site.Site"
    assert docstrings.shortened(given, space) == linked


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\tfrac12 x", r"\tfrac{1}{2} x"),
        (r"\frac{12}{3}", r"\frac{12}{3}"),
        ("x^12 + a_10", "x^{1}2 + a_{1}0"),
        (r"\sqrt2 + \sqrt23", r"\sqrt2 + \sqrt{2}3"),
        (r"1, \dots, n", r"1, \ldots, n"),
    ],
)
def test_mathematics_is_put_so_that_docutils_reads_what_tex_reads(written: str, read: str):
    assert tex.plain(written) == read
