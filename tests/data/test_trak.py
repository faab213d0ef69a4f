"""TRAK against influence in a logistic regression, retraining, and its formula written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.ops.projection import project
from tests.data.test_grad_dot import CLOSE, MEASURES, NOISY, fit, rows

RIDGE = 2.0


class Flat(nn.Module):
    """A linear network without bias, of one logit or two."""

    def __init__(self, num_logits: int, inputs: int = 4) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, num_logits, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def logistic() -> tuple[tuple[Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] - inputs[:, 1] + noise > 0).long()
    return (inputs, labels), torch.randn(6, 4, generator=generator, dtype=torch.float64)


def losses(weight: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    raw = inputs @ weight.T
    logits = torch.cat([-raw / 2, raw / 2], 1) if len(weight) == 1 else raw
    return F.cross_entropy(logits, labels, reduction="none")


def margins(num_logits: int, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of each label's margin, "row param"."""
    signed = (2 * labels - 1)[:, None] * inputs
    return signed if num_logits == 1 else torch.cat([-signed, signed], 1)


def newton(num_logits: int, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise Σ losses + ½ RIDGE ‖W‖² to a gradient of rounding; return W and the Hessian of all that."""
    rows = margins(num_logits, inputs, labels)
    weight = torch.zeros(rows.shape[1], dtype=torch.float64)
    for _ in range(12):
        p = (rows @ weight).sigmoid()
        gradient = RIDGE * weight - rows.T @ (1 - p)
        hessian = RIDGE * torch.eye(len(weight)).double() + rows.T @ (rows * (p * (1 - p))[:, None])
        weight = weight - torch.linalg.solve(hessian, gradient)
    assert gradient.norm() < 1e-12
    return weight.reshape(num_logits, -1), hessian


@pytest.mark.parametrize("num_logits", [1, 2])
def test_weighted_and_unprojected_it_is_influence_in_a_logistic_regression(num_logits: int):
    """−∇φᵀ H⁻¹ ∇ℓ_i, exactly, since the margin of two classes is linear in the parameters."""
    train, test = logistic()
    model = Flat(num_logits).double()
    weight, hessian = newton(num_logits, *train)
    model.fc.weight.data.copy_(weight)
    method = dv.TRAK(projection=None, ridge=RIDGE, absolute=True, weighted=True)
    explainer = fit(dv.Task(model, output=dv.margin), train, method)
    found = explainer.explain(test, 1).dense()

    per_sample = torch.autograd.functional.jacobian(lambda w: losses(w, *train), weight).flatten(1)
    measured = margins(num_logits, test, torch.ones(6))
    influence = -measured @ torch.linalg.solve(hessian, per_sample.T)
    torch.testing.assert_close(found, influence, **CLOSE)
    own = (torch.linalg.solve(hessian, per_sample.T) * per_sample.T).sum(0)
    torch.testing.assert_close(explainer.self_influence(), own, **CLOSE)
    assert explainer.certificate["ridge"] == [RIDGE] and explainer.certificate["width"] == 4 * num_logits

    effects = []
    for left_out in range(60):
        kept = torch.arange(60) != left_out
        without, _ = newton(num_logits, train[0][kept], train[1][kept])
        effects.append(measured @ (weight - without).flatten())
    for row, truth in zip(found, torch.stack(effects, 1), strict=True):
        assert torch.corrcoef(torch.stack([row, truth]))[0, 1] > 0.99


@NOISY
def test_the_formula(problem):
    """(Φᵀ Φ + λI)⁻¹ without weights, λ a multiple of the mean of ‖φ_i‖², times 1 − p."""
    gradients = rows(problem.model, *problem.train, MEASURES["margin"][1])
    left = rows(problem.model, *problem.test, MEASURES["logit"][1])
    gram = gradients.T @ gradients
    doubt = 1 - problem.model(problem.train[0]).softmax(1).gather(1, problem.train[1][:, None])[:, 0].detach()
    for ridge in (1.0, 0.01):
        inverse = torch.linalg.inv(gram + ridge * gram.trace() / len(problem.train[0]) * torch.eye(len(gram)).double())
        explainer = fit(problem.model, problem.train, dv.TRAK(projection=None, ridge=ridge))
        torch.testing.assert_close(
            explainer.explain(*problem.test).dense(), left @ inverse @ gradients.T * doubt, rtol=1e-9, atol=1e-11
        )
        own = ((gradients @ inverse) * gradients).sum(1) * doubt.square()
        torch.testing.assert_close(explainer.self_influence(), own, rtol=1e-9, atol=1e-11)
    wide = fit(problem.model, problem.train, dv.TRAK(projection=114, ridge=0.01))  # so many parameters there are
    torch.testing.assert_close(wide.explain(*problem.test).dense(), explainer.explain(*problem.test).dense(), **CLOSE)


@NOISY
def test_an_ensemble_averages_kernels_and_doubts_apart(problem):
    """Each checkpoint has its own projection and ridge; one checkpoint twice, unprojected, is that one."""
    other = problem.to(torch.float64).model
    with torch.no_grad():
        other[0].weight += 0.5
    models, method = (problem.model, other), dv.TRAK(projection=20, seed=3, kind_of_projection="rademacher")
    found = fit(dv.Task(problem.model, checkpoints=models), problem.train, method).explain(*problem.test).dense()
    kernels, doubts = [], []
    for k, model in enumerate(models):
        alone = fit(dv.Task(model), problem.train, dv.GradDot(projection=None))
        layout = alone.table.layout[:-1]
        sides = [
            alone.method.representations(dv.Task(model, output=output)).test.plan(dv.Task(model, output=output), x)
            for output, x in ((dv.margin, problem.train[0]), (dv.logit, problem.test[0]))
        ]
        train, test = (
            project(layout, plan.record(*data).values[:, :-4], width=20, seed=3 + k)
            for plan, data in zip(sides, (problem.train, problem.test), strict=True)
        )
        gram = train.T @ train
        kernels.append(test @ torch.linalg.solve(gram + gram.trace() / len(train) * torch.eye(20).double(), train.T))
        doubts.append(1 - model(problem.train[0]).softmax(1).gather(1, problem.train[1][:, None])[:, 0].detach())
    expected = torch.stack(kernels).mean(0) * torch.stack(doubts).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    plain = dv.TRAK(projection=None)
    twice = fit(dv.Task(problem.model, checkpoints=[problem.model.state_dict()] * 2), problem.train, plain)
    once = fit(problem.model, problem.train, plain)
    torch.testing.assert_close(twice.explain(*problem.test).dense(), once.explain(*problem.test).dense(), **CLOSE)
    torch.testing.assert_close(twice.self_influence(), once.self_influence(), **CLOSE)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@NOISY
def test_a_singular_matrix_is_refused(problem):
    """The published default: no ridge, and a projection to more numbers than there are samples."""
    few = tuple(part[:24] for part in problem.train)
    for width in (24, 40):
        with pytest.raises(ValueError, match=f"ridge=0 needs fewer gradient numbers .* there are {width} of 24"):
            fit(problem.model, few, dv.TRAK(projection=width, ridge=0.0))
    assert fit(problem.model, few, dv.TRAK(projection=12, ridge=0.0)).explain(*problem.test).dense().isfinite().all()
    twins = tuple(part[:1].repeat(40, *[1] * (part.ndim - 1)) for part in problem.train)
    with pytest.raises(ValueError, match=r"the matrix of gradients \+ 0·I is singular: give a larger `ridge`"):
        fit(problem.model, twins, dv.TRAK(projection=12, ridge=0.0))


def test_other_losses_are_refused(problem):
    """Class weights too, where they show only on a class that comes late in a sorted data set."""
    order = torch.cat([problem.train[1].argsort()] * 4)
    train = problem.train[0][order.sort().values.remainder(120)], problem.train[1][order.sort().values.remainder(120)]
    rank = train[1].argsort(stable=True)
    late = torch.tensor([1.0, 1, 1, 5], dtype=torch.float64)
    for loss in (
        nn.CrossEntropyLoss(weight=late),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.MultiMarginLoss(),
    ):
        with pytest.raises(ValueError, match="TRAK is derived for the cross-entropy .* use TracIn or GradDot"):
            fit(dv.Task(problem.model, loss=loss), (train[0][rank], train[1][rank]), dv.TRAK(projection=12))
    assert (train[1][rank][:256] < 3).all()
    fit(dv.Task(problem.model, loss=nn.CrossEntropyLoss()), problem.train, dv.TRAK(projection=12))


def test_bad_settings_are_refused(problem):
    for kind in (dv.TRAK, dv.DTRAK):
        for ridge in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="`ridge` must be a number, 0 or larger; it is"):
                kind(ridge=ridge)
    with pytest.raises(ValueError, match="TRAK explains a classification, no regression task"):
        fit(dv.Task(problem.model, problem="regression"), (problem.train[0], torch.zeros(120, 4)), dv.TRAK())


def test_checkpoints_of_different_sizes_need_a_projection(problem):
    with torch.random.fork_rng():
        larger = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    task = dv.Task(problem.model, checkpoints=[problem.model, larger])
    with pytest.raises(ValueError, match=r"the checkpoints have \[114, 136\] gradient numbers; give a projection="):
        fit(task, problem.train, dv.TRAK(projection=None))


def test_too_many_parameters_for_a_matrix_are_refused(problem, monkeypatch):
    monkeypatch.setattr("dualview.data._newton.MAX_DENSE", 100)
    with pytest.raises(ValueError, match="114 parameters are too many for a matrix of all: give projection="):
        fit(problem.model, problem.train, dv.TRAK(projection=None))
