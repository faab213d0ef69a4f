"""Whole nets: gradient × input where it must be, branch by branch; balanced books; nothing left behind."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.propagation.composites import NAMES, composite
from dualview.engine.propagation.trace import Propagation, trace
from dualview.engine.site import Site
from dualview.errors import NonFiniteError

absorbing = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")


class Residual(nn.Module):
    """Skips, one ReLU five times, functional calls, in-place forms, concatenation, a layer used twice."""

    def __init__(self, *, bias: bool = False, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=bias)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=bias, groups=2)
        self.down = nn.Conv2d(4, 4, 1, stride=2, bias=bias)
        self.relu = nn.ReLU(inplace=inplace)
        self.fc = nn.Linear(12, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.relu(self.conv(x))
        y = self.conv(y)
        y += x
        y = self.relu(y)
        z = F.relu(self.down(y), inplace=True) + F.max_pool2d(x, 2)
        w = F.interpolate(F.avg_pool2d(self.relu(z), 2), scale_factor=2)
        joined = torch.cat([z, w, self.relu(w - z)], 1)
        return self.fc(F.adaptive_avg_pool2d(F.pad(joined, (1, 0)), 1).flatten(1))


class InputWrittenTo(nn.Module):
    """Changes its own input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        first = x[:, :2]
        y = self.fc(x)
        x.relu_()
        first *= 3
        x[:, 3] = 0
        y += x
        return self.out(F.relu_(y))


class Wide(nn.Module):
    """Reads its input twice, through a view that is changed later, and through in-place sums of both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, -x], 1).view(-1, 2, 3)
        left, right = both[:, 0], both[:, 1]
        left.relu_()
        right.copy_(self.a(left) + right)
        both.neg_()
        return self.b(both.flatten(1))


def images(seed: int = 0) -> Tensor:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    x[:, :, :2] = 0
    return x


NETS = {
    "residual": (Residual, images()),
    "residual out of place": (lambda: Residual(inplace=False), images()),
    "input written to": (InputWrittenTo, images()[:, 0, 2:3, :4].flatten(1)),
    "views written to": (Wide, images()[:, 1, 3:4, :3].flatten(1)),
}


def gradient_times_input(model: nn.Module, x: Tensor, seed: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf), leaf, seed)
    return gradient * x


@torch.no_grad()
def differences_times_input(model: nn.Module, x: Tensor, seed: Tensor) -> Tensor:
    """Return the same by central differences: autograd refuses nets that overwrite what it keeps."""
    step = 1e-6 * torch.eye(x[0].numel(), dtype=x.dtype)
    found = torch.zeros_like(x).flatten(1)
    for k, change in enumerate(step.reshape(-1, *x.shape[1:])):
        found[:, k] = ((model(x + change) - model(x - change)) * seed).sum(1) / 2e-6
    return found.reshape(x.shape) * x


def one_hot(passed, column: int = 1) -> Tensor:
    seed = torch.zeros_like(passed.logits)
    seed[:, column] = 1
    return seed


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, x = NETS[name]
    return make().double().eval(), x


@pytest.mark.parametrize("name", NETS)
def test_without_biases_relevance_is_gradient_times_input(name: str):
    model, x = made(name)
    given = x.clone()
    # The differences are of numbers around 1, rounded at 1e-16, over steps of 1e-6.
    reference, rounding = (differences_times_input, 1e-8) if "written" in name else (gradient_times_input, 1e-14)
    for epsilon, tolerance in ((0.0, rounding), (1e-10, 1e-6)):
        passed = trace(model, x, composite("epsilon", epsilon=epsilon))
        found = passed.propagate(gradient=one_hot(passed))
        expected = reference(model, x, one_hot(passed))
        error = (found.relevance - expected).abs().max() / expected.abs().max()
        assert float(error) <= tolerance
        with torch.no_grad():
            torch.testing.assert_close(passed.logits, model(x.clone()), rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(
            found.relevance.sum((1, 2, 3) if x.ndim == 4 else 1), passed.logits[:, 1], atol=1e-8, rtol=0
        )
    assert torch.equal(x, given)


@absorbing
@pytest.mark.parametrize("inplace", [False, True])
def test_relevance_of_each_branch_is_its_gradient_times_activation(inplace: bool):
    """At every site the relevance is activation × gradient of what flows through there, with biases too."""
    torch.manual_seed(0)
    model = Residual(bias=True, inplace=inplace).double().eval()
    calls = [0, 1, 2, 4] if inplace else range(5)  # in place, call 3 changes what others read: it is another net
    sites = [Site("relu", side, call) for call in calls for side in ("input", "output")]
    sites += [Site("conv", "input", 0), Site("conv", "output", 1), Site("down", "input"), Site("fc", "input")]
    passed = trace(model, images(), composite("epsilon", epsilon=0.0), sites=sites)
    found = passed.propagate(gradient=one_hot(passed))
    for site in sites:
        at_site = patched(model, images(), site)
        torch.testing.assert_close(found.sites[site], at_site, rtol=1e-10, atol=1e-15, msg=str(site))


def patched(model: nn.Module, x: Tensor, site: Site) -> Tensor:
    """Return gradient × activation for a copy handed on at the site, in a net without in-place operations."""
    model = copy.deepcopy(model)
    model.relu.inplace = False
    seen, calls = [], iter(range(99))

    def swap(value: Tensor) -> Tensor | None:
        if next(calls) != site.call:
            return None
        seen.append(value.clone())
        return seen[0] * 1  # changed in place later

    module = model.get_submodule(site.module)
    if site.side == "input":
        module.register_forward_pre_hook(lambda _, args: swap(args[0]))
    else:
        module.register_forward_hook(lambda _, args, output: swap(output))
    (gradient,) = torch.autograd.grad(model(x.requires_grad_())[:, 1].sum(), seen)
    return (gradient * seen[0]).detach()


@absorbing
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", ["absorb", "exclude", "share"])
@pytest.mark.parametrize("name", NAMES)
def test_the_books_balance(name: str, bias: str, dtype: torch.dtype):
    torch.manual_seed(0)
    model = Residual(bias=True).to(dtype)
    passed = trace(model, images().to(dtype), composite(name, bias=bias))
    found = passed.propagate(gradient=one_hot(passed))
    account = found.account
    # Again, from the result itself, sample by sample.
    absorbed = sum((entry.amount for entry in account.absorbed), torch.zeros(3, dtype=dtype))
    scale = account.seed.abs().sum() + sum(entry.amount.abs().sum() for entry in account.absorbed)
    left = account.seed - found.relevance.sum((1, 2, 3)) - absorbed
    assert float(left.abs().max()) <= (1e-6 if dtype == torch.float64 else 1e-3) * float(scale)
    torch.testing.assert_close(account.seed, passed.logits[:, 1])
    if name == "epsilon" and bias == "absorb":
        assert {entry.kind for entry in account.absorbed} == {"bias", "epsilon"}


@absorbing
def test_passes_from_one_trace_are_independent_and_linear_in_the_seed():
    torch.manual_seed(0)
    passed = trace(Residual(bias=True).double(), images(), composite("epsilon-alpha2-beta1-flat"))
    first, second = (passed.propagate(gradient=one_hot(passed, column)) for column in (0, 1))
    both = passed.propagate(gradient=2 * one_hot(passed, 0) - one_hot(passed, 1))
    torch.testing.assert_close(both.relevance, 2 * first.relevance - second.relevance)
    again = passed.propagate(gradient=one_hot(passed, 0))
    assert torch.equal(again.relevance, first.relevance)
    assert len(again.account.absorbed) == len(first.account.absorbed)


@absorbing
def test_samples_do_not_mix():
    torch.manual_seed(0)
    model = Residual(bias=True).double()
    together = trace(model, images(), composite("epsilon-plus"))
    all_at_once = together.propagate(gradient=one_hot(together))
    for k in range(3):
        alone = trace(model, images()[k : k + 1], composite("epsilon-plus"))
        found = alone.propagate(gradient=one_hot(alone))
        torch.testing.assert_close(found.relevance[0], all_at_once.relevance[k], rtol=1e-9, atol=1e-14)


@absorbing
def test_relevance_can_be_seeded_at_a_site():
    torch.manual_seed(0)
    model, site = Residual(bias=True, inplace=False).double(), Site("relu", "output", 2)
    passed = trace(model, images(), composite("epsilon", epsilon=0.0), sites=[site])
    relevance = torch.randn_like(passed.at(site))
    found = passed.propagate(relevance=relevance, at=site)
    features = passed.at(site)
    m = torch.where(features == 0, 0, relevance / features)
    again = passed.propagate(gradient=m, at=site)
    torch.testing.assert_close(found.relevance, again.relevance)
    assert found.sites[site] is relevance
    dead = relevance[features == 0].sum().item()
    assert dead != 0
    (lost,) = [entry for entry in found.account.absorbed if entry.place.operation == "seed"]
    assert lost.kind == "zero denominator"
    assert lost.total == pytest.approx(dead, rel=1e-12)


def test_each_floating_point_input_gets_its_own_map():
    class Two(nn.Module):
        def forward(self, *, image: Tensor, row: Tensor, index: Tensor) -> Tensor:
            index += 1
            return image[:, index] + 2 * row

    inputs = {"image": torch.ones(2, 3), "row": torch.full((2, 1), 5.0), "index": torch.tensor([0, 1])}
    found = trace(Two(), inputs, composite("epsilon")).propagate(gradient=torch.ones(2, 2))
    assert found.inputs.keys() == {"image", "row"}
    assert found.inputs["image"].tolist() == [[0, 1, 1]] * 2
    assert found.inputs["row"].tolist() == [[20], [20]]
    assert inputs["index"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="there are 2 inputs: read `.inputs`, by 'image', 'row'"):
        _ = found.relevance


def test_the_seed_is_checked():
    passed = trace(nn.Linear(3, 2), torch.ones(4, 3), composite("epsilon"))
    with pytest.raises(TypeError, match="either `gradient` or `relevance`"):
        passed.propagate()
    with pytest.raises(ValueError, match=r"`gradient` has shape \(4, 3\); the seed's place has \(4, 2\)"):
        passed.propagate(gradient=torch.ones(4, 3))
    with pytest.raises(NonFiniteError, match="`relevance` is so as given"):
        passed.propagate(relevance=torch.full((4, 2), torch.nan))
    with pytest.raises(ValueError, match="was not asked for"):
        passed.propagate(relevance=torch.ones(4, 2), at=Site("", "output"))


# ── what the user's model may bring along ────────────────────────────────────────────────────────


@absorbing
def test_a_caller_under_no_grad_gets_the_same():
    torch.manual_seed(0)
    model, expected = Residual(bias=True).double(), None
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            passed = trace(model, images(), composite("epsilon-plus-flat"))
            found: Propagation = passed.propagate(gradient=one_hot(passed))
        expected = found if expected is None else expected
        assert torch.equal(found.relevance, expected.relevance)
        assert not found.relevance.requires_grad


@absorbing
def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(Residual(bias=True), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    x = images().float().requires_grad_()
    passed = trace(model, x, composite("epsilon-plus"), sites=[Site("0.fc", "input")])
    passed.propagate(gradient=one_hot(passed))
    assert x.grad is None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in (model, model[0], model[1], model[2])] == [True, False, True, True]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_hooks_are_removed_after_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.Softmax(1))
    with pytest.raises(NotImplementedError, match=r"operation 'softmax' in module '1' \(Softmax\)"):
        trace(model, torch.ones(1, 3), composite("epsilon"), sites=[Site("0", "input")])
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert model(torch.ones(1, 3)).requires_grad


def test_a_users_forward_hooks_run_by_their_rules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)).double()
    model[0].register_forward_hook(lambda module, args, output: output + args[0])
    model[1].register_forward_pre_hook(lambda module, args: args[0] * 2)
    x = torch.randn(2, 3).double()
    passed = trace(model, x, composite("epsilon", epsilon=0.0))
    found = passed.propagate(gradient=one_hot(passed))
    torch.testing.assert_close(found.relevance, gradient_times_input(model, x, one_hot(passed)))
    model[0].register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(NotImplementedError, match="'detach' in module '0' .*remove the hook"):
        trace(model, x, composite("epsilon"))
