"""Nets that hide an operation: each raises and names it; none passes silently."""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.trace import trace


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.aten.pow.Tensor_Scalar(x, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0]


class Doubled(torch.autograd.Function):
    """Computes with numpy, so that no torch call shows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return torch.from_numpy(x.detach().numpy() * 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient


class ViewBackward0(Doubled):
    """Bears the name of a torch function that rearranges."""


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            x.copy_(x * 2)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def square(x: Tensor) -> Tensor:
    return x * x


class NoGrad(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2


@torch.inference_mode()
def inferred(x: Tensor) -> Tensor:
    return x * 2


def cut_square(x: Tensor) -> Tensor:
    return (x * x).detach()


def out_of_sight(x: Tensor, *, cut: bool = False) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x.exp().detach() if cut else x.exp()


def on_a_view(x: Tensor) -> Tensor:
    y = x * 1
    InPlace.apply(y[:, 1:])
    return y


def with_out(x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    torch.add(x, x, out=made)
    return made


STRANGER = torch.ones(3, requires_grad=True)
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit")  # deprecated, but still about
    SCRIPTED = torch.jit.script(Square())
    SCRIPTED_FUNCTION = torch.jit.script(square)
    SCRIPTED_CUT = torch.jit.script(cut_square)
    TRACED = torch.jit.trace(Square(), torch.ones(2, 3))

HIDDEN = {
    "custom function": (Squared.apply, "'pow.Tensor_Scalar'"),
    "custom function in numpy": (Doubled.apply, "'DoubledBackward'"),
    "custom function with torch's name": (ViewBackward0.apply, "'ViewBackward0Backward'"),
    "custom function in place": (lambda x: InPlace.apply(x * 1), "'InPlaceBackward'"),
    "custom function in place on a view": (on_a_view, "CopySlices'"),
    "scripted module": (SCRIPTED, "module 'block': it is scripted"),
    "traced module": (TRACED, "module 'block': it is scripted or traced"),
    "scripted function": (SCRIPTED_FUNCTION, "'MulBackward0'"),
    "function mode switched off": (out_of_sight, "'ExpBackward0'"),
    "scripted function that cuts off": (SCRIPTED_CUT, "'aten.mul.Tensor'"),
    "function mode switched off, cut off": (lambda x: x + 1e-3 * out_of_sight(x, cut=True), "'aten.exp.default'"),
    "product": (lambda x: x * torch.sigmoid(x), "'mul'"),
    "square": (lambda x: x**2, "'pow'"),
    "divisor": (lambda x: 1 / (x.abs() + 1), "'__rtruediv__'|'reciprocal'|'__rdiv__'"),
    "norm": (lambda x: x / x.norm(dim=1, keepdim=True), "'norm'"),
    "normalize": (F.normalize, "'normalize'"),
    "softmax": (lambda x: x.softmax(1), "'softmax'"),
    "layer norm": (nn.LayerNorm(3), "'layer_norm'"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "'scaled_dot_product_attention'"),
    "product of matrices": (lambda x: x @ x.T, "'matmul'"),
    "operator of the lowest level": (torch.ops.aten.relu, "'relu'"),
    "detach": (lambda x: x + x.detach(), "'detach'"),
    "data": (lambda x: x + x.data, "'data'"),
    "numpy": (lambda x: x + torch.from_numpy(x.numpy()), "'numpy'"),
    "item": (lambda x: x / x.abs().max().item(), "'item'"),
    "float": (lambda x: x / float(x.abs().max()), "'__float__'"),
    "list": (lambda x: x + torch.tensor(x.tolist()), "'tolist'"),
    "copy of a tensor": (lambda x: x + torch.tensor(x), "'tensor'"),
    "no_grad": (NoGrad(), "'mul'"),
    "inference_mode": (inferred, "'mul'"),
    "parameter": (lambda x: x * nn.Parameter(x), "'mul'"),
    "parameter of a passing value": (lambda x: x * nn.Parameter(2 * x, requires_grad=False).exp(), "'exp'"),
    "dlpack": (lambda x: x * torch.from_dlpack(torch.utils.dlpack.to_dlpack(x)), "'mul'"),
    "vmap": (torch.vmap(lambda row: row * row), "torch.func"),
    "gradient": (torch.func.grad(lambda y: (y * y).sum()), "torch.func"),
    "checkpoint": (lambda x: checkpoint(torch.relu, x, use_reentrant=True), "'relu'"),
    "sign": (lambda x: x + x.sign(), "'sign'"),
    "round": (lambda x: x.round(), "'round'"),
    "out": (with_out, "'add'"),
    "lstm": (lambda x: nn.LSTM(3, 3)(x)[0], "'lstm'"),
    "sort of ints": (lambda x: x + x.long(), "'long'"),
}


class Net(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(3, 3), nn.Linear(3, 2)
        self.block = between if isinstance(between, nn.Module) else Block(between)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.block(self.before(x))[..., :3].reshape(len(x), -1)[:, :3])


class Block(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_operation_raises_and_is_named_with_its_module(name: str):
    between, operation = HIDDEN[name]
    with pytest.raises(NotImplementedError, match=rf"(?s)no relevance rule for .*({operation})") as raised:
        trace(Net(between), torch.randn(3, 3), composite("epsilon"))
    assert "'block'" in str(raised.value)


def test_tensor_hooks_that_look_are_let_through_and_those_that_change_are_not():
    seen: list[Tensor] = []

    def watch(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        output.register_hook(seen.append)

    def hooked(hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor]:
        def between(x: Tensor) -> Tensor:
            x.register_hook(hook)
            x.retain_grad()
            return x

        return between

    def relevance(between: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Net(between)
        net.after.register_forward_hook(watch)
        passed = trace(net, torch.ones(2, 3), composite("epsilon"))
        return passed.propagate(gradient=torch.ones(2, 2)).relevance

    expected, found = relevance(lambda x: x), relevance(hooked(seen.append))
    assert torch.equal(found, expected)
    assert [tuple(gradient.shape) for gradient in seen] == [(2, 2), (2, 2), (2, 3)]
    with pytest.raises(NotImplementedError, match=r"a tensor hook \(register_hook\) returns another gradient"):
        relevance(hooked(lambda gradient: 2 * gradient))


def test_checkpointing_that_runs_code_again_is_refused():
    with pytest.raises(RuntimeError, match="relevance cannot pass checkpointing"):
        trace(Net(lambda x: checkpoint(torch.relu, x, use_reentrant=False)), torch.randn(3, 3), composite("epsilon"))


def test_the_last_step_is_audited_too():
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(x * 1)

    with pytest.raises(NotImplementedError, match=r"no relevance rule for 'DoubledBackward', made inside module ''"):
        trace(Last(), torch.randn(2, 3), composite("epsilon"))


def test_a_stranger_that_asks_for_gradients_is_a_constant():
    """A weight that lives outside the model, in or out of a module, is no input."""
    found = trace(Block(lambda x: x * STRANGER + (2 * STRANGER - 2)), torch.ones(2, 3), composite("epsilon"))
    assert torch.equal(found.propagate(gradient=torch.ones(2, 3)).relevance, torch.ones(2, 3))
    assert STRANGER.grad is None


def test_an_output_without_the_input_is_refused():
    with pytest.raises(ValueError, match="output does not depend on its inputs"):
        trace(Block(lambda x: (x > 0).float()), torch.randn(2, 3), composite("epsilon"))


def test_a_full_backward_hook_is_refused():
    model = Net(nn.ReLU())
    model.block.register_full_backward_hook(lambda *_: None)
    with pytest.raises(NotImplementedError, match="module 'block'.*backward hook.*remove it for this call"):
        trace(model, torch.randn(2, 3), composite("epsilon"))


def test_writing_into_a_buffer_of_the_model_is_refused():
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.cache[:, 1:] = x[:, 1:]
            return x + self.cache

    model = Keeps()
    with pytest.raises(NotImplementedError, match="'__setitem__' .*writes what depends on the input into 'cache'"):
        trace(model, torch.randn(2, 3), composite("epsilon"))
    assert not model.cache.requires_grad
    assert model.cache.abs().sum() == 0


def test_the_message_says_what_to_do():
    with pytest.raises(NotImplementedError) as raised:
        trace(Net(lambda x: x + x.detach()), torch.randn(2, 3), composite("epsilon"))
    expected = "operation 'detach' in module 'block' (Block): it cuts the value off from the input"
    assert re.search(re.escape(expected), str(raised.value))
