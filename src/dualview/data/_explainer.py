"""The one loop: blocks of test samples against blocks of training samples, whatever the method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview._version import __version__
from dualview.data._attribution import DataAttribution
from dualview.data._curve import Curve
from dualview.data._groups import GroupAttribution, group_attribution, scored_groups
from dualview.data._guards import BelowNoise
from dualview.data._method import DataMethod
from dualview.data._ranking import Ranking
from dualview.data._response import response_of
from dualview.data._review import errors, suspects
from dualview.data._selection import Selection
from dualview.data._test_inputs import batches_of, target_columns, without_labels
from dualview.data._topk import RunningTop
from dualview.engine import outputs
from dualview.engine.batches import batch_size_for
from dualview.engine.datasets import Samples, as_samples, check_inputs, is_data_set
from dualview.engine.isolation import untouched, without_autocast
from dualview.engine.labels import columns_of
from dualview.engine.record import Outputs, Plan, Recorder, finished, record_rows
from dualview.engine.source import Source
from dualview.engine.tables import Rows, Table, join_rows
from dualview.engine.task import Task
from dualview.engine.weights import Weights

TEST_BLOCK = 1024
TRAIN_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Explainer:
    """A fitted data method; made by `dualview.fit` or `dualview.open`.

    Attributes:
        method: what was fitted.
        task: with its readout resolved.
        state: the fitted tensors.
        table: the recorded training rows.
        plan: how test samples are recorded.
        positions: training positions that the fit saw; the others were held out.
        certificate: facts on the fit: relative duality gap, status, support share, ...
        fidelity: "train" and, where given, "held_out" → how far surrogate and network agree.
        samples: the training set, where there is one.
        held_out: recorded held-out rows, where there are some.
        names: a name per training sample, or None.
        spec: what the training inputs looked like.
        thumbnails: stored pictures of support samples.
        batch_size: samples per forward pass; None chooses by their size.
        progress: whether recording a data set says so.
        weights: the model as it was; None: it is not looked at.
    """

    method: DataMethod
    task: Task
    state: Any
    table: Table
    plan: Plan
    positions: Int[Tensor, " row"]
    certificate: dict[str, Any]
    fidelity: dict[str, dict[str, float]]
    samples: Samples | None = None
    held_out: Table | None = None
    names: Sequence[str] | None = None
    spec: dict[str, dict] = field(default_factory=dict)
    thumbnails: Mapping[int, np.ndarray] = field(default_factory=dict)
    batch_size: int | None = None
    progress: bool = False
    weights: Weights | None = None

    def __repr__(self) -> str:
        facts = "".join(
            f", {name} {value:.3g}" if isinstance(value, float) else f", {name} {value}"
            for name, value in self.certificate.items()
            if name in ("C", "gap", "status", "support_share")
        )
        return f"Explainer({self.method!r}, {len(self.table)} training samples{facts.replace(', ', '; ', 1)})"

    @property
    def curve(self) -> Curve | None:
        """What was seen while C was chosen; None where it was given."""
        return Curve.of(self.certificate["curve"]) if "curve" in self.certificate else None

    # ── explaining ───────────────────────────────────────────────────────────────────────────────

    @without_autocast
    def explain(self, inputs: Any, targets: Any = None, *, top: int | None = None) -> DataAttribution:
        """Score every training sample for the prediction of each input.

        Args:
            inputs: a batch as the model takes it (tensor, tuple or dict; first axis: test), or a data
                set or DataLoader, whose labels are not used.
            targets: label or name of the class to explain, one a test sample or one for all; the network's
                predictions by default. For a regression or multi-label task the output column.
            top: keep only so many scores of each sign for each test sample; None keeps all.

        Returns:
            Scores in units of the measured output; positive speaks for a larger one.

        Raises:
            ValueError: inputs of another shape than in training, NaN, or targets that are no columns
                or that training never showed.
        """
        rows = self.rows(inputs, targets)
        return self._attribution(rows, self.source_of(inputs), top)

    def response(self, inputs: Any, targets: Any = None, *, top: int | None = None) -> DataAttribution:
        """Score training samples by what including each does to the surrogate, once it is fitted anew.

        Implicit differentiation through the active set of the fit (`solvers.response`): an effect on the
        surrogate's output, where `explain` gives shares of it. Arguments as for `explain`.

        Raises:
            TypeError: the method is no member of the DualView family.
        """
        responding = response_of(self.method, self.certificate, self.positions)
        return dataclasses.replace(self, method=responding).explain(inputs, targets, top=top)

    @without_autocast
    def select(self, inputs: Any, targets: Any = None) -> Selection:
        """Answer with training samples in an order, for the prediction of each input. Arguments as for `explain`.

        Raises:
            TypeError: the method scores samples and selects none.
        """
        found = self.method.select(self.state, self.task, self.rows(inputs, targets), self.table)
        return dataclasses.replace(found, names=self.names, source=self.source_of(inputs))

    @without_autocast
    def explain_classes(
        self, inputs: Any, classes: Sequence[int] | None = None, *, top: int = 20
    ) -> dict[int, DataAttribution]:
        """Score every training sample for the logit of every class, at the cost of one product.

        The inner products of test and training samples are made once; each class only weighs them.

        Args:
            inputs: as for `explain`.
            classes: output columns; by default all that samples were fitted to.
            top: scores of each sign to keep for each test sample and class.

        Returns:
            output column → its attribution of the logit, in the order of `classes`.

        Raises:
            TypeError: what is recorded of a test sample depends on the class: gradients of its logit.
        """
        if self.plan.of_target:
            name = type(self.method).__name__
            raise TypeError(f"{name} records other gradients for each class: call explain(inputs, targets) for each")
        rows = self._recorded(inputs, self._whichever)
        known = self.method.known_classes(self.state, self.table, self.positions)
        columns = known if classes is None else classes
        source = self.source_of(inputs)
        task = dataclasses.replace(self.task, output=outputs.logit)
        by_class: dict[int, Rows] = {}
        for column in map(int, columns):
            targets = columns_of(torch.full((len(rows.index),), column), self.num_classes)
            self.method.check_targets(self.state, targets, self.task, given=True)
            by_class[column] = rows._replace(targets=targets)
        prepared = {
            column: self.method.prepare(self.state, task, part, self.table) for column, part in by_class.items()
        }
        kept = {column: RunningTop(len(rows.index), top, rows.values.dtype) for column in by_class}
        for test in _slices(len(rows.index)):
            for train in self.table.blocks(TRAIN_BLOCK, self.method.scored(self.state)):
                products = self.method.products(self.state, rows.values[test], train)
                for column, part in prepared.items():
                    part = part.rows(test)
                    shares = self.method.bias_shares(self.state, part, train)
                    scores = self.method.score(self.state, part, train) if products is None else products * shares
                    kept[column].add(test, scores, shares, train.index)
        return {
            column: self._result(
                task, part, self.method.bias(self.state, prepared[column]), source, *kept[column].result(), top
            )
            for column, part in by_class.items()
        }

    @without_autocast
    def surrogate_logits(self, inputs: Any) -> Float[Tensor, "test cls"]:
        """Return the surrogate's logits for these inputs, bias included."""
        return self.method.logits(self.state, self._recorded(inputs, self._whichever).values)

    @without_autocast
    def explain_groups(self, inputs: Any, groups: Any, targets: Any = None) -> GroupAttribution:
        """Score groups of training samples, a source or an annotator, say, for the prediction of each input.

        A group's score is the sum of its samples': exact for shares, first order for effects. Where the method knows
        what leaving them out together does (`KernelInfluence`, `Influence(leverage=True)`) it is that instead.

        Args:
            inputs: as for `explain`.
            groups: a mask "train"; a mapping from names to masks or positions; or a column of metadata, one value a
                training sample, None for none.
            targets: as for `explain`.

        Raises:
            ValueError: a group has no members, or the scores are similarities, whose sums mean nothing.
        """
        members = scored_groups(self.method, groups, len(self.table))
        rows = self.rows(inputs, targets)
        tests = (Rows(*(part[test] for part in rows)) for test in _slices(len(rows.index)))
        prepared = (self.method.prepare(self.state, self.task, test, self.table) for test in tests)
        return group_attribution(self, rows, prepared, members)

    def rows(self, inputs: Any, targets: Any = None) -> Rows:
        """Record test samples, checked against what training looked like; targets default to predictions."""
        rows = self._recorded(inputs, targets)
        self.method.check_targets(self.state, rows.targets, self.task, given=targets is not None)
        return rows

    def predictions(self, rows: Rows) -> Int[Tensor, " test"]:
        """Return the network's predicted output column of each row."""
        several = self.task.problem == "regression" and rows.outputs.shape[1] > 1
        return rows.targets if several else self.task.predicted(rows.outputs)

    def coverage(self) -> dict[str, str]:
        """Tell of each parameter or site what is recorded of it, and how."""
        return dict(self.plan.coverage)

    # ── the training set ─────────────────────────────────────────────────────────────────────────

    @without_autocast
    def self_influence(self) -> Float[Tensor, " train"]:
        """Return each training sample's score for itself; zero where it has none.

        Of shares it is the share of the logit of the class it was fitted to, of effects what including it takes
        from its own loss. High values mark samples that are remembered one by one: hard, odd or wrongly labelled.
        """
        return self._per_train(lambda state, rows: self.method.self_scores(state, rows, self.table))

    @without_autocast
    def importance(self) -> Float[Tensor, " train"]:
        """Return each training sample's global importance: its weight in every explanation."""
        return self._per_train(self.method.importances)

    @without_autocast
    def suspects(self, top: int | None = None, *, by: str | None = None) -> Ranking:
        """Rank training samples that may carry a wrong label, most suspicious first.

        Args:
            top: how many; None ranks all.
            by: "slack", how far the surrogate contradicts the label (its loss); "self_influence", as most
                papers rank; or "loss", the network's own. By default slack where the method has a surrogate,
                else self-influence.

        Returns:
            Columns: slack and importance where the method has a surrogate, self_influence, loss, target,
            predicted (by the network), confidence. A sample that was held out of the fit has slack but no
            influence.
        """
        return suspects(self, top, by)

    @without_autocast
    def errors(self, data: Any = None) -> Ranking:
        """Rank the network's wrong predictions on a data set, worst (highest loss) first.

        Args:
            data: a labelled data set; by default the held-out data of the fit (positions in the
                training set where they were a share of it), or the training set where there were none.

        Returns:
            Columns: loss, target, predicted, confidence (the predicted class's softmax probability).

        Raises:
            ValueError: the task is no classification, or no data was given and a store does not keep the rows of the
                held-out data set.
        """
        return errors(self, data)

    def record(self, data: Any = None) -> Table:
        """Record a labelled data set as training was; None gives the held-out rows, else the training rows."""
        if data is None:
            if self.held_out is None and self.certificate.get("held_out") and len(self.positions) == len(self.table):
                raise ValueError("give data=: a store does not keep the rows of the held-out data set of the fit")
            return self.held_out or self.table
        samples = as_samples(data, name="data")
        with untouched(self.task.model):
            first, _ = self.task.split(samples.batch([0]))
        check_inputs(first, self.spec)
        size = self.batch_size or batch_size_for(first)
        plan = self.plan if self.method.has_surrogate else Outputs().plan(self.task, first)
        return Recorder(self.task, samples, plan, self.num_classes, size, "data").table(progress=self.progress)

    @property
    def num_classes(self) -> int:
        """Columns of class logits; one logit for two classes counts as two."""
        return max(2 if self.task.problem == "classification" else 1, self.table.num_classes)

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────

    @property
    def _whichever(self) -> int | None:
        """A target where all columns are meant: a regression with several has none that it predicts."""
        return 0 if self.task.problem == "regression" else None

    def _given(self, inputs: Any) -> Any:
        return inputs if is_data_set(inputs) else without_labels(inputs, self.task, self.spec, self.num_classes)

    def _recorded(self, inputs: Any, targets: Any = None) -> Rows:
        if self.weights is not None:
            self.weights.check(self.task.model)
        given = self._given(inputs)
        columns = None if targets is None else target_columns(targets, given, self.task, self.num_classes)
        with untouched(self.task.model):  # here, not in the generator, which an error would leave open
            blocks = (
                record_rows(self.task, self.plan, batch, None if columns is None else columns[index], index)
                for batch, index in batches_of(given, self.task, self.spec, self.batch_size)
            )
            return join_rows(list(finished(self.plan, blocks)))

    def source_of(self, inputs: Any) -> Source:
        """Return where a result for these inputs comes from."""
        source = Source.of(self.task, self._given(inputs))
        return dataclasses.replace(source, train=self.samples, thumbnails=self.thumbnails)

    def _attribution(self, rows: Rows, source: Source, top: int | None) -> DataAttribution:
        num_test, scored = len(rows.index), self.method.scored(self.state)
        kept = None if top is None else RunningTop(num_test, top, rows.values.dtype)
        scores = rows.values.new_zeros(num_test, 0 if kept else len(scored))
        shares = torch.zeros_like(scores) if self.method.has_surrogate else scores.new_zeros(1, 1).expand_as(scores)
        biases, noise = [], BelowNoise(num_test, getattr(self.task.single_output, "lower_is_better", False))
        for test in _slices(num_test):
            block = self.method.prepare(self.state, self.task, Rows(*(part[test] for part in rows)), self.table)
            biases.append(self.method.bias(self.state, block))
            for train in self.table.blocks(TRAIN_BLOCK, scored):
                score = self.method.score(self.state, block, train)
                noise.add(test, score, self.method.noise(self.state, block, train, score))
                share = self.method.bias_shares(self.state, block, train)
                if kept is not None:
                    kept.add(test, score, share, train.index)
                    continue
                first = int(torch.searchsorted(scored, train.index[0]))
                columns = slice(first, first + len(train.index))
                scores[test, columns] = score
                if self.method.has_surrogate:
                    shares[test, columns] = share
        result = kept.result() if kept is not None else (scores, scored, shares)
        found = self._result(self.task, rows, torch.cat(biases), source, *result, top)
        return dataclasses.replace(found, checks=found.checks | noise.checks())

    def _result(
        self,
        task: Task,
        rows: Rows,
        bias: Tensor,
        source: Source,
        scores: Tensor,
        train_index: Tensor,
        bias_shares: Tensor,
        top: int | None,
    ) -> DataAttribution:
        output = task.single_output
        return DataAttribution(
            scores=scores,
            train_index=train_index,
            num_train=len(self.table),
            kind=self.method.kind,
            measured=task.measured,
            linearised=self.method.kind == "share" and not getattr(output, "linear", False),
            lower_is_better=getattr(output, "lower_is_better", False),
            bias=bias,
            bias_shares=bias_shares,
            test_index=rows.index,
            targets=rows.targets,
            predicted=self.predictions(rows),
            train_targets=self.table.targets,
            method=repr(self.method),
            certificate=self.certificate,
            checks={"fidelity": self.fidelity},
            names=self.names,
            class_names=self.task.class_names,
            top_k=top,
            version=__version__,
            source=source,
        )

    def _per_train(self, values: Callable[[Any, Rows], Tensor]) -> Tensor:
        whole = torch.zeros(len(self.table), dtype=self.table.dtype)
        for rows in self.table.blocks(TRAIN_BLOCK, self.method.scored(self.state)):
            whole[rows.index] = values(self.state, rows)
        return whole


def _slices(num_test: int) -> Iterator[slice]:
    """Walk the test samples in blocks."""
    for start in range(0, num_test, TEST_BLOCK):
        yield slice(start, min(start + TEST_BLOCK, num_test))
