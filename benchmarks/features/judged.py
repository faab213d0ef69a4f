"""What a method's scores are worth, and what they cost."""

import dataclasses
import hashlib
import json
import multiprocessing
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import dualview as dv
from benchmarks import memory
from benchmarks.features.cases import Case
from benchmarks.features.contenders import Contender
from dualview.engine.players import Players, as_players
from dualview.evaluation._estimate import Estimate, interval, resampling
from dualview.evaluation._estimate import estimate as estimated
from dualview.evaluation.faithfulness import agreement, infidelity
from dualview.features._attribution import FeatureAttribution
from dualview.games.exact import coalitions, values_of

REFUSALS = (ValueError, TypeError, NotImplementedError, RuntimeError, ArithmeticError, AssertionError)
AGAIN = 5.0  # seconds; what takes less is run twice, and the second run stands: the first one loads code


class Cost(NamedTuple):
    """What explaining one sample cost: CPU seconds, rows forward and backward, and peak memory of all in MB."""

    seconds: float
    forward: float
    backward: float
    megabytes: int


def explained(contender: Contender, case: Case, folder: Path) -> tuple[FeatureAttribution, Cost] | str:
    """Run a contender in a process of its own, a copy of this one; or return why it refused."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    path = folder / "scores.safetensors"
    process = context.Process(target=_run, args=(contender, case, path, sender))
    process.start()
    sender.close()
    said = json.loads(receiver.recv())
    process.join()
    return said if isinstance(said, str) else (FeatureAttribution.load(path), Cost(*said))


def _run(contender: Contender, case: Case, path: Path, sender: Connection) -> None:
    warnings.simplefilter("ignore")  # the tables say what is missed
    counts = [0, 0]

    def count(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        counts[0] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: counts.__setitem__(1, counts[1] + len(gradient)))

    leaf = case.inputs[:1].clone().requires_grad_()
    torch.autograd.grad(case.model(leaf).max(), leaf)  # what a first pass leaves behind is no method's memory
    case.model.register_forward_hook(count)
    try:
        found, cost = _measured(contender, counts, len(case.inputs))
        if cost.seconds * len(case.inputs) < AGAIN:
            found, cost = _measured(contender, counts, len(case.inputs))
    except REFUSALS as error:
        sender.send(json.dumps(f"{type(error).__name__}: {str(error).splitlines()[0]}"))
        return
    contender.finish(found).save(path)
    sender.send(json.dumps(cost))


def _measured(contender: Contender, counts: list[int], samples: int) -> tuple[Any, Cost]:
    counts[:] = 0, 0
    memory.forget_peak()
    before, start = memory.resident(), time.process_time()
    found = contender.explain()
    seconds, taken = time.process_time() - start, memory.peak() - before
    return found, Cost(seconds / samples, counts[0] / samples, counts[1] / samples, round(taken / 1e3))


class Remembered(nn.Module):
    """A network that answers an input it has seen from memory: all methods are judged by the same removals."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, {}

    def forward(self, x: Tensor) -> Tensor:
        keys = [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in x]
        new = [row for row, key in enumerate(keys) if key not in self.seen]
        if new:
            self.seen.update(zip([keys[row] for row in new], self.model(x[new]), strict=True))
        return torch.stack([self.seen[key] for key in keys])


class Judge:
    """The metrics of one case, with the references that they compare with.

    Args:
        exact: Shapley values of the few players, with their dividends.
        effects: occlusion of the many.
    """

    def __init__(self, case: Case, exact: FeatureAttribution, effects: FeatureAttribution) -> None:
        self.case, self.exact, self.effects = case, exact, effects
        self.model = Remembered(case.model).eval()
        parts = {"": case.inputs}
        self.few, self.many = as_players(case.few, parts), as_players(case.many, parts)
        worth = values_of(exact.tables["dividends"])  # "sample coalition" of the few players
        self.removed = (~coalitions(self.few.count)).double()
        self.lost = worth[:, -1:] - worth

    def of(self, found: FeatureAttribution) -> dict[str, Estimate]:
        """Return what applies to the scores."""
        if found.account is not None:  # relevance shares the logit, and some is absorbed on the way
            missed = found.values.flatten(1).sum(1) - found.account.seed
            found = dataclasses.replace(found, change=found.account.seed, completeness_error=missed)
        metrics = {} if found.change is None else {"completeness": completeness(found)}
        if found.site is not None:
            return metrics
        if found.kind != "similarity":
            few, many = self.exact_infidelity(found.of_players(self.few)), self._infidelity(found)
            metrics |= {"infidelity of groups": few} | ({} if self.alike else {"infidelity of singles": many})
        return metrics | {
            "rank by Shapley": agreement(*(_by_player(one, self.few) for one in (found, self.exact))),
            "rank by Occlusion": agreement(*(_by_player(one, self.many) for one in (found, self.effects))),
        }

    @property
    def alike(self) -> bool:
        """Whether the few players are the many."""
        return self.few.count == self.many.count

    def _infidelity(self, found: FeatureAttribution) -> Estimate:
        return infidelity(found, dv.Task(self.model), self.case.inputs, players=self.case.many)

    def exact_infidelity(self, scores: Tensor) -> Estimate:
        """Return the infidelity of scores "sample player" over all sets of the few players, each as likely."""
        missed = scores.double() @ self.removed.T - self.lost
        return estimated("infidelity", missed.square().mean(1) / self.lost.square().mean(1), higher_is_better=False)

    def floor(self) -> Estimate:
        """Return the least infidelity that any scores of the few players have."""
        best = torch.linalg.lstsq(self.removed, self.lost.T).solution.T
        return self.exact_infidelity(best)

    def nulls(self, plain: FeatureAttribution) -> dict[str, FeatureAttribution]:
        """Return scores that know the output's change and no more: each player's in random order, and equal ones."""
        generator = torch.Generator().manual_seed(0)
        scores = plain.of_players(self.many)
        order = torch.rand(scores.shape, generator=generator).argsort(1)
        equal = plain.change[:, None].expand(scores.shape) / self.many.count
        return {
            "random order": self._made(plain, scores.gather(1, order)),
            "equal shares": self._made(plain, equal),
        }

    def _made(self, plain: FeatureAttribution, scores: Tensor) -> FeatureAttribution:
        values = self.many.spread(scores, shared=True)[""]
        return dataclasses.replace(plain, values=values, completeness_error=scores.sum(1) - plain.change)


def completeness(found: FeatureAttribution) -> Estimate:
    """Return mean |completeness error| / mean |change|; the interval resamples the quotient."""
    missed, change = found.completeness_error.abs().double(), found.change.abs().double()
    counts = resampling(len(missed), 1000, torch.Generator().manual_seed(0))
    low, high = interval(counts @ missed / (counts @ change))
    return Estimate("completeness", missed / change.mean(), low, high, higher_is_better=False)


def _by_player(found: FeatureAttribution, players: Players) -> FeatureAttribution:
    return dataclasses.replace(found, values=found.of_players(players), players=None, split={}, tables={})
