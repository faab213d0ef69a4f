"""Path integrals against polynomials, whose integrals are known, and along paths that split the credit."""

import math

import pytest
import torch
from torch import Tensor

import dualview as dv
from dualview.engine.measured import Measured
from dualview.engine.path import (
    Curve,
    Stand,
    Straight,
    ends,
    integrate,
    passes,
    reference_values,
    rounding,
    terms,
    walk,
    walk_draws,
)
from dualview.engine.removal import Constant, Noise, Reference
from tests.features.budget import counted
from tests.features.polynomials import Polynomial, points, random_polynomial

torch.set_num_threads(1)
CUBIC = random_polynomial(3, 5).eval()
PROD = Polynomial({(0, 1): 1.0}, torch.zeros(2, dtype=torch.float64)).eval()
X = points(4, 5)


def on(model: torch.nn.Module, x: Tensor, size: int = 3) -> Measured:
    return Measured(dv.Task(model), x, [0] * len(x), size=size)


def from_zero(one: Measured) -> Reference:
    return Constant(0.0).reference(one)


def values(model: torch.nn.Module, x: Tensor) -> Tensor:
    return model(x)[:, 0].detach()


def test_passes_go_item_by_item():
    assert [(s.tolist(), n.tolist()) for s, n in passes(on(PROD, points(2, 2)), 3)] == [
        ([0, 1, 0], [0, 0, 1]),
        ([1, 0, 1], [1, 2, 2]),
    ]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_cubic_is_integrated_exactly_by_two_nodes(size: int):
    """∂f/∂x_i along a line is quadratic in α; a term of order κ is shared as κ_i / |κ| around the line's start."""
    one = on(CUBIC, X, size)
    start = Reference({"": CUBIC.baseline[None, None]})
    found = integrate(one, Straight(start, ends(one, start), steps=2))[""]
    expected = CUBIC.allotted(X, lambda i, kappa, count: count / len(kappa))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_terms_say_where_they_are():
    one = on(CUBIC, X)
    path = Straight(from_zero(one), one.parts, "midpoint", steps=3)
    for term in terms(one, path):
        at = path.at(term.samples, term.nodes)[0][""]
        torch.testing.assert_close(term.values, values(CUBIC, at), rtol=1e-14, atol=0)
        torch.testing.assert_close(at, X[term.samples] * (term.nodes[:, None] + 0.5) / 3, rtol=1e-14, atol=0)


def test_several_draws_are_averaged():
    one = on(CUBIC, X)
    reference = Noise(-1, 1, count=3).reference(one)
    found = integrate(one, Straight(reference, one.parts, steps=4))[""]
    single = [
        integrate(one, Straight(Reference({"": reference.parts[""][:, k : k + 1]}), one.parts, steps=4))[""]
        for k in range(3)
    ]
    torch.testing.assert_close(found, torch.stack(single).mean(0), rtol=0, atol=1e-13)


def test_references_that_all_share_cost_one_pass_each():
    one = on(CUBIC, X)
    reference = Noise(-1, 1, count=3).reference(one)
    expected = torch.stack([values(CUBIC, start[None]) for start in reference.parts[""][0]]).mean()
    _ = one.values
    with counted(CUBIC) as rows:
        found = reference_values(one, reference)
    torch.testing.assert_close(found, expected.expand(4), rtol=1e-13, atol=0)
    own = Reference({"": torch.stack([X / 2, X / 3], dim=1)})
    with counted(CUBIC) as own_rows:
        found = reference_values(one, own)
    torch.testing.assert_close(found, (values(CUBIC, X / 2) + values(CUBIC, X / 3)) / 2, rtol=1e-13, atol=0)
    assert rows.forward == 3 and own_rows.forward == 2 * 4 and rows.backward == own_rows.backward == 0


def test_a_reference_for_one_of_two_inputs_is_no_pass_for_all():
    class Sum(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a * b)[:, :2]

    one = Measured(dv.Task(Sum()), (X, 2 * X), [0] * 4, size=9)
    reference = Constant({"0": 1.0}).reference(one)
    torch.testing.assert_close(reference_values(one, reference), 2 * X[:, 0])
    assert list(ends(one, reference)) == ["0"]
    tokens = Measured(dv.Task(torch.nn.Embedding(9, 2)), torch.zeros(4, dtype=torch.int64), [0] * 4, size=9)
    with pytest.raises(TypeError, match="no floating-point tensor"):
        ends(tokens, Reference({"": torch.zeros(1, 1, dtype=torch.int64)}))


def test_a_curve_is_followed_in_pieces_that_are_complete_for_quadratics():
    quadratic = random_polynomial(2, 3).eval()
    x, one = points(4, 3), on(quadratic, points(4, 3))
    path = Curve(lambda samples, alphas: {"": alphas[:, None] ** torch.tensor([1.0, 2.0, 5.0]) * x[samples]}, steps=3)
    found = integrate(one, path)[""]
    change = values(quadratic, x) - values(quadratic, torch.zeros_like(x))
    torch.testing.assert_close(found.sum(1), change, rtol=0, atol=1e-13)


def test_a_curves_error_falls_with_the_square_of_its_steps():
    x = points(1, 2).abs()
    exact = torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64) * x.prod()  # of x₁x₂ along (α x₁, α² x₂)
    errors = []
    for steps in (10, 20):
        path = Curve(lambda s, a: {"": torch.stack([a, a**2], 1) * x[s]}, steps=steps)
        errors.append(float((integrate(on(PROD, x), path)[""] - exact).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)


def straight_in(steps: int):
    return lambda stand: (
        stand.points + (stand.ends - stand.points) / (steps - stand.step) if stand.step + 1 < steps else stand.ends
    )


def test_a_walk_in_a_straight_line_is_the_trapezoid_rule():
    one = on(CUBIC, X)
    found = walk(one, {"": torch.zeros_like(X)}, one.parts, straight_in(8))
    expected = integrate(one, Straight(from_zero(one), one.parts, "trapezoid", steps=9))[""]
    torch.testing.assert_close(found.shares[""], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.change, values(CUBIC, X) - values(CUBIC, 0 * X), rtol=0, atol=1e-13)


def one_by_one(order: list[int]):
    def move(stand: Stand) -> Tensor:
        following = stand.points.clone()
        following[:, order[stand.step]] = stand.ends[:, order[stand.step]]
        return following

    return move


def test_who_moves_last_gets_the_credit_for_a_product():
    x, zero = points(3, 2), torch.zeros(3, 2, dtype=torch.float64)
    for order in ([0, 1], [1, 0]):
        one = on(PROD, x, size=9)
        _ = one.values
        with counted(PROD) as rows:
            found = walk(one, {"": zero}, {"": x}, one_by_one(order))
        assert (found.shares[""][:, order[0]] == 0).all()
        torch.testing.assert_close(found.shares[""][:, order[1]], x.prod(1), rtol=1e-15, atol=0)
        assert rows.forward == rows.backward == 3 * (2 + 1)


def test_what_gradients_miss_of_a_step_is_known_and_can_be_shared():
    cube = Polynomial({(0, 0, 0): 1.0, (1,): 2.0}, torch.zeros(2, dtype=torch.float64)).eval()
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    once = lambda stand: stand.ends  # noqa: E731
    found = walk(on(cube, x), {"": 0 * x}, {"": x}, once)
    # the trapezoid gives x₁³ half of 3 where it is 1
    torch.testing.assert_close(found.shares[""], torch.tensor([[1.5, 2.0]], dtype=torch.float64))
    torch.testing.assert_close(found.missed, torch.tensor([0.5], dtype=torch.float64))
    complete = walk(on(cube, x), {"": 0 * x}, {"": x}, once, complete=True).shares[""]
    torch.testing.assert_close(complete, found.shares[""] * 3 / 3.5)


def test_momentum_is_the_running_mean_of_gradients():
    seen: list[Tensor] = []

    def move(stand: Stand) -> Tensor:
        seen.append(stand.slopes)
        return straight_in(4)(stand)

    x = points(1, 5)
    walk(on(CUBIC, x), {"": 0 * x}, {"": x}, move, momentum=0.25)
    leaf = torch.stack([k / 4 * x[0] for k in range(4)]).requires_grad_()
    gradients = torch.autograd.grad(CUBIC(leaf)[:, 0].sum(), leaf)[0]
    mean = gradients[0]
    for k in range(4):
        mean = 0.25 * mean + 0.75 * gradients[k]
        torch.testing.assert_close(seen[k][0], mean, rtol=1e-12, atol=1e-14)


def test_walks_of_several_inputs_draws_and_directions():
    class Product(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.stack([a[:, 0] * b[:, 0, 0], b[:, 0, 1]], 1)

    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, 1, generator=generator), torch.rand(3, 1, 2, generator=generator, dtype=torch.float64)
    one = Measured(dv.Task(Product()), {"a": a, "b": b}, [0] * 3, size=2)
    reference = Noise(count=2).reference(one)
    found = walk_draws(one, reference, one_by_one([0, 1, 2]))
    starts = {place: part[0] for place, part in reference.parts.items()}
    expected = torch.stack([(a - starts["a"][k])[:, 0] * starts["b"][k, 0, 0] for k in range(2)]).double().mean(0)
    assert found.shares["a"].dtype == torch.float32 and found.shares["b"].shape == (3, 1, 2)
    torch.testing.assert_close(found.shares["a"][:, 0].double(), expected, rtol=1e-6, atol=1e-7)
    back = walk_draws(one, reference, one_by_one([0, 1, 2]), backwards=True)
    torch.testing.assert_close(back.change, found.change, rtol=1e-6, atol=1e-7)
    expected = torch.stack([(a - starts["a"][k])[:, 0] * b[:, 0, 0] for k in range(2)]).mean(0)
    torch.testing.assert_close(back.shares["a"][:, 0].double(), expected, rtol=1e-6, atol=1e-7)


def test_a_walk_that_meets_nan_ends():
    x = torch.tensor([[1.0, math.nan]], dtype=torch.float64)
    model = Polynomial({(0,): 1.0}, torch.zeros(2, dtype=torch.float64)).eval()
    found = walk(on(model, x), {"": torch.zeros(1, 2, dtype=torch.float64)}, {"": x}, straight_in(3))
    assert found.shares[""][0, 1].isnan()


def test_rounding_is_measured_by_the_largest():
    numbers = torch.tensor([[1.0, -4.0, math.inf], [0.0, 0.0, -math.inf]], dtype=torch.float64)
    assert rounding(numbers)[:, 0].tolist() == [400 * 2**-52, 0.0]


def test_steps_below_one_are_refused():
    with pytest.raises(ValueError, match="`steps` is 0"):
        Curve(lambda s, a: {}, 0)
