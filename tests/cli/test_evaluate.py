"""`dualview evaluate`: the examples of its help run, and what cannot be judged is said before anything is measured."""

import csv
import importlib.util
from pathlib import Path

import pytest

from tests.cli.running import examples_in, refused, run


def test_methods_are_judged_on_built_in_tasks_and_on_ones_own(capsys, inside):
    """As the help says, and with fewer subsets; the table printed is the one that is written."""
    pytest.importorskip("sklearn")
    built_in, own = examples_in(run(capsys, "evaluate", "--help"))
    out = run(capsys, *built_in, "--subsets", "4", "--csv", "judged.csv", "--ranks", "ranks.png")
    rows = list(csv.DictReader(Path("judged.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["contender"] for row in rows} == {"random", "DualView(C=0.01)"}
    assert all(float(row["fit_seconds"]) > 0 and int(row["forward"]) > 118 for row in rows)
    lds = next(row for row in rows if row["metric"] == "lds" and row["contender"] == "DualView(C=0.01)")
    assert f"{float(lds['value']):.3f}" in out and "only 4 subsets" in lds["notes"] and "only 4 subsets" in out
    assert "cost and rank" in out and "table: judged.csv" in out
    assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in ("ranks.png", "metrics.png"))
    if importlib.util.find_spec("mlxtend") is not None:
        out = run(capsys, *own, "--methods", "same-class", "--metrics", "lds")
        assert "random" in out  # stands in every table
        assert "1.000 (1.000 to" in out
        assert "nothing says how to train the network: give --train MODULE:FUNCTION on the command line" in out


def test_what_cannot_be_judged_is_said(capsys):
    for arguments, message in (
        ("--tasks mnist", "there is no built-in task 'mnist'; there are digits-mlp"),
        ("--metrics accuracy", "there is no metric 'accuracy'; there are class-detection"),
        ("--methods Trak", "'Trak' names no method; known: random, same-class, loss, confidence, "),
        ("my_project.py:task", "a task of your own needs --data MODULE:DATASET and --test MODULE:DATASET"),
        ("--data my_project.py:train_set", "are of a task of your own: give MODULE:TASK first"),
        ("--csv nowhere/x.csv", "there is no folder nowhere"),
        ("--figure x.foo", "figures are written as .png, .pdf or .svg"),
    ):
        assert message in refused(capsys, "evaluate", *arguments.split())
