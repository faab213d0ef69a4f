"""A peer as a contender: what `dualview.evaluation` judges, with another library's numbers in it."""

import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dualview.engine.outputs import Kind
from dualview.engine.task import Task
from dualview.evaluation.contenders import Contender, Fitted
from dualview.evaluation.metrics import Inapplicable

BATCH = 100  # where a peer takes one sample at a time by default, or asks for a size


class PeerError(Inapplicable, ValueError):
    """A peer raised; the message is its own words."""


class Started(NamedTuple):
    """A peer that has seen the training set.

    Attributes:
        scores: (test inputs, labels to explain) → "test train", larger for a stronger proponent.
        self_influence: returns how suspicious each training label is, "train"; None: the peer does not say.
        folder: of its files, which goes with this.
    """

    scores: Callable[[Tensor, Tensor], Tensor]
    self_influence: Callable[[], Tensor] | None = None
    folder: tempfile.TemporaryDirectory | None = None


@dataclass(frozen=True)
class Peer(Contender):
    """Another library's method, run as its documentation says.

    Attributes:
        label: as tables call it, with each setting that is not its default.
        start: (network, training set) → what it has after seeing them.
        kind: of its scores.
    """

    label: str
    start: Callable[[nn.Module, TensorDataset], Started]
    kind: Kind = "effect"

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    def fit(self, task: Task, train: Any, train_targets: Tensor) -> Fitted:
        """Start the peer on a copy of the network, which it may wrap or hook as it likes."""
        model = copy.deepcopy(task.model)
        for module in model.modules():
            module._forward_hooks.clear()  # the judge's counter, which fails under torch.func
        beginning = time.perf_counter()
        with own_words():
            started = self.start(model, TensorDataset(train[0], train_targets))
        seconds = time.perf_counter() - beginning

        def explain(inputs: Tensor, columns: Tensor) -> Tensor:
            with own_words():
                return started.scores(inputs, columns).detach()

        def suspicions() -> dict[str, Tensor]:
            if started.self_influence is None:
                return {}
            with own_words():
                return {"self_influence": started.self_influence().detach()}

        return Fitted(explain, suspicions, seconds, lambda: 0)  # what it keeps, it does not say


@contextlib.contextmanager
def own_words() -> Iterator[None]:
    """Silence a peer, seed its draws, and say in its own words what it could not do."""
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            yield
        except Exception as error:  # whatever another library may raise belongs in the table
            words = " ".join(str(error).split())
            raise PeerError(f"raised {type(error).__name__}: {words[:200]}") from error
