"""Where Zennit 0.5.1 and we differ on sequential networks: Zennit's number derived, and who follows the paper."""

import pytest
import torch
from torch import Tensor, nn
from zennit import composites, rules
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.core import Composite as Theirs
from zennit.core import Hook
from zennit.layer import Sum
from zennit.types import Linear

from dualview import LRP
from dualview.features.lrp import Composite, Epsilon, Flat, Gamma, ZBox

# How much is absorbed is compared, not judged.
pytestmark = pytest.mark.filterwarnings("ignore::dualview.errors.DualViewWarning")

# Zennit divides by z + this: by z itself, unless z = 0. Ours is told epsilon = 0.
TINY = 1e-100


def ours(model: nn.Module, x: Tensor, rule: object) -> Tensor:
    """Return our relevance of the first logit."""
    composite = rule if isinstance(rule, Composite) else Composite("by hand", rule, rule, rule)
    return LRP(composite).attribute(model, x, 0).values


def theirs(model: nn.Module, x: Tensor, rule: Hook | Theirs) -> Tensor:
    """Return Zennit's, batch norm merged."""
    layers = [*composites.layer_map_base(TINY), (Linear, rule)]
    merge = [SequentialMergeBatchNorm()]
    composite = rule if isinstance(rule, Theirs) else composites.LayerMapComposite(layers, canonizers=merge)
    with Gradient(model, composite) as attributor:
        return attributor(x, lambda logits: logits * torch.eye(logits.shape[1]).to(logits)[0])[1]


def dense(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    """Return a dense layer; as a model's last it has two outputs, since a single one is a margin."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None).double()
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return layer


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def batch_norm(width: int, eps: float) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(width, eps=eps).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_merged_batch_norm_still_divides_by_its_eps():
    """Zennit's merged batch norm computes x / √(1 + eps): it explains another network, ours the user's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), batch_norm(3, 0.21), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2, False))
    model, x = model.double().eval(), torch.randn(3, 2, 6, dtype=torch.float64)
    assert torch.allclose(
        theirs(model, x, rules.Epsilon(TINY)) * 1.1, ours(model, x, Epsilon(epsilon=0)), rtol=1e-9, atol=1e-14
    )


def test_batch_norm_of_its_own_passes_all_or_keeps_its_shift():
    """Zennit passes relevance by a batch norm that it cannot merge, as ours does with biases excluded.

    With the bias in the denominator, eq. 58 of Bach et al. 2015 leaves the shift's part there.
    """
    torch.manual_seed(0)
    norm = batch_norm(4, 0.0)
    model = nn.Sequential(nn.ReLU(), norm, nn.Linear(4, 2, bias=False)).double().eval()
    x, weight = torch.rand(3, 4, dtype=torch.float64) + 0.1, model[2].weight[0]
    scale = norm.weight / norm.running_var.sqrt()
    assert torch.allclose(theirs(model, x, rules.Epsilon(TINY)), norm(x) * weight, rtol=1e-12)
    assert torch.allclose(ours(model, x, Epsilon(bias="exclude", epsilon=0)), norm(x) * weight, rtol=1e-12)
    assert torch.allclose(ours(model, x, Epsilon(epsilon=0)), x * scale * weight, rtol=1e-12)


def test_gamma_without_biases_favours_the_sign_of_what_it_divides_by():
    """Zennit favours the sign of z + b, and divides by z's side alone, which then may vanish.

    The rule for both signs (Andéol et al. 2021) is stable because what it divides by has the sign it favours.
    """
    model, x = dense([[1.0, -1.0], [0.0, 0.0]], bias=[2.0, 0.0]), rows([1.0, 2.0])  # z = -1, output 1
    assert torch.allclose(ours(model, x, Gamma(gamma=0.25, bias="exclude", epsilon=0)), rows([1.0, -2.5]) / -1.5)
    assert torch.allclose(theirs(model, x, rules.Gamma(0.25, TINY, zero_params="bias")), rows([1.25, -2.0]) / -0.75)
    # γ = 1: 2 - 2 = 0, and its stabiliser is all that is left
    assert torch.allclose(ours(model, x, Gamma(gamma=1.0, bias="exclude", epsilon=0)), rows([1.0, -4.0]) / -3)
    assert torch.allclose(theirs(model, x, rules.Gamma(1.0, 1e-6, zero_params="bias")), rows([2.0, -2.0]) / 1e-6)


def test_the_bias_cancels_in_zennits_z_box():
    """Zennit subtracts low·w⁺ + b⁺ and high·w⁻ + b⁻ from z + b: no bias is left, as in Montavon et al. 2017.

    None is in ours by default; "absorb" leaves b there, and with it its part.
    """
    model, x = dense([[1.0, -2.0], [0.5, 0.5]], bias=[1.5, -0.5]), rows([1.0, -1.0])
    low, high = -3.0, 2.5
    parts, output = rows([1.0 - low, 2.0 + 2 * high]), model(x)[0, 0]  # x w - low w⁺ - high w⁻
    for zero_params in (None, "bias"):
        found = theirs(model, x, rules.ZBox(low, high, TINY, zero_params))
        assert torch.allclose(found, parts / parts.sum() * output, rtol=1e-12)
    for bias, left in {"exclude": 0.0, "absorb": 1.5}.items():
        rule = Composite("by hand", Epsilon(), Epsilon(), Epsilon(), ZBox(low=low, high=high, bias=bias, epsilon=0))
        assert torch.allclose(ours(model, x, rule), parts / (parts.sum() + left) * output, rtol=1e-12)


@pytest.mark.parametrize("sums", [dense([[1.0, 1.0]]), nn.AvgPool1d(2)], ids=["linear", "average pooling"])
def test_contributions_that_cancel_exactly_keep_gradient_times_input(sums: nn.Module):
    """R_i = z_ij / z_j · R_j with R_j = 3 z_j is 3 z_ij, also in the limit z_j → 0, where Zennit's is 0."""
    model = nn.Sequential(sums, dense([[3.0], [0.0]]))
    x = rows([2.0, -2.0], [2.0, -2.0 + 1e-9]).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    x = x.detach()
    assert torch.allclose(ours(model, x, Epsilon(epsilon=0)), gradient * x, rtol=1e-12)
    found = theirs(model, x, rules.Epsilon(TINY))
    assert torch.equal(found[0], torch.zeros_like(x[0]))
    assert torch.allclose(found[1], (gradient * x)[1], rtol=1e-6)


def test_an_excluded_bias_that_alone_made_the_output_is_booked():
    """Where z = 0, Bach et al. 2015, eq. 58, have but ε to divide by: relevance of 5 becomes ±10⁷."""
    model, x = dense([[1.0, -1.0], [0.0, 0.0]], bias=[5.0, 0.0]), rows([2.0, 2.0])
    assert torch.allclose(theirs(model, x, rules.Epsilon(1e-6, zero_params="bias")), rows([2.0, -2.0]) * 5 / 1e-6)
    found = LRP("epsilon", bias="exclude").attribute(model, x, 0)
    assert torch.equal(found.values, torch.zeros_like(x))
    (entry,) = found.account.absorbed
    assert (entry.kind, entry.total) == ("zero denominator", 5.0)


def test_an_activations_constant_is_no_share_of_its_input():
    """Zennit hands on all of a sigmoid's relevance; f(0) = 1/2 of it does not depend on the input."""
    weight = rows([2.0, -3.0])
    model, x = nn.Sequential(nn.Sigmoid(), dense([[2.0, -3.0], [0.0, 0.0]])), rows([1.0, -4.0])
    assert torch.allclose(theirs(model, x, rules.Epsilon(TINY)), x.sigmoid() * weight, rtol=1e-12)
    found = LRP("epsilon", epsilon=0).attribute(model, x, 0)
    assert torch.allclose(found.values, (x.sigmoid() - 0.5) * weight, rtol=1e-12)
    (entry,) = found.account.absorbed
    assert (entry.kind, entry.total) == ("constant", pytest.approx(-0.5))


class TwoFirst(nn.Module):
    """Two layers see the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = dense([[1.0, 2.0], [-1.0, 3.0]]), dense([[2.0, 1.0], [1.0, 1.0]])
        self.sum, self.head = Sum(), dense([[1.0, 2.0], [0.0, 0.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sum(torch.stack([self.a(x), self.b(x)], -1)))


def test_first_is_who_sees_the_input_not_who_was_declared_first():
    """Flat goes to the first module of Zennit's list; here to each layer that sees the input."""
    model, x = TwoFirst(), rows([1.0, 3.0])
    head = model.head.weight[:1]
    a, b = ((head * layer(x)).sum() for layer in (model.a, model.b))
    plain = Epsilon(epsilon=0)
    found = ours(model, x, Composite("by hand", plain, plain, plain, Flat(epsilon=0)))
    assert torch.allclose(found, (a + b).expand(1, 2) / 2, rtol=1e-12)
    layers = [*composites.layer_map_base(TINY), (Linear, rules.Epsilon(TINY))]
    found = theirs(model, x, composites.SpecialFirstLayerMapComposite(layers, [(Linear, rules.Flat(TINY))]))
    assert torch.allclose(found, a / 2 + head @ model.b.weight * x, rtol=1e-12)
