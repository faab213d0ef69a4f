"""Which of several fits is meant: each is described by what tells it apart, and found by name or settings."""

import datetime
import os
import re
from pathlib import Path

import pytest
import torch

import dualview as dv
from dualview.data._which_fit import newest_fit
from dualview.errors import StoreError


def fit(problem, store: Path, method: dv.DualView | None = None, **settings: object) -> dv.Explainer:
    return dv.fit(method or dv.DualView(C=0.02), problem.model, problem.train, store=store, progress=False, **settings)


def listed(problem, store: Path) -> dict[str, str]:
    """Return name → description, as the error lists them."""
    with pytest.raises(ValueError, match=r"say which with method= \(--method on the command line\)") as caught:
        dv.open(store, problem.model)
    entries = str(caught.value).split("there are ")[1].split("; ")
    return {entry.split(" (")[0]: entry.split(" (", 1)[1].removesuffix(")") for entry in entries}


def test_fits_of_one_method_are_described_by_what_was_kept(problem, tmp_path):
    automatic = dv.DualView()
    with_held_out = fit(problem, tmp_path, automatic, held_out=(problem.test[0][:3], problem.test[1][:3]))
    without = fit(problem, tmp_path, automatic)
    assert with_held_out.certificate["C"] != without.certificate["C"]  # else there is one fit
    then = datetime.datetime(2024, 2, 29, 12, 30, 5)
    by_C = {}
    for path in tmp_path.glob("*/fits/*.safetensors"):
        os.utime(path, (then.timestamp(), then.timestamp()))
        opened = dv.open(tmp_path, problem.model, method=path.stem)
        by_C[opened.certificate["C"]] = path.stem
    said = listed(problem, tmp_path)
    for explainer, held_out in ((with_held_out, "3 held out"), (without, "none held out")):
        C = explainer.certificate["C"]
        described = said[by_C[C]]
        assert described.endswith(f"on 120 of 120 samples, chose C={C:.3g}, {held_out}, made 2024-02-29 12:30:05")
        # the number as it is listed names the fit
        assert dv.open(tmp_path, problem.model, method=f"DualView(C={float(f'{C:.3g}')})").certificate["C"] == C
    assert len(set(said.values())) == 2


def test_settings_name_the_fit_that_alone_has_them(problem, tmp_path):
    small, exact, rough = dv.DualView(C=0.001), dv.DualView(C=0.1), dv.DualView(C=0.1, gap=1e-3)
    for method in (small, exact, rough):
        fit(problem, tmp_path, method)
    for text, expected in (
        ("DualView(C=0.001)", small),
        ("DualView(C=1e-3, seed=0)", small),
        (" DualView(gap=1e-3) ", rough),
        ("DualView(C=0.1)", exact),  # two have this C, of one it is all that was set
        ("DualView(C=0.1, gap=1e-3)", rough),
        (repr(rough), rough),
    ):
        assert dv.open(tmp_path, problem.model, method=text).method == expected, text
    with pytest.raises(ValueError, match=r"3 fits, and 'DualView\(seed=0\)' is 3 of them: say which"):
        dv.open(tmp_path, problem.model, method="DualView(seed=0)")
    for text in ("DualView(C=0.5)", "TRAK", "DualView-0", "DualView(", "os.remove('x')"):
        with pytest.raises(StoreError, match=r"has no fit ['\"].*it has: DualView-"):
            dv.open(tmp_path, problem.model, method=text)
    with pytest.raises(ValueError, match=r"`method` holds \"open\('x'\)\"; expected a plain value"):
        dv.open(tmp_path, problem.model, method="DualView(C=open('x'))")
    with pytest.raises(ValueError, match=r"expected settings with names"):
        dv.open(tmp_path, problem.model, method="DualView(0.1)")


def test_nested_settings_are_read(problem, tmp_path):
    for damping in (0.5, 2.0):
        fit(problem, tmp_path, dv.RelatIF(of=dv.DataInf(damping=damping)))
    opened = dv.open(tmp_path, problem.model, method="RelatIF(of=DataInf(damping=2.0))")
    assert opened.method.of.damping == 2.0


def test_fits_on_data_of_two_names_are_told_apart(problem, tmp_path):
    inputs, labels = problem.train
    fit(problem, tmp_path)
    shifted = dv.fit(
        dv.DualView(C=0.02), problem.model, (inputs + 1, labels), store=tmp_path, data_id="shifted", progress=False
    )
    said = listed(problem, tmp_path)  # the names are equal: folder and name stand for them
    (name,) = [name for name, described in said.items() if "data_id='shifted'" in described]
    assert re.fullmatch(r"\w+/DualView-\w+", name) and len(said) == 2
    assert torch.equal(dv.open(tmp_path, problem.model, method=name).table.values, shifted.table.values)
    assert newest_fit(dv.Store(tmp_path), dv.Task(problem.model)) == (name, 2)


def test_the_newest_fit_is_of_this_model_and_whole_folders(problem, tmp_path):
    fit(problem, tmp_path)
    other = problem.to(torch.float64).model
    other[2].bias.data[0] += 0.1
    dv.fit(dv.DualView(C=0.02), other, problem.train, store=tmp_path, progress=False)
    name, number = newest_fit(dv.Store(tmp_path), dv.Task(problem.model))
    assert number == 1 and dv.open(tmp_path, problem.model, method=name).method == dv.DualView(C=0.02)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "manifest.json").write_text("{")
    assert newest_fit(dv.Store(tmp_path), dv.Task(problem.model)) == (name, 1)
