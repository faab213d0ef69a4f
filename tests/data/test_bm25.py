"""BM25 against Robertson and Zaragoza's formula, word by word."""

import math

import pytest
import torch
from torch import Tensor, nn

import dualview as dv

VOCABULARY = 12


class Reader(nn.Module):
    """The mean of the words' embeddings, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.words(input_ids).mean(1))


def texts(rows: int, seed: int, most: int = VOCABULARY) -> Tensor:
    """Token ids of which small ones are more frequent, padded by zeros at the end."""
    generator = torch.Generator().manual_seed(seed)
    ids = 1 + (torch.rand(rows, 9, generator=generator).square() * (most - 1)).long()
    lengths = torch.randint(1, 10, (rows, 1), generator=generator)
    return torch.where(torch.arange(9) < lengths, ids, 0)


def by_hand(queries: list[list[int]], documents: list[list[int]], k1: float, b: float) -> Tensor:
    mean = sum(map(len, documents)) / len(documents)

    def idf(word: int) -> float:
        holding = sum(word in document for document in documents)
        return math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))

    def score(query: list[int], document: list[int]) -> float:
        total = 0.0
        for word in query:
            often = document.count(word)
            total += idf(word) * often * (k1 + 1) / (often + k1 * (1 - b + b * len(document) / mean)) if often else 0.0
        return total

    return torch.tensor([[score(query, document) for document in documents] for query in queries])


def words(ids: Tensor, padding: int = 0) -> list[list[int]]:
    return [[token for token in row if token != padding] for row in ids.tolist()]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Reader()


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.0, 0.75), (1.2, 0.0), (2.0, 1.0)])
def test_scores_are_the_formula(model, k1, b):
    train, test = texts(40, 0, most=9), texts(7, 1)  # some words of the queries stand in no document
    explainer = dv.fit(dv.BM25(k1, b), model, (train, torch.arange(40) % 2), progress=False)
    found = explainer.explain(test)
    expected = by_hand(words(test), words(train), k1, b)
    assert max(max(row) for row in words(test)) > train.max() and found.kind == "similarity"
    torch.testing.assert_close(found.dense(), expected, rtol=1e-6, atol=1e-7)  # summed in float64, kept in float32
    own = by_hand(words(train), words(train), k1, b).diagonal()
    torch.testing.assert_close(explainer.self_influence(), own, rtol=1e-6, atol=1e-7)
    assert explainer.certificate["terms"] == len(train.unique()) - 1
    assert explainer.certificate["mean_length"] == sum(map(len, words(train))) / 40


def test_what_a_mask_hides_is_no_word(model):
    train, test = texts(20, 2), texts(5, 3)
    masks = [
        (torch.rand(len(ids), 9, generator=torch.Generator().manual_seed(4)) < 0.7).long() for ids in (train, test)
    ]
    batch = [
        {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(k % 2)}
        for k, (ids, mask) in enumerate(zip(train, masks[0], strict=True))
    ]
    explainer = dv.fit(dv.BM25(), model, batch, progress=False)
    found = explainer.explain({"input_ids": test, "attention_mask": masks[1]}).dense()
    seen = [words(torch.where(mask > 0, ids, 0)) for ids, mask in zip((train, test), masks, strict=True)]
    torch.testing.assert_close(found, by_hand(seen[1], seen[0], 1.5, 0.75), rtol=1e-6, atol=1e-7)


def test_another_padding_is_another_word(model):
    train, test = texts(20, 2), texts(5, 3)
    found = dv.fit(dv.BM25(padding=-5), model, (train, torch.arange(20) % 2), progress=False).explain(test).dense()
    torch.testing.assert_close(found, by_hand(test.tolist(), train.tolist(), 1.5, 0.75), rtol=1e-6, atol=1e-7)


def test_counts_are_the_same_texts(model):
    train, test = texts(20, 5), texts(6, 6)
    counted = [torch.stack([(ids == word).sum(1) for word in range(1, VOCABULARY)], 1).float() for ids in (train, test)]
    labels = torch.arange(20) % 2
    expected = dv.fit(dv.BM25(), model, (train, labels), progress=False).explain(test).dense()
    bag = nn.Linear(VOCABULARY - 1, 2)
    found = dv.fit(dv.BM25(counts=True), bag, (counted[0], labels), progress=False).explain(counted[1]).dense()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="takes `inputs` that are not negative"):
        dv.fit(dv.BM25(counts=True), bag, (-counted[0], labels), progress=False)


def test_permuting_the_documents_and_a_store(model, tmp_path):
    train, test, labels = texts(30, 7), texts(4, 8), torch.arange(30) % 2
    order = torch.randperm(30, generator=torch.Generator().manual_seed(9))
    expected = dv.fit(dv.BM25(), model, (train, labels), store=tmp_path, progress=False).explain(test).dense()
    permuted = dv.fit(dv.BM25(), model, (train[order], labels[order]), progress=False).explain(test).dense()
    torch.testing.assert_close(permuted, expected[:, order], rtol=1e-6, atol=0)
    assert torch.equal(dv.open(tmp_path, model).explain(test).dense(), expected)


def test_duplicates_share_their_scores_and_head_the_list(model):
    train = texts(30, 10)
    train[17] = train[3]
    scores = dv.fit(dv.BM25(b=1.0), model, (train, torch.arange(30) % 2), progress=False).explain(train[3:4]).dense()[0]
    assert scores[17] == scores[3] > 0


def test_what_is_refused(model):
    labels = torch.arange(4) % 2
    with pytest.raises(ValueError, match="hold no word: is `padding` the id of every token"):
        dv.fit(dv.BM25(padding=3), model, (torch.full((4, 2), 3), labels), progress=False)
    with pytest.raises(ValueError, match="`k1` must be zero or a positive number"):
        dv.BM25(-1.0)
    with pytest.raises(ValueError, match="`b` must lie between 0 and 1; it is 1.5"):
        dv.BM25(b=1.5)
    with pytest.raises(ValueError, match=r"give BM25\(counts=True\)"):
        dv.fit(dv.BM25(), nn.Linear(3, 2), (torch.randn(4, 3), labels), progress=False)
