"""Relevance against Zennit 0.5.1, which computes it module by module.

On plain sequential networks the two agree, at the input and behind every module, to rounding. Where
they do not, a test below derives Zennit's number from what it does, and says who follows the paper.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

zennit = pytest.importorskip("zennit")
from zennit import composites, rules  # noqa: E402
from zennit.canonizers import AttributeCanonizer, SequentialMergeBatchNorm  # noqa: E402
from zennit.layer import Sum  # noqa: E402
from zennit.types import AvgPool, Linear  # noqa: E402

from dualview import LRP  # noqa: E402
from dualview.engine.site import Site  # noqa: E402
from dualview.features.lrp import AlphaBeta, Composite, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus  # noqa: E402

# How much is absorbed is compared, not judged.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")

# Zennit divides by z + this: by z itself, unless z = 0. Ours is told epsilon = 0.
TINY = 1e-100
LOW, HIGH = -3.0, 2.5
# Of the largest relevance. Both are exact up to rounding, which small denominators magnify.
ROUNDING = 1e-11


def with_eps_zero(norm: nn.Module) -> nn.Module:
    """Fill batch norm's statistics; eps = 0 keeps Zennit's merging right (see below)."""
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
SHAPES = {"2d": (3, 9, 8), "1d": (3, 16), "dense": (11,)}


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
        seed = torch.eye(3, dtype=x.dtype)[targets] * logits.detach()
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
    "z-box": (lambda **options: ZBox(low=LOW, high=HIGH, **options), lambda **options: rules.ZBox(LOW, HIGH, **options)),
}


@pytest.mark.parametrize("bias", ZERO_PARAMS)
@pytest.mark.parametrize("rule", PAIRS)
@pytest.mark.parametrize("net", NETS)
def test_proportional_rules_agree(net: str, rule: str, bias: str):
    model, x = made(net)
    if (rule, bias) == ("gamma", "exclude"):
        model = without_biases(model)  # see test_gamma_without_biases_...
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
    # Zennit's z-box leaves the bias out in any case, as its paper does: see test_the_bias_cancels_...
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


# ── where they differ ────────────────────────────────────────────────────────────────────────────


def both(model: nn.Module, x: Tensor, ours: Composite, their: zennit.core.Composite) -> tuple[Tensor, Tensor]:
    """Return our relevance and Zennit's of the first logit, at the input."""
    targets = torch.zeros(len(x), dtype=torch.long)
    return LRP(ours).attribute(model, x, targets).values, theirs(model, x, their, targets)[""]


def dense(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None).double()
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return layer


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_merged_batch_norm_still_divides_by_its_eps():
    """Zennit's merged batch norm computes x / √(1 + eps), another network; ours explains the user's."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), with_eps_zero(nn.BatchNorm1d(3)), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2, bias=False)
    )
    model[1].eps = 0.21
    model, x = model.double().eval(), torch.randn(3, 2, 6, dtype=torch.float64)
    their = theirs(model, x, zennit_composite(rules.Epsilon(TINY)), torch.zeros(3, dtype=torch.long))
    ours = LRP("epsilon", epsilon=0).attribute(model, x, 0)
    assert torch.allclose(their["logits"] * 1.1, model(x), rtol=1e-12, atol=0)
    assert torch.allclose(their[""] * 1.1, ours.values, rtol=1e-10, atol=1e-14)


def test_batch_norm_of_its_own_passes_all_or_keeps_its_shift():
    """Zennit passes relevance by a batch norm it cannot merge, as ours with biases excluded; ε keeps the shift's part."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), with_eps_zero(nn.BatchNorm1d(4)), nn.Linear(4, 2, bias=False)).double().eval()
    x = torch.rand(3, 4, dtype=torch.float64) + 0.1
    norm, weight = model[1], model[2].weight[0]
    excluded, passed = both(model, x, our_composite(Epsilon(bias="exclude", epsilon=0)), zennit_composite(rules.Epsilon(TINY)))
    absorbed = LRP("epsilon", epsilon=0).attribute(model, x, 0).values
    assert torch.allclose(passed, norm(x) * weight, rtol=1e-12)
    assert torch.allclose(excluded, passed, rtol=1e-12)
    assert torch.allclose(absorbed, x * norm.weight / norm.running_var.sqrt() * weight, rtol=1e-12)


def test_gamma_without_biases_chooses_its_side_by_what_it_divides_by():
    """Zennit favours the sign of z + b although it divides by z's side alone, which then can vanish.

    The generalised rule (Andéol et al. 2021) is stable because what it divides by has the sign it favours.
    """
    model, x = dense([[1.0, -1.0]], bias=[2.0]), rows([1.0, 2.0])  # z = -1, output 1
    ours, their = both(
        model,
        x,
        our_composite(Gamma(gamma=0.25, bias="exclude", epsilon=0)),
        zennit_composite(rules.Gamma(0.25, stabilizer=TINY, zero_params="bias")),
    )
    assert torch.allclose(their, rows([1.25, -2.0]) / -0.75)
    assert torch.allclose(ours, rows([1.0, -2.5]) / -1.5)
    their = theirs(model, x, zennit_composite(rules.Gamma(1.0, zero_params="bias")), torch.tensor([0]))
    assert torch.allclose(their[""], rows([2.0, -2.0]) / 1e-6)  # its own stabiliser, and nothing else


def test_the_bias_cancels_in_zennits_z_box():
    """Zennit subtracts low·w⁺ + b⁺ and high·w⁻ + b⁻ from z + b: no bias is left, as in Montavon et al. 2017.

    So does ours by default; "absorb" leaves b there, and with it its part.
    """
    model, x = dense([[1.0, -2.0], [0.5, 0.5]], bias=[1.5, -0.5]), rows([1.0, -1.0])
    parts = rows([1.0 - LOW, 2.0 + 2 * HIGH])  # of output 0: x w - low w⁺ - high w⁻
    output = model(x)[0, 0]
    found = {}
    for bias in ("exclude", "absorb"):
        ours = our_composite(Epsilon(), first=ZBox(low=LOW, high=HIGH, bias=bias, epsilon=0))
        first = rules.ZBox(LOW, HIGH, stabilizer=TINY, zero_params=ZERO_PARAMS[bias])
        found[bias] = both(model, x, ours, zennit_composite(rules.Epsilon(), first=first))
    assert torch.allclose(found["exclude"][1], parts / parts.sum() * output, rtol=1e-12)
    assert torch.allclose(found["absorb"][1], found["exclude"][1], rtol=1e-12)
    assert torch.allclose(found["exclude"][0], found["exclude"][1], rtol=1e-12)
    assert torch.allclose(found["absorb"][0], parts / (parts.sum() + 1.5) * output, rtol=1e-12)


@pytest.mark.parametrize("sums", [dense([[1.0, 1.0]]), nn.AvgPool1d(2)], ids=["linear", "average pooling"])
def test_contributions_that_cancel_exactly_keep_gradient_times_input(sums: nn.Module):
    """R_i = z_ij / z_j · R_j with R_j = z_j · 3 is 3 z_ij also in the limit z_j → 0; Zennit's is 0 there."""
    model = nn.Sequential(sums, dense([[3.0]])).double()
    x = rows([2.0, -2.0], [2.0, -2.0 + 1e-9]).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    x = x.detach()
    ours, their = both(model, x, our_composite(Epsilon(epsilon=0)), zennit_composite(rules.Epsilon(TINY)))
    assert torch.allclose(ours, gradient * x, rtol=1e-12)
    assert torch.allclose(their[1], ours[1], rtol=1e-6)  # next to it
    assert torch.equal(their[0], torch.zeros(2, dtype=torch.float64))


def test_an_excluded_bias_that_alone_made_the_output_is_booked():
    """Where z = 0, ε (with sign(0) = 1, Bach et al. 2015, eq. 58) would be all there is to divide by."""
    model, x = dense([[1.0, -1.0]], bias=[5.0]), rows([2.0, 2.0])
    their = theirs(model, x, zennit_composite(rules.Epsilon(1e-6, zero_params="bias")), torch.tensor([0]))
    assert torch.allclose(their[""], rows([2.0, -2.0]) * 5 / 1e-6)
    ours = LRP("epsilon", bias="exclude").attribute(model, x, 0)
    assert torch.equal(ours.values, torch.zeros_like(x))
    (entry,) = ours.account.absorbed
    assert (entry.kind, entry.total) == ("zero denominator", 5.0)


def test_an_activations_constant_is_no_share_of_its_input():
    """Zennit hands the whole of sigmoid's relevance on; its f(0) = 1/2 does not depend on the input."""
    model, x = nn.Sequential(nn.Sigmoid(), dense([[2.0, -3.0]])), rows([1.0, -4.0])
    ours = LRP("epsilon", epsilon=0).attribute(model, x, 0)
    their = theirs(model, x, zennit_composite(rules.Epsilon(TINY)), torch.tensor([0]))
    outputs = model[0](x) * rows([2.0, -3.0])
    assert torch.allclose(their[""], outputs, rtol=1e-12)
    assert torch.allclose(ours.values, outputs - 0.5 * rows([2.0, -3.0]), rtol=1e-12)
    (entry,) = ours.account.absorbed
    assert entry.kind == "constant" and entry.total == pytest.approx(-0.5)


class TwoFirst(nn.Module):
    """Two layers see the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = dense([[1.0, 2.0], [-1.0, 3.0]]), dense([[2.0, 1.0], [1.0, 1.0]])
        self.sum, self.head = Sum(), dense([[1.0, 2.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sum(torch.stack([self.a(x), self.b(x)], -1)))


def test_first_is_who_sees_the_input_not_who_was_declared_first():
    """Zennit gives flat to the first module of the list; ours to each layer that sees the input."""
    model, x = TwoFirst(), rows([1.0, 3.0])
    first = rules.Flat(TINY)
    layers = [*composites.layer_map_base(TINY), (Linear, rules.Epsilon(TINY))]
    ours, their = both(
        model,
        x,
        our_composite(Epsilon(epsilon=0), first=Flat(epsilon=0)),
        composites.SpecialFirstLayerMapComposite(layers, [(Linear, first)]),
    )
    weight = model.head.weight
    a, b = ((weight * layer(x)).sum() for layer in (model.a, model.b))
    assert torch.allclose(ours, (a + b) / 2 * torch.ones(1, 2).to(x), rtol=1e-12)
    assert torch.allclose(their, a / 2 + weight @ model.b.weight * x, rtol=1e-12)


# ── residuals ────────────────────────────────────────────────────────────────────────────────────


class Block(nn.Module):
    """x + f(x), as people write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(width, width, 1, bias=False)
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
    return h * pull_back(torch.where(output == 0, 0, relevance / output))[0]


def test_residuals_are_gradient_times_input_and_zennit_gives_each_branch_the_whole():
    """Autograd's add hands its relevance to both branches, so without a Sum module each block doubles it."""
    model, x = residual()
    stem, block_1, block_2, head = model[:2], nn.Sequential(model[2], model[3]), model[4], model[5:]
    targets = torch.zeros(3, dtype=torch.long)

    def doubled(block: nn.Module, h: Tensor, relevance: Tensor) -> Tensor:
        return relevance + through(block.f, h, relevance)

    logits = model(x)[:, :1]
    h_1 = stem(x)
    h_2 = block_1(h_1)
    whole = through(head, block_2(h_2), torch.cat([logits, torch.zeros(3, 2).to(x)], 1))
    by_hand = through(stem, x, doubled(model[2], h_1, doubled(block_2, h_2, whole)))

    plain = composites.LayerMapComposite([*composites.layer_map_base(TINY), (Linear, rules.Epsilon(TINY))])
    their = theirs(model, x, plain, targets)[""]
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
