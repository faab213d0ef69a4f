"""SupportSpectrum: the path from globally important to locally similar training samples behind a prediction.

Source: Agussurja, Lu and Low, "Global-to-Local Support Spectrums for Language Model Explainability", 2024 (arXiv
2408.05976), of whose body only third parties' accounts were at hand. Independent implementation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import reduce
from numbers import Integral
from operator import and_, or_
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize, pad

from dualview._version import __version__
from dualview.data._gradients import BLOCK, Scored
from dualview.data._method import DataMethod, HeldOut, Prepared, as_method
from dualview.data._selection import Selection
from dualview.engine.batches import Inputs
from dualview.engine.labels import columns_of
from dualview.engine.outputs import Kind, logit
from dualview.engine.record import Activations, Sides
from dualview.engine.site import Site
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task, class_logits
from dualview.ops.pareto import pareto_fronts

RIVALS = ("general", "runner-up", "union", "intersection")
PATH = "path"
NO_SUPPORT = "no support: the weakest of its class along this direction"
NO_CANDIDATES = "no candidates: no training sample of this class takes part"

PAIRS = 2**24  # of test and training samples that are compared at once
ROUNDING = 256  # machine precisions of a logit: as far apart may two batches put the same sample


class _Paths(NamedTuple):
    """The paths of some test samples.

    Attributes:
        rows: the test row of each point, rising.
        train_index: training positions.
        importance: g.
        kernel: l.
        num_support: of each test sample.
    """

    rows: Int[Tensor, " point"]
    train_index: Int[Tensor, " point"]
    importance: Float[Tensor, " point"]
    kernel: Float[Tensor, " point"]
    num_support: Int[Tensor, " test"]


@dataclass(frozen=True)
class SupportSpectrum(DataMethod):
    """Answer with a path of training samples of the explained class, from globally important to locally similar.

    With z the logits and c the explained class, the support set of a test sample holds the training samples of class c
    that stand nearer to the class's boundary: for a rival k

        R = {i : y_i = c, (z_c − z_k)(x_i) < (z_c − z_k)(x)},        in general {i : y_i = c, z_c(x_i) < z_c(x)}.

    Of a global importance g and a local kernel l, the path holds argmax g(i) over {i ∈ R : l(i, x) > delta} for every
    delta: the Pareto front of (g, l) over R, exactly. Along it g falls and l rises; of equals the larger l stays, then
    the lower position. A test sample that is the weakest of its class has an empty R, which is an answer too.

    `Explainer.select` gives the path. `explain` gives each of its samples its place over the path's length, 1 for the
    most similar, zero to all others (negative where a loss is measured): proponents are the path, read from its local
    end. Places are ranks and sums of them mean nothing; values of l would order the path alike, but of a kernel below
    zero would name opponents where there are none. Self-influence is the importance g for the sample's own class, or
    what the method `of` calls importance.

    Args:
        of: what g and l are taken from. None: the network's readout, g(i) = −z_c(x_i) and l(i, x) = [f_i, 1]ᵀ[f, 1].
            A method whose scores are such products: `DualView` and `RepresenterPoints` (g = alpha_ic, l = f_iᵀ f), or
            `LastLayerInfluence` with curvature="blocks" (g the residual over n, l = f_iᵀ H_c⁻¹ f). Samples that it
            gives no score are no candidates, and where it has a surrogate, z are the surrogate's logits.
        rival: "general"; "runner-up", the class with the test sample's second highest logit; "union" or "intersection"
            of R over all rivals; or the label of one class.
        candidates: "class", or "correct": those alone that the network predicts rightly.
        similarity: "dot", or "cosine" of [f_i, 1] and [f, 1], where `of` is None.

    Example:
        >>> method = SupportSpectrum(rival="runner-up")
    """

    of: Any = None
    rival: Any = "general"  # a name of RIVALS, or a label
    _: KW_ONLY
    candidates: str = "class"
    similarity: str = "dot"

    State: ClassVar[type[Scored]] = Scored
    kind: ClassVar[Kind] = "similarity"
    reads_readout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.of is not None:
            object.__setattr__(self, "of", as_method(self.of))
            _check_decomposable(self.of)
        if isinstance(self.rival, Integral) and not isinstance(self.rival, bool):
            object.__setattr__(self, "rival", int(self.rival))
        elif not isinstance(self.rival, str):
            listed = ", ".join(map(repr, RIVALS))
            raise ValueError(f"`rival` is {self.rival!r}; choose from {listed}, or give a class label")
        for name, known in (("candidates", ("class", "correct")), ("similarity", ("dot", "cosine"))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose from {known[0]!r} and {known[1]!r}")
        if self.of is not None and self.similarity != "dot":
            raise ValueError(f"`similarity` is of the network's own readout; {self.of!r} has a kernel of its own")

    # ── fitting: that of the method it is made of ────────────────────────────────────────────────

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        if self.of is not None:
            return self.of.representations(task, probe)
        assert isinstance(task.readout, Site)
        features = Activations((task.readout,))
        return Sides(features, features)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if self.rival not in RIVALS:
            self._rival_column(task, max(2, train.num_classes), -1)  # refused here, if at all
        if self.of is None:
            return Scored(positions), {}
        state, certificate = self.of.fit(task, train, positions, held_out)
        row = train.rows(positions[:1])
        self._decomposed(state, self._prepared(state, task, row, train), row, 0)  # refused here, if at all
        return state, certificate

    def resolved(self, task: Task) -> dict[str, Any]:
        return super().resolved(task) if self.of is None else self.of.resolved(task)

    def state_from(self, tensors: dict[str, Tensor]) -> Any:
        return super().state_from(tensors) if self.of is None else self.of.state_from(tensors)

    def scored(self, state: Any) -> Int[Tensor, " train"]:
        return state.positions if self.of is None else self.of.scored(state)

    def known_classes(self, state: Any, train: Table, positions: Int[Tensor, " train"]) -> Int[Tensor, " cls"]:
        return (super() if self.of is None else self.of).known_classes(state, train, positions)

    def check_targets(self, state: Any, targets: Int[Tensor, " test"], task: Task, *, given: bool) -> None:
        if self.of is not None:
            self.of.check_targets(state, targets, task, given=given)

    # ── the path ─────────────────────────────────────────────────────────────────────────────────

    def select(self, state: Any, task: Task, test: Rows, train: Table) -> Selection:
        """Return the path of each test sample, with its columns "importance" and "kernel"."""
        positions, labels = self.scored(state), train.targets
        if self.candidates == "correct":
            positions = positions[(class_logits(train.outputs).argmax(1) == labels)[positions]]
        ended, num_support, parts = [""] * len(test.index), torch.zeros_like(test.index), list[_Paths]()
        for column in test.targets.unique().tolist():
            candidates = positions[labels[positions] == column]
            of_class = (test.targets == column).nonzero().squeeze(1)
            for rows in of_class.split(max(1, PAIRS // max(1, len(candidates)))):
                found = self._paths(state, task, Rows(*(part[rows] for part in test)), train, candidates, column)
                parts.append(found._replace(rows=rows[found.rows]))
                num_support[rows] = found.num_support
                for row, number in zip(rows.tolist(), found.num_support.tolist(), strict=True):
                    ended[row] = PATH if number else NO_SUPPORT if len(candidates) else NO_CANDIDATES
        rows, index, importance, kernel = (torch.cat(part) for part in list(zip(*parts, strict=True))[:4])
        order = rows.argsort(stable=True)
        return Selection(
            train_index=index[order],
            row_start=pad(torch.bincount(rows, minlength=len(ended)).cumsum(0), (1, 0)),
            columns={"importance": importance[order], "kernel": kernel[order]},
            by="from globally important to locally similar",
            num_support=num_support,
            ended=tuple(ended),
            num_train=len(train),
            test_index=test.index,
            targets=test.targets,
            predicted=task.predicted(test.outputs),
            train_targets=labels,
            method=repr(self),
            class_names=task.class_names,
            version=__version__,
        )

    def _paths(
        self, state: Any, task: Task, test: Rows, train: Table, candidates: Int[Tensor, " candidate"], column: int
    ) -> _Paths:
        """Return the paths of test samples that are explained for one class, whose candidates these are."""
        prepared, own = self._prepared(state, task, test, train), self._logits(state, test)
        empty = test.values[:, :0]
        blocks = [(empty, empty, empty > 0)]
        for block in train.blocks(BLOCK, candidates):
            importance, kernel = self._decomposed(state, prepared, block, column)
            blocks.append((importance, kernel, self._nearer(task, own, self._logits(state, block), column)))
        importance, kernel, support = (torch.cat(part, 1) for part in zip(*blocks, strict=True))
        rows, entries = pareto_fronts(importance, kernel, support)
        return _Paths(rows, candidates[entries], importance[rows, entries], kernel[rows, entries], support.sum(1))

    def _prepared(self, state: Any, task: Task, test: Rows, train: Table) -> Prepared:
        if self.of is None:
            return Prepared(self._features(test), test.outputs)
        return self.of.prepare(state, dataclasses.replace(task, output=logit), test, train)

    def _decomposed(
        self, state: Any, test: Prepared, train: Rows, column: int
    ) -> tuple[Float[Tensor, "test train"], Float[Tensor, "test train"]]:
        if self.of is not None:
            return self.of.decompose(state, test, train)
        kernel = test.values @ self._features(train).T
        return -class_logits(train.outputs)[:, column].expand_as(kernel), kernel

    def _features(self, rows: Rows) -> Float[Tensor, "row unit"]:
        """Return [f, 1], of length 1 for the cosine."""
        features = pad(rows.values, (0, 1), value=1.0)
        return features if self.similarity == "dot" else normalize(features, dim=1)

    def _logits(self, state: Any, rows: Rows) -> Float[Tensor, "row cls"]:
        """Return the logits that say what is nearer to the boundary."""
        if self.of is not None and self.of.has_surrogate:
            return self.of.logits(state, rows.values)
        return class_logits(rows.outputs)

    def _nearer(
        self, task: Task, test: Float[Tensor, "test cls"], train: Float[Tensor, "train cls"], column: int
    ) -> Bool[Tensor, "test train"]:
        """Tell from logits which training samples stand nearer to the boundary of the class than each test sample."""
        others = [k for k in range(test.shape[1]) if k != column]
        rounding = ROUNDING * torch.finfo(test.dtype).eps * test.abs().amax(1, keepdim=True)

        def nearer_to(rivals: Tensor) -> Bool[Tensor, "test train"]:
            margins = test[:, column] - test.gather(1, rivals[:, None]).squeeze(1)
            return margins[:, None] - rounding > (train[:, column, None] - train[:, rivals]).T

        def to_each() -> Iterator[Bool[Tensor, "test train"]]:
            yield from (nearer_to(torch.full((len(test),), k)) for k in others)

        match self.rival:
            case "general":
                return test[:, column, None] - rounding > train[:, column]
            case "union" | "intersection":
                return reduce(or_ if self.rival == "union" else and_, to_each())
            case "runner-up":
                return nearer_to(torch.tensor(others)[test[:, others].argmax(1)])
            case _:
                return nearer_to(torch.full((len(test),), self._rival_column(task, test.shape[1], column)))

    def _rival_column(self, task: Task, num_classes: int, explained: int) -> int:
        if isinstance(self.rival, str) and task.classes is None:
            listed = ", ".join(map(repr, RIVALS))
            raise ValueError(f"`rival` is {self.rival!r}, which is no class; choose from {listed}, or give a label")
        rival = int(columns_of([self.rival], num_classes, task.classes))
        if rival == explained:
            raise ValueError(
                f"`rival` is class {rival}, which is explained for some test samples: a class is no rival of itself. "
                "Explain other samples, or take rival='runner-up'"
            )
        return rival

    # ── as scores ────────────────────────────────────────────────────────────────────────────────

    def prepare(self, state: Any, task: Task, test: Rows, train: Table) -> Prepared:
        found, positions = self.select(state, task, test, train), self.scored(state)
        rows = found.entry_rows()
        places = test.values.new_zeros(len(test.index), len(positions))
        shares = (found.places() + 1).to(places.dtype) / found.counts[rows]
        places[rows, torch.searchsorted(positions, found.train_index)] = shares
        lower_is_better = getattr(task.single_output, "lower_is_better", False)
        return Prepared(-places if lower_is_better else places, test.outputs, train.layout)

    def score(self, state: Any, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return test.values[:, torch.searchsorted(self.scored(state), train.index)]

    def self_scores(self, state: Any, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return self.importances(state, train)

    def importances(self, state: Any, train: Rows) -> Float[Tensor, " train"]:
        """Return g of each training sample for its own class."""
        if self.of is not None:
            return self.of.importances(state, train)
        return -class_logits(train.outputs).gather(1, train.targets[:, None]).squeeze(1)


def _check_decomposable(method: DataMethod) -> None:
    hooks = ("products", "decompose")
    if all(getattr(type(method), hook) is getattr(DataMethod, hook) for hook in hooks):
        raise TypeError(
            f"`of` is {method!r}, whose scores are no global importance times a local kernel: give DualView(), "
            "RepresenterPoints(), or LastLayerInfluence(curvature='blocks')"
        )
