"""Running the command in this process, as a shell would."""

import re
import shlex

import pytest

from dualview import cli

TOY = """
import torch
from torch import nn
import dualview as dv

generator = torch.Generator().manual_seed(0)
columns = torch.arange(40) % 2
inputs = torch.randn(40, 3, generator=generator) + columns[:, None]
words = ["[no]" if c == 0 else ":fire:" for c in columns.tolist()]
data = list(zip(inputs, words, strict=True))
model = nn.Linear(3, 2)
model.weight.data = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
model.bias.data = torch.tensor([1.5, -1.5])
plain = dv.Task(model)
task = dv.Task(model, classes={"[no]": 0, ":fire:": 1}, class_names=["[no]", ":fire:"])

def make_task():
    return task

def make_data():
    return data
"""


def run(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Run the command as a shell would, in this process; return what it printed."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    assert ended.value.code in (0, None), captured.err
    return captured.out


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Run the command with an error of use; return the one line that it ends with."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    *before, message = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert message.startswith("dualview: ")
    assert all("row" in line for line in before if line)  # nothing but what was being recorded
    return message


def examples_in(text: str) -> list[list[str]]:
    """Find the `dualview ...` lines of a text, with what follows on lines that a backslash continues."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [shlex.split(line)[1:] for line in re.findall(r"^\s+(dualview .*)$", joined, re.MULTILINE)]


def fit_toy(capsys: pytest.CaptureFixture, *more: str) -> str:
    return run(capsys, "fit", "toy.py:task", "--data", "toy.py:data", "--store", "store", "--C", "0.1", *more)
