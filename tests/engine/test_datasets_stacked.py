"""Samples that torch cannot stack into a batch."""

import pytest
import torch

from dualview.engine.datasets import Samples, collate_samples


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("sizes", [(3, 4), (9, 4)])
def test_samples_of_different_sizes_are_refused_with_the_way_out(sizes, num_workers: int):
    """A worker process stacks into memory that a larger sample does not fit into, which torch says in other words."""
    data = [(torch.zeros(size), 0) for size in (*sizes, 1)]
    samples = Samples(data, collate_samples, num_workers)
    with pytest.raises(ValueError, match="samples of different sizes .* give a DataLoader with your collate_fn"):
        list(samples.batches([0, 1, 2], 2))


def test_what_else_goes_wrong_in_a_stack_stays_as_it_is():
    with pytest.raises(RuntimeError, match="device") as raised:
        collate_samples([torch.zeros(2), torch.zeros(2, device="meta")])
    assert not isinstance(raised.value, ValueError)
