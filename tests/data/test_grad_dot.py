"""GradDot against gradients taken one by one, for every problem; its rows in a store."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import dualview as dv
from dualview.data._gradients import check_projection
from dualview.errors import StoreMismatch
from dualview.ops.layout import plain
from dualview.ops.projection import project
from tests.engine.gradients.one_by_one import cross_entropy, one_by_one

# Both sides are float64 sums of the same products in another order; scores are of size 1.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
MEASURES = {
    "logit": (dv.logit, lambda z, y: z[0, y[0]]),
    "loss": (dv.loss, cross_entropy),
    "margin": (dv.margin, lambda z, y: z[0, y[0]] - torch.cat([z[0, : y[0]], z[0, y[0] + 1 :]]).logsumexp(0)),
    "contrast": (dv.contrast(2, 0), lambda z, y: z[0, 2] - z[0, 0]),
}
PROBLEMS = {
    "regression": lambda z, y: 0.5 * (z - y).square().sum(),
    "multi-label": lambda z, y: F.binary_cross_entropy_with_logits(z, y.to(z), reduction="sum"),
}
NOISY = pytest.mark.filterwarnings("ignore:the strongest proponents .* may be noise of the random projection")


def rows(model: nn.Module, inputs: Tensor, targets: Tensor, measure=cross_entropy, names: str = "") -> Tensor:
    found = one_by_one(model, inputs, targets, measure)
    return torch.cat([one for name, one in found.items() if name.startswith(names)], dim=1)


def fit(task: dv.Task | nn.Module, train: object, method: object = None, **settings: object) -> dv.Explainer:
    return dv.fit(method or dv.GradDot(), task, train, progress=False, **settings)


def numbers(problem: str, columns: int = 4) -> Tensor:
    drawn = torch.randn(120, columns, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return drawn if problem == "regression" else (drawn > 0).long()


@pytest.mark.parametrize("name", MEASURES)
def test_scores_are_inner_products_of_gradients(problem, name: str):
    output, measure = MEASURES[name]
    explainer = fit(dv.Task(problem.model, output=output), problem.train)
    found = explainer.explain(*problem.test)
    expected = -rows(problem.model, *problem.test, measure) @ rows(problem.model, *problem.train).T
    torch.testing.assert_close(found.dense(), expected, **CLOSE)
    assert found.kind == "effect" and found.lower_is_better == (name == "loss")
    torch.testing.assert_close(explainer.self_influence(), rows(problem.model, *problem.train).square().sum(1), **CLOSE)


def test_a_score_is_what_a_small_step_on_the_sample_does_to_the_output(problem):
    """φ(θ − η∇ℓ_i) − φ(θ) = η·score + O(η²): the remainder falls a hundredfold with a tenth of η."""
    inputs, targets = problem.test
    scores = fit(problem.model, problem.train).explain(inputs, targets).dense()[:, :5]

    def change(sample: int, step: float) -> Tensor:
        model = copy.deepcopy(problem.model)
        x, y = (part[sample : sample + 1] for part in problem.train)
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), [*model.parameters()])
        with torch.no_grad():
            before = model(inputs)
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= step * gradient
            return (model(inputs) - before).gather(1, targets[:, None]).squeeze(1)

    left = [torch.stack([change(i, step) for i in range(5)], 1) - step * scores for step in (1e-3, 1e-4)]
    assert left[0].abs().max() < 1e-3 * scores.abs().max()
    assert 80 < left[0].norm() / left[1].norm() < 120


def test_the_losses_of_the_task_are_differentiated(problem):
    weights = torch.tensor([1.0, 5.0, 0.2, 2.0], dtype=torch.float64)
    for loss in (nn.CrossEntropyLoss(weight=weights), nn.CrossEntropyLoss(weight=weights, reduction="sum")):
        found = fit(dv.Task(problem.model, loss=loss), problem.train).explain(*problem.test).dense()
        losses = rows(problem.model, *problem.train, lambda z, y: weights[y[0]] * F.cross_entropy(z, y))
        torch.testing.assert_close(found, -rows(problem.model, *problem.test, MEASURES["logit"][1]) @ losses.T, **CLOSE)


def test_chosen_parameters_alone(problem):
    for chosen, names in (("2", "2."), (("2.bias",), "2.bias")):
        found = fit(problem.model, problem.train, dv.GradDot(parameters=chosen)).explain(*problem.test).dense()
        left = rows(problem.model, *problem.test, MEASURES["logit"][1], names)
        torch.testing.assert_close(found, -left @ rows(problem.model, *problem.train, names=names).T, **CLOSE)


def test_one_logit_for_two_classes(problem):
    """The logits of its classes are ∓z/2; the loss is that of z."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    inputs, labels = problem.train[0], problem.train[1] % 2
    found = fit(dv.Task(model, loss=nn.BCEWithLogitsLoss()), (inputs, labels)).explain(problem.test[0], 0).dense()
    losses = rows(model, inputs, labels, lambda z, y: F.binary_cross_entropy_with_logits(z[0], y.to(z)))
    expected = -rows(model, problem.test[0], torch.zeros(30), lambda z, y: -z[0, 0] / 2) @ losses.T
    torch.testing.assert_close(found, expected, **CLOSE)


@NOISY
def test_projected_gradients_estimate_the_exact_scores(problem):
    """The mean over seeds of an unbiased estimate is off by its standard error."""
    exact = fit(problem.model, problem.train).explain(*problem.test).dense()
    fits = [fit(problem.model, problem.train, dv.GradDot(projection=40, seed=seed)) for seed in range(8)]
    assert {one.table.width for one in fits} == {40 + 4}
    found = torch.stack([one.explain(*problem.test).dense() for one in fits])
    apart = (found.mean(0) - exact) / (found.std(0) / 8**0.5)
    assert 0.85 < apart.square().mean().sqrt() < 1.6  # 1.18 for Student's t with 7 degrees of freedom


@NOISY
def test_a_projection_to_as_many_numbers_as_there_are_is_none(problem):
    exact = fit(problem.model, problem.train).explain(*problem.test).dense()
    for kind in ("rademacher", "khatri-rao"):
        wide = fit(problem.model, problem.train, dv.GradDot(projection=114, kind_of_projection=kind))
        torch.testing.assert_close(wide.explain(*problem.test).dense(), exact, **CLOSE)


@NOISY
def test_a_projection_is_that_of_the_dense_gradients(problem):
    method = dv.GradDot(projection=16, kind_of_projection="rademacher", seed=4, parameters="2.bias")
    left, right = (
        project((plain("2.bias", 4),), rows(problem.model, *data, measure, "2.bias"), width=3, seed=4)
        for data, measure in ((problem.test, MEASURES["logit"][1]), (problem.train, cross_entropy))
    )
    found = fit(problem.model, problem.train, dataclasses.replace(method, projection=3)).explain(*problem.test)
    torch.testing.assert_close(found.dense(), -left @ right.T, rtol=1e-6, atol=1e-7)  # signs are drawn in float32


# ── regression, and several labels a sample ──────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", PROBLEMS)
def test_scores_of_other_problems(problem, kind: str):
    labels = numbers(kind)
    explainer = fit(dv.Task(problem.model, problem=kind), (problem.train[0], labels))
    losses = rows(problem.model, problem.train[0], labels, PROBLEMS[kind])
    for column in (0, 3):
        found = explainer.explain(problem.test[0], column)
        left = rows(problem.model, problem.test[0], torch.full((30,), column), MEASURES["logit"][1])
        torch.testing.assert_close(found.dense(), -left @ losses.T, **CLOSE)
        assert (found.targets == column).all() and torch.equal(found.train_targets, labels.to(found.train_targets))
    torch.testing.assert_close(explainer.self_influence(), losses.square().sum(1), **CLOSE)
    ranking = explainer.suspects(5)
    assert torch.equal(ranking.index, losses.square().sum(1).argsort(descending=True)[:5])


def test_a_loss_of_ones_own_for_a_regression(problem):
    """Numbers in float64, as numpy has them, for a network in float32: torch's own losses refuse that mixture."""
    model, labels = copy.deepcopy(problem.model).float(), numbers("regression", 4)
    for loss in (nn.HuberLoss(), nn.MSELoss(), F.smooth_l1_loss):
        task = dv.Task(model, problem="regression", loss=loss)
        found = fit(task, (problem.train[0].float(), labels)).explain(problem.test[0].float(), 1).dense()
        losses = rows(problem.model, problem.train[0], labels, loss)
        left = rows(problem.model, problem.test[0], torch.ones(30, dtype=torch.int64), MEASURES["logit"][1])
        expected = -left @ losses.T
        # float32 sums of about 100 products
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_which_output_is_explained(problem):
    inputs = problem.test[0]
    several = fit(dv.Task(problem.model, problem="regression"), (problem.train[0], numbers("regression")))
    with pytest.raises(ValueError, match="give targets=: which of the 4 output columns is to be explained"):
        several.explain(inputs)
    with pytest.raises(ValueError, match=r"label 4 \(sample 0\) is no output column: the network has columns 0 to 3"):
        several.explain(inputs, 4)
    assert several.explain(inputs, [0, 1, 2] * 10).targets.tolist() == [0, 1, 2] * 10
    tagged = fit(dv.Task(problem.model, problem="multi-label"), (problem.train[0], numbers("multi-label")))
    assert torch.equal(tagged.explain(inputs).targets, problem.model(inputs).argmax(1))
    model = nn.Linear(6, 1).double()
    single = fit(dv.Task(model, problem="regression"), (problem.train[0], numbers("regression", 1)[:, 0]))
    found = single.explain(inputs)
    assert (found.targets == 0).all()
    residuals = model(problem.train[0]) - numbers("regression", 1)
    products = inputs @ problem.train[0].T + 1
    torch.testing.assert_close(found.dense(), -products * residuals.detach().T, **CLOSE)


def test_labels_of_another_problem_are_refused(problem):
    inputs, model = problem.train[0], problem.model
    for kind, labels, message in (
        ("regression", problem.train[1], r"shape \(4,\); a regression task of 4 output columns needs \(row, 4\)"),
        ("regression", numbers("regression", 3), r"shape \(4, 3\)"),
        ("multi-label", numbers("regression"), "targets of sample 0 are not 0 or 1 for each class"),
        ("classification", numbers("regression"), 'shape .*Task\\(problem="multi-label"\\)'),
    ):
        with pytest.raises(ValueError, match=message):
            fit(dv.Task(model, problem=kind), (inputs, labels))
    holed = numbers("regression")
    holed[70, 2] = torch.nan
    with pytest.raises(ValueError, match=r"samples 0 to 119: the targets of sample 70 are not finite numbers"):
        fit(dv.Task(model, problem="regression"), (inputs, holed))


def test_results_of_a_regression_are_values(problem, tmp_path):
    labels = numbers("regression")
    explainer = fit(dv.Task(problem.model, problem="regression", class_names="abcd"), (problem.train[0], labels))
    result = explainer.explain(problem.test[0][:3], [2, 0, 1], top=4)
    frame = result.to_pandas()
    assert frame["target_name"].unique().tolist() == ["c", "a", "b"]
    for line in frame.itertuples():
        assert line.train_target == labels[line.train, line.target]
    result.save(tmp_path / "result.safetensors")
    loaded = dv.DataAttribution.load(tmp_path / "result.safetensors")
    assert torch.equal(loaded.train_targets, labels) and loaded.to_pandas().equals(frame)


# ── a store ──────────────────────────────────────────────────────────────────────────────────────


def forwards(model: nn.Module) -> list[int]:
    seen: list[int] = []
    model.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    return seen


def test_methods_with_the_same_rows_share_them(problem, tmp_path):
    model = copy.deepcopy(problem.model)
    seen = forwards(model)
    alone = [fit(model, problem.train, one).explain(*problem.test).dense() for one in (dv.GradDot(), dv.GradCos())]
    seen.clear()
    fit(model, problem.train, store=tmp_path, batch_size=8)
    assert seen.count(8) == 15
    for method, expected in zip((dv.GradDot(), dv.GradCos(), dv.TracIn()), (*alone, alone[0]), strict=True):
        seen.clear()
        fit(model, problem.train, method, store=tmp_path, batch_size=8)
        assert 8 not in seen
        seen.clear()
        opened = dv.open(tmp_path, model, method=method)
        torch.testing.assert_close(opened.explain(*problem.test).dense(), expected, **CLOSE)
        assert 30 in seen and 8 not in seen
    assert len(dv.Store(tmp_path).keys()) == 1


class Interrupted(Dataset):
    """A data set whose reader is interrupted at one position, as often as it comes there."""

    def __init__(self, pair: tuple[Tensor, Tensor]) -> None:
        self.pair = pair

    def __len__(self) -> int:
        return len(self.pair[1])

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        if position == 70:
            raise KeyboardInterrupt
        return self.pair[0][position], self.pair[1][position]


@NOISY
def test_an_interrupted_recording_of_projected_rows_goes_on(problem, tmp_path):
    """P is made anew for the rows that were missing, and is the same."""
    model, method = copy.deepcopy(problem.model), dv.GradDot(projection=16)
    store = dv.Store(tmp_path, shard_rows=16)
    with pytest.raises(KeyboardInterrupt):
        fit(model, Interrupted(problem.train), method, store=store, batch_size=8)
    seen = forwards(model)
    stored = fit(model, problem.train, method, store=store, batch_size=8)
    assert seen.count(8) == 7  # rows 64 to 119: four shards of 16 were whole
    assert stored.table.width == 16 + 4 and len(stored.table.parts) == 8
    undisturbed = fit(model, problem.train, method, batch_size=8)
    torch.testing.assert_close(stored.table.values, undisturbed.table.values, **CLOSE)
    expected = undisturbed.explain(*problem.test).dense()
    torch.testing.assert_close(dv.open(tmp_path, model).explain(*problem.test).dense(), expected, **CLOSE)


def test_a_regression_with_several_outputs_comes_back(problem, tmp_path):
    task, train = dv.Task(problem.model, problem="regression"), (problem.train[0], numbers("regression"))
    expected = fit(task, train).explain(problem.test[0], 2)
    fit(task, train, store=tmp_path)
    opened = dv.open(tmp_path, task, train=train)
    found = opened.explain(problem.test[0], 2)
    torch.testing.assert_close(found.dense(), expected.dense(), **CLOSE)
    assert torch.equal(found.train_targets, train[1])
    with pytest.raises(StoreMismatch, match="made for a regression task; this one's problem is 'classification'"):
        dv.open(tmp_path, problem.model)
    with pytest.raises(StoreMismatch, match="`train` is not the data set of the fit"):
        dv.open(tmp_path, task, train=(train[0], train[1] + 1))


def test_rows_of_another_loss_are_not_taken_over(problem, tmp_path):
    """The default losses of two problems differ, and so do their rows, even for the same labels."""
    train = problem.train[0], numbers("multi-label").double()
    fit(dv.Task(problem.model, problem="regression"), train, store=tmp_path)
    tagged = dv.Task(problem.model, problem="multi-label")
    found = fit(tagged, train, store=tmp_path).explain(*problem.test).dense()
    torch.testing.assert_close(found, fit(tagged, train).explain(*problem.test).dense(), **CLOSE)


def test_another_loss_is_refused_at_opening(problem, tmp_path):
    fit(problem.model, problem.train, store=tmp_path)
    with pytest.raises(StoreMismatch, match="GradDot.* now records other parts of this Sequential than it did"):
        dv.open(tmp_path, dv.Task(problem.model, loss=nn.CrossEntropyLoss(label_smoothing=0.1)))


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [dv.GradDot, dv.GradCos, dv.TracIn, dv.TRAK, dv.DTRAK], ids=lambda kind: kind.__name__)
def test_fields_that_are_no_projection_are_refused(kind: type):
    for fields, message in (
        ({"projection": 0}, "`projection` must be a whole number, 1 or larger, or None for none; it is 0"),
        ({"projection": True}, "`projection` must be"),
        ({"projection": 16, "seed": -1}, "`seed` must be a whole number, 0 or larger; it is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**fields)
    with pytest.raises(ValueError, match="`kind_of_projection` is 'signs'; choose from 'rademacher', 'gaussian', "):
        check_projection(16, "signs", 0)


def test_parameters_that_are_not_there_are_listed(problem):
    with pytest.raises(ValueError, match=r"parameters='fc' is neither .* Parameters of Sequential are: 0.weight, 0.b"):
        fit(problem.model, problem.train, dv.GradDot(parameters="fc"))


def test_what_a_method_without_surrogate_cannot_do(problem):
    explainer = fit(problem.model, problem.train)
    for call, message in (
        (explainer.importance, "GradDot has no global importance"),
        (lambda: explainer.surrogate_logits(problem.test[0]), "GradDot has no surrogate"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_all_classes_at_once_are_refused_since_rows_are_of_one():
    model = nn.Linear(3, 2)
    explainer = dv.fit(dv.GradDot(), model, (torch.randn(5, 3), torch.arange(5) % 2), progress=False)
    with pytest.raises(TypeError, match="GradDot records other gradients for each class"):
        explainer.explain_classes(torch.randn(2, 3))


def test_numbers_in_another_precision_than_the_outputs_are_stored(tmp_path):
    task = dv.Task(nn.Linear(3, 1), problem="regression")
    inputs, numbers = torch.randn(6, 3), torch.linspace(0, 1, 6, dtype=torch.float64)
    for _ in range(2):  # the second time they are compared with what is stored
        explainer = dv.fit(dv.GradDot(), task, (inputs, numbers), store=tmp_path, progress=False)
    assert explainer.table.targets.dtype == torch.float32
    opened = dv.open(tmp_path, task, train=(inputs, numbers))
    assert torch.equal(opened.explain(inputs).dense(), explainer.explain(inputs).dense())
