"""TraceNTK against kernels that are known: of a linear model, and of gradients taken class by class."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.solvers import dual

C = 0.5


def linear() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 3
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64) + nn.functional.one_hot(labels, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 3)).double()
    return model, inputs, labels, torch.randn(6, 5, generator=generator, dtype=torch.float64)


def by_kernel(kernel: Tensor, tests: Tensor, labels: Tensor, gap: float = 1e-13) -> Tensor:
    """Dual softmax fit on features whose inner products are the kernel; logits of the tests "test cls"."""
    values, vectors = torch.linalg.eigh(kernel)
    kept = values > 1e-12 * values.max()
    roots = values[kept].sqrt()
    solution = dual(vectors[:, kept] * roots, labels, loss="softmax", C=C, gap=gap)
    projected = tests @ vectors[:, kept] / roots
    return projected @ solution.weights[:, :-1].T + solution.weights[:, -1]


def test_of_a_linear_model_it_is_the_kernel_machine_of_cosines():
    """Σ_c ⟨∇z_c(x), ∇z_c(x')⟩ = classes·(⟨x, x'⟩ + 1): what is left is the cosine of [x, 1]."""
    model, inputs, labels, tests = linear()
    method = dv.TraceNTK(C=C, projection=64, gap=1e-13)  # wider than the 18 parameters, which stay as they are
    explainer = dv.fit(method, model, (inputs, labels), progress=False)
    units = [nn.functional.normalize(nn.functional.pad(x, (0, 1), value=1.0), dim=1) for x in (inputs, tests)]
    expected = by_kernel(units[0] @ units[0].T, units[1] @ units[0].T, labels)
    torch.testing.assert_close(explainer.surrogate_logits(tests), expected, rtol=1e-5, atol=1e-6)
    alpha = explainer.state.coefficients(torch.arange(40))
    found = explainer.explain(tests, 1).dense()
    torch.testing.assert_close(found, (units[1] @ units[0].T) * alpha[:, 1], rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def network() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    _, inputs, labels, tests = linear()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return model, inputs, labels, tests


def tangent_rows(model: nn.Module, inputs: Tensor) -> Tensor:
    rows = []
    for x in inputs:
        z = model(x[None])[0]
        each = [torch.autograd.grad(z[c], list(model.parameters()), retain_graph=True) for c in range(3)]
        rows.append(torch.cat([part.flatten() for grads in each for part in grads]))
    return nn.functional.normalize(torch.stack(rows), dim=1)


def test_wide_projections_come_near_to_the_trace_kernel(network):
    """The error of a product of unit rows falls like 1/√width."""
    model, inputs, labels, tests = network
    exact = tangent_rows(model, tests) @ tangent_rows(model, inputs).T
    errors = []
    for width in (8, 128):
        explainer = dv.fit(dv.TraceNTK(C=C, projection=width, gap=1e-10), model, (inputs, labels), progress=False)
        alpha = explainer.state.coefficients(torch.arange(40))[:, 0]
        errors.append(float((explainer.explain(tests, 0).dense() / alpha - exact).square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.1


def test_shares_and_bias_add_up_for_every_output(network):
    model, inputs, labels, tests = network
    for output, v in ((dv.logit, None), (dv.contrast(2, 0), torch.tensor([-1.0, 0.0, 1.0]).double())):
        task = dv.Task(model, output=output)
        explainer = dv.fit(dv.TraceNTK(C=C, projection=32), task, (inputs, labels), progress=False)
        scores, logits = explainer.explain(tests), explainer.surrogate_logits(tests)
        expected = logits.gather(1, scores.targets[:, None]).squeeze(1) if v is None else logits @ v
        torch.testing.assert_close(scores.dense().sum(1) + scores.bias, expected, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(scores.bias_shares.sum(1), scores.bias, rtol=1e-10, atol=1e-12)
        assert scores.kind == "share"


def test_self_influence_is_the_dual_variable_of_the_own_label(network):
    """Rows have norm 1."""
    model, inputs, labels, _ = network
    explainer = dv.fit(dv.TraceNTK(C=C, projection=32), model, (inputs, labels), progress=False)
    own = explainer.state.coefficients(torch.arange(40)).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(explainer.self_influence(), own, rtol=1e-12, atol=0)
    torch.testing.assert_close(explainer.importance(), own, rtol=0, atol=0)
    slack = nn.functional.cross_entropy(explainer.surrogate_logits(inputs), labels, reduction="none")
    ranking = explainer.suspects()
    torch.testing.assert_close(ranking.columns["slack"], slack[ranking.index], rtol=1e-9, atol=1e-10)


def test_C_is_chosen_along_a_path(network):
    model, inputs, labels, tests = network
    explainer = dv.fit(dv.TraceNTK(projection=32), model, (inputs, labels), held_out=(tests, torch.arange(6) % 3),
                       progress=False)  # fmt: skip
    curve = explainer.curve
    assert len(curve) > 3 and curve.num_held_out == 6 and explainer.certificate["C"] == curve.C[curve.chosen]
    # each row has norm 1: C·Σ(‖ψ‖² + 1) = 80·C from about 1 on
    assert 1 / 80 <= curve.C[0] < 10**0.5 / 80
    again = dv.fit(dv.TraceNTK(C=explainer.certificate["C"], projection=32), model, (inputs, labels), progress=False)
    assert torch.equal(again.state.weights, explainer.state.weights)


def test_it_is_no_member_with_a_relation_or_a_response(network):
    model, inputs, labels, tests = network
    explainer = dv.fit(dv.TraceNTK(C=C, projection=32), model, (inputs, labels), progress=False)
    for ask in (explainer.response, lambda x: dv.relate(explainer, x)):
        with pytest.raises(TypeError, match="needs a fitted DualView; this explainer holds TraceNTK"):
            ask(tests)
    with pytest.raises(ValueError, match="`projection` must be a whole number, 1 or larger"):
        dv.TraceNTK(projection=0)
    with pytest.raises(ValueError, match="`C` must be a positive number"):
        dv.TraceNTK(C=-1.0)
