"""DeepLIFT's passes over whole graphs: complete through every call that has a rule, loud about the others."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dualview.engine.propagation.differences import Differences, differences


class Made(nn.Module):
    """A function as a model, with some weights for it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explained(model: nn.Module, x: Tensor, x_ref: Tensor | None = None, *, signed: bool = False) -> Differences:
    """Share the sum of a model's outputs, weighted by 1, 2, ..."""
    x_ref = torch.zeros_like(x) if x_ref is None else x_ref

    def measure(_made: Tensor, raw: Tensor) -> Tensor:
        flat = raw.flatten(1)
        return flat @ torch.arange(1, flat.shape[1] + 1).to(flat)

    return differences(model, lambda parts: model(parts[""]), measure, {"": x}, {"": x_ref}, signed=signed)


W = drawn(6, 6, seed=9)


class Residual(nn.Module):
    """A small residual net: batch norm, in-place sums and ReLUs, one module used three times, a gate, two maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Linear(6, 3)
        self.squeeze, self.excite = nn.Linear(6, 2), nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        y = self.second(x)
        y += x
        y = F.max_pool2d(self.relu(y), 3, 2, 1)
        gate = self.excite(self.relu(self.squeeze(y.mean((2, 3))))).sigmoid()
        return self.head((y * gate[:, :, None, None]).amax((2, 3)))


class Block(nn.Module):
    """A transformer block with GELU, and a head on the first token."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True, activation="gelu", norm_first=norm_first, dropout=0.1
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)[:, 0])


class Attention(nn.Module):
    """Multi-head attention, whose queries and keys come from two parts of the input."""

    def __init__(self, *, weights: bool) -> None:
        super().__init__()
        self.attention, self.weights = nn.MultiheadAttention(8, 2, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(3, 5, dtype=torch.bool).tril().logical_not()
        return self.attention(x[:, :3], x, x, need_weights=self.weights, attn_mask=mask)[0]


def scaled_dot_product(x: Tensor) -> Tensor:
    q, k, v = x.split(2, -1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.3)


def in_place(x: Tensor) -> Tensor:
    y = x @ W
    z = F.gelu(y)
    y += 1  # after its old values were needed
    y.relu_().mul_(z)
    y[:, :2].tanh_()  # a view
    y /= 1 + x.square()
    buffer = torch.zeros(len(x), 7, dtype=x.dtype)
    buffer[:, 1:] = y
    return buffer.pow_(2).clamp_(max=3)


def written_over(x: Tensor) -> Tensor:
    """What einsum and a maximum return are views to autograd."""
    y = torch.einsum("bi,bi->bi", x @ W, x.tanh())
    y /= 2
    return y.relu_() + x.amax(1, keepdim=True).mul_(3)


def unused(x: Tensor) -> Tensor:
    """Constants are made anew on each pass, with NaN among them."""
    known = torch.tensor([True, True, False, True, False, False])
    return torch.where(known, x.relu(), torch.full((6,), torch.nan, dtype=x.dtype))[:, known]


class Padded(nn.Module):
    """An encoder with a padding mask, which asks torch whether nested tensors would do."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(5) >= torch.tensor([5, 3, 4, 2])[:, None]
        return self.head(self.encoder(x, src_key_padding_mask=mask)[:, 0])


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten())


VECTOR, SEQUENCE, IMAGE = (4, 6), (4, 5, 6), (2, 3, 7, 8)
GRAPHS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "functional relu": (lambda: Made(lambda x: F.relu(x @ W) @ W), VECTOR),
    "gelu": (lambda: Made(lambda x: F.gelu(x @ W)), VECTOR),
    "gelu by tanh, written out": (lambda: Made(lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))), VECTOR),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), VECTOR),
    "functional layer norm": (lambda: Made(lambda x: F.layer_norm(x @ W, (6,), W[0], W[1])), SEQUENCE),
    "rms norm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8)), VECTOR),
    "group norm": (lambda: images(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": (lambda: images(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "local response norm": (lambda: images(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(3)), IMAGE),
    "normalised": (lambda: Made(lambda x: F.normalize(x @ W + 1) + F.cosine_similarity(x, x @ W)[:, None]), VECTOR),
    "standard deviation": (
        lambda: Made(lambda x: (x @ W + 1) / (x.std(1, keepdim=True) + x.var(1)[:, None] + 1)),
        VECTOR,
    ),
    "residual": (Residual, IMAGE),
    "in place": (lambda: Made(in_place), VECTOR),
    "written over": (lambda: Made(written_over), VECTOR),
    "unused NaN": (lambda: Made(unused), VECTOR),
    "indexed by numpy": (lambda: Made(lambda x: x.relu()[:, np.array([0, 2, 4])]), VECTOR),
    "padded": (Padded, (4, 5, 8)),
    "attention with weights": (lambda: Attention(weights=True), (4, 5, 8)),
    "attention without": (lambda: Attention(weights=False), (4, 5, 8)),
    "scaled dot product": (lambda: Made(scaled_dot_product), SEQUENCE),
    "block, norm first": (lambda: Block(norm_first=True), (4, 5, 8)),
    "block, norm last": (lambda: Block(norm_first=False), (4, 5, 8)),
    "softmax": (lambda: Made(lambda x: F.softmax(x @ W, -1)), VECTOR),
    "sharp softmax": (lambda: Made(lambda x: F.softmax(300 * (x @ W), 1) + torch.log_softmax(90 * x, 1)), VECTOR),
    "max pool": (lambda: images(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1, ceil_mode=True)), IMAGE),
    "dilated max pool": (lambda: images(nn.Conv2d(3, 4, 3), nn.MaxPool2d((2, 3), dilation=2, stride=1)), IMAGE),
    "adaptive max pool": (lambda: images(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d((3, None))), IMAGE),
    "extremes": (lambda: Made(lambda x: x.max(1).values[:, None] + torch.minimum(x, x @ W) - x.amin(1, True)), VECTOR),
    "product of branches": (lambda: Made(lambda x: (x @ W) * torch.tanh(x) + x * x), VECTOR),
    "products of matrices": (lambda: Made(lambda x: x @ x.mT + torch.einsum("bij,bkj->bik", x @ W, x)), SEQUENCE),
    "glu": (lambda: nn.Sequential(nn.Linear(6, 8), nn.GLU()), VECTOR),
    "division": (lambda: Made(lambda x: (x @ W) / (1 + x.square()) + 1 / (2 + x.abs())), VECTOR),
    "powers": (lambda: Made(lambda x: x**3 + 2**x + (x.abs() + 0.1).sqrt() + (x.square() + 0.1).log()), VECTOR),
    "activations": (
        lambda: (
            nn.Sequential(nn.Linear(6, 6), nn.ReLU6(True), nn.Linear(6, 6), nn.ELU(1.3, True), nn.PReLU(6), nn.SiLU())
            .append(nn.Softsign())
            .append(nn.LogSigmoid())
            .append(nn.Hardswish(True))
        ),
        VECTOR,
    ),
    "resized": (lambda: images(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_contributions_add_up_to_the_change(name: str, signed: bool):
    make, shape = GRAPHS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
    x, x_ref = drawn(*shape, seed=1), 0.5 * drawn(*shape, seed=2)
    expected = [model(part.clone()).flatten(1) for part in (x, x_ref)]
    found = explained(model, x, x_ref, signed=signed)
    weights = torch.arange(1, expected[0].shape[1] + 1).double()
    torch.testing.assert_close(found.values, expected[0] @ weights, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.reference_values, expected[1] @ weights, rtol=1e-12, atol=1e-12)
    error = found.contributions[""].flatten(1).sum(1) - (found.values - found.reference_values)
    assert (error.abs() <= 1e-10 * found.contributions[""].flatten(1).abs().sum(1)).all()
    assert sum(found.calls.values()) > 0


def test_a_call_is_counted_by_its_rule():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual().double().eval()
    x, x_ref = drawn(*IMAGE), drawn(*IMAGE, seed=1)
    assert explained(model, x, x_ref).calls == {"rescale": 4, "maximum": 2, "product": 1}
    # Sums are no linear operation with weights: the ReLU after `y += x` stays with rescale.
    assert explained(model, x, x_ref, signed=True).calls == {
        "reveal-cancel": 3,
        "rescale": 1,
        "maximum": 2,
        "product": 1,
    }


def test_linear_nets_are_left_to_the_gradient():
    model = images(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Upsample(scale_factor=2))
    model = model.double().eval()
    x, x_ref = drawn(*IMAGE), drawn(*IMAGE, seed=1)
    leaf = x.clone().requires_grad_()
    flat = model(leaf)
    (gradient,) = torch.autograd.grad((flat @ torch.arange(1, flat.shape[1] + 1).double()).sum(), leaf)
    found = explained(model, x, x_ref)
    torch.testing.assert_close(found.contributions[""], gradient * (x - x_ref), rtol=1e-12, atol=1e-13)
    assert found.calls == {}


def test_what_the_output_does_not_see_gets_exactly_nothing():
    model = Made(lambda x: F.softmax(F.gelu(x[:, [0, 2, 4]] * 2) @ W[:3, :3], 1) + 0 * x[:, 1:2])
    found = explained(model, drawn(*VECTOR), drawn(*VECTOR, seed=1)).contributions[""]
    assert (found[:, [1, 3, 5]] == 0).all() and (found[:, [0, 2, 4]] != 0).all()


def test_the_batch_may_stand_anywhere():
    """Axes are moved about on the way, and samples stay apart all the same."""
    model = Made(lambda x: F.layer_norm(x.transpose(0, 1).relu() @ W, (6,)).transpose(0, 1).amax(1))
    x, x_ref = drawn(*SEQUENCE), drawn(*SEQUENCE, seed=1)
    together = explained(model, x, x_ref).contributions[""]
    alone = [explained(model, x[k : k + 1], x_ref[k : k + 1]).contributions[""] for k in range(len(x))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-13)


def test_where_a_root_begins_on_both_passes_there_is_nothing_to_share():
    """Padding is zero in input and baseline alike; the root's slope there is infinite, and its difference nothing."""
    model = Made(lambda x: F.normalize(x) + x.norm(dim=1, keepdim=True) + x.std(1, keepdim=True))
    x, x_ref = drawn(*VECTOR), drawn(*VECTOR, seed=1)
    others = explained(model, x[1:], x_ref[1:]).contributions[""]
    x[0], x_ref[0] = 0, 0
    found = explained(model, x, x_ref).contributions[""]
    assert (found[0] == 0).all()
    torch.testing.assert_close(found[1:], others, rtol=1e-12, atol=1e-13)


def test_weights_keep_their_gradients_and_the_model_its_hooks():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU()).double()
    weights = copy.deepcopy(model.state_dict())
    explained(model, drawn(*VECTOR))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def looped(x: Tensor) -> Tensor:
    while x.norm() < 10:
        x = x * 1.5
    return x.relu()


def branched(x: Tensor) -> Tensor:
    return x.relu() if x.sum() > 0 else x.tanh()


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4, 6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.copy_(x)
        return x.relu()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Made(lambda x: x.cumprod(1)), r"operation 'cumprod' in the model \(Made\): nothing is known of it"),
        (nn.Sequential(Made(lambda x: x.sort(1).values)), r"operation 'sort' in module '0' \(Made\)"),
        (Made(lambda x: torch.where(x > 0, x, 0.1 * x)), "'where'.*a mask from a comparison.*as relu"),
        (Made(lambda x: x * (x > 0)), "'mul'.*a mask from a comparison"),
        (Made(lambda x: x - x.max(1, keepdim=True).values.detach()), r"'sub'.*detach\(\)"),
        (Made(lambda x: x * x.norm().item()), "'mul'.*on the input"),
        (Made(lambda x: x[torch.arange(4), x.argmax(1)][:, None]), "'__getitem__'.*an index"),
        (Made(lambda x: x * torch.rand(6)), "'mul'.*a random draw"),
        (Made(looped), "control flow depends on the input"),
        (Made(branched), "calls operation 'tanh' .* on the baseline, and operation 'relu' .* on the input"),
        (Writing(), "writes what depends on the input to 'seen'"),
        (Made(lambda x: F.dropout(x, 0.5, training=True)), "draws random numbers"),
        (Made(lambda x: F.batch_norm(x, None, None, training=True)), "statistics of this batch"),
        (Made(lambda x: F.linear(x, x[:2])), "its weight depends on the input"),
        (Made(lambda x: torch.addmm(x, x, W).norm(dim=1, p=3)[:, None]), "norm with p = 3"),
        (Made(lambda x: F.max_pool1d(x[:, None], 2, return_indices=True)[0]), "'max_pool1d_with_indices'"),
        (Made(lambda x: F.grid_sample(x[:, None, None], x[:, None, None, :2], align_corners=False)), "'grid_sampler'"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(model: nn.Module, message: str):
    with pytest.raises(NotImplementedError, match=message):
        explained(model, drawn(*VECTOR).abs() + 0.1, -drawn(*VECTOR, seed=1).abs() * 40)


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def test_what_ran_out_of_sight_is_found_by_the_sum():
    with pytest.raises(ArithmeticError, match=r"of row 0 of a batch should add up to .* ran out of sight"):
        explained(Made(Cubed.apply), drawn(*VECTOR))
    with pytest.raises(ArithmeticError, match="try model.double"):
        explained(Made(Cubed.apply), drawn(*VECTOR).float())


def test_checkpointing_is_refused():
    model = Made(lambda x: checkpoint(torch.tanh, x, use_reentrant=False))
    with pytest.raises(RuntimeError, match="DeepLIFT cannot pass checkpointing"):
        explained(model, drawn(*VECTOR))


def test_outputs_that_are_no_shares_of_anything_are_refused():
    x = drawn(*VECTOR)
    with pytest.raises(ValueError, match="does not depend on the inputs"):
        explained(Made(lambda x: x.detach() * 0), x)
    model = Made(torch.relu)
    with pytest.raises(ValueError, match=r"one number per sample, shape \(4,\); it gave \(4, 6\)"):
        differences(model, lambda parts: model(parts[""]), lambda _, raw: raw, {"": x}, {"": 0 * x})
    with pytest.raises(TypeError, match="needs float32 or float64"):
        explained(Made(lambda x: x.to(torch.bfloat16).relu()), x)
