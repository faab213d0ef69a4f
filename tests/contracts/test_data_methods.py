"""What every data method promises, asked of each name in `dualview.data.__all__`.

A new method joins with one line in METHODS.
"""

import copy
import dataclasses
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dualview as dv
import dualview.data
from dualview.data import _explainer
from dualview.data._method import DataMethod

# 24 numbers are few on purpose: the warning that most scores are noise of the projection is right
pytestmark = pytest.mark.filterwarnings("ignore:the strongest proponents:dualview.errors.DualViewWarning")

METHODS: dict[str, DataMethod] = {
    "Arnoldi": dv.Arnoldi(6, 12, curvature="gauss-newton"),
    "BM25": dv.BM25(counts=True),
    "Confidence": dv.Confidence(),
    "DTRAK": dv.DTRAK(projection=24),
    "DataInf": dv.DataInf(),
    "DualView": dv.DualView(C=0.05, gap=1e-11),
    "DualView, softmax": dv.DualView(C=0.05, loss="softmax", metric="whitened", gap=1e-11),
    "DualView, smooth hinge": dv.DualView(C=0.05, loss="smooth-hinge", gap=1e-11),
    "DualView, sparsemax": dv.DualView(C=0.05, loss="sparsemax", metric="curvature", gap=1e-11),
    "DualView, squared": dv.DualView(C=0.05, loss="squared", metric="curvature", gap=1e-11),
    "EKFAC": dv.EKFAC(fisher="exact"),
    "FeatureSimilarity": dv.FeatureSimilarity("cosine"),
    "ForwardInfluence": dv.ForwardInfluence(),
    "GradCos": dv.GradCos(),
    "GradDot": dv.GradDot(),
    "Influence": dv.Influence(),
    "Influence, leverage": dv.Influence(leverage=True),
    "InputKernel": dv.InputKernel(),
    "InputSimilarity": dv.InputSimilarity("euclidean"),
    "KernelInfluence": dv.KernelInfluence(),
    "LastLayerInfluence": dv.LastLayerInfluence(),
    "Loss": dv.Loss(),
    "Random": dv.Random(),
    "RelatIF": dv.RelatIF(dv.EKFAC(fisher="exact")),
    "RepresenterPoints": dv.RepresenterPoints(),
    "SameClass": dv.SameClass(),
    "SupportSpectrum": dv.SupportSpectrum(),
    "TRAK": dv.TRAK(projection=24),
    "TraceNTK": dv.TraceNTK(C=0.05, gap=1e-11),
    "TracIn": dv.TracIn(),
}
EVERY = pytest.mark.parametrize("name", METHODS)
BY_CONTENT = pytest.mark.parametrize("name", [name for name in METHODS if name != "Random"])


class Problem(NamedTuple):
    model: nn.Sequential
    train: tuple[Tensor, Tensor]
    test: Tensor


@pytest.fixture(scope="module")
def spread() -> Problem:
    """30 samples with 40 features in float64: more features than samples, so that duals are unique."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    inputs = torch.randn(30, 5, generator=generator, dtype=torch.float64) + nn.functional.one_hot(labels, 5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    return Problem(model, (inputs, labels), torch.randn(9, 5, generator=generator, dtype=torch.float64))


def fit(name: str, problem: Problem, **settings: object) -> dv.Explainer:
    train = settings.pop("train", problem.train)
    return dv.fit(METHODS[name], problem.model, train, progress=False, **settings)


@pytest.fixture(scope="module")
def problems(spread) -> dict[str, Problem]:
    """The same for every method, but without signs for one that counts."""
    counted = Problem(spread.model, (spread.train[0].abs(), spread.train[1]), spread.test.abs())
    return {name: counted if name == "BM25" else spread for name in METHODS}


@pytest.fixture
def problem(name: str, problems) -> Problem:
    return problems[name]


@pytest.fixture(scope="module")
def explainers(problems) -> dict[str, dv.Explainer]:
    return {name: fit(name, problems[name]) for name in METHODS}


def leeway(explainer: dv.Explainer, problem: Problem) -> Tensor:
    """How far scores "test train" of two fits of one problem may lie apart, by their certificate.

    The dual D is strongly concave where the rows phi = [f, 1] are independent: with lambda the least
    eigenvalue of their Gram matrix, ½ lambda ‖alpha − alpha*‖² ≤ P − D. Both fits are that far from the
    optimum at most, and a score is alpha times ⟨f_i, f⟩. Methods without a certificate get rounding alone.
    """
    train, test = (problem.model[:2](x).detach() for x in (problem.train[0], problem.test))
    products = (test @ train.T).abs()
    if "primal" not in explainer.certificate:
        return 1e-9 * explainer.explain(problem.test).dense().abs().amax().expand_as(products)
    eigenvalue = torch.linalg.eigvalsh(train @ train.T + 1)[0]
    assert explainer.certificate["status"] == "converged"
    distance = explainer.certificate["asked_gap"] * explainer.certificate["primal"] / eigenvalue
    return 2 * math.sqrt(2 * distance) * products


def rounding(scores: Tensor) -> dict[str, float]:
    """How far sums that are taken in another order may lie apart: 1e-12 of the largest score."""
    return {"rtol": 0.0, "atol": 1e-12 * float(scores.abs().max())}


def test_every_method_is_asked():
    assert {name.split(",")[0] for name in METHODS} == set(dualview.data.__all__)


@EVERY
def test_it_is_a_frozen_value(name: str):
    method = METHODS[name]
    kind = type(method)
    assert (
        isinstance(method, DataMethod)
        and kind.__name__ == name.split(",")[0]
        and kind.kind in ("share", "effect", "similarity")
    )
    twin = copy.copy(method)
    assert twin == method and hash(twin) == hash(method) and len({twin, method}) == 1
    assert eval(repr(method), vars(dualview.data)) == method
    for field in dataclasses.fields(method)[:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, 0)
    with pytest.raises(AttributeError):
        method.unheard_of = 1
    assert kind(**{k: v for k, v in method.describe().items() if k != "method"}) == method


@EVERY
def test_results_have_the_axes_they_say(name: str, problem, explainers):
    for top in (None, 2):
        result = explainers[name].explain(problem.test, top=top)
        assert len(result) == 9 and result.num_train == 30 and result.kind == METHODS[name].kind
        assert result.dense().shape == (9, 30) and result.dense().dtype == torch.float64
        assert result.scores.shape == result.bias_shares.shape == result.index_rows().shape
        assert result.dense().abs().sum() > 0
        expected = torch.arange(9), problem.model(problem.test).argmax(1), problem.train[1]
        for found, tensor in zip((result.test_index, result.targets, result.train_targets), expected, strict=True):
            assert torch.equal(found, tensor)
    assert torch.equal(explainers[name].explain(problem.test).dense(), explainers[name].explain(problem.test).dense())


@EVERY
def test_shares_and_bias_add_up(name: str, problem, explainers):
    if METHODS[name].kind != "share":
        pytest.skip(f"the scores of {name} are no shares")
    result = explainers[name].explain(problem.test)
    surrogate = explainers[name].surrogate_logits(problem.test).gather(1, result.targets[:, None]).squeeze(1)
    scale = result.dense().abs().sum(1)
    assert ((result.dense().sum(1) + result.bias - surrogate).abs() <= 1e-10 * scale).all()
    assert ((result.bias_shares.sum(1) - result.bias).abs() <= 1e-10 * scale).all()


@EVERY
def test_a_running_top_k_holds_the_strongest(name: str, problem, explainers):
    whole, kept = explainers[name].explain(problem.test).top(3), explainers[name].explain(problem.test, top=3).top(3)
    for side in ("proponents", "opponents"):
        assert torch.equal(getattr(whole, side).train_index, getattr(kept, side).train_index)
        assert torch.equal(getattr(whole, side).scores, getattr(kept, side).scores)


@EVERY
@pytest.mark.parametrize(("test_block", "train_block"), [(1, 1), (3, 7), (4, 30)])
def test_blocks_do_not_change_scores(monkeypatch, name: str, problem, explainers, test_block: int, train_block: int):
    """But for rounding: each score is one inner product, which kernels sum in an order of their own."""
    test = problem.test[:4]
    before = explainers[name].explain(test).dense()
    monkeypatch.setattr(_explainer, "TEST_BLOCK", test_block)
    monkeypatch.setattr(_explainer, "TRAIN_BLOCK", train_block)
    torch.testing.assert_close(explainers[name].explain(test).dense(), before, **rounding(before))


@EVERY
@pytest.mark.parametrize("batch_size", [8, 29])  # which leave a single sample, of the tests and of training
def test_batches_do_not_change_results(name: str, problem, explainers, batch_size: int):
    before = explainers[name].explain(problem.test).dense()
    smaller = dataclasses.replace(explainers[name], batch_size=batch_size)
    torch.testing.assert_close(smaller.explain(problem.test).dense(), before, **rounding(before))
    refitted = fit(name, problem, batch_size=batch_size)
    assert ((refitted.explain(problem.test).dense() - before).abs() <= leeway(refitted, problem)).all()


@EVERY
def test_the_order_of_a_loader_does_not_matter(name: str, problem, explainers):
    loader = DataLoader(TensorDataset(*problem.train), batch_size=7, shuffle=True)
    shuffled = fit(name, problem, train=loader)
    assert torch.equal(shuffled.explain(problem.test).dense(), explainers[name].explain(problem.test).dense())


@BY_CONTENT
def test_permuting_the_training_set_permutes_the_scores(name: str, problem, explainers):
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    permuted = fit(name, problem, train=tuple(part[order] for part in problem.train))
    found, expected = permuted.explain(problem.test).dense(), explainers[name].explain(problem.test).dense()[:, order]
    allowed = leeway(permuted, problem)[:, order]
    assert ((found - expected).abs() <= allowed).all()
    assert (allowed.sum(1) < 0.1 * expected.abs().sum(1)).all()  # or the above would say little


@EVERY
def test_a_fit_does_not_see_what_is_held_out(name: str, problem, explainers):
    """Held-out samples may choose a setting; with all settings given, as in METHODS, they change nothing."""
    inputs, labels = problem.train
    held_out = problem.test, torch.arange(9) % 3
    found = fit(name, problem, held_out=held_out)
    assert torch.equal(found.explain(problem.test).dense(), explainers[name].explain(problem.test).dense())
    share = fit(name, problem, held_out=0.2)
    outside = torch.ones(30, dtype=torch.bool).index_fill(0, share.positions, False)
    assert outside.sum() == 6 and (share.explain(problem.test).dense()[:, outside] == 0).all()
    if name == "Random":
        return  # its scores are by position, not by content
    seen = problem._replace(train=(inputs[share.positions], labels[share.positions]))
    alone = fit(name, seen)
    apart = share.explain(problem.test).dense()[:, share.positions] - alone.explain(problem.test).dense()
    assert (apart.abs() <= leeway(alone, seen)).all()


@BY_CONTENT
def test_single_precision_is_close_to_double(name: str, problem, explainers):
    """Features differ by 1e-7 of their size, and the fit by what its gap in single precision allows."""
    model = copy.deepcopy(problem.model).float()
    single = Problem(model, (problem.train[0].float(), problem.train[1]), problem.test.float())
    method = METHODS[name]
    if "gap" in {field.name for field in dataclasses.fields(method)}:
        method = dataclasses.replace(method, gap=1e-7)
    found = dv.fit(method, single.model, single.train, progress=False).explain(single.test)
    expected = explainers[name].explain(problem.test, found.targets)
    assert found.scores.dtype == torch.float32
    apart = (found.dense() - expected.dense()).abs().sum(1)
    assert (apart <= 1e-2 * expected.dense().abs().sum(1)).all()


@EVERY
def test_a_store_changes_nothing(name: str, problem, explainers, tmp_path):
    before = explainers[name].explain(problem.test)
    for other in (fit(name, problem, store=tmp_path), dv.open(tmp_path, problem.model)):
        after = other.explain(problem.test)
        assert other.method == METHODS[name] and after.method == before.method
        torch.testing.assert_close(after.dense(), before.dense(), **rounding(before.dense()))  # rows stand elsewhere
        assert torch.equal(after.bias, before.bias)


@EVERY
def test_the_model_is_left_untouched(name: str, problem):
    model = copy.deepcopy(problem.model).train()
    model[0].weight.grad = torch.full_like(model[0].weight, 3.0)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    explainer = dv.fit(METHODS[name], model, problem.train, progress=False)
    explainer.explain(problem.test)
    explainer.self_influence()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(not module._forward_pre_hooks and not module._backward_hooks for module in model.modules())
    assert (model[0].weight.grad == 3).all() and model[2].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random_state) and torch.is_grad_enabled()


@EVERY
def test_self_influence_is_each_samples_score_for_itself(name: str, problem, explainers):
    """For effects, and what is made of them: what including it takes from its own loss."""
    if name in ("Confidence", "GradCos", "Loss", "Random", "SupportSpectrum"):
        pytest.skip(f"the card of {name} says what its self-influence is")
    explainer, sign = explainers[name], 1
    if (METHODS[name].kind == "effect" and name != "DTRAK") or name == "RelatIF":
        explainer, sign = (
            dv.fit(METHODS[name], dv.Task(problem.model, output=dv.loss), problem.train, progress=False),
            -1,
        )
    scores = sign * explainer.explain(problem.train[0], problem.train[1]).dense()
    torch.testing.assert_close(explainer.self_influence(), scores.diagonal(), rtol=1e-9, atol=1e-12)
