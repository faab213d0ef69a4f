"""Rankings: their rows, as dicts, pandas tables and CSV files."""

import csv
import dataclasses

import pytest
import torch

import dualview as dv
from dualview.engine.source import Source


@pytest.fixture
def ranking() -> dv.Ranking:
    columns = {"loss": torch.tensor([2.5, 0.25]), "target": torch.tensor([1, 0])}
    return dv.Ranking(torch.tensor([7, 3]), columns, "loss", 9, ['a "quoted", name', "b"])


ROWS = [
    {"index": 7, "loss": 2.5, "target": 1, "name": 'a "quoted", name'},
    {"index": 3, "loss": 0.25, "target": 0, "name": "b"},
]


def test_rows_hold_python_values(ranking):
    assert ranking.rows() == ROWS
    assert [type(value) for value in ranking.rows()[0].values()] == [int, float, int, str]
    assert len(ranking) == 2
    assert repr(ranking) == "Ranking(2 of 9 samples, by loss; columns loss, target)"


def test_without_names_there_is_no_such_column(ranking):
    nameless = dv.Ranking(ranking.index, ranking.columns, "loss", 9)
    assert nameless.rows() == [{key: row[key] for key in ("index", "loss", "target")} for row in ROWS]
    assert list(nameless.to_pandas().columns) == ["index", "loss", "target"]


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_head_is_the_beginning(ranking, k: int):
    head = ranking.head(k)
    assert head.rows() == ROWS[:k]
    assert head.num_samples == 9


def test_what_is_not_told_has_a_default_and_the_beginning_keeps_what_is(ranking):
    assert (ranking.what, ranking.of, ranking.class_names, ranking.source) == ("", "data", None, None)
    source = Source(dv.Task(torch.nn.Linear(1, 2)))
    head = dataclasses.replace(ranking, what="Odd ones", of="train", class_names=["a", "b"], source=source).head(1)
    assert (head.what, head.of, head.class_names) == ("Odd ones", "train", ["a", "b"])
    assert head.source is source and head.rows() == ROWS[:1]


def test_to_pandas(ranking):
    frame = ranking.to_pandas()
    assert frame.to_dict("records") == ROWS
    assert list(frame.columns) == ["index", "loss", "target", "name"]


def test_to_csv(ranking, tmp_path):
    ranking.to_csv(tmp_path / "ranking.csv")
    with open(tmp_path / "ranking.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{key: str(value) for key, value in row.items()} for row in ROWS]


def test_an_empty_ranking_keeps_its_columns(ranking, tmp_path):
    empty = ranking.head(0)
    assert empty.rows() == []
    assert list(empty.to_pandas().columns) == ["index", "loss", "target", "name"]
    empty.to_csv(tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text() == "index,loss,target,name\n"
