"""The path against a sweep over delta, supports against loops, decompositions against the scores they come from."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.data import support_spectrum
from dualview.data._method import DataMethod
from dualview.data.support_spectrum import NO_CANDIDATES, NO_SUPPORT, PATH
from dualview.errors import StoreError
from dualview.ops.pareto import pareto_fronts

DUAL, LAST, POINTS = (
    dv.DualView(C=0.02),
    dv.LastLayerInfluence(curvature="blocks"),
    dv.RepresenterPoints(0.01, "labels"),
)


def fit(problem, method: DataMethod, **settings: object) -> dv.Explainer:
    return dv.fit(method, problem.model, problem.train, progress=False, **settings)


def spectrum(problem, *args: object, **fields: object) -> dv.Selection:
    return fit(problem, dv.SupportSpectrum(*args, **fields)).select(problem.test[0])


def paths(selection: dv.Selection) -> list[list[int]]:
    return [selection[row].train_index.tolist() for row in range(len(selection))]


def swept(importance: Tensor, kernel: Tensor, support: list[int]) -> list[int]:
    """Follow the paper: for falling delta the most important sample with a larger kernel, each once."""
    found: list[int] = []
    for delta in [*sorted({float(kernel[i]) for i in support}, reverse=True), -math.inf]:
        allowed = [i for i in support if kernel[i] > delta]
        if allowed:
            best = max(allowed, key=lambda i: (float(importance[i]), float(kernel[i]), -i))
            found += [best] if best not in found else []
    return found[::-1]


def outputs_of(problem) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return problem.model(problem.train[0]), problem.model(problem.test[0])


def augmented(problem) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        features = [problem.model[:2](inputs) for inputs in (problem.train[0], problem.test[0])]
    train, test = (torch.cat([part, torch.ones(len(part), 1, dtype=part.dtype)], 1) for part in features)
    return train, test


def supports(
    rival: int | str, train: Tensor, test: Tensor, labels: Tensor, explained: Tensor, *, correct: bool = False
) -> list[list[int]]:
    """Write the half-spaces out, sample by sample and rival by rival."""
    found = []
    for z, c in zip(test, explained.tolist(), strict=True):
        others = [k for k in range(len(z)) if k != c]
        runner_up = max(others, key=lambda k: float(z[k]))
        rows = []
        for i, z_i in enumerate(train):
            nearer = {k: bool(z[c] - z[k] > z_i[c] - z_i[k]) for k in others}
            inside = {
                "general": bool(z[c] > z_i[c]),
                "union": any(nearer.values()),
                "intersection": all(nearer.values()),
                "runner-up": nearer[runner_up],
            }
            takes_part = labels[i] == c and (not correct or z_i.argmax() == c)
            if takes_part and (inside[rival] if isinstance(rival, str) else nearer[rival]):
                rows.append(i)
        found.append(rows)
    return found


# ── the front ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("levels", [3, 50])
def test_a_front_is_the_sweep_over_delta(levels: int):
    """With 3 levels nearly all numbers tie; the sweep's ties go to the larger kernel, then to the lower position."""
    generator = torch.Generator().manual_seed(levels)
    first, second = (torch.randint(levels, (40, 25), generator=generator).double() for _ in range(2))
    allowed = torch.rand(40, 25, generator=generator) < torch.linspace(0, 1, 40)[:, None]
    rows, entries = pareto_fronts(first, second, allowed)
    for row in range(40):
        found = entries[rows == row]
        assert found.tolist() == swept(first[row], second[row], allowed[row].nonzero().squeeze(1).tolist())
        assert bool((first[row, found].diff() < 0).all()) and bool((second[row, found].diff() > 0).all())
    assert not bool(allowed[0].any()) and 0 not in rows


def test_ties_and_single_points():
    first = torch.tensor([[2.0, 2.0, 2.0, 1.0, 1.0, 0.0]])
    second = torch.tensor([[0.0, 1.0, 1.0, 3.0, 3.0, 3.0]])
    everything = torch.ones(1, 6, dtype=torch.bool)
    assert pareto_fronts(first, second, everything)[1].tolist() == [1, 3]  # the larger kernel; the lower position
    assert pareto_fronts(first, second, torch.arange(6)[None] == 5)[1].tolist() == [5]
    assert pareto_fronts(first[:, :0], second[:, :0], everything[:, :0])[0].tolist() == []


# ── the support set and the path ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("candidates", ["class", "correct"])
@pytest.mark.parametrize("rival", ["general", "runner-up", "union", "intersection", 2])
def test_paths_are_sweeps_over_supports_written_out(problem, rival: int | str, candidates: str):
    (train, test), (phi, phi_test), labels = outputs_of(problem), augmented(problem), problem.train[1]
    explained = test.argmax(1)
    if rival == 2:
        explained = torch.where(explained == 2, 0, explained)  # a class is no rival of itself
    method = dv.SupportSpectrum(rival=rival, candidates=candidates)
    selection = fit(problem, method).select(problem.test[0], explained)
    expected = supports(rival, train, test, labels, explained, correct=candidates == "correct")
    assert selection.num_support.tolist() == [len(support) for support in expected]
    kernel = phi_test @ phi.T
    for row, support in enumerate(expected):
        one, importance = selection[row], -train[:, explained[row]]
        assert one.train_index.tolist() == swept(importance, kernel[row], support)
        torch.testing.assert_close(one.columns["importance"], importance[one.train_index], rtol=0, atol=1e-12)
        torch.testing.assert_close(one.columns["kernel"], kernel[row, one.train_index], rtol=1e-12, atol=0)
        assert set(one.train_index.tolist()) <= set(support)
        assert one.ended == (PATH if support else NO_SUPPORT,)
    assert max(map(len, expected)) > 5


def test_the_cosine_takes_lengths_out(problem):
    (train, test), (phi, phi_test) = outputs_of(problem), augmented(problem)
    selection = spectrum(problem, similarity="cosine")
    cosines = (phi_test @ phi.T) / (phi_test.norm(dim=1)[:, None] * phi.norm(dim=1))
    expected = supports("general", train, test, problem.train[1], test.argmax(1))
    for row, support in enumerate(expected):
        assert paths(selection)[row] == swept(-train[:, test[row].argmax()], cosines[row], support)
    assert bool((selection.columns["kernel"] <= 1 + 1e-12).all())
    assert paths(selection) != paths(spectrum(problem))


def test_the_weakest_of_its_class_has_no_support(problem):
    train, test = outputs_of(problem)
    own = torch.where(problem.train[1] == 1, train[:, 1], torch.inf)
    weakest = problem.train[0][own.argmin()][None] * 1.0
    surest = problem.test[0][test[:, 1].topk(2).indices]
    selection = fit(problem, dv.SupportSpectrum()).select(torch.cat([weakest, surest]), 1)
    assert selection.counts[0] == 0 and selection.num_support[0] == 0 and selection.ended[0] == NO_SUPPORT
    assert selection.ended[1:] == (PATH, PATH)
    alone = fit(problem, dv.SupportSpectrum()).select(weakest, 1)
    assert len(alone.train_index) == 0 and alone.ended == (NO_SUPPORT,)


def test_a_class_without_candidates_is_answered(problem):
    kept = problem.train[1] != 3
    train = tuple(part[kept] for part in problem.train)
    explainer = dv.fit(dv.SupportSpectrum(), problem.model, train, progress=False)
    surest = problem.test[0][outputs_of(problem)[1][:, 0].argmax()]
    selection = explainer.select(torch.stack([problem.test[0][0], surest]), [3, 0])
    assert selection.ended == (NO_CANDIDATES, PATH) and selection.counts[0] == 0
    assert not bool(explainer.explain(problem.test[0][:1], 3).dense().any())


def test_held_out_samples_are_no_candidates(problem):
    explainer = fit(problem, dv.SupportSpectrum(), held_out=0.3)
    index = explainer.select(problem.test[0]).train_index
    assert set(index.tolist()) <= set(explainer.positions.tolist()) and len(explainer.positions) == 84


# ── decompositions ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("inner", [DUAL, dv.DualView(C=0.02, metric="whitened"), LAST, POINTS], ids=repr)
def test_factors_multiply_to_the_scores(problem, inner: DataMethod):
    """And the importance is one number a training sample and class: what `select` holds beside it is the kernel."""
    explainer = fit(problem, inner)
    expected, targets = explainer.explain(problem.test[0]), outputs_of(problem)[1].argmax(1)
    rows = explainer.rows(problem.test[0])
    prepared = inner.prepare(explainer.state, explainer.task, rows, explainer.table)
    importance, kernel = inner.decompose(explainer.state, prepared, explainer.table.rows(torch.arange(120)))
    scale = float(expected.scores.abs().max())
    torch.testing.assert_close(importance * kernel, expected.dense(), rtol=0, atol=1e-12 * scale)
    for column in range(4):
        of_class = importance[targets == column]
        torch.testing.assert_close(of_class, of_class[:1].expand_as(of_class), rtol=0, atol=0)
        own = problem.train[1] == column
        torch.testing.assert_close(of_class[0, own], explainer.importance()[own], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rival", ["general", "runner-up"])
@pytest.mark.parametrize("inner", [DUAL, LAST, POINTS], ids=repr)
def test_a_path_on_another_methods_factors(problem, inner: DataMethod, rival: str):
    """A surrogate's own logits decide the half-space, and samples without a score are no candidates."""
    explainer, selection = fit(problem, inner), spectrum(problem, inner, rival)
    rows, everything = explainer.rows(problem.test[0]), explainer.table.rows(torch.arange(120))
    prepared = inner.prepare(explainer.state, explainer.task, rows, explainer.table)
    importance, kernel = inner.decompose(explainer.state, prepared, everything)
    logits = outputs_of(problem)
    explained = logits[1].argmax(1)
    if inner.has_surrogate:
        logits = tuple(inner.logits(explainer.state, part.values) for part in (everything, rows))
    scored = set(inner.scored(explainer.state).tolist())
    for row, support in enumerate(supports(rival, *logits, problem.train[1], explained)):
        support = [i for i in support if i in scored]
        assert selection.num_support[row] == len(support)
        assert paths(selection)[row] == swept(importance[row], kernel[row], support)
    assert int(selection.counts.max()) > 1


def test_the_influence_factors_are_the_residual_and_the_curved_kernel(problem):
    """Dense: H_c with the features' second moment under p(1 − p), as `ops.curvature` scales blocks."""
    (train, test), (phi, phi_test) = outputs_of(problem), augmented(problem)
    explainer, selection = fit(problem, LAST), spectrum(problem, LAST)
    probabilities, explained = train.softmax(1), test.argmax(1)
    for row in range(len(test)):
        one, c = selection[row], int(explained[row])
        p = probabilities[:, c]
        H = (phi * (p * (1 - p) * 4 / 3)[:, None]).T @ phi / 120
        H.diagonal().add_(explainer.certificate["damping"])
        kernel = torch.linalg.solve(H, phi_test[row]) @ phi.T
        torch.testing.assert_close(one.columns["kernel"], kernel[one.train_index], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.columns["importance"], ((1 - p) / 120)[one.train_index], rtol=1e-12, atol=0)


def test_a_margin_is_explained_by_the_class_itself(problem):
    """Importance is of the class, whatever the task measures; several logits at once are no product."""
    by_margin = dv.Task(problem.model, output=dv.margin)
    found = dv.fit(dv.SupportSpectrum(LAST), by_margin, problem.train, progress=False).select(problem.test[0])
    assert paths(found) == paths(spectrum(problem, LAST))
    explainer = dv.fit(LAST, by_margin, problem.train, progress=False)
    rows = explainer.rows(problem.test[0])
    prepared = LAST.prepare(explainer.state, by_margin, rows, explainer.table)
    with pytest.raises(TypeError, match="where one logit is measured"):
        LAST.decompose(explainer.state, prepared, explainer.table.rows(torch.arange(3)))


# ── as a data method ─────────────────────────────────────────────────────────────────────────────


def test_scores_are_places_on_the_path(problem):
    explainer = fit(problem, dv.SupportSpectrum())
    scores, found = explainer.explain(problem.test[0]), paths(explainer.select(problem.test[0]))
    expected = torch.zeros(30, 120, dtype=torch.float64)
    for row, path in enumerate(found):
        for place, position in enumerate(path):
            expected[row, position] = (place + 1) / len(path)
    assert torch.equal(scores.dense(), expected)
    longest = max(range(30), key=lambda row: len(found[row]))
    top = scores[longest].top(len(found[longest])).proponents.train_index[0].tolist()
    assert top == found[longest][::-1]
    loss = dv.Task(problem.model, output=dv.loss)
    by_loss = dv.fit(dv.SupportSpectrum(), loss, problem.train, progress=False).explain(problem.test[0])
    assert torch.equal(by_loss.dense(), -expected)
    assert by_loss[longest].top(len(top)).proponents.train_index[0].tolist() == top


def test_self_influence_is_the_importance_for_the_own_class(problem):
    train, _ = outputs_of(problem)
    explainer = fit(problem, dv.SupportSpectrum())
    own = -train.gather(1, problem.train[1][:, None]).squeeze(1)
    torch.testing.assert_close(explainer.self_influence(), own, rtol=0, atol=1e-12)
    assert torch.equal(explainer.importance(), explainer.self_influence())
    assert explainer.suspects(1).index.tolist() == [int(own.argmax())]
    dual = fit(problem, dv.SupportSpectrum(DUAL))
    assert torch.equal(dual.self_influence(), fit(problem, DUAL).importance())


@pytest.mark.parametrize("inner", [None, DUAL, LAST], ids=repr)
def test_blocks_and_batches_change_nothing(problem, monkeypatch, inner: DataMethod | None):
    before = spectrum(problem, inner, "runner-up")
    monkeypatch.setattr(support_spectrum, "BLOCK", 7)
    monkeypatch.setattr(support_spectrum, "PAIRS", 40)
    explainer = fit(problem, dv.SupportSpectrum(inner, "runner-up"), batch_size=5)
    for targets in (None, outputs_of(problem)[1].argmax(1)):
        after = explainer.select(problem.test[0], targets)
        assert paths(after) == paths(before) and after.ended == before.ended
        for name, column in before.columns.items():
            scale = float(column.abs().max())
            torch.testing.assert_close(after.columns[name], column, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("inner", [None, DUAL, LAST], ids=repr)
def test_a_store_brings_the_wrapped_method_back(problem, tmp_path, inner: DataMethod | None):
    method = dv.SupportSpectrum(inner, "union", candidates="correct")
    before = fit(problem, method, store=tmp_path).select(problem.test[0])
    opened = dv.open(tmp_path, problem.model)
    assert opened.method == method
    assert type(method)(**{name: value for name, value in method.describe().items() if name != "method"}) == method
    assert paths(opened.select(problem.test[0])) == paths(before)


def test_one_logit_is_two_classes():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Identity(), nn.Linear(3, 1)).double()
    selection = dv.fit(dv.SupportSpectrum(), model, (inputs, labels), progress=False).select(inputs[:9])
    with torch.no_grad():
        z = model(inputs).squeeze(1)
    for row in range(9):
        side = 1.0 if z[row] > 0 else -1.0
        inside = (labels == int(z[row] > 0)) & (side * z < side * z[row])
        assert int(selection.num_support[row]) == int(inside.sum())


def test_labels_name_the_rival(problem):
    named = {"a": 2, "b": 0, "c": 1, "d": 3}
    labels = [next(name for name, column in named.items() if column == c) for c in problem.train[1].tolist()]
    samples = list(zip(problem.train[0], labels, strict=True))
    task = dv.Task(problem.model, classes=named)
    inputs = problem.test[0][outputs_of(problem)[1].argmax(1) != 2]
    found = dv.fit(dv.SupportSpectrum(rival="a"), task, samples, progress=False).select(inputs)
    assert paths(found) == paths(fit(problem, dv.SupportSpectrum(rival=2)).select(inputs))


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"of": dv.GradDot()}, TypeError, "no global importance times a local kernel"),
        ({"of": "DualView"}, TypeError, "expected a data method"),
        ({"of": {"method": "Unheard"}}, StoreError, "which this version of dualview does not know"),
        ({"rival": 1.5}, ValueError, "`rival` is 1.5; choose from 'general'"),
        ({"rival": True}, ValueError, "`rival` is True"),
        ({"candidates": "all"}, ValueError, "`candidates` is 'all'; choose from 'class' and 'correct'"),
        ({"similarity": "l2"}, ValueError, "`similarity` is 'l2'"),
        ({"of": DUAL, "similarity": "cosine"}, ValueError, "has a kernel of its own"),
    ],
)
def test_refuses_fields_that_cannot_be(fields: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        dv.SupportSpectrum(**fields)


def test_refuses_couplings_and_rivals_that_are_none(problem):
    with pytest.raises(TypeError, match="curvature='blocks' alone"):
        fit(problem, dv.SupportSpectrum(dv.LastLayerInfluence(curvature="full")))
    with pytest.raises(TypeError, match="no global importance times a local kernel"):
        fit(problem, dv.SupportSpectrum(dv.DualView(C=0.02, metric="curvature")))
    with pytest.raises(ValueError, match="'runnerup', which is no class; choose from"):
        spectrum(problem, rival="runnerup")
    with pytest.raises(ValueError, match="`rival` is class 1, which is explained for some test samples"):
        fit(problem, dv.SupportSpectrum(rival=1)).select(problem.test[0], 1)
    with pytest.raises(TypeError, match="GradDot scores samples and selects none"):
        fit(problem, dv.GradDot()).select(problem.test[0])


def test_it_is_told_apart_by_what_it_wraps(problem):
    assert dv.SupportSpectrum(DUAL.describe()) == dv.SupportSpectrum(DUAL) != dv.SupportSpectrum(LAST)
    assert hash(dv.SupportSpectrum(DUAL)) == hash(copy.copy(dv.SupportSpectrum(DUAL)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        dv.SupportSpectrum().of = DUAL


def test_a_training_sample_is_not_its_own_support(problem):
    """Its logits come from batches of other shapes, and differ by rounding; so those of its exact copies."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 5))
        inputs = torch.randn(300, 64)
    for rival in ("general", "union"):
        explainer = dv.fit(dv.SupportSpectrum(rival=rival), model, (inputs, model(inputs).argmax(1)), progress=False)
        assert not any(i in explainer.select(inputs[i : i + 1]).train_index.tolist() for i in range(60))
        alone = [explainer.select(inputs[i : i + 1]).train_index.tolist() for i in range(20)]
        together = explainer.select(inputs[:20])
        assert alone == [together[i].train_index.tolist() for i in range(20)]


def test_samples_that_the_fit_did_not_see_are_the_last_suspects(problem):
    """The importance −z_c is negative for most, so that a zero for want of one would come first."""
    explainer = dv.fit(dv.SupportSpectrum(), problem.model, problem.train, held_out=0.25, progress=False)
    assert torch.isin(explainer.suspects(len(explainer.positions)).index, explainer.positions).all()
