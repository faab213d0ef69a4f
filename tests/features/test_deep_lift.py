"""DeepLIFT against the paper's recursion, integrated gradients on one neuron, and its own account of costs."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.errors import NonFiniteError
from tests.features.budget import counted, unchecked

RULES = pytest.mark.parametrize("rule", ["rescale", "reveal-cancel"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def perceptron(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(a, b), activation()]
        return nn.Sequential(*layers[:-1]).double().eval()


def by_the_paper(net: nn.Sequential, x: list[float], x_ref: list[float], target: int, rule: str) -> list[float]:
    """Shrikumar et al. 2017, Section 3.5, neuron by neuron.

    The parts Δx⁺ and Δx⁻ of one neuron have one multiplier, since the linear rule above it treats them alike.
    """

    def f(z: float) -> float:
        return float(net[1](torch.tensor(z, dtype=torch.float64)))

    def forward(values: list[float]) -> list[float]:
        return [sum(w * v for w, v in zip(row, values, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    layers = []  # weights, differences below them, and m⁺, m⁻ of the activation functions above
    for layer in (layer for layer in net if isinstance(layer, nn.Linear)):
        weight, bias, slopes = layer.weight.tolist(), layer.bias.tolist(), []
        deltas = [a - b for a, b in zip(x, x_ref, strict=True)]
        for row, z, z_ref in zip(weight, forward(x), forward(x_ref), strict=True):
            up = sum(w * d for w, d in zip(row, deltas, strict=True) if w * d > 0)
            down = sum(w * d for w, d in zip(row, deltas, strict=True) if w * d < 0)
            if rule == "rescale":
                slopes.append(((f(z) - f(z_ref)) / (z - z_ref),) * 2)
                continue
            pair = []
            for own, other in ((up or 1e-6, down), (down or -1e-6, up)):  # where nothing contributes: the limit
                pair.append(sum(f(z_ref + start + own) - f(z_ref + start) for start in (0, other)) / (2 * own))
            slopes.append(tuple(pair))
        layers.append((weight, deltas, slopes))
        x, x_ref = [f(z) for z in forward(x)], [f(z) for z in forward(x_ref)]
    layers[-1] = (*layers[-1][:2], [(1.0, 1.0)] * len(bias))  # no activation function above the last
    multipliers = [float(j == target) for j in range(len(bias))]
    for weight, deltas, slopes in reversed(layers):
        above = [(row, m * plus, m * minus) for row, m, (plus, minus) in zip(weight, multipliers, slopes, strict=True)]
        multipliers = [
            sum(row[i] * (p if row[i] * d > 0 else n if row[i] * d < 0 else (p + n) / 2) for row, p, n in above)
            for i, d in enumerate(deltas)
        ]
    return [m * d for m, d in zip(multipliers, layers[0][1], strict=True)]


@RULES
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Softplus])
def test_it_is_the_papers_recursion(rule: str, activation: type[nn.Module]):
    net, x, x_ref = perceptron(5, 7, 6, 3, activation=activation), drawn(4, 5), drawn(4, 5, seed=1)
    x[:, 2] = x_ref[:, 2]  # a difference of zero
    found = dv.DeepLIFT(rule, baseline=x_ref).attribute(net, x, targets=1)
    expected = [by_the_paper(net, *pair, 1, rule) for pair in zip(x.tolist(), x_ref.tolist(), strict=True)]
    torch.testing.assert_close(found.values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert (found.values[:, 2] == 0).all()


class Minimum(nn.Module):
    """The paper's Section 3.5.2: min(i1, i2) = i1 − relu(i1 − i2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.first.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [1.0, -1.0]]))
        self.last.weight = nn.Parameter(torch.tensor([[1.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def test_reveal_cancel_shares_a_minimum_that_rescale_gives_to_one():
    task = dv.Task(Minimum(), problem="regression")
    x = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    rescaled = dv.DeepLIFT("rescale").attribute(task, x).values
    torch.testing.assert_close(rescaled, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), rtol=0, atol=1e-6)
    revealed = dv.DeepLIFT("reveal-cancel").attribute(task, x).values
    torch.testing.assert_close(revealed, torch.tensor([[0.5, 0.5], [0.5, 0.5]]), rtol=0, atol=1e-6)


def test_differences_that_cancel_in_a_hidden_neuron_still_contribute():
    """relu(i1 − i2) at i1 = i2: Δy⁺ = 1/2 and Δy⁻ = −1/2 although Δy = 0; the next ReLU opens by nothing."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    for k, weight in ((0, [[1.0, -1.0]]), (2, [[1.0]])):
        net[k].weight = nn.Parameter(torch.tensor(weight).double())
    x = torch.ones(1, 2, dtype=torch.float64)
    task = dv.Task(net, problem="regression")
    assert dv.DeepLIFT("rescale").attribute(task, x).values.sum() == 0
    found = dv.DeepLIFT("reveal-cancel").attribute(task, x).values
    torch.testing.assert_close(found, torch.tensor([[0.5, -0.5]]).double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("f", [torch.sigmoid, F.relu, F.gelu, torch.exp])
def test_on_one_neuron_it_is_integrated_gradients(f):
    """∂f(w·x + c)/∂x_i is w_i f' along the path, whose integral is (f(z) − f(z')) / (z − z') (Eq. 3 of IG)."""

    class Neuron(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return f(x @ w + 0.3)[:, None]

    w, x, x_ref = drawn(5, seed=2), drawn(6, 5), drawn(6, 5, seed=1)
    found = dv.DeepLIFT(baseline=x_ref).attribute(dv.Task(Neuron(), problem="regression"), x)
    z, z_ref = x @ w + 0.3, x_ref @ w + 0.3
    expected = (x - x_ref) * w * ((f(z) - f(z_ref)) / (z - z_ref))[:, None]
    torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-14)


def test_the_same_function_written_otherwise_may_be_explained_otherwise():
    """max(i1, i2) as a maximum, and as i2 + relu(i1 − i2): DeepLIFT is not implementation invariant."""

    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.amax(1, keepdim=True)

    class Summed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 1:] + (x[:, :1] - x[:, 1:]).relu()

    x, x_ref = torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 2.0]])
    one, other = (
        dv.DeepLIFT(baseline=x_ref).attribute(dv.Task(model, problem="regression"), x).values
        for model in (Largest(), Summed())
    )
    torch.testing.assert_close(one, torch.tensor([[1.5, -0.5]]))  # they cross at the middle of the line
    torch.testing.assert_close(other, torch.tensor([[3 * 0.5, -1 + 0.5]]))
    assert one.sum() == other.sum() == 1


@RULES
@pytest.mark.parametrize("targets", [None, 1])
def test_it_costs_two_forward_passes_and_a_backward_pass_a_draw(rule: str, targets: int | None):
    x = drawn(6, 5)
    net = perceptron(5, 7, 3)
    with counted(net) as rows:
        dv.DeepLIFT(rule).attribute(net, x, targets, batch_size=4)
    assert (rows.forward, rows.backward) == (12, 6)
    with counted(net) as rows:
        dv.DeepLIFT(rule, baseline=dv.Samples(drawn(5, 5, seed=1))).attribute(net, x, targets)
    assert (rows.forward, rows.backward) == (60, 30)


@pytest.mark.parametrize("output", [dv.log_probability, dv.margin, dv.loss, dv.contrast(0, 2)])
def test_multipliers_pass_through_the_measured_output(output):
    net, x, x_ref = perceptron(5, 7, 3), drawn(6, 5), drawn(6, 5, seed=1)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    found = dv.DeepLIFT(baseline=x_ref).attribute(dv.Task(net, output=output), x, targets)
    change = output(net(x), targets) - output(net(x_ref), targets)
    torch.testing.assert_close(found.change, change.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.values.sum(1), change.detach(), rtol=1e-11, atol=1e-12)
    assert not found.linearised and found.completeness_error.abs().max() <= 1e-12


def test_one_logit_stands_for_two_columns():
    net, x = perceptron(5, 7, 1), drawn(4, 5)
    found = dv.DeepLIFT().attribute(net, x, targets=1)
    torch.testing.assert_close(found.values.sum(1), ((net(x) - net(0 * x)) / 2)[:, 0].detach(), rtol=1e-11, atol=1e-13)


def test_one_logit_with_its_own_loss():
    """With w = 3 and p = 2 the loss of label t is w (−p t log σ(z) − (1 − t) log σ(−z))."""
    net, x, x_ref = perceptron(5, 7, 1), drawn(4, 5), drawn(4, 5, seed=1)
    loss = nn.BCEWithLogitsLoss(torch.tensor([3.0]).double(), pos_weight=torch.tensor([2.0]).double())
    targets = torch.tensor([0, 1, 0, 1])
    found = dv.DeepLIFT(baseline=x_ref).attribute(dv.Task(net, output=dv.loss, loss=loss), x, targets)

    def measured(x: Tensor) -> Tensor:
        z = net(x)[:, 0]
        return -3 * torch.where(targets == 1, 2 * z.sigmoid().log(), (-z).sigmoid().log()).detach()

    torch.testing.assert_close(found.change, measured(x) - measured(x_ref), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.values.sum(1), found.change, rtol=1e-12, atol=1e-13)


@RULES
def test_several_draws_are_averaged(rule: str):
    net, x, draws = perceptron(5, 7, 3), drawn(6, 5), drawn(4, 5, seed=1)
    found = dv.DeepLIFT(rule, baseline=dv.Samples(draws)).attribute(net, x, 2)
    alone = [dv.DeepLIFT(rule, baseline=draw).attribute(net, x, 2) for draw in draws]
    torch.testing.assert_close(found.values, torch.stack([one.values for one in alone]).mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.change, torch.stack([one.change for one in alone]).mean(0), rtol=1e-12, atol=1e-14)


def test_checks_count_the_calls_of_each_rule():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x)).relu_()
            return self.last((x + x.tanh()).sigmoid() * x)

    model, x = Net().double(), drawn(2, 5)
    checks = dv.DeepLIFT("reveal-cancel").attribute(model, x).checks
    assert {name: count.tolist() for name, count in checks.items()} == {
        "rescale calls": [2, 2],
        "reveal-cancel calls": [1, 1],
        "product calls": [1, 1],
        "maximum calls": [0, 0],
    }
    assert dv.DeepLIFT().attribute(model, x).checks["rescale calls"].tolist() == [3, 3]


def test_outputs_measured_together_may_call_for_different_rules():
    net, x = perceptron(5, 3), drawn(4, 5)
    for outputs in ((dv.logit, dv.margin), (dv.margin, dv.logit)):
        both = dv.DeepLIFT().attribute(dv.Task(net, output=outputs), x, 0)
        expected = [[float(output is dv.margin)] * 4 for output in outputs]  # its log of a sum of exponentials
        assert both.checks["rescale calls"].tolist() == expected


def test_batch_norm_is_part_of_the_operation_that_reveal_cancel_sees():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4)
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.normal_()
        for layer, kernel in ((nn.Conv2d(2, 4, 3, groups=2), 5), (nn.ConvTranspose2d(2, 4, 3), 9)):
            net = nn.Sequential(layer, norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * kernel**2, 2)).double().eval()
            folded = nn.utils.fusion.fuse_conv_bn_eval(layer, norm, isinstance(layer, nn.ConvTranspose2d))
            fused = nn.Sequential(folded, *net[2:])
            x, method = drawn(3, 2, 7, 7), dv.DeepLIFT("reveal-cancel")
            expected = method.attribute(fused, x).values
            torch.testing.assert_close(method.attribute(net, x).values, expected, rtol=1e-10, atol=1e-12)


def test_only_what_the_baseline_names_is_shared():
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
            return (x * y).relu() + ids[:, None]

    x, y, ids = drawn(3, 4), drawn(3, 4, seed=1), torch.arange(3)
    both = dv.DeepLIFT().attribute(Two(), (x, y, ids), 0)
    torch.testing.assert_close(both.values["0"], both.values["1"])  # u v from 0: half to either
    one = dv.DeepLIFT(baseline={"1": 0}).attribute(Two(), (x, y, ids), 0).values
    torch.testing.assert_close(one, 2 * both.values["1"])
    with pytest.raises(ValueError, match="`baseline` names '2', whose whole numbers"):
        dv.DeepLIFT(baseline={"2": 0}).attribute(Two(), (x, y, ids), 0)


def test_what_the_baseline_does_not_name_is_the_same_on_both_passes():
    """The model writes to it, on copies of its own."""

    class Writes(nn.Module):
        def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
            ids += 1
            return (x * y.mul_(2) * ids[:, None]).relu()

    x, y, ids = drawn(3, 4), drawn(3, 4, seed=1), torch.arange(3)
    expected = (x * 2 * y * (ids + 1)[:, None]).relu()[:, 0]
    found = dv.DeepLIFT(baseline={"0": 0}).attribute(Writes(), (x, y, ids), 0)
    torch.testing.assert_close(found.values[:, 0], expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(y, drawn(3, 4, seed=1)) and torch.equal(ids, torch.arange(3))


def test_numbers_that_are_none_are_named_by_their_samples():
    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3].log()

    x = drawn(5, 5).abs()
    x[3, 4] = torch.nan  # the output does not see it
    with pytest.raises(NonFiniteError, match=r"DeepLIFT: scores of samples \[3\] are NaN"):
        dv.DeepLIFT(baseline=1).attribute(Logarithm(), x, 0, batch_size=2)
    x[3, 0] = 0
    with pytest.raises(NonFiniteError, match=r"the measured output is NaN or infinite for samples \[3\]"):
        dv.DeepLIFT(baseline=1).attribute(Logarithm(), x, 0, batch_size=2)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`rule` is 'linear'; choose from 'rescale' and 'reveal-cancel'"):
        unchecked(dv.DeepLIFT, rule="linear")
    with pytest.raises(TypeError, match="`baseline` must be"):
        dv.DeepLIFT(baseline="zero")
    with pytest.raises(ValueError, match="keeps no graph"):
        dv.DeepLIFT().attribute(perceptron(5, 3), drawn(2, 5), differentiable=True)
    assert dataclasses.replace(dv.DeepLIFT(), rule="reveal-cancel") == dv.DeepLIFT("reveal-cancel")
