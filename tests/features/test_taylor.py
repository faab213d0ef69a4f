"""Taylor effects against polynomials, whose effects are read off their coefficients."""

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.engine.measured import Measured
from dualview.engine.players import as_players
from dualview.errors import DualViewWarning
from dualview.features import _effects
from tests.features.polynomials import Polynomial, points, random_polynomial

torch.set_num_threads(1)
CUBIC = random_polynomial(3, 5).eval()
X = points(3, 5)
B = CUBIC.baseline
EXACT = {"rtol": 0, "atol": 1e-10}


def attributed(form: str, model: nn.Module = CUBIC, x: Tensor = X, b: Tensor = B, **options) -> dv.FeatureAttribution:
    return dv.Taylor(form, baseline=b, **options).attribute(model, x, targets=0)


def share(i: int, kappa: tuple[int, ...], count: int) -> float:
    """Integrated gradients' weight, κ_i / |κ|."""
    return count / len(kappa)


def of_size(condition) -> Tensor:
    """Return integrated gradients' shares of the effects for which `condition(i, κ)` holds."""
    return CUBIC.allotted(X, lambda i, kappa, count: share(i, kappa, count) * condition(i, kappa))


def test_split_tells_first_order_independent_and_interactive_effects_apart():
    """B.4 item 1, on a random cubic in five variables: no Hessian, and exact."""
    found = attributed("split")
    expected = {
        "first_order": of_size(lambda i, kappa: kappa == (i,)),
        "higher_order": of_size(lambda i, kappa: set(kappa) == {i} and len(kappa) > 1),
        "interactive": of_size(lambda i, kappa: len(set(kappa)) > 1),
    }
    assert list(found.split) == list(expected)
    for name, part in expected.items():
        torch.testing.assert_close(found.split[name], part, **EXACT)
    torch.testing.assert_close(found.values, CUBIC.allotted(X, share), **EXACT)
    torch.testing.assert_close(found.values.sum(1), found.change, **EXACT)
    change = (CUBIC(X) - CUBIC(B[None]))[:, 0].detach()
    torch.testing.assert_close(found.change, change, **EXACT)


def test_orders_are_those_of_integrated_gradients_along_the_ray():
    """B.4 item 2: IG^(K)_i = Σ_{|κ| = K} κ_i / K I(κ), nothing left over for a cubic."""
    found = attributed("orders")
    for order in (1, 2, 3):
        expected = of_size(lambda i, kappa, order=order: len(kappa) == order)
        torch.testing.assert_close(found.split[f"order_{order}"], expected, **EXACT)
    torch.testing.assert_close(found.split["remainder"], torch.zeros_like(X), **EXACT)
    assert (found.checks["kinks"] < 1e-10).all()


def test_the_second_order_share_is_half_the_way_times_curvature():
    """B.4 item 3: ½ Δ ⊙ H(b)Δ by one product with the Hessian."""
    measured = Measured(dv.Task(CUBIC), X, [0, 0, 0], size=10)
    way = {"": X - B}
    curved = _effects.curvature_along(measured, measured.samples, {"": B.expand(3, 5)}, way)
    torch.testing.assert_close(0.5 * way[""] * curved[""], of_size(lambda i, kappa: len(kappa) == 2), **EXACT)


def test_effects_are_the_coefficients_up_to_any_order():
    """B.1: I(κ) by repeated differentiation, and f(x) − f(b) is their sum."""
    measured = Measured(dv.Task(CUBIC), X, [0, 0, 0], size=2)
    reference = dv.Constant(B).reference(measured)
    players = as_players(None, measured.parts)
    found = _effects.taylor_effects(measured, reference, players, 3)
    kappas = _effects.monomials(5, 3)
    expected = CUBIC.effects(X)
    torch.testing.assert_close(found, torch.stack([expected[kappa] for kappa in kappas], dim=1), **EXACT)
    torch.testing.assert_close(found.sum(1), (CUBIC(X) - CUBIC(B[None]))[:, 0].detach(), **EXACT)
    single, nobody = _effects.alone(measured, reference, players)
    for i in range(5):
        own = sum(amount for kappa, amount in expected.items() if set(kappa) == {i})
        torch.testing.assert_close(single[:, i], own, **EXACT)  # ψ_i, all orders
    torch.testing.assert_close(nobody, CUBIC(B[None])[:, 0].detach().expand(3), **EXACT)


def test_pairs_are_dividends_of_two():
    """B.4 item 4: J({i, j}) of all orders, by a difference of four values."""
    found = attributed("pairs")
    expected = torch.zeros(3, 5, 5, dtype=torch.float64)
    for kappa, amount in CUBIC.effects(X).items():
        if len(set(kappa)) == 2:
            i, j = sorted(set(kappa))
            expected[:, i, j] += amount
            expected[:, j, i] += amount
    torch.testing.assert_close(found.tables["interactions"], expected, **EXACT)
    torch.testing.assert_close(found.split["pairs"], expected.sum(2) / 2, **EXACT)
    torch.testing.assert_close(sum(found.split.values()), CUBIC.allotted(X, share), **EXACT)


def test_exact_dividends_make_the_shapley_value():
    """B.1 and B.3: J(S), the Shapley value ψ_i + Σ_{S ∋ i} J(S) / |S|, occlusion ψ_i + Σ_{S ∋ i} J(S)."""
    found = attributed("exact")
    dividends = torch.zeros(3, 32, dtype=torch.float64)
    dividends[:, 0] = CUBIC(B[None])[:, 0].detach()
    for kappa, amount in CUBIC.effects(X).items():
        dividends[:, sum(1 << i for i in set(kappa))] += amount
    torch.testing.assert_close(found.tables["dividends"], dividends, **EXACT)
    shapley = CUBIC.allotted(X, lambda i, kappa, count: (count > 0) / len(set(kappa)))
    torch.testing.assert_close(found.values, shapley, **EXACT)
    torch.testing.assert_close(found.split["alone"], of_size(lambda i, kappa: set(kappa) == {i}), **EXACT)
    triples = CUBIC.allotted(X, lambda i, kappa, count: (count > 0) / 3 * (len(set(kappa)) == 3))
    torch.testing.assert_close(found.split["size_3"], triples, **EXACT)


def test_a_monomial_is_shared_as_the_paper_says():
    """c x1² x2 from 0: integrated gradients 2/3 and 1/3, the Shapley value 1/2 and 1/2, all of it interactive."""
    monomial = Polynomial({(0, 0, 1): 4.0}, torch.zeros(2, dtype=torch.float64)).eval()
    x = torch.tensor([[1.5, -2.0]], dtype=torch.float64)
    whole = 4 * 1.5**2 * -2.0
    split = attributed("split", monomial, x, monomial.baseline)
    torch.testing.assert_close(split.values, whole * torch.tensor([[2 / 3, 1 / 3]], dtype=torch.float64), **EXACT)
    torch.testing.assert_close(split.split["interactive"], split.values, **EXACT)
    exact = attributed("exact", monomial, x, monomial.baseline)
    torch.testing.assert_close(exact.values, whole * torch.tensor([[0.5, 0.5]], dtype=torch.float64), **EXACT)


class Smooth(nn.Module):
    """A network of tanh units."""

    def __init__(self, activation=torch.tanh) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.activation = activation
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(2 * self.first(x)))


def test_segments_converge_as_their_number_squared():
    """B.5, ours: each segment's slope and curvature; twice the segments, a quarter of the error."""
    model, x = Smooth().eval(), points(4, 6)
    exact = dv.IntegratedGradients(steps=100).attribute(model, x, targets=1).values
    found = [dv.Taylor("segments", steps=steps).attribute(model, x, targets=1).values for steps in (8, 16, 32)]
    errors = [float((values - exact).abs().max()) for values in found]
    assert errors[0] > errors[1] > errors[2]
    assert 3 < errors[0] / errors[1] < 6 and 3 < errors[1] / errors[2] < 6


def test_groups_of_features_are_players():
    """Players move together: their scores are sums over their numbers, and the effects those of the groups."""
    mask = torch.tensor([0, 1, 0, 2, 1])
    found = attributed("split", players=mask)
    fine = CUBIC.allotted(X, share)
    expected = torch.stack([fine[:, mask == p].sum(1) for p in range(3)], dim=1)
    torch.testing.assert_close(found.tables["players"], expected, **EXACT)
    torch.testing.assert_close(found.values[:, 0], expected[:, 0] / 2, **EXACT)
    both = sum(amount for kappa, amount in CUBIC.effects(X).items() if set(kappa) <= {0, 2})
    first = sum(amount for kappa, amount in CUBIC.effects(X).items() if len(kappa) == 1 and kappa[0] in (0, 2))
    term = {name: part[:, mask == 0].sum(1) for name, part in found.split.items()}
    torch.testing.assert_close(term["first_order"], first, **EXACT)
    torch.testing.assert_close(term["first_order"] + term["higher_order"], both, **EXACT)


def test_numbers_of_nobody_stay_where_they_are():
    mask = torch.tensor([0, 1, -1, 2, -1])
    b = torch.where(mask < 0, X, B)
    for form in ("split", "pairs", "exact"):
        found = attributed(form, players=mask)
        expected = attributed(form, b=b)
        torch.testing.assert_close(found.values, expected.values, **EXACT)
        assert (found.values[:, mask < 0] == 0).all()
        torch.testing.assert_close(found.values.sum(1), found.change, **EXACT)


def test_terms_are_averaged_over_several_baselines():
    data = points(4, 5, seed=7)
    found = attributed("split", b=dv.Samples(data))
    single = [attributed("split", b=row) for row in data]
    for name, part in found.split.items():
        torch.testing.assert_close(part, torch.stack([one.split[name] for one in single]).mean(0), **EXACT)
    torch.testing.assert_close(found.change, torch.stack([one.change for one in single]).mean(0), **EXACT)


@pytest.mark.parametrize("form", ["orders", "segments"])
def test_networks_of_relus_have_no_orders_and_say_so(form: str):
    model, x = Smooth(torch.relu).eval(), points(4, 6)
    with pytest.warns(DualViewWarning, match="piecewise linear, has kinks"):
        found = dv.Taylor(form, steps=200).attribute(model, x, targets=1)
    split = dv.Taylor(steps=200).attribute(model, x, targets=1)
    assert list(found.split) == list(split.split) and torch.equal(found.values, split.values)
    assert (found.checks["kinks"] > 0.9).any()
    assert (dv.Taylor(form).attribute(Smooth().eval(), x, targets=1).checks["kinks"] < 0.01).all()


def test_one_kink_anywhere_means_differences_everywhere():
    """Batches and outputs have the same terms, though the first samples cross no kink."""
    model = Smooth(torch.relu).eval()
    x = torch.cat([1e-3 * points(2, 6), points(2, 6)])
    task = dv.Task(model, output=(dv.logit, dv.margin))
    split = dv.Taylor(steps=20).attribute(task, x, targets=1)
    for form in ("orders", "segments"):
        with pytest.warns(DualViewWarning, match="piecewise linear, has kinks"):
            found = dv.Taylor(form, steps=20).attribute(task, x, targets=1, batch_size=2)
        assert list(found.split) == list(split.split)
        torch.testing.assert_close(found.values, split.values, rtol=0, atol=1e-12)
        assert (found.checks["kinks"][0, :2] == 0).all() and (found.checks["kinks"][0, 2:] > 0.5).any()
    wide = nn.Sequential(nn.Linear(5000, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with pytest.warns(DualViewWarning), pytest.raises(ValueError, match="form='split' takes at most 4096"):
        dv.Taylor("orders").attribute(wide, torch.linspace(-9, 9, 10000).reshape(2, 5000))


def test_rounding_is_no_kink():
    """So near to the baseline that the gradient, about 1, changes by 1e-6: a few units in its last place."""
    model, x = Smooth(nn.functional.gelu).float().eval(), 1e-6 * points(8, 6).float()
    measured = Measured(dv.Task(model), x, [0] * 8, size=8)
    assert (_effects.kinks(measured, dv.Constant(0.0).reference(measured)) == 0).all()


def test_one_number_a_sample_is_an_input_too():
    class Product(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.stack([a * b.sum(1), a], dim=1)

    inputs = {"a": points(1, 4)[0], "b": points(4, 3)}
    for form in ("split", "orders", "pairs", "exact"):
        found = dv.Taylor(form).attribute(Product(), inputs, targets=0)
        half = inputs["a"][:, None] * inputs["b"] / 2
        torch.testing.assert_close(found.values["b"], half, **EXACT)
        torch.testing.assert_close(found.values["a"], half.sum(1), **EXACT)
    allocation = dv.Taylor().allocation(dv.Occlusion(), Product(), inputs, targets=0)
    torch.testing.assert_close(allocation.scores[:, 0], 2 * half.sum(1), **EXACT)


def test_numbered_players_are_values():
    mask = torch.tensor([0, 1, 0, 2, 1])
    method, twin = dv.Taylor(players=mask), dv.Taylor(players=mask.clone())
    assert method == twin and hash(method) == hash(twin) and repr(method) == "Taylor(players=<tensor 5>)"
    assert method != dv.Taylor(players=mask.flip(0)) and method != dv.Taylor(players={"a": mask}) != dv.Taylor()
    assert dv.Occlusion({"a": mask}) == dv.Occlusion({"a": mask.clone()})


def test_model_calls_are_as_stated():
    """split: `steps` + 1 gradients, and n + 1 forward passes besides the one for the prediction."""
    rows: list[int] = []
    model = Smooth().eval()
    hook = model.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    dv.Taylor(steps=10).attribute(model, points(4, 6), targets=0)
    hook.remove()
    assert sum(rows) == 4 * (10 + 1 + (6 + 1) + 1)


def test_what_cannot_be_is_refused():
    for arguments, message in (
        ({"form": "all"}, "choose from 'split'"),
        ({"steps": 0}, "at least 1"),
        ({"orders": 7}, "expected 1 to 6"),
        ({"baseline": "zero"}, "must be a number"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            dv.Taylor(**arguments)
    wide = nn.Linear(21, 2).eval()
    with pytest.raises(ValueError, match="at most 20 players and there are 21"):
        dv.Taylor("exact").attribute(wide, torch.ones(1, 21))
    with pytest.raises(ValueError, match="at most 4096 players"):
        dv.Taylor().attribute(nn.Linear(5000, 2).eval(), torch.ones(1, 5000))
    embedded = nn.Bilinear(2, 2, 2).eval()
    with pytest.raises(TypeError, match="'0', which holds whole numbers"):
        dv.Taylor(baseline={"0": 0}).attribute(embedded, (torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2)), 0)


def test_monomials_are_listed_once():
    kappas = _effects.monomials(4, 3)
    assert len(kappas) == len(set(kappas)) == 4 + 10 + 20
    assert all(sorted(kappa) == list(kappa) for kappa in kappas)
    assert Counter(map(len, kappas)) == Counter({1: 4, 2: 10, 3: 20})
    assert set(itertools.combinations(range(4), 2)) <= set(kappas)
