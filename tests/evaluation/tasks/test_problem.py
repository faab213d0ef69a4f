"""Each variant holds its flaw, and trained networks are kept by all that decides them."""

import functools
from dataclasses import replace

import pytest
import torch

from dualview.engine import files
from dualview.evaluation.tasks import SOURCES, VARIANTS, Problem, planted, recipes
from dualview.evaluation.tasks.problem import Source
from dualview.evaluation.tasks.recipes import Recipe


def load(num_columns=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(300) % 4
    inputs = torch.randn(300, num_columns, generator=generator) + 2 * torch.eye(4)[labels]
    return planted.split(planted.unspoilt(inputs, labels), 200, 100)


def named_linear():
    """Another network of the same name."""

    def linear(shape, num_classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0], num_classes), torch.nn.Tanh())

    linear.__module__, linear.__qualname__ = recipes.linear.__module__, recipes.linear.__qualname__
    return linear


def foreign(number):
    return torch.full((number, 4), -5.0)


TOY = Source("toy", load, 4, Recipe(recipes.linear, 2, 0.1, 20), planted.high_column, foreign, tuple("abcd"))


def test_variants():
    problems = {variant: Problem(TOY, variant) for variant in VARIANTS}
    train, test = problems["standard"].train, problems["standard"].test
    assert not (train.flipped | train.marked | train.foreign).any() and len(train.labels) == 200
    assert int(problems["flipped"].train.flipped.sum()) == 10 and not problems["flipped"].test.flipped.any()
    shortcut = problems["shortcut"]
    of_class = int((train.labels == 2).sum())
    assert int(shortcut.train.marked.sum()) == round(0.3 * of_class) and shortcut.test.marked.all()
    mixed = problems["mixed"]
    assert int(mixed.train.foreign.sum()) == 20 and int(mixed.test.foreign.sum()) == 10
    assert problems["merged"].num_classes == 2 and problems["merged"].train.labels.max() == 1
    assert torch.equal(problems["merged"].test.subclasses, test.labels)
    for problem in problems.values():
        assert problem.num_classes == (2 if problem.variant == "merged" else 4)
        assert problem.task(problem.untrained()).measured == "margin"
    with pytest.raises(ValueError, match="variant is 'merge'; there are standard, merged"):
        Problem(TOY, "merge")


def test_a_trained_network_is_kept_and_found_again(tmp_path, monkeypatch):
    problem = Problem(TOY, folder=tmp_path)
    model = problem.model(seed=1)
    expected = problem.retrain(torch.ones(200, dtype=torch.bool), 1)
    assert torch.equal(model[1].weight, expected[1].weight)
    monkeypatch.setattr(Recipe, "train", None)  # from here on nothing can be trained
    assert torch.equal(problem.model(seed=1)[1].weight, model[1].weight)
    with pytest.raises(TypeError):
        problem.model(seed=2)
    with pytest.raises(TypeError):
        Problem(TOY, "flipped", tmp_path).model(seed=1)
    with pytest.raises(TypeError):
        Problem(replace(TOY, load=functools.partial(load, seed=5)), folder=tmp_path).model(seed=1)
    for recipe in (replace(TOY.recipe, epochs=3), replace(TOY.recipe, network=named_linear())):
        with pytest.raises(TypeError):
            Problem(replace(TOY, recipe=recipe), folder=tmp_path).model(seed=1)
    (path,) = (tmp_path / "models").iterdir()
    assert files.load_tensors(path)[1]["recipe"]["epochs"] == 2


def test_an_untrained_network_is_where_training_starts():
    still = replace(TOY, recipe=replace(TOY.recipe, learning_rate=0.0))
    assert torch.equal(Problem(still).model(3)[1].weight, Problem(still).untrained(3)[1].weight)


@pytest.mark.parametrize("name", SOURCES)
def test_built_in_sources_fit_their_networks(name):
    pytest.importorskip("sklearn")
    source = replace(SOURCES[name], load=functools.cache(SOURCES[name].load))  # read once for all variants
    for variant in VARIANTS:
        problem = Problem(source, variant)
        try:
            train, test = problem.train, problem.test
        except ModuleNotFoundError as error:
            pytest.skip(str(error))
        outputs = problem.untrained()(test.inputs[:3])
        assert outputs.shape == (3, problem.num_classes) and int(train.labels.max()) == problem.num_classes - 1
        assert train.inputs.shape[1:] == test.inputs.shape[1:]
        found = {"merged": train.subclasses != train.labels, "flipped": train.flipped, "shortcut": train.marked}
        assert found.get(variant, train.foreign if variant == "mixed" else torch.ones(1)).any()
