"""TRAK against traker 0.3.2, its gradients not projected, on two checkpoints.

traker divides (ΦᵀΦ)⁻¹ by its mean absolute entry and gradients by the root of their number, so the scale of each
checkpoint's scores is arbitrary, and with it their weights in the mean.
"""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trak import TRAKer
from trak.projectors import NoOpProjector

import dualview as dv

Samples = tuple[Tensor, Tensor]
NUM_MODELS = 2
ROUNDING = 5e-5
"""Of the largest score: traker inverts in float32, here a matrix with a condition number of some hundreds."""


def made() -> tuple[nn.Sequential, Samples, Samples, list[dict[str, Tensor]]]:
    """Return a network of 27 parameters, 90 training and 9 test samples, and states from two initialisations."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(99, 3), torch.arange(99) % 3
    inputs += 0.5 * F.one_hot(labels, 3)
    states = []
    for _ in range(NUM_MODELS):
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        optimiser = torch.optim.SGD(model.parameters(), 0.3)
        for _ in range(30):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[:90]), labels[:90]).backward()
            optimiser.step()
        states.append(copy.deepcopy(model.state_dict()))
    return model.eval(), (inputs[:90], labels[:90]), (inputs[90:], labels[90:]), states


def traker_scores(model, train: Samples, test: Samples, states, folder: Path, *, ridge: float) -> Tensor:
    """Return traker's scores, "test train": positive where the sample raises the test sample's margin."""
    size = sum(parameter.numel() for parameter in model.parameters())
    rival = TRAKer(
        model, "image_classification", len(train[0]), save_dir=folder, device="cpu", use_half_precision=False,
        projector=NoOpProjector(device="cpu"), lambda_reg=ridge,
    )  # fmt: skip
    assert rival.proj_dim == size
    for model_id, state in enumerate(states):
        rival.load_checkpoint(state, model_id=model_id)
        for batch in zip(train[0].split(25), train[1].split(25), strict=True):
            rival.featurize(batch, num_samples=len(batch[0]))
    rival.finalize_features()
    for model_id, state in enumerate(states):
        rival.start_scoring_checkpoint("test", state, model_id, len(test[0]))
        rival.score(test, num_samples=len(test[0]))
    return torch.tensor(rival.finalize_scores("test")).T


def margin_gradients(model, samples: Samples) -> Tensor:
    """Return the gradient of z_y − log Σ_{c≠y} exp z_c for each sample, one at a time, in float64."""
    rows = []
    for x, y in zip(*samples, strict=True):
        logits = model(x[None])[0]
        others = torch.arange(len(logits)) != y
        found = torch.autograd.grad(logits[y] - logits[others].logsumexp(0), list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in found]).double())
    return torch.stack(rows)


def by_autograd(model, train: Samples, test: Samples, states, *, ridge: float, as_traker: bool) -> Tensor:
    """Return (mean_m Φ_t (ΦᵀΦ + λ I)⁻¹ Φᵀ) ∘ (mean_m 1 − p_y) (Park et al. 2023, Eq. 17), "test train".

    With `as_traker` gradients and inverses are scaled as traker does it; without, the ridge is λ times the squared
    scale of its gradients, so that one checkpoint's scores agree up to a factor.
    """
    kernels, weights = [], []
    for state in states:
        model.load_state_dict(state)
        rows, others = margin_gradients(model, train), margin_gradients(model, test)
        size = rows.shape[1]
        if as_traker:
            rows, others = rows / size**0.5, others / size**0.5
        penalty = ridge * (1 if as_traker else size)
        inverse = torch.linalg.inv(rows.T @ rows + penalty * torch.eye(size, dtype=torch.float64))
        kernels.append(others @ inverse @ rows.T / (inverse.abs().mean() if as_traker else 1))
        with torch.no_grad():
            weights.append(1 - model(train[0]).double().softmax(1).gather(1, train[1][:, None])[:, 0])
    return torch.stack(kernels).mean(0) * torch.stack(weights).mean(0)


@pytest.mark.parametrize("ridge", [0.01, 0.3])
def test_trak_is_trakers_with_its_scale(tmp_path: Path, ridge: float):
    case = made()
    found = traker_scores(*case, tmp_path, ridge=ridge)
    expected = by_autograd(*case, ridge=ridge, as_traker=True)
    assert found.shape == (9, 90)
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()


@pytest.mark.parametrize("ridge", [0.01, 0.3])
def test_of_one_checkpoint_trak_is_trakers_up_to_a_positive_factor(tmp_path: Path, ridge: float):
    model, train, test, states = made()
    found = traker_scores(model, train, test, states[:1], tmp_path, ridge=ridge).double()
    expected = by_autograd(model, train, test, states[:1], ridge=ridge, as_traker=False)
    factor = (found * expected).sum() / expected.square().sum()
    assert factor > 0
    assert (found - factor * expected).abs().max() <= ROUNDING * found.abs().max()
    size = sum(parameter.numel() for parameter in model.parameters())
    model.load_state_dict(states[0])
    method = dv.TRAK(projection=None, ridge=ridge * size, absolute=True)
    own = dv.fit(method, dv.Task(model, output=dv.margin), train, progress=False).explain(*test).dense().double()
    assert (own - expected).abs().max() <= ROUNDING * expected.abs().max()


def test_of_several_checkpoints_traker_weighs_each_by_an_accident_of_scale(tmp_path: Path):
    """So ours, where each counts alike, need not agree with it up to one factor: here they differ by percents."""
    case = made()
    found = traker_scores(*case, tmp_path, ridge=0.01).double()
    expected = by_autograd(*case, ridge=0.01, as_traker=False)
    factor = (found * expected).sum() / expected.square().sum()
    assert (found - factor * expected).abs().max() > 0.01 * found.abs().max()
