"""A task that trains in milliseconds."""

import pytest
import torch

from dualview.evaluation.tasks import Problem, planted, recipes
from dualview.evaluation.tasks.problem import Source
from dualview.evaluation.tasks.recipes import Recipe


def load(num_columns: int = 6, seed: int = 0):
    """Four overlapping classes, 160 training and 60 test samples."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(220) % 4
    inputs = torch.randn(220, num_columns, generator=generator) + 2 * torch.eye(num_columns)[labels]
    return planted.split(planted.unspoilt(inputs, labels), 160, 60)


def foreign(number: int):
    return torch.full((number, 6), -5.0) + 0.1 * torch.arange(6)


@pytest.fixture(scope="session")
def toy() -> Source:
    recipe = Recipe(recipes.mlp, 6, 0.1, 20, momentum=0.9)
    return Source("toy", load, 4, recipe, planted.high_column, foreign, tuple("abcd"))


@pytest.fixture(scope="session")
def toy_problem(toy, tmp_path_factory):
    """variant → the problem, its networks and banks kept for the session."""
    folder = tmp_path_factory.mktemp("toy")
    return lambda variant="standard": Problem(toy, variant, folder)
