"""Datamodelling metrics against exhaustive games, ridge regression, noise of known size, and slow twins."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dualview.data._attribution import DataAttribution
from dualview.errors import NonFiniteError
from dualview.evaluation import datamodelling
from dualview.evaluation._estimate import Estimate, interval, resampling
from dualview.evaluation.datamodelling import (
    group_correlation,
    leave_one_out_correlation,
    linear_datamodelling_score,
    noise_ceiling,
)
from dualview.ops.ranking import spearman


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def half_subsets(num_subsets: int, num_train: int, *, seed: int) -> Tensor:
    return torch.rand(num_subsets, num_train, generator=generator(seed)).argsort(1) < num_train // 2


def all_subsets(num_players: int) -> Tensor:
    return (torch.arange(2**num_players)[:, None] >> torch.arange(num_players)) % 2 == 1


def assert_same(first: Estimate, second: Estimate) -> None:
    """Say that two estimates are equal, their intervals too."""
    assert torch.equal(first.values, second.values)
    assert (first.low, first.high, first.notes) == (second.low, second.high, second.notes)


def banzhaf(values: Tensor) -> Tensor:
    """Return φ_i = mean over S without i of v(S ∪ i) − v(S), by enumeration; values: "subset test"."""
    num_players = int(math.log2(len(values)))
    codes = torch.arange(len(values))
    rows = []
    for i in range(num_players):
        without = codes[(codes >> i) % 2 == 0]
        rows.append((values[without + 2**i] - values[without]).mean(0))
    return torch.stack(rows, dim=1)


def test_banzhaf_values_are_the_datamodel_of_all_subsets():
    """Its R² is then the explained variance Σφ²/4 over Var v, whose root the group correlation must find."""
    masks, game = all_subsets(8), normal(2**8, 3, seed=0)
    values = banzhaf(game)
    design = torch.cat([masks.double(), torch.ones(len(masks), 1).double()], dim=1)
    fitted = torch.linalg.lstsq(design, game).solution[:-1].T
    assert torch.allclose(fitted, values, rtol=0, atol=1e-10)

    found = group_correlation(values, masks, game, game[-1], method="pearson")
    expected = (values.square().sum(1) / 4 / game.var(0, correction=0)).sqrt()
    assert torch.allclose(found.values, expected, rtol=0, atol=1e-10)


def test_banzhaf_values_of_a_linear_game_are_perfect_and_so_is_every_resample():
    masks, weights = all_subsets(8), normal(8, 3, seed=1)
    game = masks.double() @ weights
    found = linear_datamodelling_score(banzhaf(game), masks, torch.stack([game, game]))
    assert "noise ceiling 1.00 (1.00 to 1.00) for the mean of 2 seeds" in found.notes
    assert found.values.tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))


class Ridge:
    """θ = (X'X + λI)⁻¹X'y, its retraining, and the closed forms of what leaving samples out does."""

    def __init__(self, num_train: int = 60, num_test: int = 7) -> None:
        self.X, self.y = normal(num_train, 5, seed=2), normal(num_train, seed=3)
        self.test = normal(num_test, 5, seed=4)
        self.inverse = torch.linalg.inv(self.X.T @ self.X + 0.1 * torch.eye(5).double())
        self.errors = self.y - self.X @ (self.inverse @ self.X.T @ self.y)

    def outputs(self, mask: Tensor) -> Tensor:
        X, y = self.X[mask], self.y[mask]
        return self.test @ torch.linalg.solve(X.T @ X + 0.1 * torch.eye(5).double(), X.T @ y)

    def change_without(self, group: Tensor) -> Tensor:
        """Return f_{−F}(x) − f(x) = −x'A⁻¹X_F'(I − X_F A⁻¹X_F')⁻¹e_F."""
        X = self.X[group]
        inner = torch.eye(len(group)).double() - X @ self.inverse @ X.T
        return -self.test @ self.inverse @ X.T @ torch.linalg.solve(inner, self.errors[group])


def test_the_exact_group_effects_of_ridge_regression_are_perfect():
    """Groups that share no sample: the first of each bears the effect of the whole."""
    ridge = Ridge()
    groups = torch.arange(60).reshape(15, 4)
    masks = torch.ones(15, 60, dtype=torch.bool).scatter_(1, groups, False)
    outputs = torch.stack([ridge.outputs(mask) for mask in masks])
    full = ridge.outputs(torch.ones(60, dtype=torch.bool))
    changes = torch.stack([ridge.change_without(group) for group in groups])
    assert torch.allclose(outputs - full, changes, rtol=0, atol=1e-10)

    scores = torch.zeros(7, 60, dtype=torch.float64)
    scores[:, groups[:, 0]] = -changes.T
    for method in ("spearman", "pearson"):
        found = group_correlation(scores, masks, outputs, full, method=method)
        assert found.values.tolist() == pytest.approx([1] * 7, abs=1e-12)
    assert linear_datamodelling_score(scores, masks, outputs).values.tolist() == pytest.approx([1] * 7, abs=1e-12)


def test_the_exact_leave_one_out_effects_of_ridge_regression_are_perfect():
    ridge = Ridge()
    index = torch.randperm(60, generator=generator(5))[:20]
    keep = torch.ones(20, 60, dtype=torch.bool).scatter_(1, index[:, None], False)
    outputs = torch.stack([ridge.outputs(mask) for mask in keep])
    full = ridge.outputs(torch.ones(60, dtype=torch.bool))
    leverage = (ridge.X @ ridge.inverse * ridge.X).sum(1)
    scores = ridge.test @ ridge.inverse @ ridge.X.T * ridge.errors / (1 - leverage)  # minus the change without it
    for method in ("spearman", "pearson"):
        found = leave_one_out_correlation(scores, outputs, full, index, method=method)
        assert found.values.tolist() == pytest.approx([1] * 7, abs=1e-12)
        turned = leave_one_out_correlation(-scores, outputs, full, index, method=method)
        assert turned.values.tolist() == pytest.approx([-1] * 7, abs=1e-12)
    assert found.resampled == "test samples and left-out samples"


def test_by_hand():
    """Sums 3, 4, 5, 1 have the ranks 2, 3, 4, 1; outputs 2, 9, 5, 0 have 2, 4, 3, 1: 1 − 6·2/(4·15) = 0.8."""
    masks = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.bool)
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    outputs = torch.tensor([[[1.0], [9.0], [4.0], [0.0]], [[3.0], [9.0], [6.0], [0.0]]])  # their mean counts
    found = linear_datamodelling_score(scores, masks, outputs)
    assert found.values.tolist() == pytest.approx([0.8])
    assert found.resampled == "subsets"  # one test sample cannot be resampled
    assert "only 4 subsets, fewer than 50" in found.notes


def test_groups_by_hand():
    """Left-out sums 3, 1, 2; the output falls by 4, 1, 2 and by 1, 4, 2 when they go: ρ = 1 and −1."""
    masks = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=torch.bool)
    scores = torch.tensor([[1.0, 2.0, 3.0]]).expand(2, -1)
    outputs = 10 - torch.tensor([[4.0, 1.0], [1.0, 4.0], [2.0, 2.0]])
    found = group_correlation(scores, masks, outputs, torch.tensor([10.0, 10.0]))
    assert found.values.tolist() == pytest.approx([1, -1])
    pearson = group_correlation(scores, masks, outputs, torch.tensor([10.0, 10.0]), method="pearson")
    assert pearson.values.tolist() == pytest.approx([9 / math.sqrt(84), -9 / math.sqrt(84)])


def noisy_bank(
    *, num_seeds: int = 2, num_subsets: int = 60, num_train: int = 40, num_test: int = 9, noise: float = 2.0, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    scores, masks = normal(num_test, num_train, seed=seed), half_subsets(num_subsets, num_train, seed=seed + 1)
    signal = masks.double() @ scores.T
    return scores, masks, signal + noise * normal(num_seeds, num_subsets, num_test, seed=seed + 2)


def test_the_order_of_samples_does_not_matter():
    scores, masks, outputs = noisy_bank(seed=10)
    found = linear_datamodelling_score(scores, masks, outputs)
    train, test, subsets = (torch.randperm(size, generator=generator(size)) for size in (40, 9, 60))
    assert_same(found, linear_datamodelling_score(scores[:, train], masks[:, train], outputs))
    by_test = linear_datamodelling_score(scores[test], masks, outputs[:, :, test])
    by_subset = linear_datamodelling_score(scores, masks[subsets], outputs[:, subsets])
    assert torch.allclose(by_test.values, found.values[test], rtol=0, atol=1e-12)
    assert torch.allclose(by_subset.values, found.values, rtol=0, atol=1e-12)
    for other in (by_test, by_subset):  # other draws of the same distribution: ends of 1,000 resamples
        assert (other.low, other.high) == (pytest.approx(found.low, abs=0.02), pytest.approx(found.high, abs=0.02))


def test_turned_scores_turn_the_result():
    scores, masks, outputs = noisy_bank(seed=11)
    full = outputs[:, 0]
    for judge in (
        lambda s: linear_datamodelling_score(s, masks, outputs),
        lambda s: group_correlation(s, masks, outputs, full),
        lambda s: leave_one_out_correlation(s, outputs[:, :40], full, torch.arange(40), method="pearson"),
    ):
        found, turned = judge(scores), judge(-scores)
        assert torch.allclose(turned.values, -found.values, rtol=0, atol=1e-12)
        assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_constant_scores_are_undefined_and_said():
    scores, masks, outputs = noisy_bank(num_train=500, seed=12)
    scores[:3] = 0.1  # their sums differ by rounding only, which must not become an order
    found = linear_datamodelling_score(scores, masks, outputs)
    assert found.values.isnan().tolist() == [True] * 3 + [False] * 6
    assert "undefined for 3 of 9 test samples, whose scores do not tell the subsets apart: left out" in found.notes
    rest = linear_datamodelling_score(scores[3:], masks, outputs[:, :, 3:])
    assert (found.mean, found.low, found.high) == (pytest.approx(rest.mean), rest.low, rest.high)

    outputs[:, :, 8] = 5
    found = linear_datamodelling_score(scores, masks, outputs)
    assert found.num_samples == 5
    assert "undefined for 1 of 9 test samples, whose outputs are the same for all subsets: left out" in found.notes
    assert math.isnan(linear_datamodelling_score(torch.full((9, 500), 0.3), masks, outputs).low)


def test_ties_share_their_rank_however_the_sums_were_rounded():
    """Whether 0.1 is added before or after 0.3 decides the last bit of a sum, and must not decide its rank."""
    scores = torch.tensor([0.1, 0.3], dtype=torch.float64)[half_subsets(5, 500, seed=13).long()]
    masks = half_subsets(60, 500, seed=14)
    outputs = normal(60, 5, seed=15)
    found = linear_datamodelling_score(scores, masks, outputs)
    exact = (masks.double() @ (10 * scores).round().T).T  # sums of whole numbers are exact
    assert torch.allclose(found.values, spearman(exact, outputs.T), rtol=0, atol=1e-12)
    assert "ties: predictions for 5 of 5 test samples; tied subsets share a rank" in found.notes


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("reliability", [0.15, 0.5, 0.8])
def test_a_noisy_truth_has_the_ceiling_of_theory_and_its_signal_reaches_it(num_seeds, reliability):
    """Normal signal of variance 1, seed noise of variance 1/ρ − 1.

    Ranks of normal values correlate by (6/π) asin(ρ/2). The formula on ranks lies up to 0.008 above the rank
    correlation with the mean here, 200 subsets put Spearman 0.003 low, and 200 × 200 values leave an error of
    1/200 of r, which the root makes 0.01 for r = 0.15: 0.02 is the sum.
    """
    signal = normal(200, 200, seed=20)
    noise = math.sqrt(1 / reliability - 1) * normal(num_seeds, 200, 200, seed=21)
    ceiling = noise_ceiling(signal + noise)
    r = 6 / math.pi * math.asin(reliability / 2)
    assert ceiling.mean == pytest.approx(math.sqrt(num_seeds * r / (1 + (num_seeds - 1) * r)), abs=0.02)
    assert ceiling.low < ceiling.mean < ceiling.high
    pearson = noise_ceiling(signal + noise, method="pearson")
    of_mean = math.sqrt(num_seeds * reliability / (1 + (num_seeds - 1) * reliability))
    assert pearson.mean == pytest.approx(of_mean, abs=0.02)

    # the signal as scores: one training sample a subset
    reached = linear_datamodelling_score(signal.T, torch.eye(200, dtype=torch.bool), signal + noise)
    assert reached.mean == pytest.approx(ceiling.mean, abs=0.02)
    assert any(note.startswith(f"noise ceiling {ceiling.mean:.2f} (") for note in reached.notes)


def test_the_ceiling_by_hand():
    """Three seeds whose pairs correlate by 1, 0.5 and 0.5: r = 2/3, and sqrt(3r/(1 + 2r)) = sqrt(6/7)."""
    outputs = torch.tensor([[1.0, 2.0, 3.0], [1.0, 5.0, 6.0], [1.0, 9.0, 8.0]])[:, :, None]
    assert noise_ceiling(outputs).values.tolist() == pytest.approx([math.sqrt(6 / 7)])
    # A second sample whose pairs correlate by −1, 0.5 and −0.5 on average −1/3: r = 1/6, sqrt(0.5/(4/3)).
    second = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0]])[:, :, None]
    both = noise_ceiling(torch.cat([outputs, second], dim=2))
    assert both.values.tolist() == pytest.approx([math.sqrt(3 / 8)] * 2)


def test_no_ceiling():
    one = noise_ceiling(normal(60, 4, seed=22))
    assert one.values.isnan().all() and one.notes == ("one seed: no ceiling",)
    first = normal(60, 4, seed=23)
    opposed = noise_ceiling(torch.stack([first, -first]))
    assert opposed.mean == 0 and opposed.high == 0
    assert opposed.notes == ("two seeds agree by r = -1: no more than chance, so the ceiling is 0",)
    first[:, 1] = 0
    partial = noise_ceiling(torch.stack([first, first]))
    assert partial.values.isnan().tolist() == [False, True, False, False]
    assert partial.mean == pytest.approx(1)
    assert partial.notes == ("outputs of 1 of 4 test samples do not vary: left out",)


def test_random_scores_have_zero_inside_their_interval():
    """In 95 % of banks by right; at least 90 of 100 is two binomial errors below."""
    covered, means = 0, []
    for seed in range(100):
        _, masks, outputs = noisy_bank(num_seeds=1, num_test=20, seed=1000 + 10 * seed)
        found = linear_datamodelling_score(normal(20, 40, seed=seed), masks, outputs, seed=seed)
        covered += found.low <= 0 <= found.high
        means.append(found.mean)
    assert covered >= 90
    # one mean deviates by 1/√(59·20) = 0.03 or somewhat more, the mean of 100 by a tenth of it
    assert abs(sum(means)) / 100 <= 0.015 and found.chance == 0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """The truth: mean over a population of test samples, each with a Spearman ρ_t = (6/π) asin(r_t/2).

    Test samples share the noise of their subset by half. In 200 banks 91 % are three binomial errors below
    95. Resampling both axes is wide rather than narrow: up to 1.3 of ±1.96 deviations of the means.
    """
    r = torch.linspace(0.1, 0.9, 101).double()
    truth = float((6 / math.pi * (r / 2).asin()).mean())
    covered, means, widths = 0, [], []
    for seed in range(200):
        drawn = r[torch.randint(101, (30,), generator=generator(seed))]
        signal, own = normal(60, 30, seed=3 * seed), normal(60, 30, seed=3 * seed + 1)
        shared = normal(60, 1, seed=3 * seed + 2)
        outputs = drawn * signal + (1 - drawn.square()).sqrt() * (own + shared) / math.sqrt(2)
        found = linear_datamodelling_score(signal.T, torch.eye(60, dtype=torch.bool), outputs, seed=seed)
        covered += found.low <= truth <= found.high
        means.append(found.mean)
        widths.append(found.high - found.low)
    assert covered / 200 >= 0.91
    assert 0.9 <= sum(widths) / 200 / (3.92 * float(torch.tensor(means).std())) <= 1.3


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_ranks_made_once_give_the_interval_of_ranks_made_anew(noise):
    """The same 1,000 draws. Drawn ties pull ranks made anew down by up to 0.01; widths agree to 15 %."""
    signal = normal(60, 12, seed=40)
    outputs = signal + noise * normal(60, 12, seed=41)
    found = linear_datamodelling_score(signal.T, torch.eye(60, dtype=torch.bool), outputs)

    draws = generator(0)
    subsets, tests = resampling(60, 1000, draws), resampling(12, 1000, draws)
    means = []
    for subset, test in zip(subsets.long(), tests, strict=True):
        drawn = torch.arange(60).repeat_interleave(subset)
        means.append((spearman(signal[drawn].T, outputs[drawn].T) * test).sum() / 12)
    low, high = interval(torch.stack(means))
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_resamples_that_are_drawn_in_blocks_or_hold_one_value_only(monkeypatch, method):
    """Two of three scores are equal: a resample without the third orders nothing, and must not count as a number."""
    scores, outputs = torch.tensor([[0.1, 0.1, 0.7]] * 2), -torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.6, 0.6]])
    monkeypatch.setattr(datamodelling, "_BLOCK", 8)
    found = leave_one_out_correlation(scores, outputs, torch.zeros(2), torch.arange(3), method=method)
    assert found.values.tolist() == pytest.approx([math.sqrt(0.75), 1])
    assert math.sqrt(0.75) - 1e-9 <= found.low <= found.high <= 1 + 1e-9


def test_a_low_ceiling_is_said():
    scores, masks, outputs = noisy_bank(noise=40, num_test=30, num_subsets=100, seed=50)
    (note,) = linear_datamodelling_score(scores, masks, outputs).notes
    assert note.endswith("for the mean of 2 seeds, below 0.3: mostly seed noise is being predicted")
    (note,) = linear_datamodelling_score(scores, masks, outputs[0]).notes
    assert note == "one seed: no noise ceiling, so what of a low value is seed noise cannot be told"


def test_half_trained_models_are_said():
    scores, masks, outputs = noisy_bank(seed=51)
    accuracy = torch.full((2, 60), 0.7)
    accuracy[0, 3], accuracy[1, 5:7] = 0.1, torch.tensor([0.55, 0.65])
    assert len(linear_datamodelling_score(scores, masks, outputs, accuracy=torch.full((60,), 0.7)).notes) == 1
    notes = linear_datamodelling_score(scores, masks, outputs, accuracy=accuracy, full_accuracy=0.9).notes
    assert notes[:2] == (
        "half-trained: 2 of 120 retrained models fell behind in accuracy (median 0.70, lowest 0.10)",
        "weaker models: accuracy 0.69 when retrained, 0.90 of the explained one",
    )


def test_differences_within_seed_noise_are_said():
    scores, _, outputs = noisy_bank(num_seeds=1, seed=52)
    index = torch.arange(40)
    spread = float(outputs[0, :40].var(0).mean().sqrt())
    reference = torch.stack([torch.zeros(9), torch.full((9,), math.sqrt(2))]).double()  # deviation 1
    notes = leave_one_out_correlation(scores, outputs[0, :40], reference, index).notes
    assert notes[-1] == f"runs deviate by {spread:.2g}, seeds of the full model by 1"
    notes = leave_one_out_correlation(scores, outputs[0, :40], 100 * reference, index).notes
    assert notes[-1].endswith("seeds of the full model by 1e+02: the differences are within seed noise")


def attribution(scores: Tensor, **changes) -> DataAttribution:
    num_test, num_train = scores.shape
    zeros, places = torch.zeros(num_test), torch.arange(num_test)
    plain = DataAttribution(
        scores, torch.arange(num_train), num_train, "effect", "loss", False, True, zeros, torch.zeros_like(scores),
        places, places, places, torch.zeros(num_train, dtype=torch.int64), "method",
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def test_the_sign_of_a_result_is_that_of_its_output_even_for_a_loss():
    scores, masks, outputs = noisy_bank(noise=0, seed=60)
    found = linear_datamodelling_score(attribution(scores.float()), masks, outputs)
    assert found.mean == pytest.approx(1, abs=0.01)  # float32 scores may swap near equals


def test_similarities_are_not_summed_unless_told():
    scores, masks, outputs = noisy_bank(seed=61)
    similar = attribution(scores, kind="similarity")
    with pytest.raises(ValueError, match="similarit"):
        linear_datamodelling_score(similar, masks, outputs)
    with pytest.raises(ValueError, match="similarit"):
        group_correlation(similar, masks, outputs, outputs[0, 0])
    allowed = linear_datamodelling_score(similar, masks, outputs, allow_similarity=True)
    assert_same(allowed, linear_datamodelling_score(scores, masks, outputs))
    single = leave_one_out_correlation(similar, outputs[:, :40], outputs[:, 0], torch.arange(40))  # sums nothing
    assert single.num_samples == 9


def test_what_does_not_fit_is_refused():
    scores, masks, outputs = noisy_bank(seed=62)
    with pytest.raises(ValueError, match=r"`outputs` have shape \(2, 60, 8\).*60 runs and 9 test samples"):
        linear_datamodelling_score(scores, masks, outputs[:, :, :8])
    with pytest.raises(ValueError, match="`masks` speak of 39 training samples, `scores` of 40"):
        linear_datamodelling_score(scores, masks[:, 1:], outputs)
    with pytest.raises(ValueError, match="1 runs; a correlation over runs needs at least two"):
        linear_datamodelling_score(scores, masks[:1], outputs[:, :1])
    with pytest.raises(ValueError, match="`index` must hold positions from 0 to 39"):
        leave_one_out_correlation(scores, outputs[:, :2], outputs[:, 0], torch.tensor([-1, 3]))
    outputs[1, 7, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"runs \[7\]") as caught:
        linear_datamodelling_score(scores, masks, outputs)
    assert caught.value.index == (7,)
