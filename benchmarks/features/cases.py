"""Networks with inputs to explain: photographs, clothes, and tables."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import dualview as dv
from benchmarks.paths.__main__ import photograph
from dualview.evaluation.tasks import SOURCES, Problem
from dualview.evaluation.tasks.planted import split, unspoilt
from dualview.evaluation.tasks.recipes import Recipe

STORE = Path(__file__).resolve().parents[2] / "runs" / "evaluation"
COUNT = 50  # samples that are explained
PICTURES = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
BACKGROUND = ("brick.png", "grass.png", "gravel.png", "moon.png", "coins.png", "page.png", "hubble_deep_field.jpg")
SCENES = ("flower.jpg", "china.jpg")


@dataclass(frozen=True)
class Case:
    """A network, inputs to explain, and what is removed from them.

    Attributes:
        name: of the two.
        model: one logit a class.
        inputs: "sample ..."; 0 is what removed numbers become: grey, black, or the column's mean.
        background: samples that references are drawn from.
        few: players whose coalitions can all be asked.
        many: players of which sets are drawn.
        site: a module that every path through the network crosses, the last one that holds maps where there are any.
        about: the data, the network and its accuracy, in a sentence.
        large: whether a pass is dear: fewer points on paths.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    background: Tensor
    few: Any
    many: Any
    site: str
    about: str
    large: bool = False

    @property
    def is_picture(self) -> bool:
        return self.inputs.ndim == 4

    @cached_property
    def targets(self) -> Tensor:
        """The network's predictions, which are explained."""
        with torch.no_grad():
            return self.model(self.inputs).argmax(1)


def cases() -> Iterator[Case]:
    yield photographs()
    yield clothes("fashion-residual", "5")
    yield clothes("fashion-cnn", "3")
    for name in ("wine", "breast_cancer", "digits"):
        for activation in (nn.ReLU, nn.GELU):
            yield table_of(name, activation)


def photographs() -> Case:
    model, *_ = photograph()
    inputs, background = (torch.stack([_opened(name) for name in names]) for names in (PICTURES + SCENES, BACKGROUND))
    about = (
        f"EfficientNet-Lite0 on {len(inputs)} photographs at 224×224: {', '.join(PICTURES)} of scikit-image, "
        f"{', '.join(SCENES)} of scikit-learn. Groups: 8 tiles of 56×112 pixels; singles: 64 squares of 28×28. Methods "
        f"that draw references have these: {', '.join(BACKGROUND)}."
    )
    return Case("photographs", model, inputs, background, tiles(224), dv.Patches(28), "_conv_head", about, large=True)


def _opened(name: str) -> Tensor:
    """Return the middle square of a picture, as the network wants it; scikit-image itself is not imported."""
    if name in SCENES:
        from sklearn.datasets import load_sample_image

        image = Image.fromarray(load_sample_image(name))
    else:
        image = Image.open(Path(importlib.util.find_spec("skimage").origin).parent / "data" / name).convert("RGB")
    side, (width, height) = min(image.size), image.size
    left, top = (width - side) // 2, (height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return (torch.tensor(np.asarray(square)).permute(2, 0, 1).float() - 127) / 128


def clothes(name: str, site: str) -> Case:
    problem = Problem(SOURCES[name], "standard", STORE)
    model, (inputs, labels) = problem.model(), problem.test.pairs
    about = (
        f"Fashion-MNIST, {COUNT} test images, the recipe of the task {name}; {_accuracy(model, inputs, labels)}. "
        "Groups: 8 tiles of 7×14 pixels; singles: 16 squares of 7×7."
    )
    background = problem.train.pairs[0]
    return Case(name, model, inputs[:COUNT], background, tiles(28), dv.Patches(7), site, about)


def tiles(side: int) -> Tensor:
    """Number the pixels of a picture by eight tiles of one size, four rows of two."""
    rows, columns = torch.arange(side) // (side // 4), torch.arange(side) // (side // 2)
    return 2 * rows[:, None] + columns


def perceptron(shape: tuple[int, ...], num_classes: int, *, activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Linear(shape[0], 64), activation(), nn.Linear(64, 32), activation(), nn.Linear(32, num_classes)
    )


def table_of(name: str, activation: type[nn.Module]) -> Case:
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    spread = np.where(found.data.std(0) > 0, found.data.std(0), 1)
    rows = torch.tensor((found.data - found.data.mean(0)) / spread).float()
    samples = unspoilt(rows, torch.tensor(found.target).long())
    num_test = len(rows) // 3
    train, test = split(samples, len(rows) - num_test, num_test, seed=0)
    recipe = Recipe(
        partial(perceptron, activation=activation), epochs=30, learning_rate=3e-3, batch_size=32, optimiser="adam"
    )
    model = recipe.train(*train.pairs, int(found.target.max()) + 1)
    columns, groups, grouped = rows.shape[1], *GROUPS[name]
    about = (
        f"{columns} standardised columns, {COUNT} test rows, hidden layers of 64 and 32 {activation.__name__} units; "
        f"{_accuracy(model, *test.pairs)}. Groups: {grouped}; singles: each column."
    )
    label = f"{name} {activation.__name__}"
    return Case(label, model, test.inputs[:COUNT], train.inputs, groups, None, "1", about)


GROUPS = {
    "wine": (torch.arange(13), "the columns themselves"),
    "breast_cancer": (torch.arange(30) % 10, "mean, error and worst value of one measure, 10 in all"),
    "digits": ((torch.arange(64) // 16) * 4 + torch.arange(64) % 8 // 2, "squares of 2×2 pixels, 16 in all"),
}


def _accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> str:
    with torch.no_grad():
        right = (model(inputs).argmax(1) == labels).float().mean()
    return f"{float(right):.1%} of {len(labels)} test samples right"
