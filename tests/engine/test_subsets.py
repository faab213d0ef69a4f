"""Subsets: exact sizes, all distinct, one change a row, and a reference that is unchanged."""

import math

import pytest
import torch

from dualview.engine.subsets import Subsets, half_subsets, label_flips, leave_groups_out, leave_one_out


@pytest.mark.parametrize(("num_train", "share", "size"), [(40, 0.5, 20), (41, 0.5, 20), (10, 0.75, 8), (7, 1 / 7, 1)])
def test_random_subsets_keep_an_exact_number_of_samples(num_train, share, size):
    subsets = half_subsets(num_train, 7, share=share)
    assert subsets.masks.shape == (7, num_train)
    assert subsets.masks.sum(1).tolist() == [size] * 7
    assert subsets.labels is None and subsets.reference is None
    assert subsets.facts == {"share": share, "seed": 0}


def test_random_subsets_are_distinct_until_all_are_drawn():
    subsets = half_subsets(6, math.comb(6, 3), seed=3)
    assert len({tuple(mask) for mask in subsets.masks.tolist()}) == 20
    assert subsets.masks.sum(0).tolist() == [10] * 6


def test_random_subsets_depend_on_the_seed_and_begin_alike():
    first, other = half_subsets(30, 50, seed=0).masks, half_subsets(30, 50, seed=1).masks
    assert not ({tuple(mask) for mask in first.tolist()} & {tuple(mask) for mask in other.tolist()})
    assert torch.equal(first[:20], half_subsets(30, 20, seed=0).masks)


def test_every_pair_of_samples_is_kept_equally_often():
    # Of 2000 subsets of half of 10 samples each sample is in 1000 ± 22 (one standard deviation), each
    # pair in 2000 · 20/90 ± 19; those of 10 choose 5 = 252 would be distinct, so share the draws out.
    masks = torch.cat([half_subsets(10, 50, seed=seed).masks for seed in range(40)]).double()
    together = masks.T @ masks
    assert bool(((together.diagonal() - 1000).abs() < 4 * 22.4).all())
    pairs = together[~torch.eye(10, dtype=torch.bool)]
    assert bool(((pairs - 2000 * 20 / 90).abs() < 4.5 * math.sqrt(2000 * 2 / 9 * 7 / 9)).all())


def test_too_many_subsets_or_none_are_refused():
    with pytest.raises(ValueError, match="`num_subsets` is 21; there are 1 to 20 subsets of 3 out of 6"):
        half_subsets(6, 21)
    with pytest.raises(ValueError, match="`num_subsets` is 0"):
        half_subsets(6, 0)
    with pytest.raises(ValueError, match="`share` 0.01 of 6 samples is 0 samples"):
        half_subsets(6, 1, share=0.01)


def test_leave_one_out_starts_with_the_whole_set():
    subsets = leave_one_out(4, torch.tensor([2, 0]))
    assert subsets.masks.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]]
    assert (subsets.protocol, subsets.reference, subsets.facts) == ("leave_one_out", 0, {"index": [2, 0]})


def test_leave_groups_out_starts_with_the_whole_set():
    subsets = leave_groups_out(4, [torch.tensor([2, 0]), torch.tensor([3])])
    assert subsets.masks.int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]
    assert (subsets.reference, subsets.facts) == (0, {"groups": [[2, 0], [3]]})


def test_a_label_flip_changes_one_label_to_a_wrong_one():
    targets = torch.arange(300) % 3
    subsets = label_flips(targets, torch.arange(300), num_classes=3, seed=5)
    assert bool(subsets.masks.all()) and subsets.masks.shape == (301, 300) == subsets.labels.shape
    assert torch.equal(subsets.labels[0], targets)
    changed = subsets.labels[1:] != targets
    assert torch.equal(changed, torch.eye(300, dtype=torch.bool))
    new = subsets.labels[1:].diagonal()
    assert subsets.facts["flipped_to"] == new.tolist() and subsets.reference == 0
    # Each of the two wrong labels half the time: 150 ± 9.
    assert abs(int(((new - targets) % 3 == 1).sum()) - 150) < 35


@pytest.mark.parametrize("index", [torch.tensor([1, 1]), torch.tensor([], dtype=torch.int64)])
def test_positions_stand_once(index):
    with pytest.raises(ValueError, match="`index` must hold positions of training samples, each once"):
        leave_one_out(4, index)


def test_positions_outside_and_wrong_labels_are_refused():
    with pytest.raises(ValueError, match=r"`groups\[1\]` holds 4; the training set has the positions 0 to 3"):
        leave_groups_out(4, [torch.tensor([0]), torch.tensor([1, 4])])
    with pytest.raises(ValueError, match="`num_classes` is 2; expected at least 2, and `targets` from 0 to one less"):
        label_flips(torch.tensor([0, 2]), torch.tensor([0]), num_classes=2)


def test_an_empty_training_set_is_refused():
    with pytest.raises(ValueError, match="subset 1 keeps no sample"):
        leave_groups_out(2, [torch.tensor([0, 1])])
    with pytest.raises(ValueError, match="no subset"):
        Subsets(torch.zeros(0, 3, dtype=torch.bool))
