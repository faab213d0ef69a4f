"""Choosing C: the rule on curves made by hand, what is set aside, and the search against brute force."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import dualview as dv
from dualview.data import _choice, _faithful
from dualview.data._choice import by_fidelity, by_support, set_aside
from dualview.data._faithful import (
    TOLERANCE,
    HeldRows,
    agreements,
    has_fallen,
    held_rows,
    shortfalls,
    sparsest,
    undominated,
)
from dualview.data._method import HeldOut
from dualview.data._setting import Setting
from dualview.engine.tables import Rows, Table
from dualview.errors import DualViewWarning
from dualview.solvers import crammer_singer

TASK = dv.Task(torch.nn.Identity())


def one_hot(predicted) -> Tensor:
    """Return logits of a network that predicts these classes, of three at least."""
    return torch.nn.functional.one_hot(torch.as_tensor(predicted), max(3, int(max(predicted)) + 1)).double()


def rows_held(values: Tensor, predicted: Tensor) -> HeldRows:
    return HeldRows(values, torch.nn.functional.one_hot(predicted).double())


# ── the rule ─────────────────────────────────────────────────────────────────────────────────────


def measured(*hits: str) -> Tensor:
    """One row a setting, one character a sample: 1 where it predicts the network's class."""
    return torch.tensor([[float(hit) for hit in row] for row in hits], dtype=torch.float64)


def thousands(*wrong: range) -> Tensor:
    """Settings that err on these of 10,000 samples."""
    rows = torch.ones(len(wrong), 10_000, dtype=torch.float64)
    for row, errors in zip(rows, wrong, strict=True):
        row[list(errors)] = 0
    return rows


def test_shortfalls_are_paired():
    """Settings that err on the same samples differ by little, however much each errs."""
    behind, errors = shortfalls(measured("1111100000", "1111000000", "0000011111"))
    assert behind.tolist() == pytest.approx([0, 0.1, 0])
    # differences 1, 0, 0, ...: variance 0.1·0.9·10/9; then +1 and −1 five times each: variance 10/9
    assert errors.tolist() == pytest.approx([0, math.sqrt(0.1 / 10), math.sqrt(10 / 9 / 10)])


def test_of_settings_within_one_error_and_the_tolerance_the_sparsest_is_taken():
    # Behind by 5, 20 and 40 of 10,000 one-sided errors, whose standard errors are √5, √20 and √40 of 10,000:
    # none is within one.
    assert sparsest(thousands(range(10), range(15), range(30), range(50)), [0.4, 0.3, 0.2, 0.1]) == 0
    # Ten errors on each side: no difference, and the second is sparser.
    assert sparsest(thousands(range(10), range(10, 20), range(50)), [0.4, 0.3, 0.1]) == 1
    # 110 against 100 other errors: behind by 10, with an error of √210.
    assert sparsest(thousands(range(100), range(100, 210), range(400)), [0.4, 0.3, 0.1]) == 1
    # 1,030 against 1,000: behind by 30, an error of √2,030 = 45, and yet beyond the tolerance of 25.
    assert sparsest(thousands(range(1000), range(1000, 2030)), [0.4, 0.3]) == 0
    assert sparsest(thousands(range(1000), range(1000, 2024)), [0.4, 0.3]) == 1


def test_among_equal_supports_the_best_is_taken_and_then_the_first():
    equal = thousands(range(10), range(10, 20), range(20, 30))
    assert sparsest(equal, [0.3, 0.3, 0.3]) == 0
    assert sparsest(equal, [0.4, 0.3, 0.3]) == 1
    assert sparsest(thousands(range(12), range(12, 22), range(22, 32)), [0.3, 0.3, 0.3]) == 1


def test_a_setting_that_is_sparser_and_clearly_more_faithful_is_taken_instead():
    # Two of ten samples more, none less: ahead by 0.2, with an error of √(0.2·0.8/9) = 0.133. One more is one error.
    sharp = measured("0000000000", "1100000000", "1000000000", "1100000000")
    assert undominated(0, sharp, [0.4, 0.3, 0.1, 0.2]) == 3  # as faithful as the second, and sparser
    assert undominated(0, sharp[:, 1:], [0.4, 0.3, 0.1, 0.2]) == 0  # one sample more is no evidence
    assert undominated(0, sharp, [0.2, 0.3, 0.1, 0.2]) == 0  # none that is ahead is sparser
    assert undominated(1, sharp, [0.4, 0.3, 0.1, 0.2]) == 1
    assert undominated(0, sharp[:, :1], [0.4, 0.3, 0.1, 0.2]) == 0  # one sample has no error


def test_margins_of_very_different_sizes_do_not_hide_the_better_setting(monkeypatch):
    """One logit on columns with long tails: the smoothed measure ranks opposite to what the network predicts."""
    seen: list[list[_choice.Step]] = []
    solve = _choice._solve
    monkeypatch.setattr(_choice, "_solve", lambda *given: seen.append(solve(*given)) or seen[-1])
    cancer = load_breast_cancer()
    order = torch.randperm(569, generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(cancer.data).float()[order]
    rows, labels = (rows - rows[:420].mean(0)) / rows[:420].std(0), torch.from_numpy(cancer.target)[order].float()
    overruled = 0
    for seed in (2, 3, 4, 5):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
            optimiser = torch.optim.Adam(model.parameters(), 3e-3)
            for index in [part for _ in range(40) for part in torch.randperm(420).split(32)]:
                optimiser.zero_grad()
                loss = nn.functional.binary_cross_entropy_with_logits(model(rows[index]).squeeze(1), labels[index])
                loss.backward()
                optimiser.step()
        train, rest = (rows[:420], labels[:420]), (rows[420:], labels[420:])
        curve = dv.fit(dv.DualView(), dv.Task(model.eval()), train, held_out=rest, progress=False).curve
        sharp, smoothed = (
            torch.stack([getattr(step, name) for step in seen[-1]]) for name in ("agreement", "smoothed")
        )
        assert undominated(curve.chosen, sharp, curve.support_share) == curve.chosen
        overruled += sparsest(smoothed, curve.support_share) != curve.chosen
    assert overruled


def test_one_setting_or_one_sample_can_be_chosen_from():
    assert sparsest(measured("0101"), [0.5]) == 0
    assert sparsest(measured("0", "1", "1"), [0.1, 0.5, 0.4]) == 2


def test_settings_without_a_number_are_never_taken():
    smoothed = measured("1110", "1111", "1111")
    smoothed[2] = torch.nan
    assert sparsest(smoothed, [0.5, 0.4, 0.1]) == 1


def test_agreement_is_sharp_and_smoothed():
    logits = torch.tensor([[3.0, 0.0, -9.0], [0.0, 1.0, 0.0], [2.0, 0.0, 2.5]], dtype=torch.float64)
    sharp, smoothed = agreements(logits, one_hot([0, 0, 0]))
    assert sharp.tolist() == [1, 0, 0]
    margins = np.array([3.0, -1.0, -0.5])
    noise = 0.15 * math.sqrt((margins**2).mean())
    expected = [0.5 * (1 + math.erf(margin / noise / math.sqrt(2))) for margin in margins]
    assert smoothed.tolist() == pytest.approx(expected, rel=1e-12)
    _, constant = agreements(torch.zeros(4, 3, dtype=torch.float64), one_hot([0, 1, 2, 0]))
    assert constant.tolist() == [0.5] * 4


def test_a_path_has_fallen_when_its_last_two_settings_are_clearly_behind():
    low, lower = range(200), range(300)
    assert has_fallen(list(thousands(range(10), low, lower)))
    assert not has_fallen(list(thousands(range(10), low))) and not has_fallen(list(thousands(low, lower, range(10))))
    assert not has_fallen(list(thousands(range(10), low, range(10, 40))))
    assert not has_fallen(list(thousands(range(10), range(20), range(10 + int(1e4 * TOLERANCE)))))


# ── which samples ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("rows", "number"), [(20_000, 2_000), (8_000, 1_000), (1_000, 200), (12, 2), (4, 1)])
def test_a_tenth_is_set_aside_or_of_few_samples_more(rows: int, number: int):
    targets, weights = torch.arange(rows) % 3, torch.ones(rows, dtype=torch.float64)
    aside = set_aside(targets, weights, seed=0)
    assert len(aside) == number and torch.equal(aside, aside.unique())
    assert torch.equal(aside, set_aside(targets, weights, seed=0))
    assert rows < 100 or not torch.equal(aside, set_aside(targets, weights, seed=1))


def test_each_class_keeps_a_row_and_rows_without_weight_are_left_alone():
    targets = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2, 2, 2])
    weights = torch.tensor([1.0, 1, 1, 0, 0, 0, 1, 1, 0, 0], dtype=torch.float64)
    drawn = {int(i) for seed in range(60) for i in set_aside(targets, weights, seed)}
    assert drawn == {0, 1, 2}
    with pytest.raises(ValueError, match=r"each class has a single training sample: give held_out=, or a number for C"):
        set_aside(torch.arange(3), torch.ones(3, dtype=torch.float64), 0)


def test_of_very_many_held_out_samples_evenly_spaced_ones_are_taken(monkeypatch):
    monkeypatch.setattr(_faithful, "MAX_HELD_OUT", 4)
    values, index = torch.arange(10.0)[:, None], torch.arange(10)
    table = Table([Rows(values, torch.nn.functional.one_hot(index % 3, 3).float(), index * 0, index)])
    assert held_rows(HeldOut(table), TASK).values.squeeze(1).tolist() == [0, 3, 6, 9]
    some = held_rows(HeldOut(table, torch.tensor([2, 5, 7])), TASK)
    assert some.values.squeeze(1).tolist() == [2, 5, 7] and some.network.argmax(1).tolist() == [2, 2, 1]


# ── the path ─────────────────────────────────────────────────────────────────────────────────────


def overlapping(rows: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % 3
    features = torch.randn(rows, 8, generator=generator, dtype=torch.float64) + 1.5 * torch.eye(8)[targets]
    return scale * features, targets


def setting(features: Tensor, targets: Tensor) -> Setting:
    return Setting(features, targets, torch.ones(len(targets), dtype=torch.float64), 3, 0, False)


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_the_choice_follows_the_scale_of_the_data(scale: float):
    """Features a times as large have, but for the bias, the same surrogates at C/a²."""
    generator = torch.Generator().manual_seed(3)
    network = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    features, _ = overlapping(400, 0)
    held, _ = overlapping(300, 1)
    targets, predicted = ((x @ network.T).argmax(1) for x in (features, held))
    curve = by_fidelity(setting(scale * features, targets), rows_held(scale * held, predicted))
    assert curve.by == "fidelity" and curve.num_held_out == 300 and len(curve) > 4
    best = max(curve.fidelity)
    assert best > 0.95 and curve.fidelity[0] < best - 0.03
    assert curve.fidelity[curve.chosen] > best - 0.02
    assert list(curve.C) == sorted(curve.C) and curve.support_share[0] > 0.95
    per_row = [C * (scale**2 * float(features.square().sum(1).mean()) + 1) for C in curve.C]
    assert 1 / 400 <= per_row[0] < math.sqrt(10) / 400
    spread = scale**2 * float((features - features.mean(0)).square().sum(1).mean())
    assert curve.C[-1] * spread <= 30


def test_the_curve_says_what_each_surrogate_does():
    features, targets = overlapping(300, 0)
    held, predicted = overlapping(200, 1)
    curve = by_fidelity(setting(features, targets), rows_held(held, predicted))
    for entry, C in enumerate(curve.C):
        solution = crammer_singer(features, targets, C=C, gap=1e-7)
        logits = held @ solution.weights[:, :-1].T + solution.weights[:, -1]
        margins = logits.gather(1, predicted[:, None]).squeeze(1) - logits.scatter(
            1, predicted[:, None], -torch.inf
        ).amax(1)
        # The path's gap allows weights to be 1e-4 of the objective off: a sample at the boundary may change sides.
        doubtful = float((margins.abs() < 0.02 * margins.abs().mean()).sum())
        assert abs(curve.fidelity[entry] - float((margins > 0).double().mean())) <= doubtful / 200 + 1e-9
        assert abs(curve.support_share[entry] - (solution.free + solution.bound) / 300) < 0.02
        error = math.sqrt(curve.fidelity[entry] * (1 - curve.fidelity[entry]) / 200)
        assert curve.fidelity_error[entry] == pytest.approx(error)
    assert min(curve.shortfall) == 0 and curve.shortfall[curve.chosen] <= TOLERANCE


def test_rising_ends_where_no_row_is_at_its_bound():
    """Two far clusters: beyond some C the margin is kept everywhere, and nothing changes any more."""
    features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64)
    targets = torch.tensor([0, 0, 1, 1])
    curve = by_fidelity(
        Setting(features, targets, torch.ones(4, dtype=torch.float64), 2, 0, False), rows_held(features, targets)
    )
    last = crammer_singer(features, targets, C=curve.C[-1])
    before = crammer_singer(features, targets, C=curve.C[-2])
    assert last.bound == 0 < before.bound
    beyond = crammer_singer(features, targets, C=1000 * curve.C[-1])
    assert torch.allclose(last.weights, beyond.weights, atol=1e-5)


def test_rising_goes_on_while_rows_spread_their_whole_cost_over_several_rivals():
    """One sample a class: each is at its bound, on all rivals at once, until C is large."""
    features = torch.eye(5, dtype=torch.float64)
    targets = torch.arange(5)
    all_weights = torch.ones(5, dtype=torch.float64)
    curve = by_fidelity(Setting(features, targets, all_weights, 5, 0, False), rows_held(features, targets))
    last = crammer_singer(features, targets, C=curve.C[-1])
    assert last.bound == 0 and last.free == 5
    assert crammer_singer(features, targets, C=curve.C[0]).bound == 5
    # By symmetry alpha_y = a, the rivals' -a/4; the margin a·(1 + 1/4) is 1 at a = 0.8, which a larger C leaves.
    assert curve.C[-1] > 0.8 and last.coefficients.to_dense().diagonal() == pytest.approx([0.8] * 5, rel=1e-4)


@pytest.mark.parametrize(("factor", "offset"), [(1e-3, 0.0), (1.0, 1e3)])
def test_rising_goes_on_while_a_larger_C_matters(factor: float, offset: float):
    """Features that differ by little for their size, or are small beside the constant 1, need a much larger C."""
    features, targets = overlapping(300, 0)
    held, _ = overlapping(300, 1)
    network = torch.randn(3, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets, predicted = ((x @ network.T).argmax(1) for x in (features, held))
    plain = by_fidelity(setting(features, targets), rows_held(held, predicted))
    moved = by_fidelity(setting(factor * features + offset, targets), rows_held(factor * held + offset, predicted))
    assert moved.fidelity[moved.chosen] > plain.fidelity[plain.chosen] - 0.05
    by_share = by_support(setting(factor * features + offset, targets), 0.3)
    assert by_share.support_share[by_share.chosen] == pytest.approx(0.3, abs=0.02)


def test_features_that_hardly_differ_are_warned_of():
    features, targets = overlapping(90, 0)
    with pytest.warns(DualViewWarning) as caught:  # one more of the solver, which makes no way there
        by_fidelity(setting(1e-6 * features, targets), rows_held(1e-6 * features, targets))
    expected = "hardly differ from sample to sample for their size, or are tiny beside the bias's constant 1"
    assert expected in str(caught[-1].message)


def test_an_interruption_ends_the_choice(monkeypatch):
    """Whatever was solved before: a curve that ends there would be taken for a whole one."""
    features, targets = overlapping(60, 0)
    solved = _choice.path

    def interrupted(*given, **settings):
        for number, solution in enumerate(solved(*given, **settings)):
            yield dataclasses.replace(solution, status="interrupted") if number == 3 else solution

    monkeypatch.setattr(_choice, "path", interrupted)
    with pytest.raises(KeyboardInterrupt):
        by_fidelity(setting(features, targets), rows_held(features, targets))


def test_a_path_that_the_solver_cannot_follow_is_said(monkeypatch):
    features, targets = overlapping(60, 0)
    solved = _choice.path

    def stalled(*given, **settings):
        for number, solution in enumerate(solved(*given, **settings)):
            yield dataclasses.replace(solution, status="stalled", gap=0.25) if number == 4 else solution

    monkeypatch.setattr(_choice, "path", stalled)
    with pytest.warns(DualViewWarning, match=r"came no nearer than a relative gap of 2.5e-01; larger values were not"):
        curve = by_fidelity(setting(features, targets), rows_held(features, targets))
    assert len(curve) == 5


@pytest.mark.parametrize("share", [0.62, 0.8])
def test_the_search_for_a_support_share_finds_what_brute_force_finds(share: float):
    features, targets = overlapping(300, 0)
    curve = by_support(setting(features, targets), share)
    assert curve.by == "support" and curve.asked_support == share and curve.fidelity is None
    assert list(curve.C) == sorted(curve.C)
    fine = [crammer_singer(features, targets, C=C, gap=1e-4) for C in np.geomspace(curve.C[0], curve.C[-1], 40)]
    nearest = min(abs((solution.free + solution.bound) / 300 - share) for solution in fine)
    found = abs(curve.support_share[curve.chosen] - share)
    assert found == min(abs(seen - share) for seen in curve.support_share)
    assert found <= max(nearest + 1 / 300, 0.01 * share)  # a search ends within a hundredth of the share


def test_a_share_out_of_reach_is_warned_of_with_the_range():
    features, targets = overlapping(300, 0)
    with pytest.warns(
        DualViewWarning, match=r"no C from .* makes support=0.01 .* the share was from 0\.\d+ to 1;"
    ) as caught:
        curve = by_support(setting(features, targets), 0.01)
    low, high = curve.reachable_support
    assert low == curve.support_share[curve.chosen] == min(curve.support_share) > 0.05 and high == 1
    assert f"from {low:.3g}" in str(caught[0].message)
