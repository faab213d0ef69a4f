"""LastLayerInfluence against the explicit Hessian of the last layer's mean cross-entropy, by autograd."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dualview as dv

N, CLASSES = 30, 3


@pytest.fixture(scope="module")
def data() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, CLASSES)).double()
        labels = torch.arange(N) % CLASSES
        inputs = torch.randn(N, 4, dtype=torch.float64) + nn.functional.one_hot(labels, 4)
        return model, inputs, labels, torch.randn(5, 4, dtype=torch.float64)


def by_autograd(model, inputs, labels, tests, damping: float, measure, width: int | None = None) -> Tensor:
    """−∇m(x)ᵀ (H + λI)⁻¹ ∇L_i/n over the readout's weights and bias, λ = damping · mean diagonal of H."""
    readout = model[-1]
    flat = torch.cat([readout.weight, readout.bias[:, None]], 1).detach().flatten()
    features, tested = (nn.functional.pad(model[:-1](x).detach(), (0, 1), value=1.0) for x in (inputs, tests))

    def logits(flat: Tensor, rows: Tensor) -> Tensor:
        return rows @ flat.view(CLASSES, -1).T

    hessian = torch.autograd.functional.hessian(lambda w: cross_entropy(logits(w, features), labels), flat)
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(flat), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian
    losses = jacobian(lambda w: cross_entropy(logits(w, features), labels, reduction="none"), flat)
    columns = logits(flat, tested).argmax(1)
    outputs = jacobian(lambda w: measure(logits(w, tested), columns), flat)
    return -outputs @ torch.linalg.solve(damped, losses.T) / len(labels)


@pytest.mark.parametrize("damping", [0.01, 0.1, 3.0])
@pytest.mark.parametrize("output", [dv.logit, dv.margin, dv.loss], ids=lambda output: output.name)
def test_scores_are_the_influence_through_the_whole_hessian(data, output, damping: float):
    model, inputs, labels, tests = data
    task = dv.Task(model, output=output)
    found = dv.fit(dv.LastLayerInfluence(damping), task, (inputs, labels), progress=False).explain(tests)
    expected = by_autograd(model, inputs, labels, tests, damping, output)
    assert found.kind == "effect"
    torch.testing.assert_close(found.dense(), expected, rtol=1e-7, atol=1e-10 * float(expected.abs().max()))


def test_with_fewer_samples_than_units_the_damping_means_the_same(data):
    """Then the fit is in the space of the samples, whose mean diagonal is another."""
    _, inputs, labels, tests = data
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, CLASSES)).double()
    explainer = dv.fit(dv.LastLayerInfluence(0.1), model, (inputs, labels), progress=False)
    expected = by_autograd(model, inputs, labels, tests, 0.1, dv.logit)
    found = explainer.explain(tests).dense()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))
    assert explainer.certificate["units"] == N < 51


def test_blocks_are_the_hessian_without_what_couples_classes(data):
    model, inputs, labels, tests = data
    explainer = dv.fit(dv.LastLayerInfluence(0.1, "blocks"), model, (inputs, labels), progress=False)
    features, tested = (nn.functional.pad(model[:-1](x).detach(), (0, 1), value=1.0) for x in (inputs, tests))
    p = model(inputs).detach().softmax(1)
    blocks = torch.einsum("ic,ik,il->ckl", p * (1 - p), features, features) / N * p.shape[1] / (p.shape[1] - 1)
    damping = 0.1 * float(blocks.diagonal(dim1=1, dim2=2).mean())
    assert explainer.certificate["damping"] == pytest.approx(damping, rel=1e-12)
    inverse = (blocks + damping * torch.eye(7, dtype=torch.float64)).inverse()
    residual = nn.functional.one_hot(labels, CLASSES) - p
    scores = explainer.explain(tests)
    expected = torch.stack([
        (tested[t] @ inverse[c] @ features.T) * residual[:, c] / N for t, c in enumerate(scores.targets.tolist())
    ])  # fmt: skip
    torch.testing.assert_close(scores.dense(), expected, rtol=1e-9, atol=1e-13)


def test_self_influence_is_what_a_sample_takes_from_its_own_loss(data):
    model, inputs, labels, _ = data
    explainer = dv.fit(dv.LastLayerInfluence(), dv.Task(model, output=dv.loss), (inputs, labels), progress=False)
    expected = -explainer.explain(inputs, labels).dense().diagonal()
    torch.testing.assert_close(explainer.self_influence(), expected, rtol=1e-9, atol=1e-13)
    assert (expected >= 0).all()


def test_large_readouts_take_blocks(data):
    _, inputs, labels, _ = data
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 1400), nn.ReLU(), nn.Linear(1400, CLASSES)).double()
    explainer = dv.fit(dv.LastLayerInfluence(), model, (inputs, labels), progress=False)
    assert explainer.certificate["curvature"] == "blocks"


def test_settings_and_losses_are_checked(data):
    model, inputs, labels, _ = data
    with pytest.raises(ValueError, match="`curvature` is 'kronecker'; choose from 'auto', 'full' and 'blocks'"):
        dv.LastLayerInfluence(curvature="kronecker")
    with pytest.raises(ValueError, match="`damping` must be a positive number; it is 0.0"):
        dv.LastLayerInfluence(damping=0.0)
    task = dv.Task(model, loss=nn.CrossEntropyLoss(label_smoothing=0.2))
    with pytest.raises(ValueError, match="LastLayerInfluence is derived for the cross-entropy"):
        dv.fit(dv.LastLayerInfluence(), task, (inputs, labels), progress=False)
