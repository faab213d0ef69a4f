"""Arnoldi and Influence against Captum 0.9's ArnoldiInfluenceFunction, of whole rank and truncated.

Captum's Hessian is that of the sum of the losses, and its score is ∇ℓ(x)ᵀ (H + reg)⁻¹ ∇ℓ_i, positive where including
the sample lowers the loss: ours, with the mean loss, λ = reg/n and a factor 1/n, is minus that.
"""

import copy
from typing import NamedTuple

import pytest
import torch
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dualview as dv

REGULARISATION = 0.3


class Problem(NamedTuple):
    """A linear classifier at the optimum of nothing; its Hessian is positive semidefinite everywhere."""

    model: nn.Sequential
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    train, test = (
        (torch.randn(rows, 5, generator=generator, dtype=torch.float64), torch.arange(rows) % 3) for rows in (30, 7)
    )
    torch.manual_seed(0)
    return Problem(nn.Sequential(nn.Linear(5, 3)).double(), train, test)


def theirs(problem: Problem, rank: int) -> Tensor:
    rival = ArnoldiInfluenceFunction(
        problem.model, TensorDataset(*problem.train), copy.deepcopy(problem.model.state_dict()), _load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=10, sample_wise_grads_per_batch=True,
        projection_dim=rank, arnoldi_dim=18, arnoldi_tol=1e-12, hessian_reg=REGULARISATION, hessian_inverse_tol=1e-10,
    )  # fmt: skip
    torch.set_default_dtype(torch.float64)  # its basis is made in the default precision
    try:
        return rival.influence(problem.test)
    finally:
        torch.set_default_dtype(torch.float32)


def ours(problem: Problem, method) -> dv.Explainer:
    return dv.fit(method, dv.Task(problem.model, output=dv.loss), problem.train, progress=False)


def exact(problem: Problem) -> dv.Explainer:
    return ours(problem, dv.Influence(REGULARISATION / 30, absolute=True, curvature="hessian", solver="explicit"))


def damping(problem: Problem) -> float:
    """Return λ = reg/n as a multiple of the mean diagonal."""
    one = ours(problem, dv.Influence(1.0, solver="explicit"))
    return REGULARISATION / 30 / one.certificate["damping"]


def test_with_the_whole_rank_all_are_the_exact_inverse(problem):
    expected = -exact(problem).explain(*problem.test).dense()
    torch.testing.assert_close(theirs(problem, 18), expected, rtol=1e-6, atol=1e-8)
    whole = ours(problem, dv.Arnoldi(18, 18, damping=damping(problem)))
    torch.testing.assert_close(-whole.explain(*problem.test).dense(), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("rank", [3, 6])
def test_truncated_both_keep_the_same_directions(problem, rank: int):
    found = ours(problem, dv.Arnoldi(rank, 18, damping=damping(problem))).explain(*problem.test).dense()
    torch.testing.assert_close(theirs(problem, rank), -found, rtol=1e-7, atol=1e-8)
    assert not torch.allclose(found, exact(problem).explain(*problem.test).dense(), rtol=0.1)


def _load(model: nn.Module, checkpoint: dict[str, Tensor]) -> float:
    model.load_state_dict(checkpoint)
    return 1.0
