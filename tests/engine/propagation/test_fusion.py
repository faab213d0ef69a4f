"""Batch norm behind a linear operation is folded into it as torch folds it; elsewhere it stands alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.rules import Gamma, ZPlus
from dualview.engine.propagation.trace import trace
from dualview.engine.site import Site

pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")

LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), nn.BatchNorm1d, (4,)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), nn.BatchNorm1d, (4,)),
    "conv1d": (lambda: nn.Conv1d(2, 6, 3), nn.BatchNorm1d, (2, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), nn.BatchNorm2d, (4, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 6, 2), nn.BatchNorm3d, (1, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d, (4, 3, 3)),
    "transposed in groups": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d, (4, 3, 3)),
}


def norm_of(kind, channels: int) -> nn.Module:
    norm = kind(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.3, 3)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    return norm


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    make, kind, shape = LAYERS[name]
    layer, norm = make().double().eval(), norm_of(kind, 6).double().eval()
    return layer, norm, torch.randn(3, *shape).double()


def fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    if getattr(layer, "transposed", False) and layer.groups > 1:  # torch's own is wrong for groups
        return by_hand(layer, norm)
    return fuse_conv_bn_eval(layer, norm, transpose=layer.transposed)


def by_hand(layer: nn.ConvTranspose2d, norm: nn.Module) -> nn.Module:
    """Scale each group's outputs, which torch.cat puts one after the other."""
    made, scale = copy.deepcopy(layer), norm.weight / torch.sqrt(norm.running_var + norm.eps)
    rows, columns = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for group in range(layer.groups):
        for k in range(columns):
            made.weight.data[group * rows : (group + 1) * rows, k] *= scale[group * columns + k]
    made.bias.data = ((layer.bias - norm.running_mean) * scale + norm.bias).detach()
    return made


@pytest.mark.parametrize("bias", ["absorb", "exclude", "share"])
@pytest.mark.parametrize("rule", ["epsilon", "gamma", "epsilon-plus-flat", "epsilon-alpha2-beta1"])
@pytest.mark.parametrize("name", LAYERS)
def test_folding_equals_the_fused_copy(name: str, rule: str, bias: str):
    layer, norm, x = pair(name)
    rules = composite(rule, bias=bias)
    folded = trace(nn.Sequential(layer, norm, nn.Flatten()), x, rules)
    copied = trace(nn.Sequential(fused(layer, norm), nn.Flatten()), x, rules)
    torch.testing.assert_close(folded.logits, copied.logits)
    seed = torch.randn_like(folded.logits)
    mine, theirs = (passed.propagate(relevance=seed) for passed in (folded, copied))
    # Denominators that nearly cancel amplify the rounding of the two ways to write the same weights.
    torch.testing.assert_close(mine.relevance, theirs.relevance, rtol=1e-8, atol=1e-10)


class Shared(nn.Module):
    """A convolution whose output goes through batch norm and, unfolded, around it."""

    def __init__(self, fold: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 6, 3, bias=False).double(), norm_of(nn.BatchNorm2d, 6).double()
        self.fused = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval()) if fold else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y) if self.fused is None else self.fused(x)
        return torch.cat([F.relu(y), F.relu(z)], 1).flatten(1)


def test_other_consumers_keep_the_unfolded_value():
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    rules = composite({"*": ZPlus(bias="absorb")})
    found = []
    for fold in (False, True):
        passed = trace(Shared(fold).eval(), x, rules)
        m = torch.randn(passed.logits.shape, generator=torch.Generator().manual_seed(1)).double()
        found.append(passed.propagate(gradient=m).relevance)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


class Apart(nn.Module):
    """Batch norm behind something that is no single linear operation."""

    def __init__(self, between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.norm, self.between = nn.Linear(3, 3, bias=False), norm_of(nn.BatchNorm1d, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.between(self.fc(x), x))


@pytest.mark.parametrize(
    "between",
    [lambda y, x: F.relu(y), lambda y, x: y + x, lambda y, x: y.mul_(2), lambda y, x: x],
    ids=["relu", "add", "in place", "other"],
)
def test_elsewhere_it_is_an_operation_of_its_own(between):
    model, x = Apart(between).double().eval(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    found = trace(model, x, composite("epsilon", epsilon=0.0)).propagate(gradient=torch.ones(4, 3).double())
    places = {entry.place.operation: entry.total for entry in found.account.absorbed if entry.kind == "bias"}
    scale = model.norm.weight / torch.sqrt(model.norm.running_var + model.norm.eps)
    shift = (model.norm.bias - model.norm.running_mean * scale).sum().item() * 4
    assert places.keys() == {"batch_norm"}
    assert places["batch_norm"] == pytest.approx(shift, rel=1e-12)


def test_the_rule_of_the_folded_operation_is_that_of_the_layer_before():
    layer, norm, x = pair("conv2d")
    model = nn.Sequential(layer, norm, nn.Flatten())
    passed = trace(model, x, composite({"0": Gamma(gamma=0.5)}))
    m = torch.randn_like(passed.logits)
    found = passed.propagate(gradient=m)
    expected = trace(nn.Sequential(fused(layer, norm), nn.Flatten()), x, composite({"0": Gamma(gamma=0.5)}))
    torch.testing.assert_close(found.relevance, expected.propagate(gradient=m).relevance, rtol=1e-9, atol=1e-12)
    assert {entry.place.operation for entry in found.account.absorbed} == {"conv2d + batch_norm"}


def test_the_statistics_of_a_batch_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(NotImplementedError, match="'batch_norm' in module '1' .*running statistics"):
        trace(model, torch.randn(4, 3), composite("epsilon"))


@pytest.mark.parametrize("site", [Site("0", "output"), Site("1", "input")])
def test_between_a_layer_and_its_folded_batch_norm_nothing_can_be_read(site: Site):
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()).eval()
    with pytest.raises(ValueError, match=r"between operation 'conv2d' in module '0' .* read the batch norm's output"):
        trace(model, torch.randn(2, 1, 3, 3), composite("epsilon"), sites=[site])
    after = Site("1", "output")
    plain, watched = (trace(model, torch.ones(2, 1, 3, 3), composite("gamma"), sites=s) for s in ([], [after]))
    seed = torch.ones_like(plain.logits)
    found = watched.propagate(gradient=seed)
    assert torch.equal(found.relevance, plain.propagate(gradient=seed).relevance)
    assert found.sites[after].sum() == pytest.approx(float(watched.logits.sum()), rel=1e-6)
