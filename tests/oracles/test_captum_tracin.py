"""TracIn against Captum 0.9's TracInCP and TracInCPFast, on several checkpoints with learning rates of their own."""

import copy

import torch
import torch.nn.functional as F
from captum.influence import TracInCP, TracInCPFast
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dualview as dv

RATES = (0.5, 0.2, 0.1)
ROUNDING = 1e-12
"""Of the largest score, in float64; sums over parameters in another order differ by no more."""


def made() -> tuple[nn.Sequential, TensorDataset, TensorDataset, list[dict[str, Tensor]]]:
    """Return a network, training and test samples, and its states after some steps of training."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)
    ).double()
    inputs, labels = torch.randn(22, 1, 6, 6, dtype=torch.float64), torch.arange(22) % 4
    states = []
    for rate in RATES:
        for _ in range(5):
            gradients = torch.autograd.grad(F.cross_entropy(model(inputs), labels), list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= rate * gradient
        states.append(copy.deepcopy(model.state_dict()))
    return model.eval(), TensorDataset(inputs[:15], labels[:15]), TensorDataset(inputs[15:], labels[15:]), states


def load(model: nn.Module, checkpoint: tuple[dict[str, Tensor], float]) -> float:
    state, rate = checkpoint
    model.load_state_dict(state)
    return rate


def captum_scores(model, train, test, states, **options) -> Tensor:
    """Return TracInCP's scores, "test train": positive where training on the sample lowers the test loss."""
    rival = TracInCP(
        model, train, list(zip(states, RATES, strict=True)), load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=4, sample_wise_grads_per_batch=True, **options,
    )  # fmt: skip
    return rival.influence(test.tensors)


def captum_fast_scores(model, train, test, states) -> Tensor:
    """Return TracInCPFast's scores, of the last layer's weights alone: its bias is left out. "test train"."""
    rival = TracInCPFast(
        model, model[-1], train, list(zip(states, RATES, strict=True)), load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=4,
    )  # fmt: skip
    return rival.influence(test.tensors)


def by_autograd(model, train, test, states, *, parameters=nn.Module.parameters) -> Tensor:
    """Return Σ_k η_k ⟨∇ℓ(w_k, z_test), ∇ℓ(w_k, z_train)⟩ (Pruthi et al. 2020), one sample at a time."""

    def gradients(samples: TensorDataset) -> Tensor:
        rows = []
        for x, y in samples:
            found = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(parameters(model)))
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
        return torch.stack(rows)

    total = torch.zeros(len(test), len(train), dtype=torch.float64)
    for state, rate in zip(states, RATES, strict=True):
        model.load_state_dict(state)
        total += rate * gradients(test) @ gradients(train).T
    return total


def assert_agree(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()


def ours(model, train, test, states, method=None) -> Tensor:
    """Return dv.TracIn's scores for the test loss with Captum's sign: that of the loss's decrease."""
    task = dv.Task(model, output=dv.loss, checkpoints=list(zip(states, RATES, strict=True)))
    explainer = dv.fit(method or dv.TracIn(), task, train.tensors, progress=False)
    return -explainer.explain(*test.tensors).dense()


def test_tracin_is_captums():
    case = made()
    assert_agree(captum_scores(*case), by_autograd(*case))
    assert_agree(ours(*case), captum_scores(*case))


def test_tracin_of_the_last_layer_is_captums_layer_choice():
    case = made()
    expected = by_autograd(*case, parameters=lambda model: model[-1].parameters())
    assert_agree(captum_scores(*case, layers=["6"]), expected)
    assert_agree(ours(*case, dv.TracIn(parameters="6")), expected)


def test_captums_fast_form_leaves_the_bias_out():
    """⟨δ_test, δ_train⟩ ⟨h_test, h_train⟩; with the bias it would be ⟨δ_test, δ_train⟩ (⟨h_test, h_train⟩ + 1)."""
    case = made()
    assert_agree(captum_fast_scores(*case), by_autograd(*case, parameters=lambda model: [model[-1].weight]))
