"""What is planted is planted where and as often as said."""

import pytest
import torch

from dualview.evaluation.tasks import planted


def samples(rows: int = 200) -> planted.Planted:
    """Black images with evenly spread labels."""
    return planted.unspoilt(torch.zeros(rows, 1, 28, 28), torch.arange(rows) % 10)


def test_a_split_keeps_training_and_test_apart():
    numbered = samples()._replace(labels=torch.arange(200))
    train, test = planted.split(numbered, 120, 50, seed=3)
    assert len(train.labels) == 120 and len(test.labels) == 50
    assert len(torch.cat([train.labels, test.labels]).unique()) == 170
    assert torch.equal(planted.split(numbered, 120, 50, seed=3)[0].labels, train.labels)
    with pytest.raises(ValueError, match="180 training and 50 test samples were asked for; there are 200"):
        planted.split(numbered, 180, 50)


@pytest.mark.parametrize("num_classes", [10, 12])
def test_flipped_labels_are_wrong_and_nothing_else_changes(num_classes):
    clean = samples()
    flipped = planted.flip_labels(clean, 0.3, num_classes=num_classes, seed=4)
    assert int(flipped.flipped.sum()) == 60
    assert torch.equal(flipped.labels != flipped.true_labels, flipped.flipped)
    assert torch.equal(flipped.true_labels, clean.labels) and not clean.flipped.any()
    assert (flipped.labels >= 0).all() and (flipped.labels < num_classes).all()
    shifts = (flipped.labels - flipped.true_labels)[flipped.flipped] % num_classes
    assert set(shifts.tolist()) == set(range(1, num_classes))  # all wrong labels come up
    again, other = (planted.flip_labels(clean, 0.3, num_classes=num_classes, seed=seed) for seed in (4, 5))
    assert torch.equal(again.labels, flipped.labels) and not torch.equal(other.labels, flipped.labels)


def test_the_mark_is_drawn_on_its_share_of_its_class():
    clean = samples()
    marked = planted.mark(clean, planted.corner_square, of_class=2, share=0.3, seed=1)
    assert int(marked.marked.sum()) == 6
    assert (marked.labels[marked.marked] == 2).all() and torch.equal(marked.labels, clean.labels)
    square = torch.zeros(1, 28, 28)
    square[:, 1:5, 1:5] = 1
    assert (marked.inputs[marked.marked] == square).all()
    assert (marked.inputs[~marked.marked] == 0).all()
    assert not clean.marked.any() and (clean.inputs == 0).all()
    everything = planted.mark(clean, planted.corner_square)
    assert everything.marked.all() and (everything.inputs == square).all()
    assert planted.corner_square(torch.zeros(1, 1, 8, 8)).sum() == 4


def test_the_class_of_the_mark_goes_by_the_labels_the_network_sees():
    flipped = planted.flip_labels(samples(), 0.5, num_classes=10, seed=0)
    marked = planted.mark(flipped, planted.corner_square, of_class=2, share=1.0)
    assert torch.equal(marked.marked, flipped.labels == 2)
    assert (marked.true_labels[marked.marked] != 2).any()


def test_a_high_column_changes_the_last_column_alone():
    rows = torch.arange(6.0).reshape(2, 3)
    assert planted.high_column(rows).tolist() == [[0, 1, 3], [3, 4, 3]] and rows[0, 2] == 2


def test_merged_classes_remember_what_they_were():
    merged = planted.merge_classes(samples())
    assert merged.labels[:10].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert torch.equal(merged.subclasses, samples().labels) and torch.equal(merged.labels, merged.true_labels)
    assert not merged.flipped.any()


def test_mixed_in_samples_stand_at_the_end_under_one_label():
    mixed = planted.mix_in(samples(20), torch.ones(5, 1, 28, 28), as_class=3)
    assert torch.equal(mixed.foreign, torch.arange(25) >= 20) and (mixed.inputs[mixed.foreign] == 1).all()
    assert (mixed.labels[20:] == 3).all() and (mixed.subclasses[20:] == 10).all()
    assert torch.equal(mixed.rows(torch.arange(20)).labels, samples(20).labels)
    assert not mixed.flipped.any() and not mixed.marked.any()
