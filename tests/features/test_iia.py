"""IIA against its double sum, written out, and its limits: gradient times activation, linear tails, layer IG."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.evaluation.tasks.recipes import small_residual
from dualview.features import IntegratedGradients
from tests.features.budget import counted, unchecked


class Net(nn.Module):
    """Stages on both sides of the site; `linear` leaves out what is not linear behind it."""

    def __init__(self, *, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.first, self.conv = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 5 * 4, 3)

    def head(self, x: Tensor) -> Tensor:
        return self.conv(torch.tanh(self.first(x)))

    def tail(self, h: Tensor) -> Tensor:
        return self.fc((h if self.linear else F.gelu(h) * h).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.head(x))


IMAGES = torch.randn(3, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BASELINE = torch.full((2, 5, 4), 0.3, dtype=torch.float64)


def made(**options: bool) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(**options).double().eval()


def slopes_at(model: Net, h: Tensor) -> Tensor:
    h = h.detach().requires_grad_()
    return torch.autograd.grad(model.tail(h)[:, 1].sum(), h)[0]


def twin(model: Net, outer: int, inner: int, start: str) -> Tensor:
    """Σ_i Σ_j ∂f/∂h(h_ij) · ReLU(h_ij − h_i0), one point after another, over n (m + 1) / 2; summed over channels."""
    total = torch.zeros(3, 4, 5, 4, dtype=torch.float64)
    for i in range(1, outer + 1):
        h = model.head(BASELINE + i / outer * (IMAGES - BASELINE)).detach()
        h0 = torch.zeros_like(h) if start == "zero" else h.amin((2, 3), keepdim=True).expand_as(h)
        for j in range(1, inner + 1):
            hij = h0 + j / inner * (h - h0)
            total += slopes_at(model, hij) * torch.relu(hij - h0)
    return total.sum(1, keepdim=True) / (outer * (inner + 1) / 2)


@pytest.mark.parametrize("start", ["zero", "minimum"])
@pytest.mark.parametrize("outer, inner", [(1, 1), (3, 4), (5, 1)])
def test_it_is_the_double_sum(start: str, outer: int, inner: int):
    model = made()
    method = dv.IIA("conv", baseline=BASELINE, outer=outer, inner=inner, start=start)
    found = method.attribute(model, IMAGES, targets=1, batch_size=2)
    torch.testing.assert_close(found.values, twin(model, outer, inner, start), rtol=0, atol=1e-12)
    assert found.kind == "similarity" and found.change is None


def test_with_one_node_each_it_is_gradient_times_activation():
    model = made()
    h = model.head(IMAGES).detach()
    expected = (slopes_at(model, h) * h.relu()).sum(1, keepdim=True)
    found = dv.IIA(outer=1, inner=1).attribute(model, IMAGES, targets=1)  # the last convolution by default
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-13)
    assert list(found.sites) == [dv.Site("conv", "output")]


def test_of_a_residual_network_the_last_block_is_looked_at():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = small_residual((2, 16, 16), 3).double().eval()
    images = torch.randn(3, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    default, block = (dv.IIA(site, outer=2, inner=2).attribute(model, images, targets=0) for site in (None, "5"))
    assert torch.equal(default.values, block.values) and list(default.sites) == [dv.Site("5", "output")]


def test_where_the_tail_is_linear_the_inner_path_does_not_matter():
    """The mean over i of w · ReLU(h_i − h_i0), whatever m is."""
    model = made(linear=True)
    weight = model.fc.weight[1].detach().reshape(4, 5, 4)
    expected = torch.zeros(3, 5, 4, dtype=torch.float64)
    for i in range(1, 5):
        h = model.head(i / 4 * IMAGES).detach()
        expected += (weight * (h - h.amin((2, 3), keepdim=True))).sum(1) / 4
    for inner in (1, 6):
        found = dv.IIA("conv", outer=4, inner=inner, start="minimum").attribute(model, IMAGES, targets=1)
        torch.testing.assert_close(found.values[:, 0], expected, rtol=0, atol=1e-12)


def test_without_its_relu_and_its_weights_the_inner_sum_is_layer_integrated_gradients():
    """The twin's loop as a quadrature: midpoint nodes, equal weights, h − h_0 in place of ReLU(h_ij − h_0)."""
    model, inner = made(), 8
    h, h0 = model.head(IMAGES).detach(), model.head(torch.zeros_like(IMAGES)).detach()
    total = sum(slopes_at(model, h0 + (j - 0.5) / inner * (h - h0)) for j in range(1, inner + 1)) * (h - h0) / inner
    found = IntegratedGradients(site="conv", steps=inner, rule="midpoint").attribute(model, IMAGES, targets=1)
    torch.testing.assert_close(found.values, total, rtol=0, atol=1e-13)


def test_the_collapsed_form_takes_the_slopes_at_the_activations_themselves():
    model = made()
    expected = torch.zeros(3, 1, 5, 4, dtype=torch.float64)
    for i in range(1, 4):
        h = model.head(BASELINE + i / 3 * (IMAGES - BASELINE)).detach()
        expected += (slopes_at(model, h) * h.relu()).sum(1, keepdim=True) / 3
    found = dv.IIA("conv", baseline=BASELINE, outer=3, collapsed=True).attribute(model, IMAGES, targets=1)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-13)


def test_draws_of_the_baseline_are_averaged():
    model = made()
    pool = torch.stack([BASELINE, -BASELINE])
    both = dv.IIA("conv", baseline=dv.Samples(pool), outer=2, inner=3).attribute(model, IMAGES, targets=0)
    single = [dv.IIA("conv", baseline=one, outer=2, inner=3).attribute(model, IMAGES, targets=0).values for one in pool]
    torch.testing.assert_close(both.values, (single[0] + single[1]) / 2, rtol=0, atol=1e-13)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.fc = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix(F.pad(x.flatten(2).transpose(1, 2), (0, 0, 1, 0), value=1.0))
        return self.fc(tokens.tanh().mean(1))


def test_tokens_are_laid_out_as_a_grid():
    """Their minimum is taken over tokens; the class token, whose score falls away, moves along."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tokens().double().eval()
    found = dv.IIA("mix", outer=1, inner=2, start="minimum", tokens=(5, 4)).attribute(model, IMAGES, targets=1)
    h = model.mix(F.pad(IMAGES.flatten(2).transpose(1, 2), (0, 0, 1, 0), value=1.0)).detach()
    h0, weight = h.amin(1, keepdim=True), model.fc.weight[1].detach() / 21
    total = sum(j * weight * (1 - (h0 + j / 2 * (h - h0)).tanh().square()) for j in (1, 2)) * (h - h0) / 3
    torch.testing.assert_close(found.values, total[:, 1:].sum(2).reshape(3, 1, 5, 4), rtol=0, atol=1e-14)


@pytest.mark.parametrize("collapsed, forward, backward", [(False, 4 * (5 + 1), 4 * 5), (True, 4, 4)])
def test_its_budget(collapsed: bool, forward: int, backward: int):
    model = made()
    with counted(model) as rows:
        dv.IIA("conv", outer=4, inner=5, collapsed=collapsed).attribute(model, IMAGES)
    assert rows.forward == 3 * (forward + 1) and rows.backward == 3 * backward


def test_to_find_the_site_one_sample_of_each_batch_passes():
    model = made()
    with counted(model) as rows:
        dv.IIA(outer=4, inner=5).attribute(model, IMAGES, batch_size=2)
    assert rows.forward == 3 * (4 * (5 + 1) + 1) + 2 and rows.backward == 3 * 4 * 5


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`inner` is 0; expected at least 1"):
        dv.IIA(inner=0)
    with pytest.raises(ValueError, match="choose from 'zero' and 'minimum'"):
        unchecked(dv.IIA, start="mean")
