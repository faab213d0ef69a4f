"""Exact games against permutations, axioms and closed forms. Float64 sums of at most 2^12 terms round by 1e-13."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dualview.games._game import Game
from dualview.games.exact import banzhaf, coalition_values, coalitions, dividends, shapley, values_of

MEMBERS = {0, 2, 3}


def random_values(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def mask(players) -> int:
    return sum(2**player for player in players)


def unanimity(num_players: int = 5) -> Tensor:
    """1 where all of MEMBERS are present."""
    return coalitions(num_players)[:, sorted(MEMBERS)].all(1).double()


def test_coalitions_are_bit_masks():
    expected = [[False, False], [True, False], [False, True], [True, True]]
    assert coalitions(2).tolist() == expected
    assert coalitions(0).shape == (1, 0)  # nobody


def test_values_are_asked_for_in_batches():
    asked = []

    def value(presence: Tensor) -> Tensor:
        asked.append(len(presence))
        weights = torch.tensor([1.0, 2.0, 4.0])
        return torch.stack([presence.float() @ weights, presence.sum(1).float()], dim=1)

    found = coalition_values(Game(value, 3), batch=3)
    assert asked == [3, 3, 2]
    assert torch.equal(found[0], torch.arange(8, dtype=torch.float64))
    assert torch.equal(found[1], torch.tensor([0, 1, 1, 2, 1, 2, 2, 3], dtype=torch.float64))


def test_dividends_are_the_signed_sums_over_subsets():
    values = random_values(2, 16)
    found = dividends(values)
    for size in range(5):
        for group in itertools.combinations(range(4), size):
            parts = [part for k in range(size + 1) for part in itertools.combinations(group, k)]
            expected = sum((-1) ** (size - len(part)) * values[:, mask(part)] for part in parts)
            torch.testing.assert_close(found[:, mask(group)], expected, rtol=0, atol=1e-13)


def test_the_zeta_transform_undoes_the_moebius_transform():
    values = random_values(2**12)
    assert (values_of(dividends(values)) - values).abs().max() < 1e-12
    assert (dividends(values_of(values)) - values).abs().max() < 1e-12


def test_shapley_values_are_means_over_orders_of_arrival():
    values = random_values(2, 32)
    total = torch.zeros(2, 5, dtype=torch.float64)
    for order in itertools.permutations(range(5)):
        for k, player in enumerate(order):
            total[:, player] += values[:, mask(order[: k + 1])] - values[:, mask(order[:k])]
    torch.testing.assert_close(shapley(values), total / math.factorial(5), rtol=0, atol=1e-14)


def test_banzhaf_values_are_means_over_the_coalitions_of_the_others():
    values = random_values(2, 32)
    present = coalitions(5)
    for player in range(5):
        without = (~present[:, player]).nonzero().flatten()
        expected = (values[:, without + 2**player] - values[:, without]).mean(1)
        torch.testing.assert_close(banzhaf(values)[:, player], expected, rtol=0, atol=1e-14)


def test_shapley_values_add_up_and_share_dividends_equally():
    values = random_values(2**9)
    torch.testing.assert_close(shapley(values).sum(), values[-1] - values[0], rtol=0, atol=1e-13)
    present = coalitions(9).double()
    shares = (dividends(values) / present.sum(1).clamp(min=1)) @ present
    torch.testing.assert_close(shapley(values), shares, rtol=0, atol=1e-12)


def test_a_dummy_gets_exactly_what_it_brings():
    """Player 1 adds 0.5 to every coalition, player 3 nothing; numbers are binary fractions, so equality is exact."""
    rest = random_values(4).mul(2**10).round().div(2**10)
    present = coalitions(4)
    values = rest[present[:, 0].long() + 2 * present[:, 2].long()] + 0.5 * present[:, 1]
    for solve in (shapley, banzhaf):
        found = solve(values)
        assert found[3] == 0
        torch.testing.assert_close(found[1].item(), 0.5, rtol=0, atol=1e-15)


@pytest.mark.parametrize("solve", [shapley, banzhaf])
def test_players_that_are_alike_get_the_same(solve):
    values = random_values(6)[coalitions(5).sum(1)]  # only the number of players counts
    found = solve(values)
    torch.testing.assert_close(found, found[:1].expand(5), rtol=0, atol=1e-15)


@pytest.mark.parametrize("solve", [shapley, banzhaf, dividends])
def test_solutions_are_additive_in_the_game(solve):
    one, other = random_values(2, 64)
    torch.testing.assert_close(solve(2 * one + other), 2 * solve(one) + solve(other), rtol=0, atol=1e-13)


def test_unanimity_games_have_one_dividend():
    values = unanimity()
    only = torch.zeros(32, dtype=torch.float64)
    only[mask(MEMBERS)] = 1
    assert torch.equal(dividends(values), only) and torch.equal(values_of(only), values)
    member = torch.tensor([1.0, 0, 1, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(shapley(values), member / 3, rtol=0, atol=1e-15)
    torch.testing.assert_close(banzhaf(values), member / 4, rtol=0, atol=1e-15)


def test_a_lone_player_gets_everything():
    for solve in (shapley, banzhaf):
        assert torch.equal(solve(torch.tensor([1.0, 4.0])), torch.tensor([3.0]))


def test_too_many_players_and_a_wrong_number_of_values():
    with pytest.raises(ValueError, match=r"at most 20 players: group players"):
        coalition_values(Game(lambda presence: presence.sum(1).float(), 21), batch=8)
    for wrong in (1, 6):
        with pytest.raises(ValueError, match=rf"{wrong} coalitions; expected 2\^n"):
            shapley(torch.zeros(wrong))
