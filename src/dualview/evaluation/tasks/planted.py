"""Labelled samples, and the flaws that are planted in them to see whether a method finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MARK_SIDE = 4


class Planted(NamedTuple):
    """Samples with labels, and what was planted in them.

    Attributes:
        inputs: "row ..." as the network takes them.
        labels: "row" labels as the network is trained on, flipped ones included.
        true_labels: "row" what is right: before labels were flipped, after classes were merged.
        subclasses: "row" the class before any were merged.
        flipped: "row" whether the label was flipped.
        marked: "row" whether the mark was put on it.
        foreign: "row" whether it comes from another data set.
    """

    inputs: Float[Tensor, "row ..."]
    labels: Int[Tensor, " row"]
    true_labels: Int[Tensor, " row"]
    subclasses: Int[Tensor, " row"]
    flipped: Bool[Tensor, " row"]
    marked: Bool[Tensor, " row"]
    foreign: Bool[Tensor, " row"]

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels, as `fit` takes them."""
        return self.inputs, self.labels

    def rows(self, index: Int[Tensor, " row"]) -> Planted:
        """Return some of the samples."""
        return Planted(*(part[index] for part in self))


def unspoilt(inputs: Float[Tensor, "row ..."], labels: Int[Tensor, " row"]) -> Planted:
    """Return samples in which nothing is planted."""
    nothing = torch.zeros(len(labels), dtype=torch.bool)
    return Planted(inputs, labels, labels, labels, nothing, nothing, nothing)


def split(samples: Planted, num_train: int, num_test: int, *, seed: int = 0) -> tuple[Planted, Planted]:
    """Draw test and training samples, at random and apart."""
    total = len(samples.labels)
    if num_train + num_test > total:
        raise ValueError(f"{num_train} training and {num_test} test samples were asked for; there are {total}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return samples.rows(order[num_test : num_test + num_train]), samples.rows(order[:num_test])


def flip_labels(samples: Planted, share: float, *, num_classes: int, seed: int = 0) -> Planted:
    """Give this share of the samples another label, drawn evenly from the wrong ones."""
    generator = torch.Generator().manual_seed(seed)
    total = len(samples.labels)
    chosen = torch.randperm(total, generator=generator)[: round(share * total)]
    labels, flipped = samples.labels.clone(), samples.flipped.clone()
    labels[chosen] = (labels[chosen] + torch.randint(1, num_classes, (len(chosen),), generator=generator)) % num_classes
    flipped[chosen] = True
    return samples._replace(labels=labels, flipped=flipped)


def mark(
    samples: Planted,
    draw: Callable[[Tensor], Tensor],
    *,
    of_class: int | None = None,
    share: float = 1.0,
    seed: int = 0,
) -> Planted:
    """Put a mark on this share of the samples (labelled `of_class`).

    Args:
        samples: what is marked.
        draw: returns inputs "row ..." with the mark, e.g. `corner_square`.
        of_class: only samples with this label; None: all.
        share: of those.
        seed: which of them.
    """
    candidates = (
        torch.arange(len(samples.labels)) if of_class is None else (samples.labels == of_class).nonzero().squeeze(1)
    )
    shuffled = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))]
    chosen = shuffled[: round(share * len(candidates))]
    inputs, marked = samples.inputs.clone(), samples.marked.clone()
    inputs[chosen] = draw(inputs[chosen])
    marked[chosen] = True
    return samples._replace(inputs=inputs, marked=marked)


def corner_square(images: Float[Tensor, "row 1 height width"]) -> Float[Tensor, "row 1 height width"]:
    """Return images with a small bright square in a corner, a seventh of the image wide."""
    side = max(2, round(images.shape[-1] * MARK_SIDE / 28))
    images = images.clone()
    images[..., 1 : 1 + side, 1 : 1 + side] = 1.0
    return images


def high_column(rows: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """Return rows of a standardised table whose last column says three standard deviations."""
    rows = rows.clone()
    rows[:, -1] = 3.0
    return rows


def merge_classes(samples: Planted) -> Planted:
    """Give classes 2k and 2k + 1 the one label k; `subclasses` keeps them apart."""
    return samples._replace(labels=samples.labels // 2, true_labels=samples.true_labels // 2)


def mix_in(samples: Planted, others: Float[Tensor, "row ..."], *, as_class: int) -> Planted:
    """Add samples of another data set, all with one label, at the end.

    Their subclass is none of the data set's own: one more than the largest.
    """
    foreign = torch.ones(len(others), dtype=torch.bool)
    labels = torch.full((len(others),), as_class)
    subclass = torch.full((len(others),), int(samples.subclasses.max()) + 1)
    added = Planted(others, labels, labels, subclass, ~foreign, ~foreign, foreign)
    return Planted(*(torch.cat(parts) for parts in zip(samples, added, strict=True)))
