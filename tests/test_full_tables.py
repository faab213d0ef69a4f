"""The tables of the full run: what they say of a method that was stopped, and what stands beside a value."""

import math
from pathlib import Path

import pytest

from benchmarks.full.rows import Row, read
from benchmarks.full.tables import cost_rows, standing

HEAD = ",".join(Row._fields)
STOPPED = "making its scores was stopped after 90 s"
# Of ten training samples; "slow" is stopped on two of its three variants, "slower" on all, "texts" reads no such data.
TABLE = f"""{HEAD}
task,standard,lds,random,0.01,0,0.02,,5,higher,,0.1,0.2,10,0,40
task,standard,lds,heart,0.4,0.35,0.45,,5,higher,,1,2,10,20,400
task,standard,lds,texts,,,,,0,,it is not made for these data,,,,,
task,standard,lds,slow,0.5,0.42,0.6,,5,higher,,60,8,30,20,80
task,standard,lds,slower,,,,,0,,{STOPPED},,,,,
task,merged,subclass,random,0.3,0.2,0.4,,5,higher,,0.3,0.2,10,0,40
task,merged,subclass,heart,0.2,0.1,0.3,,5,higher,,3,2,10,20,400
task,merged,subclass,texts,,,,,0,,it is not made for these data,,,,,
task,merged,subclass,slow,,,,,0,,{STOPPED},,,,,
task,merged,subclass,slower,,,,,0,,{STOPPED} on standard,,,,,
task,mixed,mixed,random,0.1,0,0.2,,5,higher,,0.2,0.2,10,0,40
task,mixed,mixed,heart,,,,,0,,it was stopped after 90 s,5,2,10,20,400
task,mixed,mixed,texts,,,,,0,,it is not made for these data,,,,,
task,mixed,mixed,slow,,,,,0,,{STOPPED} on merged,,,,,
task,mixed,mixed,slower,,,,,0,,{STOPPED} on standard,,,,,
other,standard,lds,random,0.05,0,0.1,,5,higher,,0.5,0.5,10,0,40
other,standard,lds,slow,0.5,0.42,0.6,,5,higher,,6,1,30,20,80
"""


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return read(path)


def test_a_stopped_method_has_a_cost_row(rows):
    here = [row for row in rows if row.data == "task"]
    assert sum(row.stopped for row in here) == 6 and math.isnan(here[4].seconds)
    # A metric that was stopped leaves the scores their cost: the heart has all three.
    assert [list(line.values()) for line in cost_rows(here, num_train=10)] == [
        ["random", "0.2 + 0.2", "1.00 + 0.00", "4"],
        ["heart", "3 + 2", "1.00 + 2.00", "40"],
        ["slow", "60 + 8 (1 of 3 variants)", "3.00 + 2.00", "8"],
        ["slower", "stopped", "", ""],
    ]


def test_random_scores_and_seconds_stand_beside_a_value(rows):
    lines = {line.pop(""): line for line in standing(rows, "heart", "random")}
    assert list(lines) == ["lds ↑", "subclass ↑", "seconds"]
    assert lines["lds ↑"] == {"task": "0.400 (2 of 3); slow 0.500 ≈; random 0.010", "other": ""}
    assert lines["subclass ↑"]["task"] == "0.200 (2 of 2); random 0.300 ≈"  # said once
    assert lines["seconds"] == {"task": "5; random 0.4", "other": "random 1"}
