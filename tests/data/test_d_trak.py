"""D-TRAK on a linear denoiser, whose gradients have a closed form, and on a classifier."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from tests.data.test_grad_dot import CLOSE, MEASURES, NOISY, fit, rows

STEPS, SIZE = 3, 4


class Denoiser(nn.Module):
    """Predict by one matrix what was added at each time step; inputs are "row 1 + step unit": x and the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(SIZE, SIZE, bias=False)

    def noisy(self, inputs: Tensor) -> Tensor:
        alpha = torch.linspace(0.9, 0.3, STEPS, dtype=inputs.dtype)[:, None]
        return alpha.sqrt() * inputs[:, :1] + (1 - alpha).sqrt() * inputs[:, 1:]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.matrix(self.noisy(inputs)).flatten(1)


@pytest.fixture(scope="module")
def denoising() -> tuple[Denoiser, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(rows, 1 + STEPS, SIZE, generator=generator, dtype=torch.float64) for rows in (40, 7)]
    model = Denoiser().double()
    model.matrix.weight.data.copy_(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return model, *draw


def closed_form(model: Denoiser, inputs: Tensor) -> Tensor:
    """∂/∂W of mean_t mean_j (W x_t)_j² = 2 / (steps · size) Σ_t (W x_t) x_tᵀ."""
    noisy = model.noisy(inputs)
    predicted = noisy @ model.matrix.weight.detach().T
    return 2 / (STEPS * SIZE) * torch.einsum("rti,rtj->rij", predicted, noisy).flatten(1)


@pytest.mark.parametrize(("ridge", "absolute"), [(1.0, False), (0.01, False), (0.3, True)])
def test_a_linear_denoiser(denoising, ridge: float, absolute: bool):
    model, inputs, test = denoising
    task = dv.Task(model, output=dv.mean_square, problem="regression")
    method = dv.DTRAK(projection=None, ridge=ridge, absolute=absolute)
    explainer = fit(task, (inputs, inputs[:, 1:].flatten(1)), method)
    gradients = closed_form(model, inputs)
    gram = gradients.T @ gradients
    added = ridge if absolute else ridge * float(gram.trace()) / len(gradients)
    inverse = torch.linalg.inv(gram + added * torch.eye(SIZE**2).double())
    result = explainer.explain(test)
    torch.testing.assert_close(result.dense(), closed_form(model, test) @ inverse @ gradients.T, rtol=1e-9, atol=1e-11)
    leverage = ((gradients @ inverse) * gradients).sum(1)
    torch.testing.assert_close(explainer.self_influence(), leverage, rtol=1e-9, atol=1e-11)
    assert result.measured == "mean_square" and result.kind == "effect"
    rank = SIZE * (SIZE + 1) / 2  # gradients are W times symmetric matrices
    assert leverage.sum() < rank
    with pytest.raises(ValueError, match="is singular: give a larger `ridge`"):
        fit(task, (inputs, inputs[:, 1:].flatten(1)), dv.DTRAK(projection=None, ridge=0.0))


@NOISY
def test_the_time_steps_are_averaged_before_anything_is_projected(denoising):
    """The gradient is that of one function of all steps; per-step gradients are not projected one by one."""
    model, inputs, test = denoising
    task = dv.Task(model, output=dv.mean_square, problem="regression")
    explainer = fit(task, (inputs, inputs[:, 1:].flatten(1)), dv.DTRAK(projection=6, seed=1))
    assert explainer.table.layout[0].width == 6
    whole = fit(task, (inputs, inputs[:, 1:].flatten(1)), dv.DTRAK(projection=SIZE**2, seed=1))
    exact = closed_form(model, inputs)
    stored = whole.table.values[:, : SIZE**2]
    torch.testing.assert_close(stored @ stored.T, exact @ exact.T, **CLOSE)
    assert explainer.explain(test).dense().shape == (7, 40)


def test_a_classifier(problem):
    """With the logit of the label on both sides, φ(x)ᵀ (Φᵀ Φ + λI)⁻¹ φ(x_i)."""
    explainer = fit(problem.model, problem.train, dv.DTRAK(projection=None))
    left, right = (rows(problem.model, *data, MEASURES["logit"][1]) for data in (problem.test, problem.train))
    gram = right.T @ right
    inverse = torch.linalg.inv(gram + gram.trace() / len(right) * torch.eye(len(gram)).double())
    torch.testing.assert_close(
        explainer.explain(*problem.test).dense(), left @ inverse @ right.T, rtol=1e-9, atol=1e-11
    )


def test_one_output_column_of_a_training_sample_is_nobodys(denoising):
    model, inputs, _ = denoising
    with pytest.raises(ValueError, match=r"D-TRAK measures the whole prediction.* output=dv\.mean_square"):
        fit(dv.Task(model, problem="regression"), (inputs, inputs[:, 1:].flatten(1)), dv.DTRAK(projection=None))
