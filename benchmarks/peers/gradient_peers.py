"""Captum and dattri: gradients, and what inverts a curvature. Each function starts a peer; see `peer.Started`.

All of them take the loss where `dualview` has the margin m of the label. Since ℓ = log(1 + e⁻ᵐ), the loss's gradient
is the margin's times −(1 − p), the same factor for all scores of a test sample: metrics, which compare training
samples for one test sample, do not see it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.peer import BATCH, Started

Loss = Callable[[dict[str, Tensor], tuple[Tensor, Tensor]], Tensor]  # of dattri: (parameters, samples) → a number
SUMMED = nn.CrossEntropyLoss(reduction="sum")


def captum_tracin(model: nn.Module, train: TensorDataset) -> Started:
    """TracInCP on the final network, per-sample gradients by batch.

    Sign: ⟨∇ℓ_test, ∇ℓ_train⟩, positive where a step on the sample lowers the test loss. As it comes.
    """
    from captum.influence import TracInCP

    rival = TracInCP(
        model, train, [model.state_dict()], _load,
        loss_fn=SUMMED, batch_size=BATCH, sample_wise_grads_per_batch=True,
    )  # fmt: skip
    return Started(lambda inputs, labels: rival.influence((inputs, labels)), rival.self_influence)


def captum_tracin_fast(model: nn.Module, train: TensorDataset) -> Started:
    """TracInCPFast on the final network: its last layer's weights alone. Sign: as TracInCP's, as it comes."""
    from captum.influence import TracInCPFast

    rival = TracInCPFast(
        model, list(model.children())[-1], train, [model.state_dict()], _load, loss_fn=SUMMED, batch_size=BATCH
    )  # fmt: skip
    return Started(lambda inputs, labels: rival.influence((inputs, labels)), rival.self_influence)


def captum_arnoldi(model: nn.Module, train: TensorDataset) -> Started:
    """ArnoldiInfluenceFunction, 50 directions of 200.

    Sign: ∇ℓ_testᵀ H⁻¹ ∇ℓ_train, positive where including the sample lowers the test loss. As it comes.
    """
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    rival = ArnoldiInfluenceFunction(
        model, train, model.state_dict(), _load,
        loss_fn=SUMMED, batch_size=BATCH, sample_wise_grads_per_batch=True,
    )  # fmt: skip
    return Started(lambda inputs, labels: rival.influence((inputs, labels)), rival.self_influence)


def dattri_tracin(model: nn.Module, train: TensorDataset) -> Started:
    """TracInAttributor with weight 1, gradients not normalised: inner products, of 512 numbers by default.

    Sign: as Captum's TracInCP's, as it comes; "train test" is transposed.
    """
    from dattri.algorithm import TracInAttributor

    rival = TracInAttributor(_dattri_task(model, _loss_of_one(model)), torch.ones(1), normalized_grad=False)
    loader = DataLoader(train, BATCH)
    return Started(
        lambda inputs, labels: rival.attribute(loader, DataLoader(TensorDataset(inputs, labels), BATCH)).T,
        lambda: rival.self_attribute(loader),
    )


def dattri_trak(model: nn.Module, train: TensorDataset) -> Started:
    """TRAKAttributor of log odds, 512 numbers by default.

    Sign: positive where the sample raises the test sample's log odds. As it comes; "train test" is transposed. It
    gives no self-influence.
    """
    from dattri.algorithm import TRAKAttributor

    loss = _loss_of_one(model)

    def log_odds(parameters: dict[str, Tensor], sample: tuple[Tensor, Tensor]) -> Tensor:
        log_probability = -loss(parameters, sample)
        return log_probability - (1 - log_probability.exp()).log()

    rival = TRAKAttributor(_dattri_task(model, log_odds), lambda *given: (-loss(*given)).exp())
    rival.cache(DataLoader(train, BATCH))
    return Started(lambda inputs, labels: rival.attribute(DataLoader(TensorDataset(inputs, labels), BATCH)).T)


def dattri_influence(model: nn.Module, train: TensorDataset, *, solver: str, **settings: float) -> Started:
    """One of dattri's influence functions, IFAttributorX for solver X; all training samples are one batch, as advised.

    Sign: ∇ℓ_trainᵀ H⁻¹ ∇ℓ_test, positive where including the sample lowers the test loss. As it comes; "train test"
    is transposed.
    """
    import dattri.algorithm

    def loss(parameters: dict[str, Tensor], samples: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, samples[0]), samples[1])

    rival = getattr(dattri.algorithm, f"IFAttributor{solver}")(_dattri_task(model, loss), **settings)
    loader = DataLoader(train, len(train))
    rival.cache(loader)
    return Started(
        lambda inputs, labels: rival.attribute(loader, DataLoader(TensorDataset(inputs, labels), BATCH)).T,
        lambda: rival.self_attribute(loader),
    )


def _dattri_task(model: nn.Module, loss: Loss) -> Any:
    from dattri.task import AttributionTask

    return AttributionTask(loss, model, model.state_dict())


def _loss_of_one(model: nn.Module) -> Loss:
    """Return the loss of one sample without a batch axis: what dattri's TracIn and TRAK want."""

    def loss(parameters: dict[str, Tensor], sample: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, parameters, sample[0][None]), sample[1][None])

    return loss


def _load(model: nn.Module, checkpoint: dict[str, Tensor]) -> float:
    model.load_state_dict(checkpoint)
    return 1.0  # the learning rate
