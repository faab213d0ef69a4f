"""How well samples are represented: closed forms, the attack itself, planted flips."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import rankdata, spearmanr

from dualview.errors import NonFiniteError
from dualview.evaluation.representedness import (
    adversarial_distance,
    compare,
    ensemble_agreement,
    ensemble_confidence,
    holdout_retraining,
    rank_normalised,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_adversarial_distance_of_two_classes_is_that_to_a_plane():
    """|w·x + b| / ‖w‖ with w = (3, 4), b = −5; negative on the wrong side."""
    weights, biases = torch.tensor([[3.0, 4], [0.0, 0]]), torch.tensor([-5.0, 0])
    features = torch.tensor([[3.0, 4], [0.0, 0], [3.0, 4]])
    found = adversarial_distance(features, weights, torch.tensor([0, 1, 1]), biases)
    assert found.tolist() == pytest.approx([4, 1, -4], abs=1e-15)
    assert adversarial_distance(features[:1], weights, torch.tensor([0])).item() == pytest.approx(5, abs=1e-15)


def test_adversarial_distance_is_where_the_prediction_turns():
    """A step towards the nearest rival turns it just beyond the distance; none of 2,000 directions does before."""
    features, weights, biases = normal(6, 3), normal(4, 3, seed=1), normal(4, seed=2)
    targets = (features @ weights.T + biases).argmax(1)
    distances = adversarial_distance(features, weights, targets, biases)
    directions = torch.nn.functional.normalize(normal(2000, 3, seed=3), dim=1)
    for x, y, distance in zip(features, targets, distances, strict=True):
        stays = (x + distance * (1 - 1e-9) * directions) @ weights.T + biases
        assert (stays.argmax(1) == y).all()
        rivals = torch.nn.functional.normalize(weights - weights[y], dim=1)
        turned = (x + distance * (1 + 1e-9) * rivals) @ weights.T + biases
        assert (turned.argmax(1) != y).any()


def test_classes_with_the_same_weights_are_never_reached():
    weights, features = torch.ones(3, 2), torch.tensor([[1.0, 2.0]])
    found = [
        adversarial_distance(features, weights, torch.tensor([y]), torch.tensor([2.0, 1, 2])).item() for y in (0, 1)
    ]
    assert found == [0, -math.inf]
    assert adversarial_distance(features, weights, torch.tensor([0]), torch.tensor([2.0, 1, 1])).item() == math.inf


def test_flipped_labels_are_the_least_represented():
    """Clusters ten standard deviations apart: every flip is on the wrong side, and nothing else is."""
    centres = 10 * torch.eye(4).double()
    truth = torch.arange(200) % 4
    features = centres[truth] + normal(200, 4)
    flipped = torch.arange(200) % 10 == 3
    labels = torch.where(flipped, (truth + 1) % 4, truth)
    distances = adversarial_distance(features, centres, labels, -centres.square().sum(1) / 2)
    assert set(distances.argsort()[:20].tolist()) == set(flipped.nonzero().squeeze(1).tolist())
    confidence = ensemble_confidence((features @ centres.T / 10).softmax(1)[None])
    assert spearmanr(distances[~flipped], confidence[~flipped]).statistic > 0.9  # both are distances to a boundary


def test_holdout_retraining_by_hand():
    before, after = (
        torch.tensor([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]),
        torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.9, 0.1]]),
    )
    found = holdout_retraining(before.double(), after.double())
    assert found.tolist() == pytest.approx([0, -2 * 0.6 * math.log(4), -math.inf], abs=1e-7)  # written in float32
    absent = holdout_retraining(torch.tensor([[0.25, 0.75, 0.0]]), torch.tensor([[0.75, 0.25, 0.0]]))
    assert absent.item() == pytest.approx(-math.log(3), rel=1e-15)
    p, q = normal(20, 5).softmax(1), normal(20, 5, seed=1).softmax(1)
    both = (p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)
    torch.testing.assert_close(holdout_retraining(p, q), -both, rtol=1e-12, atol=0)
    torch.testing.assert_close(holdout_retraining(q, p), -both, rtol=1e-12, atol=0)


def test_ensembles_by_hand():
    certain, other = [1.0, 0.0], [0.0, 1.0]
    probabilities = torch.tensor([[certain, certain, [0.5, 0.5]], [certain, other, [0.5, 0.5]]])
    assert ensemble_confidence(probabilities).tolist() == [1, 1, 0.5]
    assert ensemble_agreement(probabilities).tolist() == pytest.approx([0, -math.log(2), 0], abs=1e-15)


def test_ensemble_agreement_is_the_mean_over_pairs():
    p = normal(4, 7, 5).softmax(2)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    expected = [-sum(jensenshannon(p[a, i], p[b, i]) ** 2 for a, b in pairs) / 6 for i in range(7)]
    assert ensemble_agreement(p).tolist() == pytest.approx(expected, rel=1e-11)


def test_ranks_are_normalised_within_classes():
    score, targets = torch.tensor([5.0, 1, 3, 3, -math.inf, 9]), torch.tensor([0, 0, 0, 0, 2, 2])
    found = rank_normalised(score, targets)
    expected = [*((rankdata([5, 1, 3, 3]) - 0.5) / 4), 0.25, 0.75]
    assert found.tolist() == pytest.approx(expected, abs=1e-15)


def test_compare_correlates_every_two_scores():
    scores = {"adv": normal(30), "conf": normal(30, seed=1).round(decimals=1), "flat": torch.zeros(30)}
    found = compare(scores)
    assert found[0, 1].item() == found[1, 0].item() == pytest.approx(spearmanr(scores["adv"], scores["conf"]).statistic)
    assert found.diagonal()[:2].tolist() == pytest.approx([1, 1], abs=1e-15)
    assert found[2].isnan().all() and found[:, 2].isnan().all()


def test_numbers_that_are_no_probabilities_or_no_numbers_are_refused():
    logits = normal(3, 4)
    with pytest.raises(ValueError, match="`before` must be probabilities.*Logits need a softmax first"):
        holdout_retraining(logits, logits.softmax(1))
    with pytest.raises(ValueError, match="`probabilities` must hold two models or more; it holds 1"):
        ensemble_agreement(logits.softmax(1)[None])
    with pytest.raises(NonFiniteError, match="`after` holds NaN or infinite numbers"):
        holdout_retraining(logits.softmax(1), logits * math.nan)
    with pytest.raises(NonFiniteError, match="`score` is NaN for 1 of 2 samples"):
        rank_normalised(torch.tensor([math.nan, 1]), torch.tensor([0, 0]))
    with pytest.raises(NonFiniteError, match=r"scores are NaN in \['b'\]"):
        compare({"a": torch.zeros(2), "b": torch.tensor([math.nan, 1])})
