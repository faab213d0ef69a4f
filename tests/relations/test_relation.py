"""The factored relation against the whole test × train × unit tensor, written out."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.relations import relation as module

OUTPUTS = {"logit": dv.logit, "contrast": dv.contrast(0, 2), "margin": dv.margin, "loss": dv.loss}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of Σ|scores|


@pytest.fixture(scope="module")
def data() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A model with features of both signs, 50 training samples of 3 classes, and 7 test inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)).double()
        labels = torch.arange(50) % 3
        inputs = torch.randn(50, 5, dtype=torch.float64) + nn.functional.one_hot(labels, 5)
        test = torch.randn(7, 5, dtype=torch.float64)
    return model, inputs, labels, test


def fitted(data: tuple, dtype: torch.dtype, output: object = dv.logit, C: float = 0.05, **settings) -> dv.Explainer:
    _, inputs, labels, _ = data
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)
    model.load_state_dict(data[0].state_dict())
    return dv.fit(
        dv.DualView(C=C), dv.Task(model, output=output), (inputs.to(dtype), labels), progress=False, **settings
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", OUTPUTS)
def test_the_marginals_are_those_of_the_dense_tensor(monkeypatch, data, name: str, dtype: torch.dtype):
    explainer = fitted(data, dtype, OUTPUTS[name])
    inputs = data[3].to(dtype)
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    relation = dv.relate(explainer, inputs, targets)

    body = explainer.task.model[:2]
    train, test = (body(x).detach().double() for x in (data[1].to(dtype), inputs))
    logits = explainer.task.model(inputs).detach().requires_grad_()
    v = torch.autograd.grad(OUTPUTS[name](logits, targets).sum(), logits)[0].double()
    alpha = explainer.state.coefficients(torch.arange(50))
    dense = torch.einsum("tc,ic,ik,tk->tik", v, alpha, train, test)
    surrogate = test @ (alpha.T @ train).T + alpha.sum(0)

    close = TOLERANCE[dtype] * dense.sum(2).abs().sum(1)
    output = (v * surrogate).sum(1)
    assert ((relation.by_train() - dense.sum(2)).abs().sum(1) <= close).all()
    for side in ("test", "train"):
        assert ((relation.by_unit(side=side) - dense.sum(1)).abs().sum(1) <= close).all()
    assert ((relation.by_train().sum(1) + relation.bias - output).abs() <= close).all()
    assert ((relation.by_unit().sum(1) + relation.bias - output).abs() <= close).all()
    assert ((relation.surrogate_outputs - output).abs() <= close).all()
    assert ((relation.bias - v @ alpha.sum(0)).abs() <= close).all()
    assert close.min() > 0 and relation.bias.abs().max() > 0

    for t in (0, 6):
        for i in range(50):
            found = relation.pair(t, i).double()
            assert ((found - dense[t, i]).abs() <= 10 * torch.finfo(dtype).eps * dense[t, i].abs() + 1e-12).all()
            assert abs(found.sum() - relation.by_train()[t, i]) <= close[t]
    monkeypatch.setattr(module, "TRAIN_BLOCK", 7)
    assert ((relation.by_train() - dense.sum(2)).abs().sum(1) <= close).all()


def test_by_train_is_what_explain_gives(data):
    explainer = fitted(data, torch.float64)
    relation, scores = dv.relate(explainer, data[3]), explainer.explain(data[3])
    assert torch.equal(relation.by_train(), scores.dense())
    assert torch.equal(relation.bias, scores.bias)
    assert torch.equal(relation.targets, scores.targets) and torch.equal(relation.predicted, scores.predicted)
    surrogate = explainer.surrogate_logits(data[3]).gather(1, scores.targets[:, None]).squeeze(1)
    torch.testing.assert_close(relation.surrogate_outputs, surrogate, rtol=1e-13, atol=1e-15)


def test_relations_of_all_classes_cancel(data):
    """Rows of the dual sum to zero, so surrogate logits do, and each of their parts."""
    explainer = fitted(data, torch.float64)
    parts = [dv.relate(explainer, data[3], c) for c in range(3)]
    for values in ([p.by_train() for p in parts], [p.by_unit() for p in parts], [p.bias[:, None] for p in parts]):
        stacked = torch.stack(values)
        assert (stacked.sum(0).abs() <= 1e-13 * stacked.abs().sum((0, 2))[:, None]).all()


def test_a_relation_needs_no_training_set(data, tmp_path):
    explainer = fitted(data, torch.float64, store=tmp_path)
    relation = dv.relate(dv.open(tmp_path, explainer.task.model), data[3])
    expected = dv.relate(explainer, data[3])
    assert torch.equal(relation.by_train(), expected.by_train())
    assert torch.equal(relation.by_unit(), expected.by_unit())
    assert torch.equal(relation.pair(2, 11), expected.pair(2, 11))


def test_samples_without_dual_variables_have_no_share(data):
    explainer = fitted(data, torch.float64, C=5.0)
    relation = dv.relate(explainer, data[3])
    others = sorted(set(range(50)) - set(explainer.state.support.tolist()))
    assert others
    assert (relation.by_train()[:, others] == 0).all()
    assert (relation.pair(0, others[0]) == 0).all()


@pytest.mark.parametrize(("test", "train", "message"), [
    (7, 0, "`test` is 7; positions go from 0 to 6"),
    (-1, 0, "`test` is -1; positions go from 0 to 6"),
    (0, 50, "`train` is 50; positions go from 0 to 49"),
])  # fmt: skip
def test_pairs_that_are_not_there_are_refused(data, test: int, train: int, message: str):
    with pytest.raises(IndexError, match=message):
        dv.relate(fitted(data, torch.float64), data[3]).pair(test, train)


def test_a_relation_needs_dualview(data):
    @dataclasses.dataclass(frozen=True)
    class Other:
        C: float = 1.0

    explainer = dataclasses.replace(fitted(data, torch.float64))
    object.__setattr__(explainer, "method", Other())
    with pytest.raises(TypeError, match=r"needs a fitted DualView; this explainer holds .*Other\(C=1.0\)"):
        dv.relate(explainer, data[3])


def test_targets_and_inputs_are_checked_as_for_explain(data):
    explainer = fitted(data, torch.float64)
    with pytest.raises(ValueError, match=r"label 3 .*columns 0 to 2"):
        dv.relate(explainer, data[3], 3)
    with pytest.raises(ValueError, match=r"expected \(test, 5\)"):
        dv.relate(explainer, data[3][:, :4])


def test_repr_and_length(data):
    explainer = fitted(data, torch.float64)
    relation = dv.relate(explainer, data[3])
    assert len(relation) == 7
    support = len(explainer.state.support)
    assert repr(relation) == f"Relation(7 test × 50 train ({support} support) × 9 units, of logit)"
