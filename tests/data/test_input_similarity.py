"""InputSimilarity on inputs, on embeddings, and in a store."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def squares(inputs: Tensor) -> Tensor:
    return inputs.square()


def fit(problem, method, **options):
    return dv.fit(method, problem.model, problem.train, progress=False, **options)


def test_scores_are_similarities_of_the_inputs(problem):
    (train, _), (test, _) = problem.train, problem.test
    found = {m: fit(problem, dv.InputSimilarity(m)).explain(test).dense() for m in ("dot", "cosine", "euclidean")}
    torch.testing.assert_close(found["dot"], test @ train.T, **CLOSE)
    cosines = test @ train.T / test.norm(dim=1)[:, None] / train.norm(dim=1)
    torch.testing.assert_close(found["cosine"], cosines, **CLOSE)
    spread = (train[:, None] - train).square().sum(2).mean().sqrt()
    torch.testing.assert_close(found["euclidean"], 1 / (1 + (test[:, None] - train).norm(dim=2) / spread), **CLOSE)


def test_the_unit_of_distances_is_the_samples_own(problem):
    """Whatever the inputs are measured in, as many scores differ."""
    for factor in (1e-12, 1.0, 1e12):
        train, test = (factor * part[0].float() for part in (problem.train, problem.test))
        model = nn.Linear(6, 4)
        scores = dv.fit(dv.InputSimilarity("euclidean"), model, (train, problem.train[1]), progress=False).explain(test)
        assert (scores.dense()[0].unique().numel() == 120) and bool((scores.dense() > 0.05).all())


def test_the_order_of_a_dicts_entries_does_not_matter():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, a, b):
            return self.fc(a + b)

    a, b = torch.randn(6, 4), torch.randn(6, 4)
    train = [{"a": x, "b": y, "labels": k % 2} for k, (x, y) in enumerate(zip(a, b, strict=True))]
    explainer = dv.fit(dv.InputSimilarity("euclidean"), Sum(), train, progress=False)
    for inputs in ({"a": a, "b": b}, {"b": b, "a": a}):
        assert torch.equal(explainer.explain(inputs).dense().argmax(1), torch.arange(6))


def test_an_encoder_compares_embeddings(problem):
    (train, _), (test, _) = problem.train, problem.test
    found = fit(problem, dv.InputSimilarity(encoder=squares))
    torch.testing.assert_close(found.explain(test).dense(), test.square() @ train.square().T, **CLOSE)
    torch.testing.assert_close(found.self_influence(), train.square().square().sum(1), **CLOSE)
    module = problem.model[:2]
    by_module = fit(problem, dv.InputSimilarity("cosine", encoder=module)).explain(test).dense()
    by_features = fit(problem, dv.FeatureSimilarity("cosine")).explain(test).dense()
    torch.testing.assert_close(by_module, by_features, **CLOSE)


def test_duplicates_alone_are_at_distance_zero(problem):
    single = problem.to(torch.float32)
    scores = fit(single, dv.InputSimilarity("euclidean")).explain(single.train[0]).dense()
    assert (scores.diagonal() == 1).all() and (scores > 0).all() and (scores == 1).sum() == len(scores)


def test_a_store_knows_an_encoder_by_what_it_is(problem, tmp_path):
    encoder = nn.Linear(6, 3).double()
    method = dv.InputSimilarity("cosine", encoder=encoder)
    expected = fit(problem, method, store=tmp_path).explain(problem.test[0]).dense()
    opened = dv.open(tmp_path, problem.model, method=method)
    assert torch.equal(opened.explain(problem.test[0]).dense(), expected)
    with pytest.raises(
        ValueError, match=r"a store keeps no encoder.*give method=InputSimilarity\('cosine', encoder=...\)"
    ):
        dv.open(tmp_path, problem.model)
    other = dv.InputSimilarity("cosine", encoder=nn.Linear(6, 3).double())
    with pytest.raises(dv.errors.StoreError, match="has no fit InputSimilarity"):
        dv.open(tmp_path, problem.model, method=other)
    plain = fit(problem, dv.InputSimilarity(), store=tmp_path)
    again = dv.open(tmp_path, problem.model, method=dv.InputSimilarity())
    assert torch.equal(again.explain(problem.test[0]).dense(), plain.explain(problem.test[0]).dense())


def test_what_is_refused(problem):
    with pytest.raises(TypeError, match="`encoder` must be a function or module"):
        dv.InputSimilarity(encoder=3)
    with pytest.raises(ValueError, match="`metric` is 'l1'"):
        dv.InputSimilarity("l1")
    assert repr(dv.InputSimilarity(encoder=squares)) == "InputSimilarity('dot', encoder=squares)"
