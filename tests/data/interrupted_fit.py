"""Fit into a store, be killed at it, and fit again: `interrupted_fit.py FOLDER`.

FOLDER/problem.safetensors holds weights and training data. Run by test_stored_fit.py, it leaves
FOLDER/store and prints the sizes of the batches that the model saw the second time.
"""

import json
import os
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import dualview as dv

DEADLY = 70  # a position that is read for the first time when its row is recorded
SHARD_ROWS, BATCH_SIZE = 16, 8


class Deadly(Dataset):
    """A data set that kills its reader at one position."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        if position == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inputs[position], self.labels[position]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    weights = safetensors.torch.load_file(folder / "problem.safetensors")
    train = weights.pop("inputs"), weights.pop("labels")
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)).double()
    model.load_state_dict(weights)
    method, store = dv.DualView(C=0.02), dv.Store(folder / "store", shard_rows=SHARD_ROWS)
    settings = {"store": store, "batch_size": BATCH_SIZE, "progress": False}
    child = os.fork()
    if not child:
        dv.fit(method, model, Deadly(*train), **settings)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    seen: list[int] = []
    model.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    dv.fit(method, model, train, **settings)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
