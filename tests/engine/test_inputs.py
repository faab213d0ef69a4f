"""Inputs as rows: every number, an embedding, or tokens."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.engine.inputs import InputNumbers, InputTokens


class Echo(nn.Module):
    """Two logits for whatever comes."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return next(iter([*args, *kwargs.values()])).flatten(1)[:, :2].float()


def recorded(representation, probe, inputs=None) -> Tensor:
    task = dv.Task(Echo())
    return representation.plan(task, probe).record(probe if inputs is None else inputs, None).values


def test_all_numbers_stand_behind_each_other():
    first, second = torch.randn(3, 2, 2), torch.randn(3)
    expected = torch.cat([first.flatten(1), second[:, None]], dim=1)
    for inputs in ((first, second), {"a": first, "b": second}, {"a": first, "b": second, "scale": torch.tensor(2.0)}):
        assert torch.equal(recorded(InputNumbers(), inputs), expected)


def test_whole_numbers_are_no_numbers():
    ids = torch.arange(6).reshape(2, 3)
    with pytest.raises(ValueError, match=r"`inputs` are torch.int64, .* use BM25\(\), or give encoder="):
        recorded(InputNumbers(), ids)
    with pytest.raises(ValueError, match=r"`inputs`\['x.0'\] are torch.int64"):
        recorded(InputNumbers(), {"x": (ids,)})


def test_batches_must_be_alike():
    with pytest.raises(
        ValueError, match="inputs hold 4 numbers a sample in this batch, and held 3 .* all inputs alike$"
    ):
        recorded(InputNumbers(), torch.randn(2, 3), torch.randn(2, 4))


def halves(inputs: Tensor) -> Tensor:
    return inputs[:, :2] / 2


def test_an_encoder_makes_the_rows_and_is_left_as_it_was():
    inputs = torch.randn(3, 4)
    assert torch.equal(recorded(InputNumbers(halves), inputs), inputs[:, :2] / 2)
    encoder = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5)).train()
    rows = recorded(InputNumbers(encoder), inputs)
    assert torch.equal(rows, encoder[0](inputs).detach()) and not rows.requires_grad
    assert encoder.training and encoder[1].training
    with pytest.raises(
        ValueError, match=r"must return floats \(row, dim\) for a batch of 3 inputs; it returned .*\(3, 2, 2\)"
    ):
        recorded(InputNumbers(nn.Unflatten(1, (2, 2))), inputs)


def test_an_encoder_keys_what_is_recorded():
    described = [
        InputNumbers(encoder).describe()["encoder"] for encoder in (None, halves, nn.Linear(2, 2), nn.Linear(2, 2))
    ]
    assert len(set(described)) == 4 and InputNumbers(halves).describe()["encoder"] == described[1]


def test_tokens_without_padding_and_what_is_masked():
    ids = torch.tensor([[5, 7, 0], [9, 0, 2**24 - 1]])
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]])
    bare = torch.tensor([[5.0, 7, -1], [9, -1, 2**24 - 1]])
    assert torch.equal(recorded(InputTokens(), ids), bare)
    assert recorded(InputTokens(), ids).long()[1, 2] == 2**24 - 1
    for inputs in ({"ids": ids}, (ids, torch.randn(2, 3)), {"input_ids": ids, "token_type_ids": 1 - mask}):
        assert torch.equal(recorded(InputTokens(), inputs), bare)
    masked = recorded(InputTokens(padding=9), {"input_ids": ids, "attention_mask": mask})
    assert torch.equal(masked, torch.tensor([[5.0, -1, 0], [-1, 0, 2**24 - 1]]))


def test_shorter_tokens_are_padded_and_longer_ones_refused():
    probe = torch.ones(2, 3, dtype=torch.int64)
    assert torch.equal(recorded(InputTokens(), probe, probe[:, :2]), torch.tensor([[1.0, 1, -1]] * 2))
    with pytest.raises(ValueError, match="tokens hold 5 numbers .* held 3 .* alike, e.g. DataCollatorWithPadding"):
        recorded(InputTokens(), probe, torch.ones(2, 5, dtype=torch.int64))


def test_what_are_no_tokens():
    with pytest.raises(ValueError, match=r"must hold token ids, integers \(row, token\), .* give BM25\(counts=True\)"):
        recorded(InputTokens(), torch.randn(2, 3))
    with pytest.raises(ValueError, match="token ids must lie in 0 to 16,777,215; they lie in 1 to 16777216"):
        recorded(InputTokens(), torch.tensor([[1, 2**24]]))
