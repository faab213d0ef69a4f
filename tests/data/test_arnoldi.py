"""Arnoldi against the dense inverse, truncated where it truncates."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from tests.data.test_grad_dot import MEASURES, PROBLEMS, fit, numbers, rows

SIZE = 114  # parameters of the problem's network


@pytest.fixture(scope="module")
def few(problem) -> tuple[Tensor, Tensor]:
    return tuple(part[:4] for part in problem.test)


def eigen(problem, kind: str, train: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors (rows) of the curvature that torch builds, falling in size."""
    named = dict(problem.model.named_parameters())
    flat = torch.cat([one.detach().flatten() for one in named.values()])

    def logits(vector: Tensor) -> Tensor:
        pieces = vector.split([one.numel() for one in named.values()])
        chosen = {name: piece.reshape(one.shape) for (name, one), piece in zip(named.items(), pieces, strict=True)}
        return torch.func.functional_call(problem.model, chosen, (train[0],))

    if kind == "hessian":
        whole = torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v), train[1]), flat)
    else:
        jacobian = torch.autograd.functional.jacobian(logits, flat).flatten(0, 1)
        middle = torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, train[1]), logits(flat).detach())
        whole = jacobian.T @ middle.reshape(len(jacobian), -1) @ jacobian
    values, vectors = torch.linalg.eigh(whole)
    order = values.abs().argsort(descending=True)
    return values[order], vectors[:, order].T


def test_at_full_rank_it_is_the_dense_inverse(problem, few):
    exact = fit(problem.model, problem.train, dv.Influence(1.0)).explain(*few).dense()
    explainer = fit(problem.model, problem.train, dv.Arnoldi(SIZE, SIZE, damping=1.0, curvature="gauss-newton"))
    found = explainer.explain(*few).dense()
    assert (found - exact).norm() < 1e-10 * exact.norm()
    assert explainer.certificate["rank"] == SIZE and explainer.certificate["dropped"] == 0
    own = fit(problem.model, problem.train, dv.Influence(1.0)).self_influence()
    torch.testing.assert_close(explainer.self_influence(), own, rtol=1e-9, atol=1e-11)
    vectors = rows(problem.model, *few)
    solved = explainer.method.solve(explainer.state, vectors, explainer.table)
    inverse = dv.Influence(1.0)
    expected = inverse.solve(fit(problem.model, problem.train, inverse).state, vectors, explainer.table)
    assert (solved - expected).norm() < 1e-10 * expected.norm()


@pytest.mark.parametrize("kind", ["gauss-newton", "hessian"])
def test_it_keeps_the_directions_of_largest_curvature(problem, few, kind: str):
    rank, damping = 8, 0.1
    values, vectors = eigen(problem, kind, problem.train)
    explainer = fit(problem.model, problem.train, dv.Arnoldi(rank, 60, damping=damping, curvature=kind))
    mean = eigen(problem, "gauss-newton", problem.train)[0].mean()
    assert explainer.certificate["damping"] == pytest.approx(float(damping * mean), rel=1e-10)
    left, right = rows(problem.model, *few, MEASURES["logit"][1]), rows(problem.model, *problem.train)
    kept, basis = values[:rank], vectors[:rank]
    sound = kept + damping * mean > damping * mean / 2
    weights = torch.where(sound, 1 / (kept + damping * mean), 0.0)
    expected = -(left @ basis.T * weights) @ (right @ basis.T).T / 120
    # Ritz pairs of the outermost eigenvalues converge first; 60 of 114 steps leave them a relative error of 1e-6
    assert (explainer.explain(*few).dense() - expected).norm() < 1e-5 * expected.norm()
    assert explainer.certificate["dropped"] == int((~sound).sum())
    assert explainer.certificate["negative_eigenvalues"] == int((kept < 0).sum())


def test_negative_curvature_is_dropped_and_told(problem, few):
    """Of the whole Hessian some eigenvalues are negative; without them it is a sum over the others."""
    values, vectors = eigen(problem, "hessian", problem.train)
    explainer = fit(problem.model, problem.train, dv.Arnoldi(SIZE, SIZE, damping=0.1))
    damping = explainer.certificate["damping"]
    sound = values + damping > damping / 2
    assert explainer.certificate["dropped"] == int((~sound).sum()) > 0
    assert explainer.certificate["negative_eigenvalues"] > 0
    assert explainer.certificate["rank"] + explainer.certificate["dropped"] == SIZE
    left, right = rows(problem.model, *few, MEASURES["logit"][1]), rows(problem.model, *problem.train)
    basis = vectors[sound]
    expected = -(left @ basis.T / (values[sound] + damping)) @ (right @ basis.T).T / 120
    assert (explainer.explain(*few).dense() - expected).norm() < 1e-9 * expected.norm()


def test_curvature_of_some_samples_scores_all(problem, few):
    explainer = fit(
        problem.model, problem.train, dv.Arnoldi(SIZE, SIZE, curvature="gauss-newton", damping=1.0, samples=40, seed=3)
    )
    drawn = torch.randperm(120, generator=torch.Generator().manual_seed(3))[:40]
    values, vectors = eigen(problem, "gauss-newton", tuple(part[drawn] for part in problem.train))
    left, right = rows(problem.model, *few, MEASURES["logit"][1]), rows(problem.model, *problem.train)
    expected = -(left @ vectors.T / (values + values.mean())) @ (right @ vectors.T).T / 120
    assert (explainer.explain(*few).dense() - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("kind", PROBLEMS)
def test_other_problems(problem, kind: str):
    """A regression's curvature has each eigenvalue several times, for its outputs alike: none may be missed."""
    task, train = dv.Task(problem.model, problem=kind), (problem.train[0], numbers(kind))
    method = dv.Arnoldi(SIZE, SIZE, damping=1.0, curvature="gauss-newton", parameters="2")
    found = fit(task, train, method)
    exact = fit(task, train, dv.Influence(1.0, parameters="2")).explain(problem.test[0][:4], 2).dense()
    assert (found.explain(problem.test[0][:4], 2).dense() - exact).norm() < 1e-9 * exact.norm()
    assert found.certificate["rank"] == 44  # all there are


def test_it_is_explained_from_a_store_without_the_samples(problem, few, tmp_path):
    before = fit(problem.model, problem.train, dv.Arnoldi(10, 30), store=tmp_path)
    after = dv.open(tmp_path, problem.model)
    torch.testing.assert_close(after.explain(*few).dense(), before.explain(*few).dense(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(after.self_influence(), before.self_influence(), rtol=1e-12, atol=1e-13)


def test_the_number_of_passes_is_that_of_the_iterations(problem, few):
    model = copy.deepcopy(problem.model)
    passes: list[int] = []
    model.register_forward_hook(lambda _model, args, _outputs: passes.append(len(args[0])))
    counts = {}
    for iterations in (20, 50):
        passes.clear()
        explainer = fit(model, problem.train, dv.Arnoldi(10, iterations))
        counts[iterations] = sum(passes)
    assert counts[50] - counts[20] == 30 * 120
    passes.clear()
    explainer.explain(*few)
    assert sum(passes) < 120  # the test samples alone


def test_what_means_nothing_is_refused(problem):
    for fields, message in [
        ({"rank": 30, "iterations": 20}, "`rank` must be up to iterations=20"),
        ({"samples": 0}, "`samples` must be a whole number"),
        ({"damping": -1.0}, "`damping` must be zero or a positive number"),
    ]:
        with pytest.raises(ValueError, match=message):
            dv.Arnoldi(**fields)
    flipped = dv.Task(problem.model, loss=lambda z, y: -F.cross_entropy(z, y, reduction="none"))
    with pytest.raises(ValueError, match="the Gauss-Newton matrix is zero or negative"):
        fit(flipped, problem.train, dv.Arnoldi(5, 20))


def test_single_precision_is_close(problem, few):
    single, half = problem.to(torch.float32), problem.to(torch.float64)
    assert isinstance(single.model, nn.Module)
    found = fit(single.model, single.train, dv.Arnoldi(10, 60)).explain(few[0].float(), few[1]).dense()
    exact = fit(half.model, half.train, dv.Arnoldi(10, 60)).explain(*few).dense()
    assert (found - exact).norm() < 1e-3 * exact.norm()  # 1e-7, times the condition number of what is kept
