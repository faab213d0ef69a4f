"""Real data, a flaw planted in them, and a network trained on the result: what methods are judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dualview.engine.files import load_tensors, save_tensors
from dualview.engine.fingerprint import callable_fingerprint, hash_bytes, hash_tensors
from dualview.engine.outputs import margin
from dualview.engine.task import Task
from dualview.evaluation.tasks import planted
from dualview.evaluation.tasks.planted import Planted
from dualview.evaluation.tasks.recipes import Recipe

VARIANTS = ("standard", "merged", "flipped", "shortcut", "mixed")
FLIPPED = 0.05  # of the labels
MARKED, MARKED_CLASS = 0.3, 2  # of one class's training samples; in the test set every sample is marked
FOREIGN, FOREIGN_CLASS = 0.1, 0  # of the training set's size, all with one label


@dataclass(frozen=True)
class Source:
    """Data with the network and recipe they are learnt by.

    Attributes:
        name: of the two, e.g. "mnist-mlp".
        load: returns training and test samples.
        num_classes: output columns.
        recipe: how the network is trained.
        draw_mark: puts the mark of a shortcut on inputs.
        foreign: returns inputs of another data set, as many as asked, of the same shape.
        class_names: of the output columns.
        num_subsets: half subsets of its retraining bank; fewer where training is slow.
    """

    name: str
    load: Callable[[], tuple[Planted, Planted]]
    num_classes: int
    recipe: Recipe
    draw_mark: Callable[[Tensor], Tensor]
    foreign: Callable[[int], Float[Tensor, "row ..."]]
    class_names: tuple[str, ...] | None = None
    num_subsets: int = 100


@dataclass(frozen=True)
class Problem:
    """One variant of a source.

    "standard" has no flaw. "merged": classes 2k and 2k + 1 share a label. "flipped": 5 % of the training
    labels are wrong. "shortcut": 30 % of the training samples of class 2 carry a mark, and all test samples
    do. "mixed": a tenth as many samples of another data set are added to training, all labelled 0, and to
    the test set.

    Attributes:
        source: where it comes from.
        variant: one of VARIANTS.
        folder: where trained networks are kept; None: nowhere.
    """

    source: Source
    variant: str = "standard"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; there are {', '.join(VARIANTS)}")

    @property
    def name(self) -> str:
        """Source and variant."""
        return f"{self.source.name}, {self.variant}"

    @cached_property
    def _samples(self) -> tuple[Planted, Planted]:
        train, test = self.source.load()
        match self.variant:
            case "merged":
                return planted.merge_classes(train), planted.merge_classes(test)
            case "flipped":
                return planted.flip_labels(train, FLIPPED, num_classes=self.source.num_classes, seed=1), test
            case "shortcut":
                draw = self.source.draw_mark
                marked = planted.mark(train, draw, of_class=MARKED_CLASS, share=MARKED, seed=2)
                return marked, planted.mark(test, draw)
            case "mixed":
                numbers = [round(FOREIGN * len(part.labels)) for part in (train, test)]
                others = self.source.foreign(sum(numbers)).split(numbers)
                train = planted.mix_in(train, others[0], as_class=FOREIGN_CLASS)
                return train, planted.mix_in(test, others[1], as_class=FOREIGN_CLASS)
            case _:
                return train, test

    @property
    def train(self) -> Planted:
        """The training samples."""
        return self._samples[0]

    @property
    def test(self) -> Planted:
        """The test samples."""
        return self._samples[1]

    @property
    def num_classes(self) -> int:
        """Output columns."""
        return (self.source.num_classes + 1) // 2 if self.variant == "merged" else self.source.num_classes

    def retrain(self, mask: Bool[Tensor, " train"], seed: int) -> nn.Module:
        """Train on some of the samples; a `Train` of the retraining protocols."""
        return self.source.recipe.train(*self.train.pairs, self.num_classes, mask=mask, seed=seed)

    def model(self, seed: int = 0) -> nn.Module:
        """Return the network trained on all samples, from the folder where it is kept."""
        if self.folder is None:
            return self.retrain(torch.ones(len(self.train.labels), dtype=torch.bool), seed)
        path = self.folder / "models" / f"{self.fingerprint}-{seed}.safetensors"
        if path.exists():
            weights, _ = load_tensors(path)
            model = self.untrained(seed)
            model.load_state_dict(weights)
            return model.eval()
        model = self.retrain(torch.ones(len(self.train.labels), dtype=torch.bool), seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, model.state_dict(), self.describe() | {"seed": seed})
        return model

    def untrained(self, seed: int = 0) -> nn.Module:
        """Return the network as training starts from it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.source.recipe.network(tuple(self.train.inputs.shape[1:]), self.num_classes).eval()

    def task(self, model: nn.Module) -> Task:
        """Return the task of explaining this network, by the margin of the target."""
        names = self.source.class_names
        return Task(model, output=margin, class_names=names if self.variant != "merged" else None)

    def describe(self) -> dict[str, Any]:
        """Return what it is as JSON values."""
        return {
            "source": self.source.name,
            "variant": self.variant,
            "train": len(self.train.labels),
            "test": len(self.test.labels),
            "recipe": self.source.recipe.describe(),
        }

    @cached_property
    def fingerprint(self) -> str:
        """Names what networks are trained on and how: all that decides their weights but for the seed."""
        content = hash_tensors({"inputs": self.train.inputs, "labels": self.train.labels})
        recipe = repr(sorted(self.source.recipe.describe().items()))
        network = callable_fingerprint(self.source.recipe.network)
        return hash_bytes(content, recipe, network, str(self.num_classes), str(torch.__version__))[:32]
