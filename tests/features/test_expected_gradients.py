"""Expected gradients against integrated gradients, a slow twin, and what is read and run."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dualview as dv
from dualview.engine.measured import Measured
from tests.features.budget import counted
from tests.features.polynomials import points, random_polynomial

CUBIC, X = random_polynomial(3, 4).eval(), points(5, 4)
DATA = points(7, 4, seed=9)

pytestmark = pytest.mark.filterwarnings("ignore:the scores miss")


def test_one_reference_makes_it_integrated_gradients():
    """α is stratified, so that the error of n draws is of order n^(−3/2)."""
    exact = dv.IntegratedGradients(DATA[0], steps=2).attribute(CUBIC, X, targets=0)
    found = dv.ExpectedGradients(DATA[:1], draws=2000).attribute(CUBIC, X, targets=0)
    torch.testing.assert_close(found.values, exact.values, rtol=0, atol=2e-3 * float(exact.values.abs().max()))
    torch.testing.assert_close(found.change, exact.change, rtol=1e-12, atol=0)


def test_many_draws_are_integrated_gradients_over_the_data():
    exact = dv.IntegratedGradients(dv.Samples(DATA), steps=2).attribute(CUBIC, X, targets=0)
    found = dv.ExpectedGradients(DATA, draws=7 * 500).attribute(CUBIC, X, targets=0)
    torch.testing.assert_close(found.values, exact.values, rtol=0, atol=3e-2 * float(exact.values.abs().max()))
    torch.testing.assert_close(found.change, exact.change, rtol=1e-12, atol=0)


def drawn(method: dv.ExpectedGradients, x: Tensor) -> tuple[Tensor, Tensor]:
    references, alphas = method._drawn(Measured(dv.Task(CUBIC), x, None, size=9))
    return references.positions, alphas


@pytest.mark.parametrize("shared", [True, False])
def test_one_by_one(shared: bool):
    method = dv.ExpectedGradients(DATA, draws=9, seed=3, shared=shared)
    positions, alphas = drawn(method, X)
    expected, start = torch.zeros_like(X), torch.zeros(5, dtype=torch.float64)
    for k, x in enumerate(X):
        row = 0 if shared else k
        for position, alpha in zip(positions[row], alphas[row], strict=True):
            leaf = (DATA[position] + alpha * (x - DATA[position])).requires_grad_()
            expected[k] += torch.autograd.grad(CUBIC(leaf[None])[0, 0], leaf)[0] * (x - DATA[position]) / 9
            start[k] += CUBIC(DATA[position][None])[0, 0].detach() / 9
    found = method.attribute(CUBIC, X, targets=0, batch_size=2)
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.change, CUBIC(X)[:, 0].detach() - start, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.completeness_error, found.values.sum(1) - found.change, rtol=0, atol=1e-14)


def test_draws_are_spread_over_the_data_and_the_path():
    positions, alphas = drawn(dv.ExpectedGradients(DATA, draws=16), X)
    assert positions.shape == alphas.shape == (1, 16)
    assert positions[0, :7].sort().values.tolist() == list(range(7)) == positions[0, 7:14].sort().values.tolist()
    assert (alphas[0] * 16).floor().sort().values.tolist() == list(range(16))
    own, alphas = drawn(dv.ExpectedGradients(DATA, draws=2, shared=False), points(7, 4))
    assert own.shape == alphas.shape == (7, 2) and len(alphas.unique()) == 14
    assert all(own[:, k].sort().values.tolist() == list(range(7)) for k in (0, 1)) and not torch.equal(
        own[:, 0], own[:, 1]
    )


def test_seeds_make_other_draws():
    found = [dv.ExpectedGradients(DATA, draws=5, seed=s).attribute(CUBIC, X, targets=0).values for s in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


class Read(TensorDataset):
    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.read = 0

    def __getitem__(self, position: int) -> tuple[Tensor, ...]:
        self.read += 1
        return super().__getitem__(position)


def test_a_data_set_is_read_draw_by_draw():
    data = Read(DATA, torch.zeros(7))
    found = dv.ExpectedGradients(data, draws=7).attribute(CUBIC, X, targets=0, batch_size=5)
    assert data.read == 2 * 7  # for the gradients, and for f there
    same = dv.ExpectedGradients(DATA, draws=7).attribute(CUBIC, X, targets=0)
    torch.testing.assert_close(found.values, same.values, rtol=1e-13, atol=1e-14)
    assert found.baseline == "<Read>" and same.method.startswith("ExpectedGradients(data=<tensor 7×4>, draws=7")


@pytest.mark.parametrize("shared, references", [(True, 6), (False, 5 * 6)])
def test_its_budget(shared: bool, references: int):
    with counted(CUBIC) as rows:
        dv.ExpectedGradients(DATA, draws=6, shared=shared).attribute(CUBIC, X, targets=0, batch_size=100)
    assert (rows.forward, rows.backward) == (5 * (6 + 1) + references, 5 * 6)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`draws` is 0"):
        dv.ExpectedGradients(DATA, draws=0)
    with pytest.raises(TypeError, match="must be tensors or a data set; they are str"):
        dv.ExpectedGradients("train")
    with pytest.raises(ValueError, match=r"a sample of `baseline` has shape \(3,\)"):
        dv.ExpectedGradients(DATA[:, :3]).attribute(nn.Linear(4, 2).double(), X)
