"""The figure of tokens: a bar for each, in reading order, as long as its score."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor, nn

import dualview as dv
from dualview.engine.source import Source
from dualview.plotting.style import AGAINST, FOR
from dualview.plotting.words import signed

Faults = Callable[[Figure], list[str]]
WIDTH = 6


class Text(nn.Module):
    """The mean of embeddings, with or without a mask, read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(100, WIDTH)
        self.inner, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = seen[..., None].to(self.embeddings.weight.dtype)
        pooled = (self.embeddings(input_ids) * seen).sum(1) / seen.sum(1)
        return self.head(torch.tanh(self.inner(pooled)))


@pytest.fixture(scope="module")
def text() -> dv.Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dv.Task(Text().eval())


def batch(tokens: int, padding: int = 0, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """Two texts of different ids from 1 on; the first ends with padding."""
    ids = torch.stack([torch.randperm(99, generator=torch.Generator().manual_seed(k))[:tokens] + 1 for k in range(2)])
    mask = torch.ones_like(ids)
    if padding:
        ids[0, -padding:] = mask[0, -padding:] = 0
    return {"attention_mask": mask.to(dtype), "input_ids": ids}


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def said(figure: Figure) -> str:
    return " ".join(words(figure))


def rows(figure: Figure, labels: set[str]) -> list[tuple[str, str, float]]:
    """Return label, score in words, and signed length of the bar of each token, column by column from the top."""
    width, height = figure.get_size_inches()
    bars = [box for box in figure.artists if to_hex(box.get_facecolor()) in (FOR, AGAINST)]
    found = list[tuple[str, str, float]]()
    for place, label in enumerate(figure.texts):
        if label.get_text() not in labels or label.get_fontsize() > 9.6:
            continue
        score = figure.texts[place + 2]  # after the label comes its value, which is empty, then the score
        here = [
            box
            for box in bars
            if abs(box.get_y() + box.get_height() / 2 - label.get_position()[1]) * height < 0.12
            and label.get_position()[0] < box.get_x() + box.get_width() <= score.get_position()[0]
        ]
        assert len(here) == 1, label.get_text()
        sign = 1 if to_hex(here[0].get_facecolor()) == FOR else -1
        found.append((label.get_text(), score.get_text(), sign * here[0].get_width() * width))
    return found


def check_bars(figure: Figure, ids: Tensor, scores: Tensor) -> None:
    """Compare labels, scores and lengths with what is known of them."""
    found = rows(figure, {str(number) for number in ids.tolist()})
    assert [(label, score) for label, score, _ in found] == [
        (str(number), signed(float(score))) for number, score in zip(ids.tolist(), scores, strict=True)
    ]
    lengths = torch.tensor([length for *_, length in found], dtype=torch.float64)
    torch.testing.assert_close(lengths / lengths.abs().max(), scores.double() / scores.double().abs().max())


@pytest.mark.parametrize("tokens", [7, 30, 60])
def test_effects_of_token_ids_are_drawn_without_being_asked_for(text: dv.Task, tokens: int, faults: Faults):
    inputs = batch(tokens)
    scores = dv.Occlusion(baseline={"input_ids": 0}).attribute(text, inputs)
    figure = dv.plot(scores, 1)
    logits = text.model(**inputs)[1]
    target = int(logits.argmax())
    without = inputs["input_ids"][1].repeat(tokens, 1).fill_diagonal_(0)  # by hand: one token replaced at a time
    expected = (logits[target] - text.model(without)[:, target]).detach()
    torch.testing.assert_close(scores.values[1], expected)
    check_bars(figure, inputs["input_ids"][1], scores.values[1])
    assert "Effects do not add up." in words(figure) and faults(figure) == []


def test_numbers_at_an_embedding_are_summed(text: dv.Task, faults: Faults):
    inputs = batch(12)
    method = dv.IntegratedGradients(baseline={"input_ids": 0}, site="embeddings")
    scores = method.attribute(text, inputs)
    assert scores.values.shape == (2, 12, WIDTH)
    figure = dv.plot(scores, 1)
    check_bars(figure, inputs["input_ids"][1], scores.values[1].sum(1))
    assert f"each bar is the sum over a token’s {WIDTH} numbers, so that the bars add up" in said(figure)
    assert f"change from the baseline is {signed(float(scores.change[1]))}" in said(figure)
    assert faults(figure) == []
    similar = dv.plot(dataclasses.replace(scores, kind="similarity"), 1)
    assert "though such scores are not made to be summed" in said(similar) and "so that" not in said(similar)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_padding_is_left_out(text: dv.Task, dtype: torch.dtype, faults: Faults):
    inputs = batch(9, padding=3, dtype=dtype)
    scores = dv.Occlusion(baseline={"input_ids": 50}).attribute(text, inputs)
    figure = dv.plot(scores)
    check_bars(figure, inputs["input_ids"][0, :6], scores.values[0, :6])
    assert "Not drawn: 3 padding tokens." in words(figure)
    assert "0" not in words(figure) and faults(figure) == []
    assert "padding" not in said(dv.plot(scores, 1))
    inputs["attention_mask"][0] = 0
    nothing = dv.plot(dataclasses.replace(scores, source=Source.of(text, inputs)))
    assert "Not drawn: 9 padding tokens." in words(nothing) and faults(nothing) == []


def test_names_come_from_a_list_or_a_function(text: dv.Task, faults: Faults):
    inputs = batch(5, padding=1)
    scores = dv.Occlusion(baseline={"input_ids": 0}).attribute(text, inputs)
    ids = inputs["input_ids"][0].tolist()
    vocabulary = [f"word {number}" for number in range(100)]
    for names in (vocabulary.__getitem__, [vocabulary[number] for number in ids], [vocabulary[k] for k in ids[:4]]):
        figure = dv.plot(scores, names=names)
        assert [word for word in words(figure) if word.startswith("word")] == [f"word {number}" for number in ids[:4]]
        assert faults(figure) == []
    blank = dv.plot(scores, names=["a\nb", " ", "an endless word " * 9, "$x$", "[pad]"])
    assert {"a b", "' '", "$x$"} <= set(words(blank)) and "[pad]" not in words(blank) and faults(blank) == []
    with pytest.raises(ValueError, match=r"`names` holds 3 entries; there are 5 tokens, 4 without padding"):
        dv.plot(scores, names=["a", "b", "c"])
    with pytest.raises(TypeError, match="`names` is a function, which names tokens by their ids"):
        dv.plot(scores, names=str, form="bars")


def test_a_loaded_result_needs_the_form_and_a_list(text: dv.Task):
    inputs = batch(5)
    scores = dataclasses.replace(
        dv.IntegratedGradients(baseline={"input_ids": 0}, site="embeddings").attribute(text, inputs), source=None
    )
    assert "token 4" in words(dv.plot(scores, form="tokens"))
    assert "five" in words(dv.plot(scores, form="tokens", names=["one", "two", "three", "four", "five"]))
    with pytest.raises(ValueError, match="token ids are not at hand"):
        dv.plot(scores, form="tokens", names=str)


def test_of_a_long_text_the_strongest_are_drawn(text: dv.Task, faults: Faults):
    ids = torch.randint(1, 100, (1, 200), generator=torch.Generator().manual_seed(0))
    scores = dv.Occlusion(baseline={"input_ids": 0}).attribute(text, {"input_ids": ids})
    scores = dataclasses.replace(scores, values=torch.arange(1.0, 201.0)[None], kind="share")
    figure = dv.plot(scores, names=lambda number: f"id{number}")
    assert [word for word in words(figure) if word.startswith("id")] == [f"id{n}" for n in ids[0, 20:].tolist()]
    assert f"Not drawn: 20 tokens with smaller scores, which sum to {signed(210.0)}." in words(figure)
    assert faults(figure) == []


def test_a_lone_tensor_of_ids_is_drawn_too(text: dv.Task):
    ids = batch(6)["input_ids"]
    scores = dv.Occlusion(baseline={"": 0}).attribute(text, ids)
    check_bars(dv.plot(scores, 1), ids[1], scores.values[1])


def test_columns_of_token_ids_have_their_ids(text: dv.Task, faults: Faults):
    inputs = batch(6, dtype=torch.float32)
    scores = dv.Occlusion(baseline={"input_ids": 0}).attribute(text, inputs)
    figure = dv.plot(scores, form="bars")
    assert {str(number) for number in inputs["input_ids"][0].tolist()} <= set(words(figure)) and faults(figure) == []
    assert dv.plot(scores, form="lines").axes and dv.plot(scores, form="maps").axes


def test_numbers_are_no_tokens():
    model = nn.Linear(6, 2)
    assert "column 5" in words(dv.plot(dv.Gradient().attribute(model, torch.ones(1, 6))))
    images = dv.Gradient().attribute(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="a row of numbers a token; a sample's scores here are 1×4×4"):
        dv.plot(images, form="tokens")


def test_a_loss_has_proponents_below_zero(text: dv.Task):
    scores = dv.Occlusion(baseline={"input_ids": 0}).attribute(text, batch(5))
    blue = {
        flipped: sum(
            to_hex(box.get_facecolor()) == FOR
            for box in dv.plot(dataclasses.replace(scores, lower_is_better=flipped)).artists
        )
        for flipped in (False, True)
    }
    rising = int((scores.values[0] > 0).sum())
    assert blue == {False: rising, True: 5 - rising}
