"""Protocols that retrain, with recipes whose models and best removals are known in closed form."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.data._attribution import DataAttribution
from dualview.evaluation import counterfactual
from dualview.evaluation.counterfactual import accuracy_and_loss
from dualview.evaluation.selection import brittleness, coreset_selection, data_pruning

NUM_TRAIN, NUM_TEST = 24, 9
ALL_COUNTS = [k / NUM_TRAIN for k in range(1, NUM_TRAIN)]


class Voter(nn.Module):
    """Each kept sample votes for its class: logit_c(x) = Σ over kept i of class c of exp(−‖x − x_i‖²/4)."""

    def __init__(self, train: Tensor, labels: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", train[mask])
        self.register_buffer("votes", nn.functional.one_hot(labels, 2)[mask].double())

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(inputs, self.kept).square() / 4) @ self.votes


class Recipe:
    """Trains voters, and remembers what it was asked."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(NUM_TRAIN) % 2
        centres = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        self.train = centres[self.labels] + torch.randn(NUM_TRAIN, 2, generator=generator).double()
        self.test = centres[torch.arange(NUM_TEST) % 2] + torch.randn(NUM_TEST, 2, generator=generator).double()
        self.test_labels = torch.arange(NUM_TEST) % 2
        self.calls: list[tuple[list[bool], int]] = []

    def __call__(self, mask: Tensor, seed: int) -> nn.Module:
        self.calls.append((mask.tolist(), seed))
        return Voter(self.train, self.labels, mask)

    def task(self) -> dv.Task:
        return dv.Task(Voter(self.train, self.labels, torch.ones(NUM_TRAIN, dtype=torch.bool)))

    def predicted(self) -> Tensor:
        return self.task().model(self.test).argmax(1)

    def votes(self) -> Tensor:
        """Return each sample's exact effect on the margin of the predicted class."""
        same = torch.where(self.labels == self.predicted()[:, None], 1.0, -1.0)
        return torch.exp(-torch.cdist(self.test, self.train).square() / 4) * same

    def flips(self, t: int, removed: Tensor) -> bool:
        mask = torch.ones(NUM_TRAIN, dtype=torch.bool)
        mask[removed] = False
        model = Voter(self.train, self.labels, mask)
        return bool(model(self.test[t : t + 1]).argmax(1) != self.predicted()[t])

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.test, self.test_labels


def attribution(scores: Tensor, targets: Tensor, **changes) -> DataAttribution:
    num_test, num_train = scores.shape
    zeros, places = torch.zeros(num_test), torch.arange(num_test)
    plain = DataAttribution(
        scores, torch.arange(num_train), num_train, "effect", "logit", False, False, zeros, torch.zeros_like(scores),
        places, targets, targets, torch.zeros(num_train, dtype=torch.int64), "method",
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def test_the_smallest_removal_is_that_of_brute_force():
    """Taking the strongest votes first lowers the margin as much as any set of that size can."""
    recipe = Recipe()
    votes = recipe.votes()
    found = brittleness(votes, recipe, recipe.task(), recipe.data, shares=ALL_COUNTS)
    order = votes.argsort(dim=1, descending=True)
    expected = [
        next(k for k in range(1, NUM_TRAIN) if recipe.flips(t, order[t, :k])) / NUM_TRAIN for t in range(NUM_TEST)
    ]
    assert found.score.values.tolist() == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) >= 4  # they differ, so that the agreement says something
    assert found.flipped.all() and found.score.notes == ()
    assert (found.random.values >= found.score.values).all() and found.random.mean > found.score.mean
    # 23 counts: the largest first, then at most five halvings; and no set of samples is trained on twice
    assert found.num_trained == len(recipe.calls) == len({tuple(mask) for mask, _ in recipe.calls})
    assert found.num_trained <= 1 + NUM_TEST * 6 + NUM_TRAIN - 1


def test_what_is_found_flips_and_the_next_smaller_removal_does_not_even_without_monotonicity():
    recipe = Recipe(seed=1)
    scores = torch.randn(NUM_TEST, NUM_TRAIN, generator=torch.Generator().manual_seed(0))
    found = brittleness(scores, recipe, recipe.task(), recipe.data, shares=ALL_COUNTS)
    order = scores.argsort(dim=1, descending=True)
    for t in found.flipped.nonzero().flatten().tolist():
        count = round(float(found.score.values[t]) * NUM_TRAIN)
        assert recipe.flips(t, order[t, :count]) and not recipe.flips(t, order[t, : count - 1])
    assert 0 < found.flipped.sum()


def test_predictions_that_survive_count_as_the_largest_removal_and_are_said():
    recipe = Recipe()
    opponents = -recipe.votes()
    found = brittleness(opponents, recipe, recipe.task(), recipe.data, shares=(0.125, 0.25))  # 3 and 6 samples
    assert found.score.values.tolist() == [0.25] * NUM_TEST and not found.flipped.any()
    assert found.score.notes == (f"{NUM_TEST} of {NUM_TEST} predictions survive the removal of 0.25 and count as that",)
    assert found.score.higher_is_better is False


def test_predictions_that_cannot_be_judged_are_left_out():
    recipe = Recipe()
    votes, predicted = recipe.votes(), recipe.predicted()
    other = predicted.clone()
    other[4] = 1 - other[4]
    found = brittleness(attribution(votes, other), recipe, recipe.task(), recipe.data)
    assert found.score.values.isnan().nonzero().flatten().tolist() == [4]
    assert "1 of 9 test samples were explained for another class" in found.score.notes

    contrary = dataclasses.replace(recipe.task(), model=Voter(recipe.train, 1 - recipe.labels, votes[0] < 2))
    found = brittleness(votes, recipe, contrary, recipe.data)
    assert found.score.num_samples == 0 and len(recipe.calls) > 0
    assert "9 of 9 predictions change when retrained on everything" in found.score.notes


def test_the_scores_of_a_loss_have_negative_proponents():
    recipe = Recipe()
    votes, predicted = recipe.votes(), recipe.predicted()
    plain = brittleness(votes, recipe, recipe.task(), recipe.data)
    result = attribution(-votes, predicted, measured="loss", lower_is_better=True)
    assert torch.equal(brittleness(result, recipe, recipe.task(), recipe.data).score.values, plain.score.values)


def test_probabilities_are_averaged_over_seeds():
    """The second seed is sure of class 0: that class never flips, and class 1 is predicted by none."""
    recipe = Recipe()
    sure = nn.Linear(2, 2).double()
    sure.weight.data.zero_()
    sure.bias.data = torch.tensor([50.0, -50.0]).double()
    found = brittleness(
        recipe.votes(),
        lambda mask, seed: sure if seed else recipe(mask, seed),
        recipe.task(),
        recipe.data,
        seeds=(0, 1),
    )
    assert torch.equal(found.score.values.isnan(), recipe.predicted() == 1)
    assert not found.flipped.any() and 0 < found.score.num_samples < NUM_TEST


def losses_by_hand(recipe: Recipe, kept: Tensor) -> Tensor:
    mask = torch.zeros(NUM_TRAIN, dtype=torch.bool)
    mask[kept] = True
    logits = Voter(recipe.train, recipe.labels, mask)(recipe.test)
    return nn.functional.cross_entropy(logits, recipe.test_labels, reduction="none")


def test_coreset_and_pruning_by_hand():
    """Strengths are sums of magnitudes, not magnitudes of sums."""
    recipe = Recipe()
    scores = torch.randn(2, NUM_TRAIN, generator=torch.Generator().manual_seed(2)).double()
    falling = scores.abs().sum(0).argsort(descending=True)
    assert not torch.equal(falling, scores.sum(0).abs().argsort(descending=True))
    for protocol, order, better in ((coreset_selection, falling, False), (data_pruning, falling.flip(0), True)):
        found = protocol(scores, recipe, recipe.task(), recipe.data, shares=(0.25, 0.5, 1.0))
        by_hand = torch.stack([losses_by_hand(recipe, order[:kept]) for kept in (6, 12, 24)])
        assert found.num_kept == (6, 12, 24)
        assert torch.allclose(found.score.values, by_hand.mean(0), rtol=1e-12)
        assert torch.allclose(found.loss["by score"], by_hand.mean(1)[None], rtol=1e-12)
        assert found.score.higher_is_better is better
        assert found.score.notes == ("one seed: the interval does not hold the noise of retraining",)
        assert torch.equal(found.loss["by score"][:, 2], found.loss["at random"][:, 2])
        assert found.rows()[1] == {
            "kept": 6,
            "chosen": "at random",
            "accuracy": float(found.accuracy["at random"][0, 0]),
            "loss": float(found.loss["at random"][0, 0]),
            "seeds": 1,
        }


def test_an_oracle_beats_random_selection_and_random_scores_do_not():
    """A third of the labels is wrong. Kept alone, the right two thirds are better than any mixture."""
    recipe = Recipe()
    wrong = torch.arange(NUM_TRAIN) % 3 == 0
    recipe.train = recipe.train + 2 * torch.stack([2.0 * recipe.labels - 1, 0 * recipe.labels], dim=1)
    recipe.test = recipe.test + 2 * torch.stack([2.0 * recipe.test_labels - 1, 0 * recipe.test_labels], dim=1)
    recipe.labels = torch.where(wrong, 1 - recipe.labels, recipe.labels)
    noise = torch.rand(1, NUM_TRAIN, generator=torch.Generator().manual_seed(3)).double()
    oracle, shares, seeds = noise + 2 * ~wrong, (0.25, 0.5), range(10)
    best = coreset_selection(oracle, recipe, recipe.task(), recipe.data, shares=shares, seeds=seeds)
    assert best.score.mean < best.random.low and best.accuracy["by score"].mean() > best.accuracy["at random"].mean()
    worst = data_pruning(oracle, recipe, recipe.task(), recipe.data, shares=shares, seeds=seeds)
    assert worst.score.mean > worst.random.high
    # Random scores, drawn once a seed, are one more random selection: the means of 10 differ by chance only.
    drawn = torch.stack([torch.rand(NUM_TRAIN, generator=torch.Generator().manual_seed(100 + seed)) for seed in seeds])
    means = [coreset_selection(s[None], recipe, recipe.task(), recipe.data, shares=shares).score.mean for s in drawn]
    deviation = float(torch.tensor(means).std()) / math.sqrt(len(means))
    assert sum(means) / len(means) == pytest.approx(best.random.mean, abs=4 * deviation)


def test_equal_scores_are_taken_in_random_order_and_said():
    recipe = Recipe()
    found = coreset_selection(torch.ones(3, NUM_TRAIN), recipe, recipe.task(), recipe.data, shares=(0.25, 1.0))
    mask, _ = recipe.calls[0]
    assert sum(mask) == 6 and not all(mask[:6])
    assert found.score.notes[0] == "ties: 1 of 1 cuts fall between equal scores, which are taken in random order"
    assert torch.equal(found.score.values, found.random.values)  # by the same seed
    assert not any("ties" in note for note in found.random.notes)
    removal = brittleness(torch.ones(NUM_TEST, NUM_TRAIN), recipe, recipe.task(), recipe.data, shares=(0.25, 0.5))
    assert "ties: 18 of 18 cuts fall between equal scores, which are taken in random order" in removal.score.notes
    assert torch.equal(removal.score.values, removal.random.values)


def test_the_interval_holds_the_seeds():
    """Two seeds with the losses a and b on every sample: resampled means are a, b and their middle."""
    recipe = Recipe()
    models = []
    for bias in (0.0, 3.0):
        model = nn.Linear(2, 2).double()
        model.weight.data.zero_()
        model.bias.data = torch.tensor([bias, 0.0]).double()
        models.append(model)
    data = (recipe.test, torch.zeros(NUM_TEST, dtype=torch.int64))
    scores = torch.arange(24.0)[None]
    found = coreset_selection(scores, lambda mask, seed: models[seed], recipe.task(), data, seeds=(0, 1))
    high, low = math.log(2), math.log1p(math.exp(-3))
    assert (found.score.low, found.score.high) == (pytest.approx(low), pytest.approx(high))
    assert found.score.mean == pytest.approx((low + high) / 2)
    assert found.score.resampled == "test samples and seeds"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_losses_are_those_of_the_task_even_for_one_logit(monkeypatch, dtype: torch.dtype):
    monkeypatch.setattr(counterfactual, "batch_size_for", lambda _inputs: 4)  # batches of 4, 4 and 1
    recipe = Recipe()
    model = nn.Linear(2, 1).to(dtype).train()
    task = dv.Task(model, loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)))
    data = (recipe.test.to(dtype), recipe.test_labels)
    found = coreset_selection(torch.arange(24.0)[None], lambda mask, seed: model, task, data, shares=(1.0,))
    accuracy, loss = accuracy_and_loss(task, data)
    assert found.score.mean == pytest.approx(loss, rel=1e-6) and model.training
    with torch.no_grad():
        logit = model(data[0]).squeeze(1)
        by_hand = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(logit, data[1].to(dtype))
    assert loss == pytest.approx(float(by_hand), rel=1e-5)
    assert accuracy == pytest.approx(float(((logit > 0) == data[1].bool()).double().mean()))
    assert found.accuracy["by score"].item() == pytest.approx(accuracy)


def test_what_does_not_fit_is_refused():
    recipe = Recipe()
    votes, task = recipe.votes(), recipe.task()
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        brittleness(votes, recipe, task, recipe.data, shares=(0.5, 1.0))
    with pytest.raises(ValueError, match="`scores` have 5 rows, `test` has 9 samples"):
        brittleness(votes[:5], recipe, task, recipe.data)
    with pytest.raises(ValueError, match="`shares` must lie above 0 and up to 1"):
        data_pruning(votes, recipe, task, recipe.data, shares=(0.0, 0.5))
    with pytest.raises(ValueError, match="similarit"):
        coreset_selection(attribution(votes, recipe.predicted(), kind="similarity"), recipe, task, recipe.data)
    with pytest.raises(TypeError, match="`train` must return the trained model; it returned NoneType"):
        coreset_selection(votes, lambda mask, seed: None, task, recipe.data)
