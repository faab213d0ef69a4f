"""Constants beside the input take their own share of relevance, and it is booked."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")

X = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]).double()
C = torch.tensor([[2.0, 5.0, -7.0], [1.0, 3.0, 2.0]]).double()


class Made(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def written(x: Tensor) -> Tensor:
    buffer = C.repeat(1, 2)
    buffer[:, 1:4] = x
    return buffer


def overwritten(x: Tensor) -> Tensor:
    y = 2 * x
    y[:, 1] = 5.0
    return y


def filled(x: Tensor) -> Tensor:
    y = torch.cat([x, x], 1)
    y[:, :3].fill_(4.0)
    y[:, 3:4].zero_()
    return y


def copied(x: Tensor) -> Tensor:
    y = x.repeat(1, 2)
    y[:, :3].copy_(C)
    y[:, 3:].copy_(x * 3)
    return y


def masked_in_place(x: Tensor) -> Tensor:
    y = x * 1
    y.masked_fill_(x < 0, 2.5)
    return y


JOINS = {
    "add a tensor": lambda x: x + C,
    "add a row": lambda x: C[0] + x,
    "add a number": lambda x: 2 + x,
    "add in place": lambda x: (x * 1).add_(C, alpha=2),
    "subtract from a number": lambda x: 2 - x,
    "subtract from a tensor": lambda x: torch.sub(C, x, alpha=2),
    "subtract a number": lambda x: x.subtract(1.5),
    "add an integer tensor": lambda x: x + torch.arange(3),
    "cat": lambda x: torch.cat([C, x, torch.arange(6).view(2, 3)], 1),
    "cat by keyword": lambda x: torch.cat(tensors=[C, x], dim=1),
    "stack": lambda x: torch.stack([x, C], 1).flatten(1),
    "hstack": lambda x: torch.hstack((x, C)),
    "where": lambda x: torch.where(x > 0, x, C),
    "where a number": lambda x: torch.where(x > 0, 4.0, x),
    "where of broadcast sides": lambda x: torch.where(C > 2, x[:, :1], C[:1]),
    "where, the method": lambda x: x.where(x > 0, C),
    "maximum": lambda x: torch.maximum(x, C),
    "max of two": lambda x: torch.max(x, C),
    "minimum": lambda x: x.minimum(C),
    "masked_fill": lambda x: x.masked_fill(x > 2, -3.0),
    "masked_fill in place": masked_in_place,
    "pad": lambda x: F.pad(x, (1, 2), value=3.0),
    "constant_pad_nd": lambda x: torch.constant_pad_nd(x, (1, 0), -1.0),
    "pad module": nn.ConstantPad1d(1, 0.5),
    "diff prepend": lambda x: torch.diff(x, prepend=C),
    "diff append": lambda x: x.diff(n=2, append=torch.arange(6).view(2, 3)),
    "write into a buffer": written,
    "overwrite": overwritten,
    "fill": filled,
    "copy": copied,
}


@pytest.mark.parametrize("name", JOINS)
def test_input_and_constants_get_what_they_contribute(name: str):
    model = Made(JOINS[name])
    leaf = X.clone().requires_grad_()
    output = model(leaf)
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).double()
    (gradient,) = torch.autograd.grad(output, leaf, seed)
    found = trace(model, X, composite("epsilon")).propagate(gradient=seed)
    torch.testing.assert_close(found.relevance, gradient * X, rtol=1e-14, atol=0)
    # The rest of each sample's relevance stands on the constants, sample by sample.
    absorbed = sum(entry.amount for entry in found.account.absorbed)
    torch.testing.assert_close(absorbed, ((seed * output).sum(1) - found.relevance.sum(1)).detach())
    assert {entry.kind for entry in found.account.absorbed} == {"constant"}


def test_a_zero_constant_is_not_booked():
    found = trace(Made(lambda x: sum([x, x]) + torch.zeros(3).double()), X, composite("epsilon"))
    assert found.propagate(gradient=X).account.absorbed == ()


@pytest.mark.parametrize(
    "index, value",
    [(0, lambda x: 3 * x[0:1]), (0, lambda x: 3 * x[None, 0:1]), ([0], lambda x: 3 * x[None, 0:1])],
    ids=["one axis", "two axes", "by list"],
)
def test_writing_drops_leading_axes_of_length_1(index, value):
    def first_row(x: Tensor) -> Tensor:
        y = C * 1
        y[index] = value(x)
        return y

    found = trace(Made(first_row), X, composite("epsilon")).propagate(gradient=torch.ones_like(X))
    assert found.relevance.tolist() == [[3.0, -6.0, 9.0], [0.0, 0.0, 0.0]]
    assert sum(entry.total for entry in found.account.absorbed) == 6.0  # the second row, 1 + 3 + 2


def test_minus_infinity_that_no_maximum_takes_has_no_relevance():
    model = Made(lambda x: x.masked_fill(x < 0, -torch.inf).amax(1, keepdim=True))
    found = trace(model, X, composite("epsilon")).propagate(gradient=torch.tensor([[2.0], [1.0]]).double())
    assert found.relevance.tolist() == [[0.0, 0.0, 6.0], [0.0, 4.0, 0.0]]
    assert found.account.absorbed == ()


@pytest.mark.parametrize("write", [lambda y, x: y.copy_(x), lambda y, x: y.__setitem__(0, x[0])], ids=["copy", "set"])
def test_writing_into_whole_numbers_is_refused(write):
    def rounded(x: Tensor) -> Tensor:
        whole = torch.zeros(2, 3, dtype=torch.int64)
        write(whole, x)
        return x + whole

    with pytest.raises(NotImplementedError, match="'(copy|__setitem__)_?' .*whole numbers"):
        trace(Made(rounded), X, composite("epsilon"))


def test_a_condition_that_is_the_input_is_refused():
    with pytest.raises(NotImplementedError, match="'fill_' .*depends on the input"):
        trace(Made(lambda x: (x * 1).fill_(x[0, 0])), X, composite("epsilon"))
