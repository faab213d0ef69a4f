"""Every operation left to autograd is homogeneous: what goes in as relevance comes out, element by element."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.propagation import shapes
from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.rules import Epsilon
from dualview.engine.propagation.terminal import Flat
from dualview.engine.propagation.trace import trace

GRID = F.affine_grid(torch.tensor([[[0.7, 0.2, 0.1], [-0.3, 0.9, 0.0]]]), [1, 4, 4, 4], align_corners=False).double()
INDEX = torch.tensor([2, 0, 2])

REARRANGING = {
    "reshape": lambda x: x.reshape(3, -1),
    "view": lambda x: x.view(3, 4, 16),
    "view_as": lambda x: x.view_as(torch.zeros(3, 8, 8)),
    "reshape_as": lambda x: x.reshape_as(x),
    "flatten": lambda x: torch.flatten(x, 1),
    "flatten by keyword": lambda x: torch.flatten(input=x, start_dim=1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "ravel": lambda x: x.ravel().view(3, -1),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2).swapaxes(2, 3).swapdims(1, 3),
    "movedim": lambda x: torch.movedim(x, 1, 3).moveaxis(2, 1),
    "t": lambda x: x.flatten(1).t().t(),
    "T": lambda x: x.flatten(1).T.T,
    "mT": lambda x: x.mT.adjoint(),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1).expand_as(x[:, :3]),
    "broadcast_to": lambda x: torch.broadcast_to(x[:, :1], x.shape),
    "repeat": lambda x: x.repeat(1, 2, 1, 1).tile(1, 1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "contiguous": lambda x: x.mT.contiguous().clone().positive(),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(2, 1),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split([1, 3], 1)[1],
    "split_with_sizes": lambda x: x.split_with_sizes([3, 1], 2)[0],
    "tensor_split": lambda x: torch.tensor_split(x, 3, 1)[0],
    "hsplit": lambda x: x.hsplit(2)[0].dsplit(2)[1].transpose(0, 1).vsplit(2)[0].transpose(0, 1),
    "unbind": lambda x: x.unbind(1)[3],
    "unfold": lambda x: x.unfold(2, 3, 1),
    "index_select": lambda x: x.index_select(1, INDEX),
    "gather": lambda x: x.gather(1, INDEX.view(1, 3, 1, 1).expand(3, -1, 4, 4)),
    "take": lambda x: torch.take(x, torch.tensor([2, 64, 190])).view(3, 1),
    "take_along_dim": lambda x: x.take_along_dim(INDEX.view(1, 3, 1, 1), 1),
    "masked_select": lambda x: x.masked_select(torch.arange(4) < 2).view(3, -1),
    "flip": lambda x: x.flip(2).fliplr().transpose(0, 1).flipud().transpose(0, 1),
    "roll": lambda x: x.roll(1, 2).rot90(1, (2, 3)),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "atleast_3d": lambda x: torch.atleast_3d(torch.atleast_2d(torch.atleast_1d(x))),
    "to": lambda x: x.to(torch.float32).double().type(torch.float32).float().type_as(x).cpu().to(x),
    "pixel_shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "getitem": lambda x: x[:, INDEX, 1:, ::2],
    "getitem list": lambda x: x.transpose(0, 1)[[0, 2]].transpose(0, 1),
    "getitem mask": lambda x: x[:, torch.tensor([True, False, True, True])],
    "iteration": lambda x: next(iter(x.transpose(0, 1))),
    "dropout": lambda x: F.dropout2d(F.dropout(x, 0.5, False), training=False),
    "torch dropout": lambda x: torch.dropout(x, 0.5, False),
}
LINEAR = {
    "sum": lambda x: x.sum((2, 3)) + torch.nansum(x, (2, 3)),
    "mean": lambda x: x.mean(1),
    "cumsum": lambda x: x.cumsum(1),
    "trace": lambda x: torch.stack([torch.trace(sample[0]) for sample in x])[:, None],
    "tril": lambda x: x.tril() - 2 * x.triu(),
    "diag": lambda x: torch.diag(x[:, 0, 0, 0]) + torch.diag_embed(x[:, 1, 2, 3]),
    "diff": lambda x: -x.diff(dim=1) + x[:, :3].neg(),
    "as_strided": lambda x: x.as_strided((3, 4), (64, 2)) + x[:, 1].clone().as_strided((3, 4), (16, 1)),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 3),
    "avg_pool3d": lambda x: F.avg_pool3d(x, 2),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x, 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
    "upsample module": nn.Upsample(scale_factor=2),
    "grid_sample": lambda x: F.grid_sample(x, GRID.expand(3, -1, -1, -1), padding_mode="border", align_corners=False),
    "pad reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "pad circular": lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"),
    "pad zero": nn.ZeroPad2d(1),
}
PIECEWISE_LINEAR = {
    "relu": lambda x: F.relu(x) + x.relu() + torch.relu(x),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "prelu": lambda x: torch.prelu(x, torch.tensor([0.2, -0.1, 0.3, 0.0]).to(x)),
    "abs": lambda x: x.abs() - x.absolute(),
    "amax": lambda x: x.amax((2, 3)) - x.amin((2, 3)),
    "max": lambda x: x.max(1)[0] - x.min(1).values,
    "max of two": lambda x: torch.maximum(x, x.flip(1)) - torch.min(x, x.flip(2)),
    "median": lambda x: x.median(1)[0] + x.kthvalue(2, 1)[0],
    "topk": lambda x: x.topk(2, 1)[0],
    "sort": lambda x: x.sort(1)[0],
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 3),
    "max_pool3d": nn.MaxPool3d(2),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool2d(x, 3),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 3),
    "gate": lambda x: x * (x > 0.3) / 2,
    "where": lambda x: torch.where(x > 0, x, -0.5 * x),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "cat": lambda x: torch.cat([x, 2 * x], 1),
    "stack": lambda x: torch.hstack([torch.stack([x, -x], 1), torch.zeros(3, 1, 4, 4, 4)]),
    "subtract": lambda x: x.sub(x.flip(1), alpha=3),
}


class Made(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.function(x), 1)


@pytest.mark.parametrize("name", REARRANGING | LINEAR | PIECEWISE_LINEAR)
def test_relevance_is_gradient_times_input_and_nothing_is_absorbed(name: str):
    model = Made((REARRANGING | LINEAR | PIECEWISE_LINEAR)[name]).double()
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad(output, leaf, seed)
    found = trace(model, x, composite("epsilon")).propagate(gradient=seed)
    assert torch.equal(found.relevance, gradient * x)
    # The identity holds only if the operation is homogeneous: relevance out = relevance in.
    torch.testing.assert_close(found.relevance.sum(), (seed * output).sum().detach())
    assert found.account.absorbed == ()


@pytest.mark.parametrize("name", REARRANGING)
def test_a_terminal_rule_sees_through_rearranging(name: str):
    """Flat on the rearranged input spreads one unit of relevance over what the rearrangement kept."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rearranged = Made(REARRANGING[name])
            self.fc = nn.Linear(self.rearranged(torch.zeros(3, 4, 4, 4)).shape[1], 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rearranged(x).to(self.fc.weight))

    model, x = First().double(), torch.zeros(3, 4, 4, 4).double()
    passed = trace(model, x, composite({"fc": Flat(epsilon=0.0)}))
    found = passed.propagate(relevance=torch.ones_like(passed.logits)).relevance
    leaf = x.clone().requires_grad_()
    kept = model.rearranged(leaf)
    (expected,) = torch.autograd.grad(kept.sum() / kept.shape[1], leaf)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)  # one example passes through float32


def test_every_operation_of_the_table_stands_in_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    names = (shapes.REARRANGING + shapes.LINEAR + shapes.PIECEWISE_LINEAR).split()
    similar = {"cuda", "negative", "upsample", "upsample_nearest", "upsample_bilinear"}  # no device here; deprecated
    missing = [name for name in names if f"{name}(" not in source and name not in similar]
    assert [name for name in missing if not any(part in name for part in ("_with_indices", "3d", "fractional"))] == []


def test_training_mode_dropout_and_a_tracked_grid_are_refused():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(NotImplementedError, match="'dropout' in the model .*random"):
        trace(Made(lambda x: F.dropout(x, 0.5)), x, composite("epsilon"))
    with pytest.raises(NotImplementedError, match="'grid_sample' .*first argument may depend on the input"):
        trace(Made(lambda x: F.grid_sample(x, x[:, :2].movedim(1, 3), align_corners=False)), x, composite("epsilon"))
    with pytest.raises(NotImplementedError, match="'to' .*carries no gradient"):
        trace(Made(lambda x: x + x.to(torch.int32)), x, composite("epsilon"))


def test_reading_beside_the_argument_is_refused():
    with pytest.raises(NotImplementedError, match="'as_strided' .*memory that is not its argument's own"):
        trace(Made(lambda x: x[:, 1].as_strided((3, 4), (64, 9))), torch.randn(3, 4, 4, 4), composite("epsilon"))


def test_a_net_without_parameters_takes_any_rule():
    found = trace(Made(lambda x: x.sum((2, 3))), torch.ones(1, 2, 3, 3), composite(Epsilon()))
    assert torch.equal(found.propagate(gradient=torch.ones(1, 2)).relevance, torch.ones(1, 2, 3, 3))
