"""The metrics by name: which flaw each needs planted, and how it is taken from a contender's scores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from dualview.engine.batches import part_with_logits
from dualview.engine.datasets import as_samples
from dualview.evaluation import retrieval, sanity
from dualview.evaluation._estimate import Estimate
from dualview.evaluation._scores import Scores
from dualview.evaluation.cases import Case, misled, with_model
from dualview.evaluation.contenders import Best, Chosen, Contender, Fitted
from dualview.evaluation.datamodelling import linear_datamodelling_score
from dualview.evaluation.selection import brittleness, coreset_selection, data_pruning

SIMILAR = "similarities: their sums mean nothing of their own"
STABILITY_SEEDS = 3
BRITTLE_TESTS = 10


@dataclass(frozen=True)
class Judged:
    """A contender on a case; scores are made once, when the first metric asks for them.

    Attributes:
        case: the network, its data and the truth.
        contender: what scores.
        seconds: what making each kind of scores took, fits included.
        passes: samples that went forward and backward through the network in the fit and in the explanation.
    """

    case: Case
    contender: Contender
    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @cached_property
    def fitted(self) -> Fitted:
        """The contender, after it saw the training set."""
        with self._counter("fit"):
            return self.contender.fit(self.case.task, self.case.train, self.case.train_targets)

    @cached_property
    def scores(self) -> Scores:
        """Scores for the predicted class of each test sample."""
        predicted = self.case.predicted
        with self._clock("scores"):
            fitted = self.fitted
            with self._counter("explain"):
                return fitted.explain(self.case.test_inputs, predicted)

    @cached_property
    def scores_for_labels(self) -> Scores:
        """Scores for the label of each test sample, which is what retrained networks are measured for."""
        with self._clock("scores for labels"):
            found = self.fitted.explain(self.case.test_inputs, self.case.test_targets)
        # A tensor's proponents are its largest scores; of a loss, what they include makes less.
        return -found if isinstance(found, Tensor) and self.case.lower_is_better else found

    def scores_of(self, model: nn.Module) -> Scores:
        """Scores for the same classes, of another network."""
        with self._clock("scores of others"):
            task = with_model(self.case, model)
            fitted = self.contender.fit(task, self.case.train, self.case.train_targets)
            return fitted.explain(self.case.test_inputs, self.case.predicted)

    @contextmanager
    def _counter(self, what: str) -> Iterator[None]:
        """Count the rows that leave the network, and those whose gradient comes back to it."""
        counts = [0, 0]

        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            logits = part_with_logits(output)
            if not isinstance(logits, Tensor):  # what runs the model says so
                return
            rows = len(logits) if logits.ndim else 1  # a squeeze() in the model drops the axis of a lone sample
            counts[0] += rows
            if logits.requires_grad:
                logits.register_hook(lambda _: counts.__setitem__(1, counts[1] + rows))  # type: ignore[arg-type]

        handle = self.case.task.model.register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()
            self.passes[what] = counts[0], counts[1]

    @contextmanager
    def _clock(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:  # what was stopped took its time as well
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    def suspicion(self, name: str) -> Tensor:
        """How suspicious each training label is.

        Raises:
            Inapplicable: the contender does not say.
        """
        if name not in self._suspicions:
            raise Inapplicable(f"it has no {name.replace('_', '-')} to rank training samples by")
        return self._suspicions[name]

    @cached_property
    def _suspicions(self) -> dict[str, Tensor]:
        with self._clock("suspicions"):
            return self.fitted.suspicions()


class Inapplicable(Exception):
    """A metric means nothing for this contender or case; the message says why."""


@dataclass(frozen=True)
class Metric:
    """A metric of the table.

    Attributes:
        name: in tables and on the command line.
        variant: the flaw that must be planted; "standard" for none.
        measure: takes it.
        retrains: whether networks are trained for each contender: left out unless named.
    """

    name: str
    variant: str
    measure: Callable[[Judged], Estimate]
    retrains: bool = False


def _planted(judged: Judged) -> tuple[Any, Any]:
    if judged.case.planted is None:
        raise Inapplicable("nothing is known to be planted in these data")
    return judged.case.planted


def _class_detection(judged: Judged) -> Estimate:
    return retrieval.class_detection(judged.scores, judged.case.train_targets, judged.case.predicted)


def _subclass_detection(judged: Judged) -> Estimate:
    train, test = _planted(judged)
    return retrieval.subclass_detection(
        judged.scores,
        train.subclasses,
        test.subclasses,
        correct=judged.case.predicted == test.labels,
        train_superclasses=train.labels,
        test_superclasses=test.labels,
    )


def _shortcut_detection(judged: Judged) -> Estimate:
    return retrieval.shortcut_detection(judged.scores, _planted(judged)[0].marked, misled(judged.case))


def _mixed_data_detection(judged: Judged) -> Estimate:
    train, test = _planted(judged)
    return retrieval.mixed_data_detection(judged.scores, train.foreign, test.foreign)


def _mislabel_detection(name: str) -> Callable[[Judged], Estimate]:
    return lambda judged: retrieval.mislabel_detection(judged.suspicion(name), _planted(judged)[0].flipped)


def _mislabel_recall(name: str) -> Callable[[Judged], Estimate]:
    def measure(judged: Judged) -> Estimate:
        flipped = _planted(judged)[0].flipped
        return retrieval.recall_at(judged.suspicion(name), flipped, int(flipped.sum()))

    return measure


def _check_retrains(judged: Judged) -> None:
    if judged.case.retrain is None:
        raise Inapplicable(
            "nothing says how to train the network: give --train MODULE:FUNCTION on the command line, or "
            "case_of_task(retrain=...) in Python, a function train(mask, seed) that returns a model"
        )


def _datamodelling(judged: Judged) -> Estimate:
    """LDS; a contender whose scores are similarities is summed all the same, and the note says so."""
    _check_retrains(judged)
    masks, outputs, accuracy = judged.case.truth()
    similar = judged.contender.kind == "similarity"
    found = linear_datamodelling_score(
        judged.scores_for_labels,
        masks,
        outputs,
        accuracy=accuracy,
        full_accuracy=judged.case.accuracy,
        allow_similarity=similar,
    )
    return _noted(found, SIMILAR) if similar else found


def choose(best: Best, case: Case) -> Contender:
    """Return the candidate with the highest linear datamodelling score on the subsets that are reserved for this."""
    masks, outputs, _ = case.truth(for_choice=True)

    def score(one: Contender) -> float:
        scores = Judged(case, one).scores_for_labels
        found = linear_datamodelling_score(scores, masks, outputs, allow_similarity=one.kind == "similarity").mean
        return -math.inf if math.isnan(found) else found

    scored = [score(one) for one in best.candidates]
    if max(scored) == -math.inf:
        raise ValueError(f"{case.name}: the score by which the best is chosen is undefined for every candidate")
    return Chosen(best.candidates[scored.index(max(scored))], len(best.candidates))


def _model_randomisation(judged: Judged) -> Estimate:
    if judged.case.untrained is None:
        raise Inapplicable("how the network looked before training is not known")
    return sanity.model_randomisation(judged.scores, judged.scores_of(judged.case.untrained()))


def _stability(judged: Judged) -> Estimate:
    other = judged.case.other_model
    if other is None:
        raise Inapplicable("no networks of other seeds")
    return sanity.stability([judged.scores, *(judged.scores_of(other(seed)) for seed in range(1, STABILITY_SEEDS))])


def _retrained(protocol: Callable[..., Any], *, sums: bool = False) -> Callable[[Judged], Estimate]:
    """Return how to take a metric that trains networks; `sums`: it adds scores up, which is said of similarities."""

    def measure(judged: Judged) -> Estimate:
        _check_retrains(judged)
        similar = sums and judged.contender.kind == "similarity"
        allowed = {"allow_similarity": True} if similar else {}
        found = protocol(judged.scores, judged.case.seeded_retrain, judged.case.task, judged.case.test, **allowed).score
        return _noted(found, SIMILAR) if similar else found

    return measure


def _brittleness(judged: Judged) -> Estimate:
    """Take the first few test samples: networks are trained for each."""
    _check_retrains(judged)
    case = judged.case
    samples = as_samples(case.test, name="test")
    few = range(min(BRITTLE_TESTS, len(samples)))
    test = DataLoader(Subset(samples.dataset, few), collate_fn=samples.collate)
    found = brittleness(judged.scores[: len(few)], case.seeded_retrain, case.task, test).score
    return _noted(found, f"the first {len(few)} test samples") if len(few) < len(samples) else found


def _noted(found: Estimate, note: str) -> Estimate:
    return Estimate(**{**vars(found), "notes": (*found.notes, note)})


def chosen(names: Sequence[str] | None) -> list[Metric]:
    """Return metrics by name; None: those that train no networks for each contender; "all": every one.

    Raises:
        ValueError: there is no such metric.
    """
    if names is None:
        return [metric for metric in METRICS.values() if not metric.retrains]
    if "all" in names:
        return list(METRICS.values())
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"there is no metric {unknown[0]!r}; there are {', '.join(METRICS)}, and all")
    return [METRICS[name] for name in names]


METRICS = {
    metric.name: metric
    for metric in (
        Metric("class-detection", "standard", _class_detection),
        Metric("subclass-detection", "merged", _subclass_detection),
        Metric("shortcut-detection", "shortcut", _shortcut_detection),
        Metric("mislabel-detection", "flipped", _mislabel_detection("self_influence")),
        Metric("mislabel-detection-slack", "flipped", _mislabel_detection("slack")),
        Metric("mislabel-recall", "flipped", _mislabel_recall("self_influence")),
        Metric("mislabel-recall-slack", "flipped", _mislabel_recall("slack")),
        Metric("mixed-data-detection", "mixed", _mixed_data_detection),
        Metric("lds", "standard", _datamodelling),
        Metric("model-randomisation", "standard", _model_randomisation),
        Metric("stability", "standard", _stability, retrains=True),
        Metric("top-k-cardinality", "standard", lambda judged: sanity.top_k_cardinality(judged.scores)),
        Metric("static-share", "standard", lambda judged: sanity.static_share(judged.scores)),
        Metric("sparsity", "standard", lambda judged: sanity.sparsity(judged.scores)),
        Metric("hoyer", "standard", lambda judged: sanity.hoyer(judged.scores)),
        Metric("brittleness", "standard", _brittleness, retrains=True),
        Metric("coreset-selection", "standard", _retrained(coreset_selection, sums=True), retrains=True),
        Metric("data-pruning", "standard", _retrained(data_pruning, sums=True), retrains=True),
    )
}
