"""Which training sets a model is retrained on: one row of `masks` (and of `labels`) each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dualview.engine.fingerprint import hash_tensor


@dataclass(frozen=True, eq=False)
class Subsets:
    """Training sets to retrain on; make them by one of the functions below, or from masks of your own.

    Attributes:
        masks: "subset train", True where a sample is kept.
        labels: "subset train", the label of each sample, where a protocol changes labels; else None.
        protocol: how they were drawn.
        reference: the row that is the whole, unchanged training set, where there is one.
        facts: what was drawn, as JSON values.
    """

    masks: Bool[Tensor, "subset train"]
    labels: Int[Tensor, "subset train"] | None = None
    protocol: str = "own"
    reference: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.masks):
            raise ValueError("`masks` hold no subset")
        empty = (~self.masks.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"subset {empty[0]} keeps no sample: there is nothing to train on")

    def __len__(self) -> int:
        return len(self.masks)


def half_subsets(num_train: int, num_subsets: int, seed: int = 0, share: float = 0.5) -> Subsets:
    """Draw distinct subsets that all keep the same share of the samples, each as probable as any other.

    They are drawn in turn, so that fewer of them are the first of more.

    Args:
        num_train: size of the training set.
        num_subsets: how many.
        seed: of the drawing.
        share: what each keeps; rounded to a whole number of samples.

    Raises:
        ValueError: a subset would be empty, or there are not so many.
    """
    size = round(share * num_train)
    if not 0 < size <= num_train:
        raise ValueError(f"`share` {share} of {num_train} samples is {size} samples; expected 1 to {num_train}")
    possible = math.comb(num_train, size)
    if not 0 < num_subsets <= possible:
        raise ValueError(
            f"`num_subsets` is {num_subsets}; there are 1 to {possible} subsets of {size} out of {num_train} samples"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    while len(drawn) < num_subsets:
        mask = torch.zeros(num_train, dtype=torch.bool)
        mask[torch.randperm(num_train, generator=generator)[:size]] = True
        drawn.setdefault(hash_tensor(mask), mask)
    facts = {"share": share, "seed": seed}
    return Subsets(torch.stack(list(drawn.values())), protocol="half_subsets", facts=facts)


def leave_one_out(num_train: int, index: Int[Tensor, " left"]) -> Subsets:
    """Keep the whole training set first, the reference; then leave out each of the samples at `index` alone."""
    left = _distinct(index, num_train, "index")
    masks = torch.ones(1 + len(left), num_train, dtype=torch.bool)
    masks[torch.arange(1, len(masks)), left] = False
    return Subsets(masks, protocol="leave_one_out", reference=0, facts={"index": left.tolist()})


def leave_groups_out(num_train: int, groups: Sequence[Int[Tensor, " _"]]) -> Subsets:
    """Keep the whole training set first, the reference; then leave out each of the groups of samples."""
    left = [_distinct(group, num_train, f"groups[{k}]") for k, group in enumerate(groups)]
    masks = torch.ones(1 + len(left), num_train, dtype=torch.bool)
    for row, group in enumerate(left, start=1):
        masks[row, group] = False
    facts = {"groups": [group.tolist() for group in left]}
    return Subsets(masks, protocol="leave_groups_out", reference=0, facts=facts)


def label_flips(
    targets: Int[Tensor, " train"], index: Int[Tensor, " flipped"], num_classes: int, seed: int = 0
) -> Subsets:
    """Keep all labels first, the reference; then give each of the samples at `index` alone another label.

    The new label is drawn evenly from the wrong ones. The masks stay full; `train` gets the labels as
    its third argument.

    Args:
        targets: labels of the training set, from 0 to num_classes − 1.
        index: positions of the samples to relabel.
        num_classes: at least 2.
        seed: of the drawing.
    """
    flipped = _distinct(index, len(targets), "index")
    targets = targets.to("cpu", torch.int64)
    if num_classes < 2 or bool(((targets < 0) | (targets >= num_classes)).any()):
        raise ValueError(f"`num_classes` is {num_classes}; expected at least 2, and `targets` from 0 to one less")
    shift = torch.randint(1, num_classes, (len(flipped),), generator=torch.Generator().manual_seed(seed))
    new = (targets[flipped] + shift) % num_classes
    labels = targets.repeat(1 + len(flipped), 1)
    labels[torch.arange(1, len(labels)), flipped] = new
    facts = {"index": flipped.tolist(), "flipped_to": new.tolist(), "seed": seed}
    masks = torch.ones(labels.shape, dtype=torch.bool)
    return Subsets(masks, labels, protocol="label_flips", reference=0, facts=facts)


def _distinct(index: Tensor, num_train: int, name: str) -> Int[Tensor, " left"]:
    index = index.to("cpu", torch.int64)
    outside = index[(index < 0) | (index >= num_train)].tolist()
    if outside:
        raise ValueError(f"`{name}` holds {outside[0]}; the training set has the positions 0 to {num_train - 1}")
    if not len(index) or len(index.unique()) != len(index):
        raise ValueError(f"`{name}` must hold positions of training samples, each once; it holds {index.tolist()[:10]}")
    return index
