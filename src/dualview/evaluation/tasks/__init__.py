"""Real data with planted flaws, small models, and fixed, seeded training recipes.

Sizes: `digits` 1,437 training and 360 test samples; `mnist-mlp` 2,000 and 200; `mnist-cnn` and the two of
`fashion` 4,000 and 1,000; `confirmation` (the recipe of `mnist-mlp` on Fashion-MNIST, on which nothing is
tuned) 2,000 and 200; `wine` 118 and 60; `bbc-sentences` 1,600 and 600, whose features are encoded once,
in about a minute.
"""

from dualview.evaluation.tasks.planted import Planted
from dualview.evaluation.tasks.problem import VARIANTS, Problem, Source
from dualview.evaluation.tasks.recipes import Recipe
from dualview.evaluation.tasks.sourced import SOURCES

__all__ = ["SOURCES", "VARIANTS", "Planted", "Problem", "Recipe", "Source"]
