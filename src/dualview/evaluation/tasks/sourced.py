"""The sources that are built in."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from dualview.evaluation.tasks import sources, texts
from dualview.evaluation.tasks.planted import corner_square, high_column
from dualview.evaluation.tasks.problem import Source
from dualview.evaluation.tasks.recipes import (
    CNN_RECIPE,
    MLP_RECIPE,
    RESIDUAL_RECIPE,
    TABLE_RECIPE,
    TEXT_RECIPE,
    TINY_CNN_RECIPE,
)

DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def _clothes(number: int) -> Tensor:
    return sources.fashion_mnist(num_train=number, num_test=0, seed=7)[0].inputs


def _handwriting(number: int, side: int = 28) -> Tensor:
    return sources.resized(sources.mnist_5k(num_train=number, num_test=0, seed=7)[0].inputs, side)


_mnist = partial(Source, num_classes=10, draw_mark=corner_square, foreign=_clothes, class_names=DIGITS)
_fashion = partial(Source, num_classes=10, draw_mark=corner_square, foreign=_handwriting, class_names=CLOTHES)
_digits = partial(
    Source,
    load=sources.digits,
    num_classes=10,
    draw_mark=corner_square,
    foreign=lambda number: sources.resized(_clothes(number), 8),
    class_names=DIGITS,
)
_large = partial(sources.fashion_mnist, num_train=4000, num_test=1000, seed=0)

SOURCES = {
    source.name: source
    for source in (
        _digits("digits-mlp", recipe=MLP_RECIPE),
        _digits("digits-cnn", recipe=TINY_CNN_RECIPE),
        _mnist("mnist-mlp", partial(sources.mnist_5k, num_train=2000, num_test=200), recipe=MLP_RECIPE),
        _mnist("mnist-cnn", sources.mnist_5k, recipe=CNN_RECIPE, num_subsets=30),
        _fashion("fashion-cnn", _large, recipe=CNN_RECIPE, num_subsets=30),
        _fashion("fashion-residual", _large, recipe=RESIDUAL_RECIPE, num_subsets=30),
        _fashion(
            "confirmation", partial(sources.fashion_mnist, num_train=2000, num_test=200, seed=0), recipe=MLP_RECIPE
        ),
        Source(
            "wine",
            sources.wine,
            num_classes=3,
            recipe=TABLE_RECIPE,
            draw_mark=high_column,
            foreign=lambda number: sources.foreign_rows(13)[:number],
            class_names=("cultivar 0", "cultivar 1", "cultivar 2"),
        ),
        Source(
            "bbc-sentences",
            texts.bbc_sentences,
            num_classes=5,
            recipe=TEXT_RECIPE,
            draw_mark=texts.with_phrase,
            foreign=texts.manual_sentences,
            class_names=texts.TOPICS,
        ),
    )
}
