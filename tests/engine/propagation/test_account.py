"""The ledger balances, per sample where it can, and an imbalance raises."""

import pytest
import torch

from dualview.engine.propagation.account import Absorbed, Ledger, Place
from dualview.errors import DualViewWarning

PLACE = Place("conv2d", "features.0", "Conv2d")


def test_a_place_reads_well():
    assert str(PLACE) == "operation 'conv2d' in module 'features.0' (Conv2d)"
    assert str(Place("add", "", "ResNet")) == "operation 'add' in the model (ResNet)"
    assert str(Place("seed")) == "operation 'seed'"


def test_amounts_are_per_sample_where_the_batch_axis_is_kept():
    ledger = Ledger(2)
    assert ledger.per_sample(torch.ones(2, 3, 4)).tolist() == [12, 12]
    assert ledger.per_sample(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert ledger.per_sample(torch.ones(6, 2)).tolist() == 12
    assert ledger.per_sample(torch.tensor(3.0)).tolist() == 3


def test_the_balance_holds_sample_by_sample():
    ledger = Ledger(2)
    ledger.book(PLACE, "bias", torch.tensor([[0.25, 0.0], [0.5, -0.25]]).double())
    ledger.book(PLACE, "epsilon", torch.zeros(2, 2).double())
    with pytest.warns(DualViewWarning, match="16.7% of the relevance .* 0.5 by bias at operation 'conv2d'"):
        account = ledger.close(
            torch.tensor([[1.0], [2.0]]).double(), [torch.tensor([0.5, 1.0]).double(), torch.full((2, 1), 0.5).double()]
        )
    assert account.inputs.tolist() == [1.0, 1.5]
    assert account.seed.tolist() == [1.0, 2.0]
    assert [entry.amount.tolist() for entry in account.absorbed] == [[0.25, 0.25]]
    assert account.residual == 0
    assert account.absorbed_share == pytest.approx(0.5 / 3)


@pytest.mark.parametrize(("dtype", "missing"), [(torch.float64, 1e-5), (torch.float32, 1e-3)])
def test_what_is_missing_raises(dtype: torch.dtype, missing: float):
    seed = torch.tensor([[1.0], [2.0]], dtype=dtype)
    with pytest.raises(ArithmeticError, match="relevance at the seed, 3, should be"):
        Ledger(2).close(seed, [seed * (1 - missing)])
    assert Ledger(2).close(seed, [seed * (1 - missing / 1000)]).residual > 0


def test_a_pass_forgets_the_last_one():
    ledger = Ledger(1)
    ledger.book(PLACE, "bias", torch.ones(1))
    ledger.open()
    assert ledger.close(torch.ones(1), [torch.ones(1)]).absorbed == ()


def test_the_largest_entries_come_first():
    ledger = Ledger(1)
    for amount in (0.005, -0.02, 0.015):
        ledger.book(PLACE, "bias", torch.tensor([amount]).double())
    account = ledger.close(torch.ones(1).double(), [torch.ones(1).double()])
    found = account.largest(2)
    assert all(isinstance(entry, Absorbed) for entry in found)
    assert [round(entry.total, 9) for entry in found] == [-0.02, 0.015]
