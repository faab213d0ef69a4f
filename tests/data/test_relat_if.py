"""RelatIF against its closed form in linear regression, dense twins, and the outliers it is meant to drop."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from tests.data.test_grad_dot import MEASURES, fit, rows

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.parametrize("form", ["loss", "theta"])
def test_it_is_influence_over_the_change_as_a_whole(problem, form: str):
    inner = fit(problem.model, problem.train, dv.DataInf())
    found = fit(problem.model, problem.train, dv.RelatIF(dv.DataInf(), form=form))
    gradients = rows(problem.model, *problem.train, MEASURES["loss"][1])
    solved = inner.method.solve(inner.state, gradients, inner.table)
    sizes = ((solved * gradients).sum(1) / 120).sqrt() if form == "loss" else solved.norm(dim=1) / 120
    expected = inner.explain(*problem.test).dense() / sizes
    torch.testing.assert_close(found.explain(*problem.test).dense(), expected, **CLOSE)
    torch.testing.assert_close(found.self_influence(), inner.self_influence() / sizes, **CLOSE)
    assert found.explain(*problem.test).kind == "similarity" and found.certificate["without_gradient"] == 0


def least_squares(outlier: float = 0.0) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs, test = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (60, 9))
    targets = inputs.sum(1, keepdim=True) + 0.3 * torch.randn(60, 1, generator=generator, dtype=torch.float64)
    targets[:3] += outlier
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(inputs, targets).solution.T)
    return model, inputs, targets, test


def test_in_linear_regression_a_residual_counts_by_its_sign_alone():
    """ℓ-RelatIF = √n sign(e_i) x_tᵀ A⁻¹ x_i/√(x_iᵀ A⁻¹ x_i) with A = XᵀX/n + λ; e_i the residual y − f."""
    model, inputs, targets, test = least_squares()
    method = dv.RelatIF(dv.KernelInfluence(damping=0.02), form="loss")
    explainer = fit(dv.Task(model, problem="regression"), (inputs, targets), method)
    inverse = torch.linalg.inv(inputs.T @ inputs + 0.02 * float(inputs.square().sum(1).mean()) * torch.eye(4).double())
    signs = (targets - model(inputs).detach()).sign()[:, 0]
    leverages = ((inputs @ inverse) * inputs).sum(1)
    torch.testing.assert_close(
        explainer.explain(test).dense(), test @ inverse @ inputs.T * signs / leverages.sqrt(), **CLOSE
    )


def test_planted_outliers_leave_the_head_of_the_lists():
    model, inputs, targets, test = least_squares(outlier=40.0)
    task = dv.Task(model, problem="regression")
    inner = dv.KernelInfluence(damping=0.02)

    def share(method) -> float:
        scores = fit(task, (inputs, targets), method).explain(test).dense()
        return float((scores.abs().topk(3).indices < 3).double().mean())

    assert share(inner) > 2 / 3 and share(dv.RelatIF(inner)) < 0.1  # by chance 0.05


def test_samples_without_a_gradient_score_nothing():
    model, inputs, targets, test = least_squares()
    targets[5:8] = model(inputs[5:8]).detach()
    explainer = fit(dv.Task(model, problem="regression"), (inputs, targets), dv.RelatIF(dv.DataInf()))
    scores = explainer.explain(test).dense()
    assert explainer.certificate["without_gradient"] == 3
    assert not scores[:, 5:8].any() and bool(scores.isfinite().all()) and bool((scores[:, :5] != 0).all())


def test_it_is_stored_with_the_method_it_holds(problem, tmp_path):
    method = dv.RelatIF(dv.DataInf(damping=0.3), form="theta")
    fitted = fit(problem.model, problem.train, method, store=tmp_path)
    opened = dv.open(tmp_path, problem.model)
    assert opened.method == method and opened.method.of == dv.DataInf(damping=0.3)
    assert torch.equal(opened.explain(*problem.test).scores, fitted.explain(*problem.test).scores)
    assert dv.open(tmp_path, problem.model, method=method).method == method


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "l"}, "choose from 'loss' and 'theta'"),
        ({"of": dv.GradDot()}, "must invert a curvature"),
        ({"of": dv.RelatIF()}, "must invert a curvature"),
        ({"of": dv.Influence(leverage=True)}, "leverage=False"),
        ({"of": dv.KernelInfluence(), "form": "theta"}, "KernelInfluence has no change of parameters"),
    ],
)
def test_what_it_cannot_hold_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dv.RelatIF(**fields)
    with pytest.raises(TypeError, match="expected a data method"):
        dv.RelatIF("ekfac")
