"""BM25: how many of the test sample's words a training sample holds, rare ones counting more.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009. As a baseline of data
attribution: Akyürek et al., "Towards Tracing Factual Knowledge in Language Models Back to the Training Data", 2022
(arXiv 2205.11482). Independent implementation.
"""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import BLOCK
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive
from dualview.engine.batches import Inputs
from dualview.engine.inputs import InputNumbers, InputTokens
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task


class Corpus(NamedTuple):
    """What is known of all training samples together.

    Attributes:
        positions: "train" positions that are scored.
        idf: "term" float64, by token id or column of counts.
        mean_length: of the training samples, in words.
    """

    positions: Int[Tensor, " train"]
    idf: Float[Tensor, " term"]
    mean_length: Float[Tensor, ""]


@dataclass(frozen=True)
class BM25(DataMethod):
    """Search the training samples, as documents, with the test sample as the query.

        score(x, i) = Σ over words t of x   idf_t · f_it (k1 + 1)/(f_it + k1 (1 − b + b·l_i/l̄)),
        idf_t = ln(1 + (n − n_t + ½)/(n_t + ½)),

    f_it how often t stands in sample i, l_i its length and l̄ the mean of these, n_t of the n samples hold t. A word
    that stands in x several times counts as often. Scores are not negative, whatever is measured of the prediction.
    Self-influence is a sample's score for itself.

    Args:
        k1: how much a word's second occurrence counts; 0: nothing.
        b: how far long samples are marked down, from 0 to 1.
        padding: token id that is no word. Tokens that an "attention_mask" hides are none either.
        counts: inputs are no token ids but counts of words, "row term", as floats.

    Example:
        >>> method = BM25()
    """

    k1: float = 1.5
    b: float = 0.75
    _: KW_ONLY
    padding: int = 0
    counts: bool = False

    State: ClassVar[type[Corpus]] = Corpus
    kind: ClassVar[Kind] = "similarity"
    problems: ClassVar[tuple[Problem, ...]] = ("classification", "regression", "multi-label")

    def __post_init__(self) -> None:
        for name in ("k1", "b"):
            object.__setattr__(self, name, positive(getattr(self, name), name, or_zero=True))
        if isinstance(self.padding, bool) or not isinstance(self.padding, Integral):
            raise ValueError(f"`padding` must be a token id, a whole number; it is {self.padding!r}")
        object.__setattr__(self, "padding", int(self.padding))
        if self.b > 1:
            raise ValueError(f"`b` must lie between 0 and 1; it is {self.b!r}")

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        words = InputNumbers() if self.counts else InputTokens(self.padding)
        return Sides(words, words)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Corpus, dict[str, Any]]:
        num_terms = train.width if self.counts else 1 + int(max(part.values.max() for part in train.parts))
        holding, words = torch.zeros(num_terms, dtype=torch.float64), 0.0
        for rows in train.blocks(BLOCK, positions):
            found = self._counts(rows.values, num_terms)
            holding += found.indices()[1].bincount(minlength=num_terms)
            words += float(found.values().sum())
        if not words:
            raise ValueError("the training samples hold no word: is `padding` the id of every token?")
        idf = torch.log1p((len(positions) - holding + 0.5) / (holding + 0.5))
        mean = torch.tensor(words / len(positions), dtype=torch.float64)
        facts = {"terms": int((holding > 0).sum()), "mean_length": float(mean)}
        return Corpus(positions, idf, mean), facts

    def score(self, state: Corpus, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        query, documents = self._counts(test.values, len(state.idf)), self._weights(state, train.values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # which torch uses inside
            return torch.sparse.mm(query, documents.T).to_dense().to(test.values.dtype)

    def self_scores(self, state: Corpus, train: Rows, table: Table) -> Float[Tensor, " train"]:
        counts, weights = self._counts(train.values, len(state.idf)), self._weights(state, train.values)
        rows = counts.indices()[0]
        total = weights.values().new_zeros(len(train.index))
        return total.index_add_(0, rows, counts.values() * weights.values()).to(train.values.dtype)

    def _counts(self, values: Float[Tensor, "row unit"], num_terms: int) -> Tensor:
        """Return how often each row holds each word that training samples have, sparse "row term" in float64."""
        if self.counts:
            if bool((values < 0).any()):
                raise ValueError("counts=True takes `inputs` that are not negative; these hold negative numbers")
            row, term = values.nonzero(as_tuple=True)
            number = values[row, term].double()
        else:
            row, place = ((values >= 0) & (values < num_terms)).nonzero(as_tuple=True)
            term = values[row, place].long()
            number = torch.ones(len(row), dtype=torch.float64)
        shape = (len(values), num_terms)
        return torch.sparse_coo_tensor(torch.stack([row, term]), number, shape, check_invariants=False).coalesce()

    def _weights(self, state: Corpus, values: Float[Tensor, "train unit"]) -> Tensor:
        """Return what one occurrence of each word in the query adds to the score of each training row, sparse."""
        found = self._counts(values, len(state.idf))
        (row, term), number = found.indices(), found.values()
        lengths = number.new_zeros(len(values)).index_add_(0, row, number)
        scale = self.k1 * (1 - self.b + self.b * lengths / state.mean_length)
        weights = state.idf[term] * number * (self.k1 + 1) / (number + scale[row])
        return torch.sparse_coo_tensor(found.indices(), weights, found.shape, is_coalesced=True, check_invariants=False)
