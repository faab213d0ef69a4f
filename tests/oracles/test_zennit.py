"""Relevance against Zennit 0.5.1, which computes it module by module.

On plain sequential networks the two agree to rounding, at the input and behind every module. On
residuals they agree only once Zennit is shown the sum as a module. `test_zennit_differences.py` has
the rest.
"""

import copy

import pytest
import torch
import zennit
from torch import Tensor, nn
from zennit import composites, rules
from zennit.canonizers import AttributeCanonizer, SequentialMergeBatchNorm
from zennit.layer import Sum
from zennit.types import AvgPool, Linear

from dualview import LRP
from dualview.engine.site import Site
from dualview.features.lrp import AlphaBeta, Composite, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus

# How much is absorbed is compared, not judged.
pytestmark = pytest.mark.filterwarnings("ignore::dualview.errors.DualViewWarning")

# Zennit divides by z + this: by z itself, unless z = 0. Ours is told epsilon = 0.
TINY = 1e-100
LOW, HIGH = -3.0, 2.5
# Of the largest relevance. Both are exact up to rounding, which small denominators magnify.
ROUNDING = 1e-12


def with_eps_zero(norm: nn.Module) -> nn.Module:
    """Fill batch norm's statistics; eps = 0 keeps Zennit's merging right (see the differences)."""
    norm.eps = 0.0
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.weight, 1)
    nn.init.normal_(norm.bias, 1)
    return norm


NETS = {
    "2d": lambda: [
        nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False),
        with_eps_zero(nn.BatchNorm2d(6)),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=3, padding=2, dilation=2),
        nn.ReLU(),
        nn.MaxPool2d(2, padding=1),
        nn.Conv2d(6, 4, (1, 3), padding=(0, 1)),
        with_eps_zero(nn.BatchNorm2d(4)),
        nn.ReLU6(),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.LazyLinear(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ],
    "1d": lambda: [
        nn.Conv1d(3, 4, 5, stride=2),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose1d(4, 3, 3, stride=2),
        with_eps_zero(nn.BatchNorm1d(3)),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(12, 3),
    ],
    "3d": lambda: [
        nn.Conv3d(1, 4, 2, stride=(1, 2, 1), padding=(0, 1, 0)),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2), stride=1),
        nn.Conv3d(4, 2, 2, groups=2, bias=False),
        with_eps_zero(nn.BatchNorm3d(2)),
        nn.ReLU(),
        nn.AvgPool3d(2),
        nn.Flatten(),
        nn.LazyLinear(3),
    ],
    "dense": lambda: [
        nn.Flatten(),
        nn.LazyLinear(9),
        with_eps_zero(nn.BatchNorm1d(9)),
        nn.ReLU(),
        nn.Linear(9, 7),
        nn.ELU(),
        nn.Linear(7, 3),
    ],
}
SHAPES = {"2d": (3, 9, 8), "1d": (3, 16), "3d": (1, 4, 7, 5), "dense": (11,)}


def made(name: str) -> tuple[nn.Sequential, Tensor]:
    """Return a network and inputs: signed, many of them 0."""
    torch.manual_seed(0)
    x = torch.randn(4, *SHAPES[name], dtype=torch.float64).clamp(LOW, HIGH)
    x[torch.rand(x.shape) < 0.3] = 0
    x[0, ..., :4] = 0  # whole receptive fields
    model = nn.Sequential(*NETS[name]()).double().eval()
    model(x)
    return model, x


def without_biases(model: nn.Sequential) -> nn.Sequential:
    for module in model:
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
        if hasattr(module, "running_mean"):
            nn.init.zeros_(module.running_mean)
    return model


def places(model: nn.Module) -> list[str]:
    """Return the modules behind which relevance is compared: a batch norm's linear operation is part of it."""
    names = [name for name, module in model.named_modules() if name and not list(module.children())]
    modules = dict(model.named_modules())
    merged = {
        name
        for name, follower in zip(names, names[1:], strict=False)
        if isinstance(modules[follower], nn.modules.batchnorm._BatchNorm) and hasattr(modules[name], "weight")
    }
    return [name for name in names[:-1] if name not in merged]


def theirs(model: nn.Module, x: Tensor, composite: zennit.core.Composite, targets: Tensor) -> dict[str, Tensor]:
    """Return Zennit's relevance of the targets' logits, at the input "" and behind modules, and its logits."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    passed = {"": x}
    with composite.context(model):
        for name in places(model):
            model.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: passed.update({name: out}))
        logits = model(x)
        seed = torch.eye(logits.shape[1], dtype=x.dtype)[targets] * logits.detach()
        found = torch.autograd.grad(logits, list(passed.values()), seed)
    return dict(zip(passed, found, strict=True)) | {"logits": logits.detach()}


def agree(model: nn.Module, x: Tensor, method: LRP, composite: zennit.core.Composite) -> None:
    """Assert equal relevance everywhere, and that what Zennit lost on the way is what the account lists."""
    targets = torch.arange(len(x)) % 3
    names = places(model)
    ours = method.attribute(model, x, targets, sites=[Site(name, "output") for name in names])
    their = theirs(model, x, composite, targets)
    found = {"": ours.values} | {site.module: values for site, values in ours.sites.items()}
    for name, values in found.items():
        assert values.abs().max() > 0
        error = (values - their[name]).abs().max() / their[name].abs().max()
        assert error < ROUNDING, f"behind {name or 'the input'!r}: {error:.2g}"
    lost = their["logits"].gather(1, targets[:, None])[:, 0] - their[""].flatten(1).sum(1)
    booked = sum((entry.amount for entry in ours.account.absorbed), torch.zeros(len(x), dtype=x.dtype))
    assert torch.allclose(booked, lost, rtol=0, atol=1e-10 * float(their["logits"].abs().max()))


def zennit_composite(rule, *, first=None) -> zennit.core.Composite:
    """Return one rule for every linear module, batch norm merged, and another for the first one."""
    layers = [*composites.layer_map_base(TINY), (Linear, rule)]
    merge = [SequentialMergeBatchNorm()]
    if first is None:
        return composites.LayerMapComposite(layers, canonizers=merge)
    return composites.SpecialFirstLayerMapComposite(layers, [(Linear, first)], canonizers=merge)


def our_composite(rule, *, first=None) -> Composite:
    return Composite("by hand", rule, rule, rule, first=first)


ZERO_PARAMS = {"absorb": None, "exclude": "bias"}
PAIRS = {
    "epsilon": (Epsilon, rules.Epsilon),
    "gamma": (Gamma, rules.Gamma),
    "z-plus": (ZPlus, rules.ZPlus),
    "alpha2-beta1": (AlphaBeta, rules.AlphaBeta),
}
TERMINAL_PAIRS = {
    "flat": (Flat, rules.Flat),
    "w-square": (WSquare, rules.WSquare),
    "z-box": (
        lambda **options: ZBox(low=LOW, high=HIGH, **options),
        lambda **options: rules.ZBox(LOW, HIGH, **options),
    ),
}


@pytest.mark.parametrize("bias", ZERO_PARAMS)
@pytest.mark.parametrize("rule", PAIRS)
@pytest.mark.parametrize("net", NETS)
def test_proportional_rules_agree(net: str, rule: str, bias: str):
    model, x = made(net)
    if (rule, bias) == ("gamma", "exclude"):
        model = without_biases(model)  # Zennit then mixes z + b and z: see the differences
    ours, their = PAIRS[rule]
    composite = zennit_composite(their(**_tiny(their), zero_params=ZERO_PARAMS[bias]))
    agree(model, x, LRP(our_composite(ours(bias=bias, epsilon=0))), composite)


def _tiny(rule) -> dict[str, float]:
    return {"epsilon" if rule is rules.Epsilon else "stabilizer": TINY}


@pytest.mark.parametrize("bias", ZERO_PARAMS)
@pytest.mark.parametrize("rule", TERMINAL_PAIRS)
@pytest.mark.parametrize("net", NETS)
def test_terminal_rules_agree(net: str, rule: str, bias: str):
    model, x = made(net)
    ours, their = TERMINAL_PAIRS[rule]
    first = their(stabilizer=TINY, zero_params=ZERO_PARAMS[bias])
    composite = zennit_composite(rules.ZPlus(TINY, zero_params="bias"), first=first)
    # Zennit's z-box leaves the bias out in any case, as its paper does: see the differences
    first = ours(bias="exclude" if rule == "z-box" else bias, epsilon=0)
    agree(model, x, LRP(our_composite(ZPlus(bias="exclude", epsilon=0), first=first)), composite)


@pytest.mark.parametrize("bias", ZERO_PARAMS)
@pytest.mark.parametrize(
    ("name", "their"),
    [
        ("epsilon-plus", composites.EpsilonPlus),
        ("epsilon-plus-flat", composites.EpsilonPlusFlat),
        ("epsilon-alpha2-beta1", composites.EpsilonAlpha2Beta1),
        ("epsilon-alpha2-beta1-flat", composites.EpsilonAlpha2Beta1Flat),
    ],
)
@pytest.mark.parametrize("net", NETS)
def test_composites_agree_and_epsilon_differs_in_its_unit_alone(net: str, name: str, their, bias: str):
    """Zennit's epsilon is absolute; given ours, in units of the largest denominator, it computes the same."""
    model, x = made(net)
    epsilon = 0.05

    def stabilised(z: Tensor) -> Tensor:
        largest = z.abs().flatten(1).amax(1).reshape(-1, *[1] * (z.ndim - 1))
        return z + torch.copysign(epsilon * largest, z)

    composite = their(
        epsilon=stabilised,
        stabilizer=stabilised,
        zero_params=ZERO_PARAMS[bias],
        layer_map=[(AvgPool, rules.Norm(TINY))],  # ours divides nothing there, and needs no epsilon
        canonizers=[SequentialMergeBatchNorm()],
    )
    agree(model, x, LRP(name, bias=bias, epsilon=epsilon), composite)


# ── residuals ────────────────────────────────────────────────────────────────────────────────────


class Block(nn.Module):
    """x + f(x), as people write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(width, 20, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(20, width, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def stacked(self: Block, x: Tensor) -> Tensor:
    return self.canonizer_sum(torch.stack([x, self.f(x)], -1))


def sum_modules() -> AttributeCanonizer:
    """Return a canonizer as Zennit has one for torchvision's residual networks: the sum becomes a module."""
    return AttributeCanonizer(
        lambda _, module: (
            {"forward": stacked.__get__(module), "canonizer_sum": Sum()} if isinstance(module, Block) else None
        )
    )


def residual() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), Block(4), nn.ReLU(), Block(4), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, 3, bias=False),
    )  # fmt: skip
    return model.double().eval(), torch.randn(3, 2, 7, 7, dtype=torch.float64)


def through(function: nn.Module, h: Tensor, relevance: Tensor) -> Tensor:
    """Return what plain epsilon without biases hands from a function's output to its input: h · Jᵀ(R / f(h))."""
    output, pull_back = torch.func.vjp(function, h)
    assert (output != 0).all()  # or Zennit would lose the relevance there
    return (h * pull_back(relevance / output)[0]).detach()


def test_residuals_are_gradient_times_input_and_zennit_gives_each_branch_the_whole():
    """Autograd's add hands its relevance to both branches, so without a Sum module each block doubles it."""
    model, x = residual()
    conv, relu, block_1, _, block_2, *head = model

    def doubled(block: nn.Module, h: Tensor, relevance: Tensor) -> Tensor:
        return relevance + through(block.f, h, relevance)

    logits = model(x).detach()[:, :1]
    h_1 = relu(conv(x))
    h_2 = relu(block_1(h_1))
    whole = through(nn.Sequential(*head), block_2(h_2), logits * torch.eye(3).to(x)[:1])
    by_hand = through(conv, x, doubled(block_1, h_1, doubled(block_2, h_2, whole)))  # a ReLU passes all

    plain = composites.LayerMapComposite([*composites.layer_map_base(TINY), (Linear, rules.Epsilon(TINY))])
    their = theirs(model, x, plain, torch.zeros(3, dtype=torch.long))[""]
    assert torch.allclose(their, by_hand, rtol=0, atol=1e-11 * float(by_hand.abs().max()))
    assert torch.allclose(their.flatten(1).sum(1), 4 * logits[:, 0], rtol=1e-9)

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    ours = LRP("epsilon", epsilon=0).attribute(model, x.detach(), 0)
    expected = gradient * x.detach()
    assert torch.allclose(ours.values, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    assert not ours.account.absorbed
    assert (their - expected).abs().max() > expected.abs().max()


@pytest.mark.parametrize("rule", PAIRS)
def test_with_a_sum_module_zennit_agrees_branch_by_branch(rule: str):
    model, x = residual()
    ours, their = PAIRS[rule]
    layers = [*composites.layer_map_base(TINY), (Linear, their(**_tiny(their)))]
    composite = composites.LayerMapComposite(layers, canonizers=[sum_modules()])
    agree(model, x, LRP(our_composite(ours(epsilon=0))), composite)
