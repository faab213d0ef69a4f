"""Players: which numbers of the inputs are present or absent together."""

import pytest
import torch

import dualview as dv
from dualview.engine.players import as_grouping, as_players

IMAGE = {"": torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)}


def test_patches_pixels_and_single_numbers():
    patches = as_players(dv.Patches(2), IMAGE)
    grid = torch.tensor([[0, 0, 1, 1, 2]] * 2 + [[3, 3, 4, 4, 5]] * 2)
    assert patches.count == 6 and torch.equal(patches.masks[""], grid.expand(3, 4, 5))
    pixels = as_players(dv.Pixels(), IMAGE)
    assert pixels.count == 20 and torch.equal(pixels.masks[""][1], torch.arange(20).reshape(4, 5))
    single = as_players(None, {"a": torch.zeros(2, 3), "b": torch.zeros(2, 2, 2)})
    assert single.count == 7 and torch.equal(single.masks["b"], torch.tensor([[3, 4], [5, 6]]))
    series = as_players(dv.Patches(3), {"": torch.zeros(2, 2, 7)})
    assert torch.equal(series.masks[""], torch.tensor([[0, 0, 0, 1, 1, 1, 2]] * 2))


def test_segments_broadcast_and_nobody_is_left_out_of_it():
    segments = torch.tensor([[0, 0, 1, 1, -1]] * 4)
    players = as_players(segments, IMAGE)
    assert players.count == 2
    sums = players.sums(IMAGE)
    for player in (0, 1):
        torch.testing.assert_close(sums[:, player], IMAGE[""][..., 2 * player : 2 * player + 2].sum((1, 2, 3)))
    absent = players.present(torch.tensor([[True, False], [False, False]]), IMAGE, {"": torch.full((1, 3, 4, 5), -7.0)})
    assert torch.equal(absent[""][0, ..., [0, 1, 4]], IMAGE[""][0, ..., [0, 1, 4]])
    assert (absent[""][0, ..., 2:4] == -7).all() and (absent[""][1, ..., :4] == -7).all()
    assert torch.equal(absent[""][..., 4], IMAGE[""][..., 4])


def test_what_is_spread_adds_up():
    players = as_players(
        {"a": torch.tensor([0, 0, 1]), "b": torch.tensor([1, -1])}, {"a": torch.zeros(1, 3), "b": torch.zeros(1, 2)}
    )
    scores = torch.tensor([[4.0, 6.0], [1.0, -2.0]])
    shared = players.spread(scores, shared=True)
    assert torch.equal(shared["a"][0], torch.tensor([2.0, 2.0, 3.0])) and torch.equal(
        shared["b"][0], torch.tensor([3.0, 0.0])
    )
    torch.testing.assert_close(players.sums(shared), scores)
    whole = players.spread(scores, shared=False)
    assert torch.equal(whole["a"][1], torch.tensor([1.0, 1.0, -2.0])) and torch.equal(
        whole["b"][1], torch.tensor([-2.0, 0.0])
    )


@pytest.mark.parametrize(
    "players, message",
    [
        (torch.zeros(4, 5), "must be whole numbers"),
        (torch.zeros(4, 6, dtype=torch.int64), r"shape \(4, 6\); expected \(3, 4, 5\)"),
        (torch.full((4, 5), -2), "players are numbered from 0"),
        (torch.tensor([0, 0, 2, 2, 2]), "without a gap"),
        (torch.full((4, 5), -1), "without a gap"),
        (dv.Patches(0), "`Patches` of size 0"),
        ({"image": torch.zeros(4, 5)}, "name 'image'; what can be absent is ''"),
    ],
)
def test_what_it_refuses(players, message: str):
    with pytest.raises(ValueError, match=message):
        as_players(players, IMAGE)


def test_several_inputs_want_a_map():
    with pytest.raises(ValueError, match="give `players` as a map from 'a', 'b'"):
        as_players(torch.tensor([0, 1]), {"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)})


@pytest.mark.parametrize(
    "players, named",
    [
        (dv.Constant({"ids": 0}), r"Constant\(\{'ids': 0\}\)"),
        (dv.Blur(3), r"Blur\(sigma=3\)|Blur\(3\)"),
        ({"ids": 0}, r"\{'ids': 0\}"),
        ({"ids": 103, "kinds": 0}, r"\{'ids': 103, 'kinds': 0\}"),
        ({"": 0.5}, r"\{'': 0.5\}"),
    ],
)
def test_a_baseline_is_told_from_players(players, named: str):
    for take in (as_grouping, dv.Occlusion, lambda given: as_players(given, IMAGE)):
        with pytest.raises(TypeError, match=f"`players` is a baseline: give it as baseline={named}"):
            take(players)


def test_whole_inputs_can_be_players():
    parts = {"a": torch.zeros(1, 2), "b": torch.zeros(1, 3), "c": torch.zeros(1, 1)}
    players = as_players(as_grouping({"a": 1, "b": 0, "c": -1}), parts)
    assert players.count == 2 and {place: set(mask.tolist()) for place, mask in players.masks.items()} == {
        "a": {1}, "b": {0}, "c": {-1}
    }  # fmt: skip


@pytest.mark.parametrize("players", ["patches", [[0, 1], [2]]])
def test_what_is_no_number_is_named(players):
    with pytest.raises(TypeError, match="must be None, Pixels"):
        as_players(players, IMAGE)
