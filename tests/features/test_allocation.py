"""Allocations: weights asked of the methods themselves, against weights known in closed form."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.features._allocation import Allocation
from tests.features.polynomials import points, random_polynomial

torch.set_num_threads(1)
CUBIC = random_polynomial(3, 5).eval()
X = points(3, 5)
B = CUBIC.baseline
TAYLOR = dv.Taylor(baseline=B)


def allocation(method, model: nn.Module = CUBIC, x: Tensor = X, **options) -> Allocation:
    return TAYLOR.allocation(method, model, x, targets=0, **{"order": 3, **options})


def of(i: int, kappa: tuple[int, ...]) -> int:
    return kappa.count(i)


WEIGHTS = {  # what each method gives variable i of the effect κ, derived for a monomial Π t^κ at t = 1
    "integrated gradients": (dv.IntegratedGradients(B), lambda i, kappa: of(i, kappa) / len(kappa)),
    "occlusion": (dv.Occlusion(baseline=B), lambda i, kappa: float(i in kappa)),
    "shapley": (dv.Taylor("exact", baseline=B), lambda i, kappa: (i in kappa) / len(set(kappa))),
    "taylor": (dv.Taylor("split", baseline=B), lambda i, kappa: of(i, kappa) / len(kappa)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_the_closed_forms(name: str):
    """B.3's rows: κ_i / |κ|, 1 for each member, 1 / |S|; and Σ_κ w I(κ) is the method's own result."""
    method, weight = WEIGHTS[name]
    found = allocation(method, family="derivatives")
    expected = torch.tensor(
        [[float(weight(i, kappa)) for kappa in found.effects] for i in range(5)], dtype=torch.float64
    )
    torch.testing.assert_close(found.weights, expected.expand(3, -1, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.expressed, found.scores, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.scores, CUBIC.allotted(X, lambda i, k, _: weight(i, k)), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.left_out, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)
    assert found.how == "probed" and found.family == "derivatives" and (found.additivity < 1e-9).all()


def test_gradient_times_the_way_gives_each_effect_as_often_as_its_power():
    """(x_i − b_i) ∂_i of a monomial is κ_i times it: interactions and higher powers are handed out several times."""
    zero = random_polynomial(3, 5)
    zero.baseline = torch.zeros(5, dtype=torch.float64)
    found = dv.Taylor().allocation(dv.InputXGradient(), zero.eval(), X, targets=0, order=3)
    expected = torch.tensor([[float(of(i, kappa)) for kappa in found.effects] for i in range(5)], dtype=torch.float64)
    torch.testing.assert_close(found.weights, expected.expand(3, -1, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.expressed, found.scores, rtol=0, atol=1e-10)


def test_coalitions_need_no_derivative():
    """On a network of ReLUs: ψ and J(S), and Shapley's weights 1 / |S| express its value exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)).double().eval()
    x = points(4, 4)
    taylor = dv.Taylor("exact", baseline=0.5)
    found = taylor.allocation(taylor, model, x, targets=1, order=4)
    assert found.family == "coalitions" and found.how == "probed"
    torch.testing.assert_close(found.expressed, found.scores, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.left_out, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)
    pairs = dv.Taylor("pairs", baseline=0.5).attribute(model, x, targets=1).tables["interactions"]
    for k, kappa in enumerate(found.effects):
        if len(kappa) == 2:
            torch.testing.assert_close(found.amounts[:, k], pairs[:, kappa[0], kappa[1]], rtol=0, atol=1e-12)


def test_principles_are_numbers_and_verdicts():
    def kept(found: Allocation) -> list[bool]:
        return [one.kept for one in found.principles(0)]

    assert kept(allocation(WEIGHTS["integrated gradients"][0])) == [True, True, True]
    assert kept(allocation(WEIGHTS["shapley"][0])) == [True, True, True]
    occlusion = allocation(WEIGHTS["occlusion"][0])
    assert kept(occlusion) == [False, True, False]
    amounts = occlusion.amounts[0].abs()
    size = torch.tensor([len(set(kappa)) for kappa in occlusion.effects])
    expected = float(((size - 1) * amounts).sum() / amounts.sum())  # J(S) is counted |S| times
    assert occlusion.principles(0)[2].missed == pytest.approx(expected, rel=1e-9)
    total, change = float(occlusion.scores[0].sum()), float(occlusion.change[0])
    assert occlusion.principles(0)[0].missed == pytest.approx(abs(change - total) / abs(change), rel=1e-9)
    assert "complete allocation missed" in repr(occlusion)


class Leaking(dv.Gradient):
    """Hands a tenth of the whole change to the last variable, whatever made it."""

    def explain(self, measured):
        found = dv.IntegratedGradients(B).explain(measured)
        values = found.values[""].clone()
        values[:, -1] += 0.1 * found.change
        return type(found)({"": values})


def test_effects_of_others_are_found():
    found = allocation(Leaking())
    unrelated = [k for k, kappa in enumerate(found.effects) if 4 not in kappa]
    torch.testing.assert_close(found.weights[:, 4, unrelated], torch.full((3, len(unrelated)), 0.1).double())
    amounts = found.amounts[0].abs()
    expected = float(0.1 * amounts[unrelated].sum() / amounts.sum())
    assert found.principles(0)[1].missed == pytest.approx(expected, rel=1e-9) and not found.principles(0)[1].kept
    given = found.by_kind()["effects of others"]
    torch.testing.assert_close(given[:, 4], 0.1 * found.amounts[:, unrelated].sum(1))
    torch.testing.assert_close(sum(found.by_kind().values()), found.scores, rtol=0, atol=1e-12)


def test_a_method_that_is_not_linear_in_the_network_says_so():
    """Absolute gradients of a sum are not sums of absolute gradients."""
    found = allocation(dv.Gradient(absolute=True))
    assert found.additivity.max() > 0.1 and found.fidelity[:, 1].max() > 0.1


def test_variances_are_not_linear_however_small_they_are():
    assert allocation(dv.SmoothGrad(noise=1e-4, statistic="variance")).additivity.min() > 0.01
    assert allocation(dv.SmoothGrad(noise=1e-4)).additivity.max() < 1e-9


@pytest.mark.parametrize("method", [dv.BlurIG(0.7, steps=20), dv.ExpectedGradients(points(6, 5, seed=8), draws=12)])
def test_methods_with_baselines_of_their_own_are_expressed(method):
    """From the input smoothed, or from the framework's baseline where the method has several."""
    found = allocation(method, family="derivatives")
    assert found.how == "probed" and (found.additivity < 1e-9).all()
    torch.testing.assert_close(found.expressed, found.scores, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.left_out, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_scores_that_stand_for_several_numbers_count_once():
    """Of occlusion each number of a pixel, and of GradCAM each colour, holds the whole score."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        model = nn.Sequential(*layers).double().eval()
    x = points(2, 3 * 36).reshape(2, 3, 6, 6)
    taylor = dv.Taylor(players=dv.Patches(3))
    for method in (dv.Occlusion(dv.Pixels()), dv.GradCAM()):
        scores = method.attribute(model, x, targets=0).values[:, 0]
        expected = scores.reshape(2, 2, 3, 2, 3).sum((2, 4)).flatten(1)
        found = taylor.allocation(method, model, x, targets=0, order=1)
        torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-12)


class Refusing(dv.IntegratedGradients):
    """Explains no effect of the second sample."""

    def explain(self, measured):
        if measured.task.model is not CUBIC and bool((measured.parts[""][0] == X[1]).all()):
            raise ValueError("no")
        return super().explain(measured)


def test_a_method_that_refuses_one_sample_is_fitted_on_all():
    found = allocation(Refusing(B, steps=4), order=2, batch_size=2)
    whole = allocation(Refusing(B, steps=4), order=2)
    assert found.how == whole.how == "fitted" and bool(found.additivity.isnan().all())
    torch.testing.assert_close(found.weights, whole.weights, rtol=0, atol=1e-10)


def test_a_method_that_cannot_be_asked_is_fitted():
    """LRP has no rule for products: on a linear network one weight, 1, expresses it, and is called fitted."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 2, bias=False).double().eval()
    found = dv.Taylor().allocation(dv.LRP("epsilon", epsilon=0), model, points(2, 6), targets=1)
    assert found.how == "fitted" and bool(found.additivity.isnan().all())
    first = [k for k, kappa in enumerate(found.effects) if len(kappa) == 1]
    torch.testing.assert_close(found.weights[:, :, first], torch.eye(6).double().expand(2, 6, 6), rtol=0, atol=1e-9)
    approximation, unrelated, complete = found.principles(0)
    assert approximation.kept and complete.kept and not unrelated.kept and unrelated.missed != unrelated.missed
    assert "unknown" in repr(found)


def test_several_inputs_and_other_outputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 3)
            self.double()

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return torch.tanh(self.a(left) * torch.sigmoid(self.b(right)))

    model, left, right = Two().eval(), points(2, 2), points(2, 3, seed=5)
    for output in (dv.margin, dv.loss):
        task = dv.Task(model, output=output)
        for inputs in ((left, right), {"left": left, "right": right}):
            found = dv.Taylor(baseline=0.0).allocation(dv.IntegratedGradients(), task, inputs, targets=[2, 0])
            assert found.how == "probed" and (found.additivity < 1e-9).all() and found.scores.shape == (2, 5)
            native = dv.IntegratedGradients().attribute(task, inputs, targets=[2, 0])
            torch.testing.assert_close(found.scores.sum(1), native.change + native.completeness_error)
            assert Counter(map(len, found.effects)) == Counter({1: 5, 2: 15})


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="family"):
        allocation(dv.Gradient(), family="series")
    with pytest.raises(ValueError, match="order"):
        allocation(dv.Gradient(), order=0)
    with pytest.raises(ValueError, match="more than 4096"):
        dv.Taylor().allocation(dv.Gradient(), nn.Linear(200, 2).eval(), torch.ones(1, 200))
    with pytest.raises(ValueError, match="more than 4096"):  # before any is listed: they are 4e22
        dv.features._allocation._listed(10**6, 4, "derivatives")
    with pytest.raises(TypeError, match="scores of input features"):
        dv.Taylor().allocation(
            dv.IntegratedGradients(site="0"), nn.Sequential(nn.Linear(3, 3), nn.Tanh()).eval(), torch.ones(1, 3)
        )


def test_relevance_without_biases_is_rescale_from_zero():
    """The row of LRP-ε: on tanh units without biases it hands differences on as DeepLIFT's rescale rule does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (
            nn.Linear(5, 7, bias=False),
            nn.Tanh(),
            nn.Linear(7, 6, bias=False),
            nn.Tanh(),
            nn.Linear(6, 3, bias=False),
        )
        model = nn.Sequential(*layers).double().eval()
    relevance = dv.LRP("epsilon", epsilon=0).attribute(model, points(4, 5), targets=1)
    rescaled = dv.DeepLIFT("rescale").attribute(model, points(4, 5), targets=1)
    torch.testing.assert_close(relevance.values, rescaled.values, rtol=1e-10, atol=1e-14)
