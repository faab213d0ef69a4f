"""What each row does on its simplex: the form in torch against the compiled one, and both against the definition."""

import numpy as np
import pytest
import torch

from dualview.solvers.crammer_singer import simplex

COMPILED, IN_TORCH = simplex.arithmetic(compiled=True), simplex.arithmetic(compiled=False)
NUM_ROWS = 60


def block(num_classes, seed, size=3.0):
    """Scores, half of them on a grid so that many tie; coefficients, a third of them at corners; targets, costs."""
    values = np.random.default_rng([num_classes, seed])
    scores = size * values.normal(size=(NUM_ROWS, num_classes))
    scores[::2] = scores[::2].round()
    targets = values.integers(num_classes, size=NUM_ROWS)
    p = values.dirichlet(np.full(num_classes, 0.5), NUM_ROWS)
    p[values.random(p.shape) < 0.4] = 0
    p[p.sum(1) == 0, 0] = 1
    p[::3] = np.eye(num_classes)[values.integers(num_classes, size=len(p[::3]))]
    p /= p.sum(1, keepdims=True)
    u = np.eye(num_classes)[targets] - p
    u[np.arange(NUM_ROWS), targets] = 0
    u[np.arange(NUM_ROWS), targets] = np.minimum(-u.sum(1), 1)
    costs = 10.0 ** values.uniform(-3, 2, NUM_ROWS)
    return tuple(torch.as_tensor(given) for given in (scores, u, targets, costs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 3, 5, 12])
def test_assess_is_the_same_in_torch(num_classes, dtype):
    scores, u, targets, costs = block(num_classes, 0)
    scores, ends = scores.to(dtype), []
    for arithmetic in (COMPILED, IN_TORCH):
        margins = torch.full((NUM_ROWS,), torch.nan, dtype=dtype)
        ends.append((arithmetic.assess(scores.clone(), targets, costs, u, margins), margins))
    # In torch a float32 difference is rounded before it is widened.
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-13 if dtype == torch.float64 else 1e-7)
    assert torch.equal(ends[0][1], ends[1][1])  # differences of the same two numbers
    assert 10 < ends[0][1].isinf().sum() < 50  # both kinds of row were there


def test_assess_is_the_definition():
    scores, u, targets, costs = block(4, 1)
    own = np.arange(4) == targets.numpy()[:, None]
    G, p, C = scores.numpy() + ~own, own - u.numpy(), costs.numpy()
    expected = [C @ (G.max(1) - G[own]), C @ (p * (G.max(1, keepdims=True) - G)).sum(1), C @ u.numpy()[own]]
    margins = torch.empty(NUM_ROWS, dtype=torch.float64)
    for arithmetic in (COMPILED, IN_TORCH):
        assert arithmetic.assess(scores.clone(), targets, costs, u, margins) == pytest.approx(expected, rel=1e-12)
        for i in range(NUM_ROWS):
            corner = p[i].argmax()
            at_corner = (p[i] > 0).sum() == 1
            assert margins[i] == (
                pytest.approx(G[i, corner] - np.delete(G[i], corner).max(), abs=1e-12) if at_corner else -np.inf
            )


def settled(arithmetic, scores, steps, length, targets, costs, anchors, reach):
    """Settle every second row, so that positions in the block and in the whole differ."""
    rows = torch.arange(0, NUM_ROWS, 2)
    coefficients = torch.full((len(rows), scores.shape[1]), torch.nan, dtype=torch.float64)
    arguments = scores[rows].clone(), steps[rows], length, rows, targets, costs, anchors, reach
    return coefficients, arithmetic.settle(*arguments, coefficients)


def rounding(scores, reach):
    """Of a coefficient: some roundings of the scores, times the reach, and of numbers about 1."""
    return 1e-15 * (8 + 8 * reach * float(scores.abs().max()))


@pytest.mark.parametrize("reach", [1e-9, 1e-3, 0.3, 1.0, 20.0, 1000.0, 1e6])
@pytest.mark.parametrize("num_classes", range(2, 13))
def test_settle_is_the_same_in_torch_and_the_nearest_point(num_classes, reach):
    """p = e_y - u is the point of the simplex that is nearest to p° + reach·G, found here by bisection."""
    scores, anchors, targets, costs = block(num_classes, 2)
    steps = block(num_classes, 3)[0]
    (u, sums), (other, others) = (
        settled(arithmetic, scores, steps, 0.7, targets, costs, anchors, reach) for arithmetic in (COMPILED, IN_TORCH)
    )
    rows = np.arange(0, NUM_ROWS, 2)
    own = np.arange(num_classes) == targets.numpy()[rows, None]
    G = (scores + 0.7 * steps).numpy()[rows] + ~own
    G -= G.max(1, keepdims=True)
    tolerance = rounding(scores, reach)
    nearest = own - anchors.numpy()[rows] + reach * G
    low, high = nearest.max(1) - 1, nearest.max(1)
    for _ in range(100):
        tau = (low + high) / 2
        above = np.maximum(nearest - tau[:, None], 0).sum(1) > 1
        low, high = np.where(above, tau, low), np.where(above, high, tau)
    p = np.maximum(nearest - tau[:, None], 0)
    np.testing.assert_allclose(u, other, atol=tolerance)
    np.testing.assert_allclose(own - u.numpy(), p, atol=tolerance)
    C = costs.numpy()[rows]
    expected = [
        C @ (u * steps[rows]).sum(1).numpy(),
        C @ -(p * G).sum(1),
        C @ u.numpy()[own],
    ]
    largest = float(C.sum() * num_classes * (1 + max(steps.abs().max(), np.abs(G).max())))
    np.testing.assert_allclose(sums, expected, atol=tolerance * largest)
    np.testing.assert_allclose(others, expected, atol=tolerance * largest)
    for found in (u.numpy(), other.numpy()):
        assert (found[own] >= 0).all() and (found[own] <= 1).all()
        assert (found[~own] <= 0).all() and (found[~own] >= -1).all()
        np.testing.assert_allclose(found.sum(1), 0, atol=4e-16 * num_classes)


@pytest.mark.parametrize("arithmetic", [COMPILED, IN_TORCH], ids=["compiled", "torch"])
def test_corners_are_exact(arithmetic):
    """No loss: u is zero to the bit. A rival far ahead: u is minus one and one."""
    scores = torch.tensor([[9.0, 0.0, 0.1], [0.0, 9.0, 0.1]], dtype=torch.float64)
    u, zero = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    rows, costs = torch.arange(2), torch.ones(2, dtype=torch.float64)
    anchors = torch.tensor([[0.3, -0.3, 0.0], [0.3, -0.1, -0.2]], dtype=torch.float64)
    arithmetic.settle(scores, zero, 0.0, rows, torch.zeros(2, dtype=torch.int64), costs, anchors, 7.3, u)
    assert u.tolist() == [[0, 0, 0], [1, -1, 0]]


@pytest.mark.parametrize("arithmetic", [COMPILED, IN_TORCH], ids=["compiled", "torch"])
def test_slope_is_the_derivative_of_the_rows_part_of_the_objective(arithmetic):
    """Of Σ C_i max (<e_y - u, G> - |u - u°|²/(2 reach)) by the length: Σ C_i <e_y - u, steps>."""
    scores, anchors, targets, costs = block(5, 4)
    steps, reach = block(5, 5)[0], 0.4
    rows = np.arange(0, NUM_ROWS, 2)
    own = np.arange(5) == targets.numpy()[rows, None]

    def objective(length):
        u = settled(arithmetic, scores, steps, length, targets, costs, anchors, reach)[0].numpy()
        G = (scores + length * steps).numpy()[rows] + ~own
        near = ((u - anchors.numpy()[rows]) ** 2).sum(1) / (2 * reach)
        return float(costs.numpy()[rows] @ (((own - u) * G).sum(1) - near))

    for length in (0.0, 0.31, 1.7):
        slope = settled(arithmetic, scores, steps, length, targets, costs, anchors, reach)[1][0]
        expected = float(costs.numpy()[rows] @ steps.numpy()[rows][own]) - slope
        h = 1e-5  # the function is of second order between kinks; its derivative is continuous
        difference = (objective(length + h) - objective(length - h)) / (2 * h)
        curvature = reach * float(costs[rows] @ steps[rows].square().sum(1))
        assert difference == pytest.approx(expected, abs=h * curvature + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contract_and_expand_are_the_same_in_torch_and_transposes(dtype):
    values = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 9, generator=values, dtype=torch.float64).to(dtype)
    owner = torch.randint(20, (35,), generator=values)
    directions = torch.randn(35, 4, generator=values, dtype=torch.float64)
    directions[torch.rand(35, 4, generator=values) < 0.5] = 0
    weights = torch.randn(4, 9, generator=values, dtype=torch.float64)
    factors = torch.randn(35, generator=values, dtype=torch.float64)
    dense = torch.einsum("pk,pj->kjp", directions, rows[owner].double())  # B
    for arithmetic in (COMPILED, IN_TORCH):
        products, summed = torch.empty(35, dtype=torch.float64), weights.clone()
        arithmetic.contract(rows, owner, directions, weights, products)
        arithmetic.expand(rows, owner, directions, factors, summed)
        torch.testing.assert_close(products, torch.einsum("kjp,kj->p", dense, weights), rtol=0, atol=1e-12)
        torch.testing.assert_close(summed - weights, dense @ factors, rtol=0, atol=1e-12)
