"""The samples behind a table, walked again."""

import random

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import dualview as dv
from dualview.engine.datasets import as_samples
from dualview.engine.replay import Replay
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task


class Drawing(Dataset):
    """Seven samples; reading one moves the global random state."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, position):
        random.random()
        return torch.full((2,), float(position)), "abc"[position % 3]


def test_batches_hold_the_samples_at_the_positions_in_their_order():
    task = Task(nn.Linear(2, 3), classes={"a": 2, "b": 0, "c": 1})
    replay = Replay(task, as_samples(Drawing()), 3, batch_size=2)
    state = random.getstate()
    batches = list(replay.batches(torch.tensor([5, 0, 3])))
    assert random.getstate() == state
    assert [batch.index.tolist() for batch in batches] == [[5, 0], [3]]
    assert [batch.inputs[:, 0].tolist() for batch in batches] == [[5.0, 0.0], [3.0]]
    assert [batch.targets.tolist() for batch in batches] == [[1, 2], [2]]


def test_a_table_without_samples_says_how_to_get_them(tmp_path):
    rows = Rows(torch.zeros(1, 2), torch.zeros(1, 3), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="give train= to dualview.open"):
        Table([rows]).batches(torch.tensor([0]))


def test_a_fit_and_an_opened_one_with_its_training_set_have_them(tmp_path):
    model, train = nn.Linear(2, 3), (torch.randn(6, 2), torch.arange(6) % 3)
    fitted = dv.fit(dv.GradDot(), model, train, store=tmp_path, progress=False)
    opened = dv.open(tmp_path, model, train=train)
    for explainer in (fitted, opened):
        (batch,) = explainer.table.batches(torch.tensor([4, 1]))
        assert torch.equal(batch.inputs, train[0][[4, 1]]) and torch.equal(batch.targets, train[1][[4, 1]])
    with pytest.raises(ValueError, match="give train= to dualview.open"):
        dv.open(tmp_path, model).table.batches(torch.tensor([0]))
