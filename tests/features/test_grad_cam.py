"""Grad-CAM against class activation maps in closed form and slow twins of the papers' sums."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.errors import DualViewWarning
from dualview.evaluation.tasks.recipes import small_residual
from tests.features.budget import counted, unchecked


class Pooled(nn.Module):
    """Convolution, ReLU, mean over space, linear: Grad-CAM is CAM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


class Deep(nn.Module):
    """Piecewise linear behind the site, strided, with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU()
        self.hidden, self.fc = nn.Linear(4 * 3 * 3, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv(x)).flatten(1)
        return self.fc(F.relu(self.hidden(h)) + h[:, :6])


class Tokens(nn.Module):
    """Patches as tokens behind a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.fc = nn.Conv2d(2, 4, 2, stride=2), nn.Linear(4, 4), nn.Linear(4, 3)
        self.first = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.mix(torch.cat([self.first.expand(len(x), 1, 4), tokens], dim=1)).tanh()
        return self.fc(tokens.square().mean(1))


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind().double().eval()


IMAGES = torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def maps_and_slopes(model: nn.Module, column: int) -> tuple[Tensor, Tensor]:
    maps = torch.relu(model.conv(IMAGES)).detach().requires_grad_()
    h = maps.flatten(1)
    logits = model.fc(F.relu(model.hidden(h)) + h[:, :6])
    (slopes,) = torch.autograd.grad(logits[:, column].sum(), maps)
    return maps.detach(), slopes


def test_with_mean_pooling_it_is_the_class_activation_map():
    """Its sum over space is the logit without its bias; max(0, ·) of it by default."""
    model = made(Pooled)
    with torch.no_grad():
        expected = torch.einsum("nchw,c->nhw", torch.relu(model.conv(IMAGES)), model.fc.weight[2] / 36)[:, None]
        logits = model(IMAGES)[:, 2]
    signed = dv.GradCAM("relu", relu=False).attribute(model, IMAGES, targets=2)
    torch.testing.assert_close(signed.values, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(signed.values.flatten(1).sum(1) + model.fc.bias[2].detach(), logits, rtol=0, atol=1e-13)
    plain = dv.GradCAM("relu").attribute(model, IMAGES, targets=2)
    assert torch.equal(plain.values, signed.values.clamp(min=0)) and (plain.values == 0).any()
    assert signed.kind == "similarity" and signed.site is None and signed.change is None


def test_by_default_the_last_convolution_is_looked_at():
    model = made(Deep)
    default = dv.GradCAM().attribute(model, IMAGES, targets=0)
    assert torch.equal(default.values, dv.GradCAM("conv").attribute(model, IMAGES, targets=0).values)
    assert not torch.equal(default.values, dv.GradCAM("relu").attribute(model, IMAGES, targets=0).values)
    assert list(default.sites) == [dv.Site("conv", "output")]


def test_of_a_residual_network_the_last_block_is_looked_at_and_named():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = small_residual((2, 16, 16), 3).double().eval()
    images = torch.randn(3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    default = dv.GradCAM().attribute(model, images, targets=0)
    assert torch.equal(default.values, dv.GradCAM("5").attribute(model, images, targets=0).values)
    assert not torch.equal(default.values, dv.GradCAM("5.skip.0").attribute(model, images, targets=0).values)
    ((site, maps),) = default.sites.items()
    assert site == dv.Site("5", "output")
    laid = F.interpolate(maps[:, None], size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(laid, default.values, rtol=0, atol=0)


def test_weights_are_mean_slopes():
    model = made(Deep)
    maps, slopes = maps_and_slopes(model, 1)
    small = (slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    expected = F.interpolate(small, size=(6, 6), mode="bilinear", align_corners=False)
    found = dv.GradCAM("relu").attribute(model, IMAGES, targets=1)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-13)


def test_plus_plus_weights_are_the_papers_sums():
    """α from derivatives of Y = exp(f) themselves, one number of one map after another; f is piecewise linear."""
    model = made(Deep)
    maps, slopes = maps_and_slopes(model, 1)
    values = model(IMAGES)[:, 1].detach()
    small = torch.zeros(4, 3, 3, dtype=torch.float64)
    for sample in range(4):
        score = values[sample].exp()
        for channel in range(4):
            a, g = maps[sample, channel], slopes[sample, channel]
            weight = torch.tensor(0.0, dtype=torch.float64)
            for slope in g.flatten():
                first, second, third = (score * slope**order for order in (1, 2, 3))
                denominator = 2 * second + a.sum() * third
                alpha = second / denominator if denominator != 0 else torch.tensor(0.0)
                weight += alpha * first.relu()
            small[sample] += weight / score * a
    expected = F.interpolate(small.relu()[:, None], size=(6, 6), mode="bilinear", align_corners=False)
    found = dv.GradCAM("relu", variant="plus-plus").attribute(model, IMAGES, targets=1)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-13)


def test_plus_plus_on_maps_that_are_not_rectified_stays_finite():
    """ΣA below zero could make the denominator vanish; it counts as zero: w = Σ g⁺ / 2."""
    model = made(Pooled)
    with torch.no_grad():
        model.conv.bias.fill_(-9.0)  # every map is negative
        model.fc.weight.fill_(1.0)

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = model.conv, model.fc

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3)))

    found = dv.GradCAM(variant="plus-plus", relu=False).attribute(Raw(), IMAGES, targets=0)
    with torch.no_grad():
        expected = 0.5 * model.conv(IMAGES).sum(1, keepdim=True)  # 36 slopes of 1/36, halved
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=0)


def test_tokens_of_a_transformer_are_laid_out_as_a_grid():
    model = made(Tokens)
    found = dv.GradCAM("mix", tokens=(3, 3), relu=False).attribute(model, IMAGES, targets=1)
    with torch.no_grad():
        tokens = model.mix(model.patches(IMAGES).flatten(2).transpose(1, 2))
    held = tokens.requires_grad_()
    (slopes,) = torch.autograd.grad((held.tanh().square().sum(1) / 10 @ model.fc.weight[1]).sum(), held)
    small = (slopes.mean(1, keepdim=True) * held).sum(2).reshape(4, 1, 3, 3).detach()
    expected = F.interpolate(small, size=(6, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"tokens=\(rows, columns\)"):
        dv.GradCAM("mix").attribute(model, IMAGES)


@pytest.mark.parametrize("site, probed", [("conv", 0), (None, 2)])
def test_its_budget(site: str | None, probed: int):
    """One probe for each of two batches."""
    model = made(Deep)
    with counted(model) as rows:
        dv.GradCAM(site).attribute(model, IMAGES, batch_size=2)
    assert rows.forward == 2 * 4 + probed and rows.backward == 4


def test_maps_of_one_place_are_warned_of():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double().eval()
        )
    with pytest.warns(DualViewWarning, match="the maps at '1' have one place, so that all .* earlier site"):
        found = dv.GradCAM("1", relu=False).attribute(model, IMAGES, targets=0)
    weight, pooled = model[3].weight[0].detach(), model[:3](IMAGES).detach()
    expected = (pooled @ weight)[:, None, None, None].expand(4, 1, 6, 6)
    torch.testing.assert_close(found.values, expected, rtol=1e-13, atol=0)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="choose from 'plain' and 'plus-plus'"):
        unchecked(dv.GradCAM, variant="++")
    with pytest.raises(ValueError, match="'cnv' is not a module of Deep. Near names: 'conv'"):
        dv.GradCAM("cnv").attribute(made(Deep), IMAGES)
    with pytest.raises(ValueError, match=r"shape \(4, 6\)"):
        dv.GradCAM("hidden").attribute(made(Deep), IMAGES)
