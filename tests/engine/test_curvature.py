"""Curvature of the mean training loss against Hessians and Jacobians that torch.autograd.functional builds whole."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.data._gradients import member_layout
from dualview.engine.curvature import MOST_EXACT, Kind, LossCurvature, logit_curvatures

# Sums of a few hundred float64 products, in another order; entries are of size 1.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
KINDS = pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])


class Convolutional(nn.Module):
    """What makes derivatives hard: in-place operations, a norm in evaluation mode, pooling, a part that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.smooth, self.readout, self.unused = nn.Conv2d(3, 2, 2), nn.Linear(8, 3), nn.Linear(2, 2)
        self.norm.running_mean = torch.randn(3)
        self.norm.running_var = torch.rand(3) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.smooth(F.max_pool2d(self.relu(self.norm(self.conv(x))), 2))
        return self.readout(torch.tanh(F.pad(hidden, (0, 1, 0, 1))[:, :, :2, :2]).flatten(1))


class Attending(nn.Module):
    """Attention, whose fused kernels have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.3, activation="gelu")
        self.readout = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layer(x).mean(1))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().train()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(columns: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.LayerNorm(5), nn.Linear(5, columns))


LABELS = torch.arange(14) % 3
SMOOTH = nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.tensor([1.0, 2.0, 0.5]).double(), reduction="none")
CASES: dict[str, tuple[nn.Module, Tensor, Tensor, dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "convolutions": (seeded(Convolutional), draw(14, 1, 6, 6), LABELS, {}, F.cross_entropy),
    "attention": (seeded(Attending), draw(14, 3, 4), LABELS, {}, F.cross_entropy),
    "own loss": (seeded(mlp(3)), draw(14, 4), LABELS, {"loss": SMOOTH}, lambda z, y: SMOOTH(z, y).mean()),
    "one logit": (
        seeded(mlp(1)),
        draw(14, 4),
        LABELS % 2,
        {"loss": nn.BCEWithLogitsLoss()},
        lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y.double()),
    ),
    "regression": (
        seeded(mlp(2)),
        draw(14, 4),
        draw(14, 2, seed=3),
        {"problem": "regression"},
        lambda z, y: 0.5 * (z - y).square().sum(1).mean(),
    ),
    "multi-label": (
        seeded(mlp(3)),
        draw(14, 4),
        (draw(14, 3, seed=3) > 0).long(),
        {"problem": "multi-label"},
        lambda z, y: F.binary_cross_entropy_with_logits(z, y.double(), reduction="none").sum(1).mean(),
    ),
}
EVERY = pytest.mark.parametrize("case", CASES)


def curvature(case: str, kind: Kind, **settings: Any) -> LossCurvature:
    model, inputs, labels, fields, _ = CASES[case]
    explainer = dv.fit(dv.GradDot(), dv.Task(model, **fields), (inputs, labels), progress=False, batch_size=5)
    return LossCurvature(explainer.table, torch.arange(14), member_layout(explainer.table, 0), kind, **settings)


def truth(case: str, kind: str, names: list[str], rows: slice = slice(None)) -> Tensor:
    """The matrix as torch builds it, all parameters in one vector, in evaluation mode."""
    model, inputs, labels, _, loss = CASES[case]
    model = copy.deepcopy(model).eval()
    named = dict(model.named_parameters())
    flat = torch.cat([named[name].detach().flatten() for name in names])
    widths = [named[name].numel() for name in names]

    def outputs(vector: Tensor) -> Tensor:
        pieces = zip(names, vector.split(widths), strict=True)
        chosen = {name: piece.reshape(named[name].shape) for name, piece in pieces}
        return torch.func.functional_call(model, chosen, (inputs[rows].clone(),))

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if kind == "hessian":
            return torch.autograd.functional.hessian(lambda v: loss(outputs(v), labels[rows]), flat)
        jacobian = torch.autograd.functional.jacobian(outputs, flat).flatten(0, 1)
        logits = outputs(flat).detach()
        middle = torch.autograd.functional.hessian(lambda z: loss(z, labels[rows]), logits)
        return jacobian.T @ middle.reshape(len(jacobian), -1) @ jacobian


@EVERY
@KINDS
def test_products_and_the_matrix_are_those_of_the_mean_loss(case: str, kind: Kind):
    found = curvature(case, kind)
    expected, vectors = truth(case, kind, list(found.parameters)), draw(40, found.size)  # more than go at once
    torch.testing.assert_close(found.matrix(), expected, **CLOSE)
    for vectorised in (True, False):
        found.__dict__["_vectorises"] = vectorised
        torch.testing.assert_close(found.product(vectors), vectors @ expected, **CLOSE)
    some = torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(
        found.product(vectors[:2], some), vectors[:2] @ truth(case, kind, list(found.parameters), slice(1, 5)), **CLOSE
    )


@EVERY
def test_the_mean_diagonal_is_that_of_the_gauss_newton_matrix(case: str):
    found = curvature(case, "hessian")
    expected = float(truth(case, "gauss-newton", list(found.parameters)).diagonal().mean())
    assert found.mean_diagonal() == (pytest.approx(expected, rel=1e-12), True)


def test_of_many_logits_the_mean_diagonal_is_estimated():
    """Each of 4 · 60 random directions is an unbiased estimate; their mean is off by its own standard error."""
    columns = MOST_EXACT + 4
    model = seeded(mlp(columns))
    explainer = dv.fit(dv.GradDot(), model, (draw(60, 4), torch.arange(60) % columns), progress=False)
    found = LossCurvature(explainer.table, torch.arange(60), member_layout(explainer.table, 0), "gauss-newton")
    exact = float(found.matrix().diagonal().mean())
    estimates = torch.tensor([found.mean_diagonal(seed)[0] for seed in range(12)])
    assert not found.mean_diagonal()[1]
    error = float(estimates.std() / 12**0.5)
    assert 0 < error < 0.05 * exact and abs(float(estimates.mean()) - exact) < 4 * error


def test_one_pass_serves_all_vectors_and_leaves_the_model_alone():
    found = curvature("convolutions", "gauss-newton")
    model = found.task.model
    _ = found._vectorises  # tried once, on a few samples
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    rows: list[int] = []
    handle = model.register_forward_hook(lambda _model, args, _outputs: rows.append(len(args[0])))
    found.product(draw(70, found.size))
    handle.remove()
    assert rows == [5, 5, 4]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules()) and torch.equal(torch.get_rng_state(), state)
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


class _Looking(torch.autograd.Function):
    """The identity, whose derivative reads a number out of a gradient: vmap cannot follow that."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        assert gradient.sum().item() < 1e300
        return _Looking.apply(gradient)


class Cubing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(_Looking.apply(self.first(x)) ** 3)


@KINDS
def test_where_vmap_cannot_follow_vectors_go_one_by_one(monkeypatch, kind: Kind):
    monkeypatch.setitem(CASES, "cubes", (seeded(Cubing), draw(14, 4), LABELS, {}, F.cross_entropy))
    found = curvature("cubes", kind)
    vectors = draw(3, found.size)
    torch.testing.assert_close(found.product(vectors), vectors @ truth("cubes", kind, list(found.parameters)), **CLOSE)
    assert not found._vectorises


def test_a_loss_without_curvature_has_none():
    model = seeded(lambda: nn.Linear(4, 2))
    task = dv.Task(model, problem="regression", loss=lambda z, y: (z * y).sum(1))
    explainer = dv.fit(dv.GradDot(), task, (draw(6, 4), draw(6, 2)), progress=False)
    for kind in ("hessian", "gauss-newton"):
        found = LossCurvature(explainer.table, torch.arange(6), member_layout(explainer.table, 0), kind)
        assert not found.product(draw(2, found.size)).any() and found.mean_diagonal() == (0.0, True)


def test_curvature_in_the_logits_of_sure_predictions():
    """p (1 − p) at a margin of 30, in float64 whatever the outputs are."""
    raw = torch.tensor([[30.0, 0.0]])
    found = logit_curvatures(dv.Task(nn.Linear(2, 2)), raw, torch.tensor([0]))[0]
    p = torch.sigmoid(torch.tensor(-30.0).double())
    expected = (p * (1 - p)) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)  # 1 − p is rounded to multiples of 1e-16


def test_without_the_samples_it_says_so(tmp_path):
    model, inputs, labels, _, _ = CASES["convolutions"]
    dv.fit(dv.GradDot(), model, (inputs, labels), store=tmp_path, progress=False)
    table = dv.open(tmp_path, model).table
    found = LossCurvature(table, torch.arange(14), member_layout(table, 0), "hessian")
    with pytest.raises(ValueError, match="give train= to dualview.open"):
        found.product(draw(1, found.size))
