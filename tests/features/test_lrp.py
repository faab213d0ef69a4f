"""LRP's own promises: closed forms for what it explains, and how rules are given."""

import copy

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.features.lrp import NAMES, AlphaBeta, Epsilon, Flat, ZBox, ZPlus

OUTPUTS = {
    "logit": dv.logit,
    "contrast": dv.contrast(2, 0),
    "margin": dv.margin,
    "log-probability": dv.log_probability,
    "loss": dv.loss,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")


def biasless(classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, classes, bias=False)
        return nn.Sequential(*layers).double()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", OUTPUTS)
def test_without_biases_it_is_the_linearised_outputs_gradient_times_input(name: str, inputs):
    """v_c is a constant of the pass, so the closed form holds it fixed."""
    task, targets = dv.Task(biasless(), output=OUTPUTS[name]), torch.tensor([0, 1, 2, 2, 1])
    found = dv.LRP("epsilon", epsilon=0).attribute(task, inputs, targets)
    x = inputs.clone().requires_grad_()
    logits = task.model(x)
    free = logits.detach().requires_grad_()
    v = torch.autograd.grad(OUTPUTS[name](free, targets).sum(), free)[0]
    gradient = torch.autograd.grad((v * logits).sum(), x)[0]
    torch.testing.assert_close(found.values, gradient * inputs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.account.seed, (v * logits).sum(1).detach(), rtol=1e-12, atol=1e-14)
    assert found.linearised == (name not in ("logit", "contrast"))
    assert found.lower_is_better == (name == "loss") and found.measured.startswith(name[:3])


def test_one_logit_counts_as_two_columns(inputs):
    """Column 1 has the logit z/2, column 0 has −z/2."""
    model = biasless(1)
    x = inputs.clone().requires_grad_()
    z = model(x).squeeze(1)
    expected = torch.autograd.grad(z.sum(), x)[0] * inputs / 2
    rule = dv.LRP("epsilon", epsilon=0)
    torch.testing.assert_close(rule.attribute(model, inputs, targets=1).values, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(rule.attribute(model, inputs, targets=0).values, -expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(rule.attribute(model, inputs).targets, (z > 0).long())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(2, 4, bias=False)
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, image: Tensor, table: Tensor, rows: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(torch.relu(self.a(image) + self.b(table)))[rows.long().abs() * 0 + rows]}


@pytest.mark.parametrize("form", [tuple, dict])
def test_every_floating_point_input_gets_its_own_values(form):
    torch.manual_seed(0)
    model = TwoInputs().double()
    parts = (torch.randn(4, 3).double(), torch.randn(4, 2).double(), torch.arange(4))
    given = parts if form is tuple else dict(zip(("image", "table", "rows"), parts, strict=True))
    found = dv.LRP("epsilon", epsilon=0).attribute(model, given, targets=0)
    names = ("0", "1") if form is tuple else ("image", "table")
    assert tuple(found.values) == names
    leaves = [part.clone().requires_grad_() for part in parts[:2]]
    gradients = torch.autograd.grad(model(*leaves, parts[2])["logits"][:, 0].sum(), leaves)
    for name, gradient, leaf in zip(names, gradients, leaves, strict=True):
        torch.testing.assert_close(found.values[name], (gradient * leaf).detach(), rtol=1e-12, atol=1e-14)
    assert torch.equal(found[1:3].values[names[1]], found.values[names[1]][1:3])
    assert f"{names[0]} 3 features, {names[1]} 2 features" in repr(found)


def test_relevance_is_readable_at_any_site(inputs):
    """At a hidden layer of a bias-free net it is activation × gradient there."""
    model = biasless()
    sites = [dv.Site("1", "output"), dv.Site("2", "output")]
    found = dv.LRP("epsilon", epsilon=0).attribute(model, inputs, targets=1, sites=sites, batch_size=2)
    hidden = model[:2](inputs).detach()
    torch.testing.assert_close(found.sites[sites[0]], hidden * model[2].weight[1].detach(), rtol=1e-12, atol=1e-14)
    one_hot = torch.zeros(5, 3, dtype=torch.float64)
    one_hot[:, 1] = 1
    torch.testing.assert_close(found.sites[sites[1]], model(inputs).detach() * one_hot, rtol=1e-12, atol=0)
    assert torch.equal(found[2].sites[sites[0]], found.sites[sites[0]][2:3])


@pytest.mark.parametrize(
    ("map", "objects"),
    [
        ({"0": "flat", "2": "z-plus"}, {"0": Flat(), "2": ZPlus()}),
        ({"*": "alpha2-beta1"}, {"*": AlphaBeta(alpha=2, beta=1)}),
        ({nn.functional.linear: "epsilon"}, {"?": Epsilon()}),
    ],
)
def test_rules_in_a_map_may_be_named(map, objects, inputs):
    by_name, by_object = (dv.LRP(rule).attribute(biasless(), inputs) for rule in (map, objects))
    assert torch.equal(by_name.values, by_object.values)


def test_options_reach_rules_named_in_a_map(inputs):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    named = dv.LRP({"2": "z-plus"}, bias="exclude", epsilon=1e-2).attribute(model, inputs)
    rules = {"2": ZPlus(bias="exclude", epsilon=1e-2), "0": Epsilon(bias="exclude", epsilon=1e-2)}
    assert torch.equal(named.values, dv.LRP(rules).attribute(model, inputs).values)


def test_a_map_is_copied_and_hashes():
    rules = {"0": "flat"}
    one, two = dv.LRP(rules), dv.LRP({"0": "flat"})
    rules["0"] = "w-square"
    assert one == two and hash(one) == hash(two) and one.rule == {"0": "flat"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "epsilom"}, "'epsilom' is not known; known are 'epsilon'"),
        ({"rule": {"0": "zplus"}}, "'zplus' is not known"),
        ({"rule": "epsilon", "bias": "keep"}, "'absorb', 'exclude' or 'share'"),
        ({"rule": "epsilon", "epsilon": -1}, "at least 0"),
        ({"rule": Epsilon(), "epsilon": 1e-3}, "holds its own"),
        ({"rule": Flat()}, "first layer"),
    ],
)
def test_what_is_no_rule_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        dv.LRP(**arguments)


def test_a_box_needs_inputs_inside_it(inputs):
    rule = dv.LRP({"0": ZBox(low=-10.0, high=10.0)})
    found = rule.attribute(biasless(), inputs)
    torch.testing.assert_close(found.values.sum(1), found.account.seed, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="lie outside"):
        dv.LRP({"0": ZBox(low=0.0, high=1.0)}).attribute(biasless(), inputs)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_composite_balances(name: str, inputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    account = dv.LRP(name).attribute(model, inputs, batch_size=2).account
    total = account.inputs + sum(entry.amount for entry in account.absorbed)
    assert ((account.seed - total).abs() <= 1e-12 * (account.seed.abs() + 1)).all()
    assert f"{account.absorbed_share:.2%} of the seed" in repr(account)


def test_much_absorbed_is_warned_of_once_for_all_batches():
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1.0)
    x = torch.ones(6, 2).double()
    with pytest.warns(UserWarning) as caught:
        found = dv.LRP("epsilon").attribute(dv.Task(model), x, targets=1, batch_size=2)
    # of z/2 = 1.5 the bias keeps 0.5
    assert [str(w.message) for w in caught if "33.3% of the relevance was absorbed" in str(w.message)]
    assert len(caught) == 1
    torch.testing.assert_close(found.account.largest(1)[0].amount, torch.full((6,), 0.5).double(), rtol=1e-7, atol=0)


def test_targets_must_be_as_many_as_samples(inputs):
    with pytest.raises(ValueError, match="hold 2 labels for 5 samples"):
        dv.LRP("epsilon").attribute(biasless(), inputs, targets=[0, 1])


@pytest.mark.parametrize("rule", [Flat(), ZBox(low=0.0, high=torch.ones(3)), ZPlus(bias="share")], ids=repr)
def test_rules_given_as_objects_compare_by_value(rule):
    one = dv.LRP({"0": rule, "*": Epsilon()})
    two = copy.deepcopy(one)
    assert one == two and hash(one) == hash(two)
    assert one != dv.LRP({"0": ZBox(low=0.0, high=2 * torch.ones(3)), "*": Epsilon()})


@pytest.mark.parametrize("rule", [None, Epsilon, {"*": None}, {"*": Epsilon}, {0: "epsilon"}])
def test_what_is_no_rule_at_all_is_refused(rule):
    with pytest.raises(TypeError, match="rule"):
        dv.LRP(rule)


def test_sites_are_sites(inputs):
    site = dv.Site("1", "output")
    assert list(dv.LRP("epsilon").attribute(biasless(), inputs, sites=site).sites) == [site]
    with pytest.raises(TypeError, match="sites"):
        dv.LRP("epsilon").attribute(biasless(), inputs, sites=["1"])
