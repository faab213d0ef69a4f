"""Training is seeded, keeps to its samples, and is what the recipe says."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dualview.evaluation.tasks import recipes
from dualview.evaluation.tasks.recipes import Recipe

RECIPES = [recipes.CNN_RECIPE, recipes.MLP_RECIPE, recipes.RESIDUAL_RECIPE]


def noisy(rows: int = 40):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(rows, 1, 28, 28, generator=generator), torch.arange(rows) % 10


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=["cnn", "mlp", "residual"])
def test_training_is_seeded_and_leaves_the_random_state(recipe):
    recipe, data, before = replace(recipe, epochs=1), noisy(), torch.get_rng_state()
    first, again, other = (recipe.train(*data, 10, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training and same(first, again) and not same(first, other)


@pytest.mark.parametrize("recipe", RECIPES, ids=["cnn", "mlp", "residual"])
def test_masked_samples_are_not_trained_on(recipe):
    """Images that were masked out may hold anything: NaN, even."""
    recipe, (inputs, labels) = replace(recipe, epochs=1), noisy()
    inputs[30:] = torch.nan
    without = recipe.train(inputs, labels, 10, mask=torch.arange(40) < 30)
    assert all(weight.isfinite().all() for weight in without.parameters())
    assert same(without, recipe.train(inputs[:30], labels[:30], 10))


def test_sgd_by_hand():
    """Two epochs of one batch: w ← w − rate·(gradient + decay·w), the rate falling from its whole to its half."""
    inputs, labels = noisy(6)
    recipe = Recipe(recipes.linear, epochs=2, learning_rate=0.1, batch_size=6, weight_decay=0.01, falling=True)
    found = recipe.train(inputs, labels, 10, seed=1)
    torch.manual_seed(1)
    model = recipes.linear((1, 28, 28), 10)
    for rate in (0.1, 0.05):
        gradients = torch.autograd.grad(F.cross_entropy(model(inputs), labels), list(model.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight -= rate * (gradient + 0.01 * weight)
    for a, b in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)  # the batch comes in another order


@pytest.mark.parametrize(("network", "size"), [(recipes.mlp, 50_890), (recipes.small_cnn, 206_922)])
def test_networks_have_the_size_they_say(network, size):
    model = network((1, 28, 28), 10)
    assert sum(weight.numel() for weight in model.parameters()) == size
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_residual_net_adds_its_branches():
    block = recipes.Block(2, 3).eval()
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), (block.main(x) + block.skip(x)).clamp(min=0))
    assert math.isclose(
        sum(w.numel() for w in recipes.small_residual((1, 28, 28), 10).parameters()), 77_000, rel_tol=0.01
    )


def test_a_recipe_describes_itself():
    assert recipes.MLP_RECIPE.describe() == {
        "network": "dualview.evaluation.tasks.recipes.mlp",
        "epochs": 15,
        "learning_rate": 0.05,
        "batch_size": 50,
        "optimiser": "sgd",
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "falling": True,
    }
