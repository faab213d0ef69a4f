"""The page shows how C was chosen, where it was, and on which samples."""

import dataclasses

import pytest

from dualview import Curve, DualView, Explainer, fit
from dualview.report import write_report


def page_of(explainer: Explainer, data, folder, read):
    path = write_report(explainer, data, folder / "page.html", num_errors=1, num_correct=0, top_suspects=0, rule=None)
    return read(path.read_text(encoding="utf-8"))


def fact(page, term: str) -> str:
    entries = page.section("summary").all("dl", "facts")
    terms = {
        name.text: value.text for part in entries for name, value in zip(part.all("dt"), part.all("dd"), strict=True)
    }
    return terms[term]


@pytest.fixture(scope="module")
def auto(explainer: Explainer, data) -> Explainer:
    return fit(DualView(), explainer.task, tuple(explainer.samples.batch(range(60))), held_out=data, progress=False)


def test_the_curve_is_drawn_with_its_numbers_as_words(auto: Explainer, data, tmp_path, read, decode):
    page = page_of(auto, data, tmp_path, read)
    image = page.section("summary").one("img", "drawn")
    assert decode(image).shape[1] == 2 * 640
    curve = auto.curve
    words = image.attributes["alt"].split(". ")[1].split("; ")
    assert len(words) == len(curve) > 3
    for word, C, support, fidelity in zip(words, curve.C, curve.support_share, curve.fidelity, strict=True):
        expected = f"C = {C:.3g}: support {100 * support:.1f}\u202f%, fidelity {100 * fidelity:.1f}\u202f%"
        assert word.rstrip(".") == expected
    chosen = fact(page, "C")
    assert (
        chosen.startswith(f"{auto.certificate['C']:.3g}")
        and "held\u2011out samples, which is a little too good" in chosen
    )


def test_it_says_what_else_C_was_chosen_for(auto: Explainer, data, tmp_path, read):
    aside = dataclasses.replace(auto, fidelity={"train": auto.fidelity["train"]})
    assert "on 40 training samples, set aside for that" in fact(page_of(aside, data, tmp_path, read), "C")
    support = Curve((0.1, 1.0), (0.9, 0.5), (0.1, 0.1), 1, "support", asked_support=0.4)
    other = dataclasses.replace(auto, certificate={**auto.certificate, "curve": support.describe()})
    assert "Chosen for a support share of 40.0 %" in fact(page_of(other, data, tmp_path, read), "C")


def test_a_given_C_has_no_curve(explainer: Explainer, data, tmp_path, read):
    page = page_of(explainer, data, tmp_path, read)
    assert page.root.all("img", "drawn") == [] and "How C was chosen" not in page.html
    assert "Chosen" not in fact(page, "C")
