"""KernelInfluence against dense solves in the space of parameters, and against ridge regression."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.errors import DualViewWarning
from tests.data.test_grad_dot import CLOSE, MEASURES, fit, rows

SOLVERS = pytest.mark.parametrize("solver", ["kernel", "cg"])


@pytest.fixture(scope="module")
def few(problem) -> tuple[Tensor, Tensor]:
    """A few test samples: conjugate gradients take their time."""
    return tuple(part[:3] for part in problem.test)


def dense(model: nn.Module, train: tuple[Tensor, Tensor], left: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return ∇φᵀ (λI + Σ R g gᵀ)⁻¹ g_i (1 − p_i) for the rows ∇φ in `left`, and self-influence."""
    g = rows(model, *train, MEASURES["margin"][1])
    doubt = (-dv.margin(model(train[0]).detach(), train[1])).sigmoid()
    curvature = doubt * (1 - doubt)
    added = damping * (curvature * g.square().sum(1)).mean()
    matrix = added * torch.eye(g.shape[1]).double() + g.T @ (g * curvature[:, None])
    solved = torch.linalg.solve(matrix, g.T)
    return left @ solved * doubt, (solved.T * g).sum(1) * doubt**2


@pytest.mark.parametrize(("solver", "damping"), [("kernel", 1.0), ("kernel", 0.03), ("cg", 1.0)])
def test_it_is_the_damped_gauss_newton_influence(problem, few, solver: str, damping: float):
    for name in ("loss",) if solver == "cg" else ("logit", "margin", "loss"):
        output, measure = MEASURES[name]
        method = dv.KernelInfluence(damping, solver=solver, tolerance=1e-12)
        explainer = fit(dv.Task(problem.model, output=output), problem.train, method)
        expected, own = dense(problem.model, problem.train, rows(problem.model, *few, measure), damping)
        # the condition number, (λ + tr) / λ, is 4e3 at most; conjugate gradients stop at 1e-12
        torch.testing.assert_close(explainer.explain(*few).dense(), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(explainer.self_influence(), own, rtol=1e-9, atol=1e-10)
    assert explainer.certificate["solver"] == solver


@SOLVERS
def test_several_checkpoints_give_the_mean_of_each(problem, few, solver: str):
    other = copy.deepcopy(problem.model)
    with torch.no_grad():
        other[0].weight += 0.5
    method = dv.KernelInfluence(solver=solver, tolerance=1e-12)
    both = fit(dv.Task(problem.model, checkpoints=[problem.model, other]), problem.train, method)
    alone = [fit(model, problem.train, method) for model in (problem.model, other)]
    expected = torch.stack([one.explain(*few).dense() for one in alone]).mean(0)
    torch.testing.assert_close(both.explain(*few).dense(), expected, rtol=1e-9, atol=1e-10)
    if solver == "kernel":
        own = torch.stack([one.self_influence() for one in alone]).mean(0)
        torch.testing.assert_close(both.self_influence(), own, rtol=1e-9, atol=1e-10)
    once = fit(dv.Task(problem.model, checkpoints=[other.state_dict()]), problem.train, method)
    torch.testing.assert_close(once.explain(*few).dense(), alone[1].explain(*few).dense(), **CLOSE)


@pytest.mark.parametrize(("solver", "damping"), [("kernel", 1.0), ("kernel", 0.03), ("cg", 0.1)])
def test_samples_that_the_network_is_sure_of(problem, few, solver: str, damping: float):
    """Margins from −30 to beyond 40: curvatures go down to 1e-18 and less, and must neither be lost nor blown up.

    float32 knows logits of size 60 to 4e-6, and 1 − p to as much; a solve with a condition number of up to 4e3 adds
    at most 4e3 · 6e-8.
    """
    model = copy.deepcopy(problem.model)
    inputs, labels = problem.train
    labels = labels.clone()
    labels[:6] = (model(inputs[:6]).argmax(1) + 1) % 4  # surely wrong
    with torch.no_grad():
        factor = -30 / dv.margin(model(inputs), labels).min()
        model[2].weight *= factor
        model[2].bias *= factor
    margins = dv.margin(model(inputs), labels)
    assert margins[:6].min() < -29 and margins.max() > 40
    expected, own = dense(model, (inputs, labels), rows(model, *few, MEASURES["logit"][1]), damping)
    for dtype, allowed in ((torch.float64, 1e-10), (torch.float32, 5e-4)):
        method = dv.KernelInfluence(damping, solver=solver, tolerance=1e-12 if dtype == torch.float64 else 1e-6)
        explainer = fit(copy.deepcopy(model).to(dtype), (inputs.to(dtype), labels), method)
        found = explainer.explain(few[0].to(dtype), few[1]).dense().double()
        for part in (slice(None), slice(6)):  # of all, and of the wrong ones, in each of their columns
            apart = (found - expected)[:, part].norm(dim=0) / expected[:, part].norm(dim=0)
            assert apart[expected[:, part].norm(dim=0) > 1e-12].max() < allowed
        if solver == "kernel":
            assert ((explainer.self_influence().double() - own).abs()[:6] < allowed * own[:6]).all()


def ridge() -> tuple[nn.Module, tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
    """A ridge regression: model, training data, test inputs, leverages, and (XᵀX + 2I)⁻¹."""
    generator = torch.Generator().manual_seed(0)
    inputs, test = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (40, 6))
    labels = torch.randn(40, generator=generator, dtype=torch.float64) + inputs[:, 0]
    inverse = torch.linalg.inv(inputs.T @ inputs + 2 * torch.eye(5).double())
    model = nn.Linear(5, 1, bias=False).double()
    model.weight.data.copy_((inverse @ inputs.T @ labels)[None])
    return model, (inputs, labels), test, ((inputs @ inverse) * inputs).sum(1), inverse


@SOLVERS
def test_it_is_exact_leave_one_out_in_ridge_regression_but_for_the_leverage(solver: str):
    """Including sample i changes f(x) by xᵀ A⁻¹ x_i e_i / (1 − h_ii)."""
    model, (inputs, labels), test, leverage, _ = ridge()
    mean_norm = float(inputs.square().sum(1).mean())
    for loss in (dv.loss, nn.MSELoss()):
        method = dv.KernelInfluence(2 / mean_norm, solver=solver, tolerance=1e-13)
        task = dv.Task(model, problem="regression", loss=loss)
        explainer = fit(task, (inputs, labels), method)
        found = explainer.explain(test).dense() / (1 - leverage)
        for left_out in range(40):
            kept = torch.arange(40) != left_out
            x, y = inputs[kept], labels[kept]
            without = torch.linalg.solve(x.T @ x + 2 * torch.eye(5).double(), x.T @ y)
            truth = test @ (model.weight.detach()[0] - without)
            torch.testing.assert_close(found[:, left_out], truth, rtol=1e-9, atol=1e-12)
    residuals = labels - model(inputs).detach()[:, 0]
    torch.testing.assert_close(explainer.self_influence(), leverage * residuals**2, rtol=1e-9, atol=1e-12)


def test_scores_of_tiny_gradients_are_as_right_as_others():
    """Their squares are no numbers in float32, and a gradient of zero scores zero."""
    model, (inputs, labels), test, _, _ = ridge()
    task = dv.Task(model.float(), problem="regression")
    explainer = fit(task, (inputs.float(), labels.float()), dv.KernelInfluence(solver="cg"))
    test = torch.cat([test.float(), torch.zeros(1, 5)])
    large = explainer.explain(test).dense()
    # the tolerance of conjugate gradients, 1e-5, of each of two solves
    torch.testing.assert_close(explainer.explain(test * 1e-24).dense() * 1e24, large, rtol=0, atol=2e-5)
    assert (large[-1] == 0).all() and large.abs().max() > 0.1


def test_a_held_out_share_is_not_fitted(problem):
    explainer = fit(problem.model, problem.train, dv.KernelInfluence(), held_out=0.25)
    kept = explainer.positions
    alone = fit(problem.model, tuple(part[kept] for part in problem.train), dv.KernelInfluence())
    expected = torch.zeros(30, 120, dtype=torch.float64)
    expected[:, kept] = alone.explain(*problem.test).dense()
    torch.testing.assert_close(explainer.explain(*problem.test).dense(), expected, **CLOSE)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def test_conjugate_gradients_that_do_not_arrive_say_so(problem):
    method = dv.KernelInfluence(1e-9, solver="cg", tolerance=1e-14)
    explainer = fit(problem.model, problem.train, method)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        explainer.explain(problem.test[0][:1])
    assert [one.category for one in caught] == [DualViewWarning]
    assert "in 500 steps, above tolerance=1.0e-14: give more damping" in str(caught[0].message)


def test_a_damping_that_single_precision_cannot_hold_is_refused():
    inputs = torch.eye(3).repeat(20, 1)
    task = dv.Task(nn.Linear(3, 1), problem="regression")
    with pytest.raises(ValueError, match="damping=1e-20 is too small: in torch.float32 the kernel with it is singular"):
        fit(task, (inputs, torch.ones(60)), dv.KernelInfluence(1e-20))


def test_training_losses_it_is_not_derived_for_are_refused(problem):
    inputs, labels = problem.train
    with pytest.raises(ValueError, match="KernelInfluence is derived for the cross-entropy"):
        fit(dv.Task(problem.model, loss=nn.MultiMarginLoss()), problem.train, dv.KernelInfluence())
    single = nn.Linear(6, 1).double()
    with pytest.raises(ValueError, match="derived for squared errors, and this `loss` is another"):
        fit(dv.Task(single, problem="regression", loss=nn.L1Loss()), (inputs, inputs[:, 0]), dv.KernelInfluence())
    with pytest.raises(ValueError, match="explains regressions with one output; this network has 4"):
        fit(dv.Task(problem.model, problem="regression"), (inputs, inputs[:, :4]), dv.KernelInfluence())
    with pytest.raises(ValueError, match="KernelInfluence explains a classification or regression, no multi-label"):
        fit(dv.Task(problem.model, problem="multi-label"), (inputs, inputs[:, :4] > 0), dv.KernelInfluence())


def test_gradients_of_zero_are_refused():
    task = dv.Task(nn.Linear(3, 1, bias=False), problem="regression")
    with pytest.raises(ValueError, match="all training gradients are zero, or the loss is flat for all"):
        fit(task, (torch.zeros(5, 3), torch.ones(5)), dv.KernelInfluence())


def test_bad_settings_are_refused():
    for name in ("damping", "tolerance"):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"`{name}` must be a positive number; it is {value}"):
                dv.KernelInfluence(**{name: value})
    with pytest.raises(ValueError, match="`solver` is 'lu'; choose from 'auto', 'kernel' and 'cg'"):
        dv.KernelInfluence(solver="lu")
