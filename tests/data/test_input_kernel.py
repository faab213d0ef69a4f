"""InputKernel against gradients taken one by one; neighbours where they are known."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.data.input_kernel import neighbour_counts, self_denoising
from tests.data.conftest import CLASSES

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def jacobians(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return J "row out param", by autograd."""
    rows = []
    for x in inputs:
        outputs = model(x[None])[0]
        each = [torch.autograd.grad(one, list(model.parameters()), retain_graph=True) for one in outputs]
        rows.append(torch.stack([torch.cat([part.flatten() for part in parts]) for parts in each]))
    return torch.stack(rows)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(torch.where(values > 1e-6 * values.max(), values, torch.inf) ** -0.5) @ vectors.T


def kernel(model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
    mine, theirs = jacobians(model, left), jacobians(model, right)
    pairs = [[torch.trace(root(x @ x.T) @ x @ y.T @ root(y @ y.T)) / len(x) for y in theirs] for x in mine]
    return torch.tensor(pairs, dtype=torch.float64)


def fit(model: nn.Module, train: tuple[Tensor, Tensor], problem: str = "regression", **options) -> dv.Explainer:
    return dv.fit(dv.InputKernel(**options), dv.Task(model, problem=problem), train, progress=False)


def test_of_a_linear_model_it_is_the_cosine_of_inputs_with_a_constant(problem):
    """K_xx' = (⟨x, x'⟩ + 1)·I."""
    model = nn.Linear(6, CLASSES).double()
    found = fit(model, problem.train, "classification").explain(problem.test[0]).dense()
    left, right = (nn.functional.pad(x, (0, 1), value=1.0) for x in (problem.test[0], problem.train[0]))
    expected = left @ right.T / left.norm(dim=1)[:, None] / right.norm(dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["classification", "regression", "multi-label"])
def test_scores_are_normalised_traces(problem, kind):
    numbers = {"regression": problem.train[0][:, :CLASSES], "multi-label": (problem.train[0][:, :CLASSES] > 0).double()}
    explainer = fit(problem.model, (problem.train[0], numbers.get(kind, problem.train[1])), kind)
    expected = kernel(problem.model, problem.test[0][:5], problem.train[0])
    found = explainer.explain(problem.test[0][:5], 0 if kind == "regression" else None)
    torch.testing.assert_close(found.dense(), expected, **CLOSE)
    assert found.kind == "similarity" and expected.abs().max() <= 1 + 1e-12
    torch.testing.assert_close(explainer.self_influence(), torch.ones(120).double(), **CLOSE)
    assert explainer.certificate["full_rank"] == 120


def test_chosen_parameters_alone(problem):
    found = fit(problem.model, problem.train, "classification", parameters="2").explain(problem.test[0]).dense()
    left, right = (nn.functional.pad(problem.model[:2](x).detach(), (0, 1), value=1.0) for x in
                   (problem.test[0], problem.train[0]))  # fmt: skip
    expected = left @ right.T / left.norm(dim=1)[:, None] / right.norm(dim=1)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_one_logit_for_two_classes_is_one_output(problem):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    found = fit(model, (problem.train[0], problem.train[1] % 2), "classification").explain(problem.test[0][:4]).dense()
    left, right = (jacobians(model, x)[:, 0] for x in (problem.test[0][:4], problem.train[0]))
    expected = left @ right.T / left.norm(dim=1)[:, None] / right.norm(dim=1)
    torch.testing.assert_close(found, expected, **CLOSE)


class Mirrored(nn.Module):
    """Three outputs of which the third is minus the sum of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        free = self.net(x)
        return torch.cat([free, -free.sum(1, keepdim=True)], dim=1)


def test_outputs_that_move_together_have_a_kernel_of_lower_rank(problem):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Mirrored().double()
    explainer = fit(model, (problem.train[0], problem.train[1] % 3), "classification")
    expected = kernel(model, problem.test[0][:4], problem.train[0])
    torch.testing.assert_close(explainer.explain(problem.test[0][:4]).dense(), expected, **CLOSE)
    torch.testing.assert_close(explainer.self_influence(), torch.full((120,), 2 / 3, dtype=torch.float64), **CLOSE)
    assert explainer.certificate["full_rank"] == 0


def test_counts_are_sums_over_the_kernel(problem):
    explainer = fit(problem.model, problem.train, "classification")
    for inputs in (problem.test[0], None):
        scores = explainer.explain(problem.train[0] if inputs is None else inputs).dense()
        count = neighbour_counts(explainer, inputs)
        torch.testing.assert_close(count, scores.sum(1), rtol=1e-10, atol=1e-10)
        count = neighbour_counts(explainer, inputs, threshold=0.6)
        assert torch.equal(count, (scores > 0.6).sum(1).double()) and 0 < count.median() < 120
        count = neighbour_counts(explainer, inputs, power=3.0)
        torch.testing.assert_close(count, scores.clamp(min=0).pow(3).sum(1), **CLOSE)


def test_counts_are_of_samples_that_were_fitted(problem):
    explainer = dv.fit(dv.InputKernel(), problem.model, problem.train, held_out=0.5, progress=False)
    scores = explainer.explain(problem.test[0]).dense()
    torch.testing.assert_close(neighbour_counts(explainer, problem.test[0]), scores.sum(1), rtol=1e-10, atol=1e-10)
    assert neighbour_counts(explainer, problem.test[0], threshold=-2.0).tolist() == [60] * 30


def test_a_duplicate_is_one_more_neighbour(problem):
    inputs, labels = problem.train
    before = neighbour_counts(fit(problem.model, (inputs[:20], labels[:20]), "classification"), threshold=1 - 1e-9)
    twice = torch.cat([torch.arange(20), torch.tensor([3])])
    after = neighbour_counts(fit(problem.model, (inputs[twice], labels[twice]), "classification"), threshold=1 - 1e-9)
    expected = torch.ones(21).double()
    expected[[3, 20]] = 2
    assert torch.equal(before, torch.ones(20).double()) and torch.equal(after, expected)


def test_fewer_neighbours_where_the_function_turns_faster():
    """Charpiat et al.'s sines: networks that learnt a higher frequency tell samples apart at a smaller distance."""
    inputs = torch.linspace(0, 1, 96, dtype=torch.float64)[:, None]
    counts = []
    for frequency in (1, 2, 4):
        labels = torch.sin(2 * math.pi * frequency * inputs)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)]
            model = nn.Sequential(*layers).double()
            optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(500):
                optimiser.zero_grad()
                error = nn.functional.mse_loss(model(inputs), labels)
                error.backward()
                optimiser.step()
        assert float(error.detach()) < 0.05
        explainer = fit(model, (inputs, labels))
        ways = ({}, {"threshold": 0.9}, {"power": 4.0})
        counts.append([float(neighbour_counts(explainer, **how).mean()) for how in ways])
    for soft in zip(*counts, strict=True):
        assert soft[0] > soft[1] > soft[2]


def denoised(model: nn.Module, tests: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    means, variances = [], []
    outputs = model(train).detach()
    for x in jacobians(model, tests):
        kernels = [x @ y.T for y in jacobians(model, train)]
        weights = [torch.linalg.inv(sum(kernels)) @ one for one in kernels]
        means.append(sum(a @ y for a, y in zip(weights, outputs, strict=True)))
        variances.append(sum(a @ a.T for a in weights))
    return torch.stack(means), torch.stack(variances)


def test_self_denoising_one_by_one(problem):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    train, tests = problem.train[0][:30] + 2, problem.test[0][:5] + 2
    found = self_denoising(fit(model, (train, train[:, :2])), tests)
    means, variances = denoised(model, tests, train)
    torch.testing.assert_close(found.means, means, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.variances, variances, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.gaps, model(tests).detach() - means, rtol=1e-8, atol=1e-9)


def test_where_the_squared_loss_is_stationary_neighbours_average_labels_and_outputs_alike(problem):
    """Σ_j K_xj (y_j − ŷ_j) = J_x Σ_j J_jᵀ (y_j − ŷ_j) = 0; of a line with a constant a_j = K_xj / Σ_j K_xj."""
    inputs, labels = problem.train[0] + 3, problem.train[0][:, :1] ** 2
    augmented = nn.functional.pad(inputs, (0, 1), value=1.0)
    solution = torch.linalg.lstsq(augmented, labels).solution
    model = nn.Linear(6, 1).double()
    with torch.no_grad():
        model.weight.copy_(solution[:-1].T)
        model.bias.copy_(solution[-1])
    found = self_denoising(fit(model, (inputs, labels)))
    kernels = augmented @ augmented.T
    weights = kernels / kernels.sum(1, keepdim=True)
    torch.testing.assert_close(found.means, weights @ labels, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.variances[:, 0, 0], weights.square().sum(1), rtol=1e-9, atol=0)


def test_a_store_and_what_is_refused(problem, tmp_path):
    explainer = dv.fit(dv.InputKernel(), problem.model, problem.train, store=tmp_path, progress=False)
    opened = dv.open(tmp_path, problem.model)
    torch.testing.assert_close(neighbour_counts(opened), neighbour_counts(explainer), rtol=1e-12, atol=0)
    other = dv.fit(dv.GradDot(), problem.model, problem.train, progress=False)
    for ask in (neighbour_counts, self_denoising):
        with pytest.raises(TypeError, match="those of a fitted InputKernel; this explainer holds GradDot"):
            ask(other)
    with pytest.raises(ValueError, match="give `threshold` or `power`, not both"):
        neighbour_counts(explainer, threshold=0.5, power=2.0)
    with pytest.raises(ValueError, match="`power` must be a positive number"):
        neighbour_counts(explainer, power=0.0)
    with pytest.raises(ValueError, match="`cutoff` must be zero or a positive number"):
        dv.InputKernel(cutoff=-1.0)


def test_the_cards_example_runs():
    card = Path(__file__).resolve().parents[2] / "docs" / "methods" / "input_kernel.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found: dict = {}
    exec(code, found)
    assert (found["hard"] >= 1).all() and (found["less"] >= 1 - 1e-5).all() and len(found["soft"]) == 50
