"""Which of a model's inputs gives the words beside the bars of tokens, and what is padding."""

import dataclasses
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dualview as dv

WIDTH, IDS = 6, [11, 12, 13, 14]


class Mixed(nn.Module):
    """Sums of embeddings, pooled under a mask; what is not used may have any name."""

    def __init__(
        self, ids: str | int = "tokens", types: str | int | None = None, mask: str | int | None = None
    ) -> None:
        super().__init__()
        self.ids, self.types, self.mask = ids, types, mask
        self.emb, self.seg = nn.Embedding(100, WIDTH), nn.Embedding(5, WIDTH)
        self.inner, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, *args: Tensor, **named: Tensor) -> Tensor:
        given: Any = args or named
        found = self.emb(given[self.ids])
        if self.types is not None:
            found = found + self.seg(given[self.types])
        found = torch.tanh(self.inner(found))
        if self.mask is None:
            return self.head(found.mean(1))
        seen = given[self.mask][..., None].to(found)
        return self.head((found * seen).sum(1) / seen.sum(1))


def model(**places: Any) -> Mixed:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Mixed(**places).eval()


def unnamed(network: Mixed, inputs: dict[str, Tensor]) -> dv.FeatureAttribution:
    """Return scores behind the embedding whose baseline does not tell where the ids are."""
    scores = dv.IntegratedGradients({network.ids: 0}, site="emb").attribute(network, inputs)
    return dataclasses.replace(scores, baseline=None)


def word(number: int) -> str:
    return f"word{number}"


def labels(figure: Figure, start: str = "word") -> list[str]:
    return [text.get_text() for text in figure.texts if text.get_text().startswith(start)]


def said(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


WORDS = [word(number) for number in IDS]
NUMBERED = [f"token {place}" for place in range(4)]


def test_the_baseline_names_the_ids():
    inputs = {"segments": torch.tensor([[0, 0, 1, 1]]), "tokens": torch.tensor([IDS])}
    scores = dv.IntegratedGradients({"tokens": 0}, site="emb").attribute(model(types="segments"), inputs)
    assert labels(dv.plot(scores, names=word)) == WORDS


def test_ids_by_position_are_those_of_the_baseline_and_a_mask_before_them_hides_padding():
    inputs = (torch.tensor([[1, 1, 1, 0]]), torch.tensor([IDS]))
    scores = dv.IntegratedGradients({"1": 0}, site="emb").attribute(model(ids=1, mask=0), inputs)
    figure = dv.plot(scores, names=word)
    assert labels(figure) == WORDS[:3] and "Not drawn: 1 padding token" in said(figure)
    segments = dv.IntegratedGradients({"1": 0}, site="emb").attribute(model(ids=1, types=0), inputs)
    assert labels(dv.plot(segments, names=word)) == WORDS  # no mask: the token under 0 has a score


@pytest.mark.parametrize("others", [("token_type_ids",), ("position_ids",), ("attention_mask", "token_type_ids")])
def test_the_only_ids_are_those_that_are_no_mask_types_or_positions(others: tuple[str, ...]):
    inputs = {name: torch.tensor([[1, 1, 1, 1]]) for name in others} | {"tokens": torch.tensor([IDS])}
    scores = unnamed(model(), inputs)
    assert labels(dv.plot(scores, names=word)) == WORDS


def test_truths_are_no_ids():
    inputs = {"known": torch.ones(1, 4, dtype=torch.bool), "tokens": torch.tensor([IDS])}
    assert labels(dv.plot(unnamed(model(), inputs), names=word)) == WORDS


def test_a_usual_name_tells_the_ids_among_several():
    inputs = {"lemmas": torch.tensor([[1, 2, 3, 4]]), "input_ids": torch.tensor([IDS])}
    scores = unnamed(model(ids="input_ids"), inputs)
    assert labels(dv.plot(scores, names=word)) == WORDS


def test_where_several_inputs_could_hold_the_ids_there_are_no_words():
    inputs = {"segments": torch.tensor([[0, 0, 1, 1]]), "tokens": torch.tensor([IDS])}
    scores = unnamed(model(types="segments"), inputs)
    assert labels(dv.plot(scores), "token ") == []
    assert labels(dv.plot(scores, form="tokens"), "token ") == NUMBERED
    assert labels(dv.plot(scores, form="tokens", names=WORDS)) == WORDS
    with pytest.raises(ValueError, match="whole numbers are 'segments', 'tokens'.*give a list of strings"):
        dv.plot(scores, form="tokens", names=word)


class Series(nn.Module):
    """Measurements with their years."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.head = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, stamp: Tensor) -> Tensor:
        return self.head(torch.tanh(self.e(x) + (stamp[..., None] - 2000) / 10).mean(1))


def test_the_times_of_measurements_are_no_words():
    inputs = {"x": torch.randn(1, 4, 2), "stamp": torch.arange(2000, 2004)[None]}
    scores = dv.IntegratedGradients({"x": 0}, site="e").attribute(Series(), inputs)
    assert "2000" not in said(dv.plot(scores))
    assert labels(dv.plot(scores, form="tokens"), "token ") == NUMBERED
    with pytest.raises(ValueError, match="whole numbers are 'stamp'"):
        dv.plot(scores, form="tokens", names=word)


def test_of_scores_on_several_inputs_only_the_ids_have_words():
    inputs = {"input_ids": torch.tensor([IDS]), "token_type_ids": torch.tensor([[3, 3, 4, 2]])}
    method = dv.Occlusion(baseline={"input_ids": 0, "token_type_ids": 0})
    scores = method.attribute(model(ids="input_ids", types="token_type_ids"), inputs)
    assert labels(dv.plot(scores, input="input_ids", names=word)) == WORDS
    figure = dv.plot(scores, input="token_type_ids", names=word)
    shown = [text.get_text() for text in figure.texts if text.get_text() in set("234")]
    assert labels(figure) == [] and shown == ["3", "3", "4", "2"]
    assert "the words are those of “input_ids”" in said(figure)
    for form in ("tokens", "bars", "lines"):
        with pytest.raises(ValueError, match="are several: give input='input_ids' or input='token_type_ids'"):
            dv.plot(scores, form=form)


# ── samples that are padded in batches ───────────────────────────────────────────────────────────


def padded(lengths: list[int], *, mask: bool, left: bool = False) -> DataLoader:
    """Texts of ids from 1 on, padded to the longest of a batch."""
    texts = [torch.arange(1, length + 1) for length in lengths]

    def collate(samples: list[Tensor]) -> dict[str, Tensor]:
        side = "left" if left else "right"
        ids = nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_side=side)
        given = {"input_ids": ids, "labels": torch.zeros(len(samples), dtype=torch.int64)}
        return given | ({"attention_mask": (ids > 0).long()} if mask else {})

    return DataLoader(texts, batch_size=len(texts), collate_fn=collate)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("left", [False, True])
def test_a_padded_sample_has_its_own_words(left: bool):
    network = model(ids="input_ids", mask="attention_mask")
    method = dv.Occlusion(baseline={"input_ids": 95})
    scores = method.attribute(network, padded([70, 90], mask=True, left=left))
    figure = dv.plot(scores, 0, names=word)
    assert isinstance(scores.values, Tensor) and scores.values.shape == (2, 90)
    assert labels(figure) == [word(number) for number in range(1, 71)]
    own = scores.values[0, 20:] if left else scores.values[0, :70]
    assert bool(own.all()) and "Not drawn: 20 padding tokens." in said(figure)
    assert labels(dv.plot(scores, 1, names=word)) == [word(number) for number in range(1, 91)]


def test_without_a_mask_padding_that_counts_is_drawn_as_the_model_saw_it():
    scores = dv.Occlusion(baseline={"input_ids": 95}).attribute(model(ids="input_ids"), padded([3, 5], mask=False))
    assert isinstance(scores.values, Tensor) and bool(scores.values[0].all())
    assert labels(dv.plot(scores, 0, names=word)) == ["word1", "word2", "word3", "word0", "word0"]
    assert labels(dv.plot(scores, 1, names=word)) == [word(number) for number in range(1, 6)]


def test_a_sample_without_the_others_is_laid_out_where_its_padding_is_plain():
    network, method = model(ids="input_ids", mask="attention_mask"), dv.Occlusion(baseline={"input_ids": 95})
    right = method.attribute(network, padded([3, 5], mask=True))[0]
    assert labels(dv.plot(right, names=word)) == ["word1", "word2", "word3"]
    left = method.attribute(network, padded([3, 5], mask=True, left=True))[0]
    figure = dv.plot(left)
    assert labels(figure, "token ") == [f"token {place}" for place in range(5)]
    assert "No words: the sample alone has 3 tokens and 5 scores" in said(figure)
    assert labels(dv.plot(left, names=["word"] * 5)) == ["word"] * 5
    with pytest.raises(ValueError, match="3 tokens and 5 scores .padded batches.*give a list of strings"):
        dv.plot(left, names=word)


def test_zeros_at_both_ends_do_not_tell_where_the_padding_is():
    network, method = model(ids="input_ids", mask="attention_mask"), dv.Occlusion(baseline={"input_ids": 95})
    scores = method.attribute(network, padded([4, 5], mask=True, left=True))[0]
    assert isinstance(scores.values, Tensor) and scores.values[0, 0] == 0 and bool(scores.values[0, 1:].all())
    scores.values[0, 4] = 0  # of a word that does not count
    assert labels(dv.plot(scores), "token ") == [f"token {place}" for place in range(5)]
