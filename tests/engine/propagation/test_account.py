"""The ledger balances, per sample where it can, and an imbalance raises."""

import pytest
import torch

from dualview.engine.propagation.account import Absorbed, Ledger, Place, joined_account, warn_of
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
    account = ledger.close(
        torch.tensor([[1.0], [2.0]]).double(), [torch.tensor([0.25, 1.25]).double(), torch.full((2, 1), 0.5).double()]
    )
    with pytest.warns(DualViewWarning, match="16.7% of the relevance .* 0.5 by bias at operation 'conv2d'"):
        warn_of({"": account}, stacklevel=1)
    assert account.inputs.tolist() == [0.75, 1.75]
    assert account.seed.tolist() == [1.0, 2.0]
    assert [entry.amount.tolist() for entry in account.absorbed] == [[0.25, 0.25]]
    assert account.residual == 0
    assert account.absorbed_share == pytest.approx(0.5 / 3)


@pytest.mark.parametrize(("dtype", "missing"), [(torch.float64, 1e-5), (torch.float32, 1e-3)])
def test_what_is_missing_raises(dtype: torch.dtype, missing: float):
    seed = torch.tensor([[1.0], [2.0]], dtype=dtype)
    with pytest.raises(ArithmeticError, match=r"relevance of sample \d at the seed should be .* In total 3 began"):
        Ledger(2).close(seed, [seed * (1 - missing)])
    assert Ledger(2).close(seed, [seed * (1 - missing / 1000)]).residual > 0


def test_errors_that_cancel_over_samples_raise():
    seed = torch.tensor([[1.0], [2.0]]).double()
    with pytest.raises(ArithmeticError, match=r"relevance of sample 0 .* differ by 0\.1"):
        Ledger(2).close(seed, [seed + torch.tensor([[0.1], [-0.1]]).double()])


def test_amounts_at_unsure_places_are_known_in_total():
    ledger = Ledger(2)
    ledger.unsure.add(PLACE)
    ledger.book(PLACE, "bias", torch.tensor([[0.25], [0.5]]).double())
    account = ledger.close(torch.ones(2, 1).double(), [torch.tensor([[1.0], [0.25]]).double()])
    assert account.absorbed[0].amount.tolist() == 0.75
    assert account.of_samples(torch.tensor([1])).absorbed[0].amount.isnan().all()


def test_accounts_of_batches_join():
    accounts = []
    for sizes in ([0.25, 0.5], [0.125]):
        ledger, seed = Ledger(len(sizes)), torch.ones(len(sizes)).double()
        ledger.book(PLACE, "bias", torch.tensor(sizes).double())
        if len(sizes) == 2:
            ledger.book(PLACE, "bias", torch.tensor([0.0, 0.25]).double())
            ledger.book(Place("add"), "constant", torch.tensor([0.0, 0.125]).double())
        absorbed = torch.tensor([0.25, 0.875] if len(sizes) == 2 else [0.125]).double()
        accounts.append(ledger.close(seed, [seed - absorbed]))
    found = joined_account(accounts)
    assert found.seed.tolist() == [1, 1, 1] and found.inputs.tolist() == [0.75, 0.125, 0.875]
    assert [(e.place, e.kind, e.amount.tolist()) for e in found.absorbed] == [
        (PLACE, "bias", [0.25, 0.75, 0.125]),
        (Place("add"), "constant", [0, 0.125, 0]),
    ]
    assert found.absorbed_share == pytest.approx(1.25 / 3)
    part = found.of_samples(torch.tensor([2, 0]))
    assert part.absorbed[0].amount.tolist() == [0.125, 0.25] and part.seed.tolist() == [1, 1]


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
