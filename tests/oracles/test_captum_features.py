"""Feature methods against Captum 0.9 where definitions agree."""

import pytest
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient as TheirInputXGradient
from captum.attr import IntegratedGradients as TheirIntegratedGradients
from captum.attr import LayerConductance, LayerGradCam, LayerIntegratedGradients, Saliency
from captum.attr import Occlusion as TheirOcclusion
from torch import Tensor, nn

import dualview as dv

torch.set_num_threads(1)


class Net(nn.Module):
    """Every activation a module used once, as Captum's layer methods ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(5 * 4 * 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.second(F.gelu(self.first(x)))).flatten(1))


@pytest.fixture(scope="module")
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double().eval()


IMAGES = torch.randn(3, 3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BASELINE = torch.randn(3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([2, 0, 1])
SINGLE = 1e-8  # Captum's quadrature weights, and its sums over windows, are in single precision; scores are below 0.1
RULES = {
    "gauss-legendre": "gausslegendre",
    "midpoint": "riemann_middle",
    "trapezoid": "riemann_trapezoid",
    "left": "riemann_left",
    "right": "riemann_right",
}


pytestmark = pytest.mark.filterwarnings("ignore:the scores miss")  # few steps, on purpose


def same(ours: Tensor, theirs: Tensor, *, tolerance: float = 1e-12) -> None:
    """Double precision: sums of a few hundred terms round by 1e-14 or so."""
    torch.testing.assert_close(ours, theirs.detach().double(), rtol=0, atol=tolerance)


def test_saliency_and_input_x_gradient(net):
    images = IMAGES.clone().requires_grad_()
    same(dv.Gradient(absolute=True).attribute(net, IMAGES, TARGETS).values, Saliency(net).attribute(images, TARGETS))
    signed = Saliency(net).attribute(images, TARGETS, abs=False)
    same(dv.Gradient().attribute(net, IMAGES, TARGETS).values, signed)
    same(
        dv.InputXGradient().attribute(net, IMAGES, TARGETS).values, TheirInputXGradient(net).attribute(images, TARGETS)
    )


@pytest.mark.parametrize("rule", RULES)
def test_integrated_gradients_by_every_rule(net, rule: str):
    """Captum's trapezoid has weights 1/n between n nodes that are 1/(n − 1) apart, which add up to (n − 1)/n."""
    scale = 12 / 13 if rule == "trapezoid" else 1.0
    ours = dv.IntegratedGradients(baseline=BASELINE, rule=rule, steps=13).attribute(net, IMAGES, TARGETS)
    theirs, error = TheirIntegratedGradients(net).attribute(
        IMAGES,
        BASELINE.expand_as(IMAGES),
        TARGETS,
        n_steps=13,
        method=RULES[rule],
        return_convergence_delta=True,
    )
    same(scale * ours.values, theirs, tolerance=SINGLE)
    same(scale * ours.values.flatten(1).sum(1) - ours.change, error, tolerance=10 * SINGLE)


@pytest.mark.parametrize("site", ["second", "first"])
def test_integrated_gradients_inside(net, site: str):
    ours = dv.IntegratedGradients(baseline=BASELINE, steps=9, site=site).attribute(net, IMAGES, TARGETS)
    theirs = LayerIntegratedGradients(net, net.get_submodule(site)).attribute(
        IMAGES, BASELINE.expand_as(IMAGES), TARGETS, n_steps=9
    )
    same(ours.values, theirs, tolerance=SINGLE)


@pytest.mark.parametrize("window, stride", [(2, None), (3, 3), (3, 1), (4, 3)])
def test_occlusion_by_windows(net, window: int, stride: int | None):
    ours = dv.Occlusion(dv.Patches(window), baseline=BASELINE, stride=stride).attribute(net, IMAGES, TARGETS)
    step = stride or window
    theirs = TheirOcclusion(net).attribute(
        IMAGES, (3, window, window), (3, step, step), baselines=BASELINE[None], target=TARGETS
    )
    same(ours.values, theirs, tolerance=SINGLE)


@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam(net, relu: bool):
    ours = dv.GradCAM("relu", relu=relu).attribute(net, IMAGES, TARGETS)
    theirs = LayerGradCam(net, net.relu).attribute(IMAGES, TARGETS, relu_attributions=relu)
    same(ours.values, LayerGradCam.interpolate(theirs, (7, 6), "bilinear"))


@pytest.mark.parametrize("site", ["second", "first"])
def test_conductance(net, site: str):
    """Captum takes the slope at the start of each piece, with an error of order steps⁻¹.

    Its sum from x' to x, and minus that from x to x', which takes the slopes at the other ends, average to ours.
    """
    nodes = torch.linspace(0, 1, 21, dtype=torch.float64)
    layer = LayerConductance(net, net.get_submodule(site))
    baseline = BASELINE.expand_as(IMAGES)
    forth, back = (
        layer._attribute(
            inputs=(end,), baselines=(start,), target=TARGETS, n_steps=20, step_sizes_and_alphas=([], nodes.tolist())
        )
        for start, end in ((baseline, IMAGES), (IMAGES, baseline))
    )
    ours = dv.Conductance(site, baseline=BASELINE, steps=21).attribute(net, IMAGES, TARGETS)
    same(ours.values, (forth - back) / 2)
    plain = layer.attribute(IMAGES, baseline, TARGETS, n_steps=4000)
    fine = dv.Conductance(site, baseline=BASELINE, steps=400).attribute(net, IMAGES, TARGETS)
    same(fine.values, plain, tolerance=2e-3 * float(fine.values.abs().max()))
