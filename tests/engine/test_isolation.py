"""Nothing is left behind: modes, gradients, buffers, hooks, random states, even after an exception."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from dualview.engine.isolation import device_of, untouched


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.drop(self.body(self.norm(x))))


def mixed_net() -> Net:
    """A network as one meets it in fine-tuning: half frozen, in both modes, with gradients and a hook."""
    net = Net().train()
    net.norm.eval()
    net.body[1].eval()
    net.norm.weight.requires_grad_(False)
    net.fc(torch.randn(3, 4)).sum().backward()
    net.fc.register_forward_hook(lambda *_: None)
    return net


def state_of(net: nn.Module) -> dict[str, object]:
    return {
        "modes": {name: module.training for name, module in net.named_modules()},
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()],
        "tensors": {name: tensor.clone().tolist() for name, tensor in net.state_dict().items()},
        "needs": {name: p.requires_grad for name, p in net.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.tolist() for name, p in net.named_parameters()},
    }


def global_state() -> tuple:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    autocast = torch.is_autocast_enabled("cpu")
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, torch.get_default_dtype()
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate(), modes


def draw_and_run(net: Net) -> None:
    torch.randn(7), np.random.rand(5), random.random()  # noqa: NPY002
    net(torch.randn(6, 4))


def test_model_and_global_state_are_as_before():
    net = mixed_net()
    before, around = state_of(net), global_state()
    with untouched(net):
        draw_and_run(net)
    assert state_of(net) == before
    assert global_state() == around


def test_the_same_after_an_exception():
    net = mixed_net()
    before, around = state_of(net), global_state()
    with pytest.raises(ZeroDivisionError), untouched(net):
        draw_and_run(net)
        _ = 1 / 0
    assert state_of(net) == before
    assert global_state() == around


def test_inside_there_is_evaluation_mode_without_gradients_and_autocast():
    net = mixed_net()
    x = torch.randn(6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with untouched(net):
            assert not any(module.training for module in net.modules())
            first, second = net(x), net(x)
            assert first.dtype == torch.float32 and not first.requires_grad
            assert torch.equal(first, second)  # no dropout, and no batch statistics moved
        assert torch.is_autocast_enabled("cpu")


def test_inside_inference_mode_the_tensors_made_are_normal_ones():
    with torch.inference_mode():
        with untouched():
            made = torch.ones(2)
            assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled()
    assert not made.is_inference()


def test_it_nests_and_needs_no_model():
    net = mixed_net()
    before, around = state_of(net), global_state()
    with untouched(), untouched(net), untouched(net):
        draw_and_run(net)
    assert state_of(net) == before
    assert global_state() == around


def test_a_module_that_freezes_itself_is_restored_by_its_flag_not_its_train_method():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            raise AssertionError("train() of a user's module may do anything")

    net = nn.Sequential(Frozen(3))
    with untouched(net):
        assert not net[0].training
    assert net[0].training


def test_the_device_is_the_first_tensors():
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")
    only_buffers = nn.Module()
    only_buffers.register_buffer("mean", torch.zeros(1, device="meta"))
    assert device_of(only_buffers) == torch.device("meta")
