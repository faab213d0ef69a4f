"""Influence against ridge regression, retraining, dense solves; its solvers against each other; what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.data import influence
from dualview.errors import DualViewWarning
from dualview.ops.ranking import spearman
from tests.data.test_grad_dot import MEASURES, PROBLEMS, fit, numbers, rows

# Exact formulas in float64; the matrices' condition numbers are below 1e4.
EXACT = {"rtol": 1e-10, "atol": 1e-11}
RIDGE = 0.7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ── ridge regression ─────────────────────────────────────────────────────────────────────────────


def ridge(inputs: Tensor, targets: Tensor, columns: Tensor | None = None) -> Tensor:
    """Return the weights "output input" that minimise ½‖Y − X Wᵀ‖² + ½·RIDGE·‖W‖²."""
    return torch.linalg.solve(inputs.T @ inputs + RIDGE * torch.eye(inputs.shape[1]).double(), inputs.T @ targets).T


def ridge_problem(columns: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    inputs, test = draw(25, 4), draw(6, 4, seed=2)
    targets = inputs @ draw(4, columns, seed=3) + draw(25, columns, seed=4)
    model = nn.Linear(4, columns, bias=False).double()
    model.weight.data = ridge(inputs, targets)
    return model, inputs, targets, test


def without(inputs: Tensor, targets: Tensor, test: Tensor, left_out: Tensor) -> Tensor:
    """Return how much larger the outputs "test output" are with these samples than after a fit without them."""
    kept = torch.ones(len(inputs), dtype=torch.bool).index_fill(0, left_out, False)
    return test @ (ridge(inputs, targets) - ridge(inputs[kept], targets[kept])).T


@pytest.mark.parametrize("columns", [1, 3])
def test_with_leverage_it_is_exact_leave_one_out_of_ridge_regression(columns: int):
    model, inputs, targets, test = ridge_problem(columns)
    method = dv.Influence(RIDGE / 25, absolute=True, leverage=True)
    explainer = fit(dv.Task(model, problem="regression"), (inputs, targets), method)
    expected = torch.stack([without(inputs, targets, test, torch.tensor([i])) for i in range(25)], dim=1)
    for column in range(columns):
        found = explainer.explain(test, column)
        torch.testing.assert_close(found.dense(), expected[:, :, column], **EXACT)
    assert found.kind == "effect" and explainer.certificate["damping"] == RIDGE / 25
    # what including a sample takes from its loss, to first order in the change: e_i · (change of its own output)
    own = without_own(inputs, targets)
    residuals = inputs @ ridge(inputs, targets).T - targets
    torch.testing.assert_close(explainer.self_influence(), -(residuals * own).sum(1), **EXACT)


def without_own(inputs: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([without(inputs, targets, inputs[i : i + 1], torch.tensor([i]))[0] for i in range(len(inputs))])


@pytest.mark.parametrize("solver", ["explicit", "cg"])
def test_without_leverage_it_is_the_influence_function_of_ridge_regression(solver: str):
    """Leave-one-out times 1 − h_i."""
    model, inputs, targets, test = ridge_problem(1)
    method = dv.Influence(RIDGE / 25, absolute=True, solver=solver, tolerance=1e-13)
    explainer = fit(dv.Task(model, problem="regression"), (inputs, targets), method)
    expected = torch.stack([without(inputs, targets, test, torch.tensor([i]))[:, 0] for i in range(25)], dim=1)
    matrix = inputs.T @ inputs + RIDGE * torch.eye(4).double()
    leverage = (inputs @ torch.linalg.inv(matrix) * inputs).sum(1)
    torch.testing.assert_close(explainer.explain(test, 0).dense(), expected * (1 - leverage), **EXACT)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_group_is_left_out_exactly(columns: int):
    model, inputs, targets, test = ridge_problem(columns)
    method = dv.Influence(RIDGE / 25, absolute=True, leverage=True)
    explainer = fit(dv.Task(model, problem="regression"), (inputs, targets), method)
    group = torch.tensor([2, 3, 11, 24])
    expected = without(inputs, targets, test, group)
    for column in range(columns):
        prepared = method.prepare(explainer.state, explainer.task, explainer.rows(test, column), explainer.table)
        found = method.joint_scores(explainer.state, prepared, group, explainer.table)
        torch.testing.assert_close(found, expected[:, column], **EXACT)
        summed = explainer.explain(test, column).dense()[:, group].sum(1)
        assert (summed - found).norm() > 0.01 * found.norm()  # single effects do not add up
    assert dv.Influence().joint_scores(explainer.state, prepared, group, explainer.table) is None


# ── classification ───────────────────────────────────────────────────────────────────────────────

DECAY = 0.05


def objective(inputs: Tensor, labels: Tensor, number: int):
    """Return Σ cross-entropies/number + ½·DECAY·‖W‖² as a function of the weights."""

    def value(weights: Tensor) -> Tensor:
        losses = F.cross_entropy(inputs @ weights.reshape(3, -1).T, labels, reduction="sum")
        return losses / number + 0.5 * DECAY * weights.square().sum()

    return value


def step(value, weights: Tensor) -> Tensor:
    gradient = torch.autograd.functional.jacobian(value, weights)
    return torch.linalg.solve(torch.autograd.functional.hessian(value, weights), gradient)


def minimum(value, weights: Tensor) -> Tensor:
    """Take Newton steps until the gradient is below 1e-12."""
    for _ in range(20):
        if torch.autograd.functional.jacobian(value, weights).norm() < 1e-12:
            return weights
        weights = weights - step(value, weights)
    raise AssertionError("Newton's method did not converge")


def test_it_foretells_leave_one_out_of_softmax_regression():
    """With leverage it is the Newton step from the whole fit, whose error is of second order; influence's of first."""
    labels = torch.arange(90) % 3
    inputs, test = draw(90, 4) + F.one_hot(labels, 4), draw(8, 4, seed=5)
    model = nn.Linear(4, 3, bias=False).double()
    whole = minimum(objective(inputs, labels, 90), torch.zeros(12).double())
    model.weight.data = whole.reshape(3, 4)
    values = [objective(inputs[torch.arange(90) != i], labels[torch.arange(90) != i], 90) for i in range(90)]
    truth, newton = (
        test @ torch.stack(moved).reshape(90, 3, 4)[:, 1].T
        for moved in ([whole - minimum(v, whole) for v in values], [step(v, whole) for v in values])
    )
    errors = {}
    for leverage in (True, False):
        method = dv.Influence(DECAY, absolute=True, leverage=leverage)
        found = fit(model, (inputs, labels), method).explain(test, 1).dense()
        errors[leverage] = float((found - truth).norm() / truth.norm())
        assert float(spearman(found, truth).min()) > 0.99
        if leverage:
            torch.testing.assert_close(found, newton, rtol=1e-9, atol=1e-12)
    assert errors[True] < 0.5 * errors[False] < 0.05


def dense_scores(problem, names: list[str], damping: float, kind: str, left: Tensor, losses: Tensor) -> Tensor:
    """−∇φᵀ (H + λI)⁻¹ ∇ℓ_i/n, by matrices that torch builds."""
    inputs, labels = problem.train
    named = dict(problem.model.named_parameters())
    flat = torch.cat([named[name].detach().flatten() for name in names])

    def logits(vector: Tensor) -> Tensor:
        pieces = vector.split([named[name].numel() for name in names])
        chosen = {name: piece.reshape(named[name].shape) for name, piece in zip(names, pieces, strict=True)}
        return torch.func.functional_call(problem.model, chosen, (inputs,))

    jacobian = torch.autograd.functional.jacobian(logits, flat).flatten(0, 1)
    middle = torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, labels), logits(flat).detach())
    gauss = jacobian.T @ middle.reshape(len(jacobian), -1) @ jacobian
    whole = gauss
    if kind == "hessian":
        whole = torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v), labels), flat)
    added = damping * gauss.diagonal().mean() * torch.eye(len(whole)).double()
    return -left @ torch.linalg.solve(whole + added, losses.T) / len(labels)


@pytest.mark.parametrize(("kind", "damping"), [("gauss-newton", 0.1), ("gauss-newton", 5.0), ("hessian", 5.0)])
def test_it_is_the_dense_formula(problem, kind: str, damping: float):
    few = tuple(part[:4] for part in problem.test)
    left, losses = rows(problem.model, *few, MEASURES["margin"][1]), rows(problem.model, *problem.train)
    names = [name for name, _ in problem.model.named_parameters()]
    expected = dense_scores(problem, names, damping, kind, left, losses)
    task = dv.Task(problem.model, output=dv.margin)
    for solver, tolerance in (("explicit", 1e-10), ("cg", 1e-8)):  # 1e-12 times the condition number, 4e3 or less
        method = dv.Influence(damping, curvature=kind, solver=solver, tolerance=1e-12)
        explainer = fit(task, problem.train, method, batch_size=50)
        found = explainer.explain(*few).dense()
        assert (found - expected).norm() < tolerance * expected.norm()
        assert explainer.certificate["solver"] == solver and explainer.certificate["unit_of_damping"] == "exact"
        own = -dense_scores(problem, names, damping, kind, losses, losses).diagonal()
        torch.testing.assert_close(explainer.self_influence(), own, rtol=10 * tolerance, atol=tolerance)


def test_chosen_parameters_alone(problem):
    few = tuple(part[:4] for part in problem.test)
    left = rows(problem.model, *few, MEASURES["logit"][1], "2.")
    losses = rows(problem.model, *problem.train, names="2.")
    expected = dense_scores(problem, ["2.weight", "2.bias"], 0.3, "gauss-newton", left, losses)
    found = fit(problem.model, problem.train, dv.Influence(0.3, parameters="2")).explain(*few).dense()
    torch.testing.assert_close(found, expected, **EXACT)
    by_readout = fit(problem.model, problem.train, dv.LastLayerInfluence(0.3)).explain(*few).dense()
    torch.testing.assert_close(found, by_readout, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_solvers_agree_on_other_problems(problem, kind: str):
    task, train = dv.Task(problem.model, problem=kind), (problem.train[0], numbers(kind))
    few = problem.test[0][:3]
    found = {}
    for solver in ("explicit", "cg"):
        method = dv.Influence(1.0, solver=solver, tolerance=1e-12)
        found[solver] = fit(task, train, method).explain(few, 2).dense()
    torch.testing.assert_close(found["cg"], found["explicit"], rtol=1e-8, atol=1e-11)
    simple = fit(task, train, dv.GradDot()).explain(few, 2).dense()
    heavy = fit(task, train, dv.Influence(1e11, absolute=True)).explain(few, 2).dense()
    torch.testing.assert_close(heavy * 1e11 * 120, simple, rtol=1e-6, atol=1e-7)  # λ alone: gradients' products


def test_lissa_is_as_right_as_the_residual_it_reports(problem):
    """‖s − H⁻¹g‖ ≤ ‖H s − g‖/λ. With all samples in each step only the series' rest is left, (1 − λ/scale)^steps."""
    few = tuple(part[:2] for part in problem.test)
    exact = fit(problem.model, problem.train, dv.Influence(30.0)).explain(*few).dense()
    method = dv.Influence(30.0, solver="lissa", batch=120, steps=150, tolerance=1e-9)
    explainer = fit(problem.model, problem.train, method)
    torch.testing.assert_close(explainer.explain(*few).dense(), exact, rtol=1e-7, atol=1e-9)
    assert explainer.certificate["scale"] > explainer.certificate["largest_eigenvalue"]
    sampled = fit(problem.model, problem.train, dv.Influence(30.0, solver="lissa", batch=60, steps=60, tolerance=0.5))
    found = sampled.explain(*few).dense()
    assert torch.equal(found, sampled.explain(*few).dense())  # batches are seeded
    assert 1e-4 < (found - exact).norm() / exact.norm() < 0.3
    strict = fit(problem.model, problem.train, dv.Influence(30.0, solver="lissa", batch=60, steps=60, tolerance=1e-3))
    with pytest.warns(DualViewWarning, match=r"relative residual of .* in steps=60, above tolerance=1.0e-03"):
        strict.explain(*few)


@pytest.mark.parametrize("solver", ["cg", "lissa"])
def test_all_test_samples_at_once_are_one_by_one(problem, solver: str):
    settings = {"cg": {"tolerance": 1e-12}, "lissa": {"tolerance": 1e-2, "steps": 30, "batch": 120}}[solver]
    method = dv.Influence(30.0, solver=solver, **settings)
    explainer = fit(problem.model, problem.train, method)
    passes: list[int] = []
    handle = problem.model.register_forward_hook(lambda _model, args, _outputs: passes.append(len(args[0])))
    together = explainer.explain(problem.test[0][:5], 1).dense()
    at_once = sum(passes)
    single = torch.cat([explainer.explain(problem.test[0][i : i + 1], 1).dense() for i in range(5)])
    handle.remove()
    torch.testing.assert_close(together, single, rtol=1e-8, atol=1e-11)
    assert at_once < 0.3 * (sum(passes) - at_once)  # one pass serves all


# ── what it says, and refuses ────────────────────────────────────────────────────────────────────


def test_curvature_that_is_not_positive_is_refused(problem):
    few = tuple(part[:2] for part in problem.test)
    with pytest.raises(ValueError, match="smallest eigenvalue of the curvature, -.*curvature='gauss-newton'"):
        fit(problem.model, problem.train, dv.Influence(1e-3, curvature="hessian"))
    explainer = fit(problem.model, problem.train, dv.Influence(1e-3, curvature="hessian", solver="cg"))
    with pytest.raises(ValueError, match="met a direction of curvature -.*curvature='gauss-newton'"):
        explainer.explain(*few)
    with pytest.raises(ValueError, match="leave no positive definite matrix: give more damping"):
        fit(problem.model, problem.train, dv.Influence(0.0))  # a sum over logits changes no loss
    with pytest.raises(ValueError, match="the loss is flat for all samples"):
        task = dv.Task(problem.model, problem="regression", loss=lambda z, y: (z * y).sum(1))
        fit(task, (problem.train[0], numbers("regression")), dv.Influence())


def test_conjugate_gradients_that_stop_early_warn(problem):
    explainer = fit(problem.model, problem.train, dv.Influence(1e-4, solver="cg", steps=3, tolerance=1e-6))
    with pytest.warns(DualViewWarning, match="relative residual of .* in steps=3, above tolerance=1.0e-06"):
        explainer.explain(*problem.test)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"damping": -1.0}, "`damping` must be zero or a positive number"),
        ({"solver": "lu"}, "choose from 'auto', 'explicit', 'cg' and 'lissa'"),
        ({"steps": 0}, "`steps` must be a whole number"),
        ({"scale": 0.0}, "`scale` must be a positive number"),
        ({"leverage": True, "solver": "cg"}, "leverage=True needs"),
        ({"leverage": True, "curvature": "hessian"}, "leverage=True needs"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dv.Influence(**fields)


def test_auto_goes_by_the_number_of_parameters(problem, monkeypatch):
    assert fit(problem.model, problem.train, dv.Influence()).certificate["solver"] == "explicit"
    monkeypatch.setattr(influence, "MOST_EXPLICIT", 100)
    assert fit(problem.model, problem.train, dv.Influence()).certificate["solver"] == "cg"
    assert fit(problem.model, problem.train, dv.Influence(leverage=True)).certificate["solver"] == "explicit"


def test_what_a_store_brings_back(problem, tmp_path):
    few = tuple(part[:3] for part in problem.test)
    methods = [
        dv.Influence(1.0),
        dv.Influence(1.0, leverage=True),
        dv.Influence(1.0, solver="cg", tolerance=1e-11),
    ]
    for method in methods:
        before = fit(problem.model, problem.train, method, store=tmp_path)
        expected = before.explain(*few).dense()
        after = dv.open(tmp_path, problem.model, train=problem.train, method=method)
        torch.testing.assert_close(after.explain(*few).dense(), expected, rtol=1e-8, atol=1e-11)
        alone = dv.open(tmp_path, problem.model, method=method)
        if method.solver == "cg":
            with pytest.raises(ValueError, match="give train= to dualview.open"):
                alone.explain(*few)
        else:
            torch.testing.assert_close(alone.explain(*few).dense(), expected, rtol=1e-12, atol=1e-13)


def test_solve_is_the_inverse_and_the_model_is_left_alone(problem):
    model = copy.deepcopy(problem.model).train()
    before = copy.deepcopy(model.state_dict())
    for solver in ("explicit", "cg"):
        method = dv.Influence(1.0, solver=solver, tolerance=1e-12)
        explainer = fit(model, problem.train, method)
        curvature = method._curvature(explainer.table, explainer.positions)
        vectors = draw(3, curvature.size)
        solved = method.solve(explainer.state, vectors, explainer.table)
        back = curvature.product(solved) + explainer.certificate["damping"] * solved
        torch.testing.assert_close(back, vectors, rtol=0, atol=1e-10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and all(one.grad is None and one.requires_grad for one in model.parameters())


def test_the_unit_of_damping_is_the_same_in_single_precision_where_a_sample_is_sure():
    """A sample's probabilities beside its own reach 1e-23 and less, whose squares are zero in float32."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    model = nn.Linear(5, 3)
    with torch.no_grad():
        direction = model.weight[0] - model.weight[1]
        for row, margin in ((0, 51.0), (1, 100.0), (2, 60.0)):
            inputs[row] = margin * direction / direction.square().sum()
    found, expected = (
        fit(model.to(dtype), (inputs.to(dtype), labels), dv.Influence(1.0, solver="explicit")).certificate["damping"]
        for dtype in (torch.float32, torch.float64)
    )
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("leverage", [False, True])
def test_class_weights_of_a_loss_in_single_precision(leverage: bool):
    inputs, labels = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
    model, weight = nn.Linear(5, 3), torch.tensor([1.0, 2.0, 0.5])
    method = dv.Influence(1.0, leverage=leverage)

    def scores(dtype: torch.dtype) -> Tensor:
        loss = nn.CrossEntropyLoss(weight=weight.to(dtype), reduction="none")
        task = dv.Task(model.to(dtype), loss=loss)
        return fit(task, (inputs.to(dtype), labels), method).explain(inputs[:5].to(dtype)).dense().double()

    single, double = scores(torch.float32), scores(torch.float64)
    assert (single - double).norm() < 1e-4 * double.norm()


def test_conjugate_gradients_tell_the_residual_that_they_leave(problem):
    """In float32 the recursion's own residual goes on falling where the true one does not."""
    single = problem.to(torch.float32)
    explainer = fit(single.model, single.train, dv.Influence(1e-6, solver="cg", tolerance=1e-9, steps=60))
    with pytest.warns(DualViewWarning, match="relative residual of") as caught:
        explainer.explain(single.test[0][:4])
    said = float(str(caught[0].message).split("relative residual of ")[1].split(" ")[0])
    assert 1e-9 < said < 1


def test_a_sample_of_leverage_one_is_refused():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(20, k, generator=generator, dtype=torch.float64) for k in (4, 1))
    inputs[:, 3] = 0
    inputs[0, 3] = 1  # a feature of one sample alone
    task = dv.Task(nn.Linear(4, 1, bias=False).double(), problem="regression")
    with pytest.raises(ValueError, match="leverage 1"):
        fit(task, (inputs, targets), dv.Influence(0.0, absolute=True, leverage=True))


def test_a_group_that_was_wholly_held_out_does_nothing(problem):
    explainer = fit(problem.model, problem.train, dv.Influence(leverage=True), held_out=0.3)
    rest = [k for k in range(120) if k not in explainer.positions.tolist()][:3]
    found = explainer.explain_groups(problem.test[0], {"unseen": rest, "seen": explainer.positions[:3]})
    assert not found.scores[:, 0].any() and found.scores[:, 1].all() and found.joint


def test_a_matrix_of_too_many_parameters_is_refused():
    inputs, labels = torch.randn(6, 150), torch.arange(6) % 2
    model = nn.Sequential(nn.Linear(150, 140), nn.ReLU(), nn.Linear(140, 2))
    with pytest.raises(ValueError, match="parameters are too many for a matrix of all"):
        fit(model, (inputs, labels), dv.Influence(solver="explicit"))
