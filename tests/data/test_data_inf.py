"""DataInf against its mean of inverses, matrix by matrix, and against the exact inverse where both agree."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.ops.gradients import dense
from tests.data.test_grad_dot import MEASURES, fit, rows

CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # the smaller damping takes some 1e4 of float64's 1e16
WIDTHS = [70, 44]  # weight and bias of each linear layer together


def inverse(gradients: Tensor, damping: float) -> tuple[Tensor, list[float]]:
    """Return the block-diagonal (1/n) Σ_j (λI + g_j g_jᵀ)⁻¹ of the paper, each matrix inverted by itself."""
    blocks, used = [], []
    for part in torch.split(gradients, WIDTHS, dim=1):
        added = damping * float(part.square().mean())
        eye = torch.eye(part.shape[1], dtype=torch.float64)
        blocks.append(torch.stack([torch.linalg.inv(added * eye + torch.outer(g, g)) for g in part]).mean(0))
        used.append(added)
    return torch.block_diag(*blocks), used


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_it_is_the_papers_mean_of_inverses(problem, damping: float):
    of_train = rows(problem.model, *problem.train, MEASURES["loss"][1])
    matrix, used = inverse(of_train, damping)
    for output, measure in MEASURES.values():
        explainer = fit(dv.Task(problem.model, output=output), problem.train, dv.DataInf(damping))
        of_test = rows(problem.model, *problem.test, measure)
        torch.testing.assert_close(
            explainer.explain(*problem.test).dense(), -of_test @ matrix @ of_train.T / 120, **CLOSE
        )
    torch.testing.assert_close(explainer.self_influence(), ((of_train @ matrix) * of_train).sum(1) / 120, **CLOSE)
    assert list(explainer.certificate["damping"].values()) == pytest.approx(used)
    solved = explainer.method.solve(explainer.state, of_test, explainer.table)
    torch.testing.assert_close(solved, of_test @ matrix, **CLOSE)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_layer_is_one_part_however_it_is_recorded(outputs: int):
    """A layer of one output is recorded as weight and bias, one of two by factors."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((20, 7), (20, outputs)))
    model = nn.Linear(7, outputs).double()
    explainer = fit(dv.Task(model, problem="regression"), (inputs, targets), dv.DataInf())
    slopes = (model(inputs) - targets).detach()
    augmented = torch.cat([inputs, torch.ones(20, 1).double()], dim=1)
    gradients = (slopes[:, :, None] * augmented[:, None]).flatten(1)  # of each output, its weights and its bias
    added = 0.1 * gradients.square().mean() * torch.eye(8 * outputs).double()
    matrix = torch.stack([torch.linalg.inv(added + torch.outer(g, g)) for g in gradients]).mean(0)
    own = ((gradients @ matrix) * gradients).sum(1) / 20
    torch.testing.assert_close(explainer.self_influence(), own, **CLOSE)
    assert len(explainer.certificate["damping"]) == 1


def test_self_influence_of_large_gradients_stays_finite():
    inputs = 1e6 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    explainer = fit(dv.Task(nn.Linear(3, 1), problem="regression"), (inputs, 1e6 * inputs[:, :1]), dv.DataInf())
    assert bool(explainer.self_influence().isfinite().all()) and bool((explainer.self_influence() > 0).all())


def test_of_one_sample_it_is_the_exact_inverse(problem):
    one = problem.train[0][:1], problem.train[1][:1]
    explainer = fit(problem.model, one, dv.DataInf())
    (g,) = dense(explainer.table.layout[:-1], explainer.table.values[:, :-4])
    parts = torch.split(g, WIDTHS)
    own = sum(float(part @ part / (0.1 * part.square().mean() + part @ part)) for part in parts)
    assert float(explainer.self_influence()[0]) == pytest.approx(own, rel=1e-12)


def test_with_much_damping_it_is_the_inner_product_by_part(problem):
    """B tends to I/λ as λ grows: the relative error is at most max ‖g‖²/λ."""
    explainer = fit(problem.model, problem.train, dv.DataInf(1e7))
    of_train, of_test = (
        rows(problem.model, *part, MEASURES[name][1])
        for part, name in ((problem.train, "loss"), (problem.test, "logit"))
    )
    expected = torch.zeros(30, 120, dtype=torch.float64)
    for left, right in zip(torch.split(of_test, WIDTHS, dim=1), torch.split(of_train, WIDTHS, dim=1), strict=True):
        expected -= left @ right.T / (1e7 * right.square().mean() * 120)
    torch.testing.assert_close(
        explainer.explain(*problem.test).dense(), expected, rtol=0, atol=1e-4 * float(expected.abs().max())
    )


def test_a_part_without_gradient_scores_nothing():
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # no unit is ever on
    explainer = fit(model, (inputs, torch.arange(20) % 2), dv.DataInf())
    scores = explainer.explain(inputs[:4]).dense()
    assert bool(scores.isfinite().all()) and bool((scores != 0).any())


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_the_damping_must_be_positive(damping):
    with pytest.raises(ValueError, match="`damping` must be a positive number"):
        dv.DataInf(damping)
