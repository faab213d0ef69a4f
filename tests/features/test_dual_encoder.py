"""The one-sided attribution against the published matrix over pairs of features, by integrated Jacobians."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from tests.features.budget import counted, unchecked


class Tower(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(num_features, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def made(num_features: int, seed: int) -> Tower:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tower(num_features).double().eval()


A_TOWER, B_TOWER = made(3, 0), made(4, 1)
GENERATOR = torch.Generator().manual_seed(2)
A, B = (torch.randn(2, k, dtype=torch.float64, generator=GENERATOR) for k in (3, 4))
A_REFERENCE = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
B_REFERENCE = torch.full((1, 4), 0.25, dtype=torch.float64)


def integrated_jacobian(tower: Tower, start: Tensor, end: Tensor) -> Tensor:
    """∫ J(start + t (end − start)) dt "dim feature", by 40 Gauss-Legendre nodes: exact to rounding here."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    return sum(
        weight * torch.autograd.functional.jacobian(tower, start + node * (end - start))
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True)
    )


def matrix(a: Tensor, b: Tensor) -> Tensor:
    """A_ij = (a − r_a)_i [J̄_aᵀ J̄_b]_ij (b − r_b)_j."""
    left = integrated_jacobian(A_TOWER, A_REFERENCE, a) * (a - A_REFERENCE)
    right = integrated_jacobian(B_TOWER, B_REFERENCE[0], b) * (b - B_REFERENCE[0])
    return left.T @ right


def method(**options) -> dv.DualEncoder:
    return dv.DualEncoder(B, B_REFERENCE, encoder=B_TOWER, baseline=A_REFERENCE, **options)


def test_it_is_the_row_sums_of_the_matrix_over_pairs():
    for candidate in (0, 1):
        found = method().attribute(A_TOWER, A, targets=candidate)
        for sample in (0, 1):
            expected = matrix(A[sample], B[candidate]).sum(1)
            torch.testing.assert_close(found.values[sample], expected, rtol=0, atol=1e-12)


def test_they_add_up_to_the_four_terms():
    found = method().attribute(A_TOWER, A, targets=[1, 0])
    with torch.no_grad():
        a, b = A_TOWER(A), B_TOWER(B[[1, 0]])
        a0, b0 = A_TOWER(A_REFERENCE), B_TOWER(B_REFERENCE)
    four = (a * b).sum(1) - (a * b0).sum(1) - (a0 * b).sum(1) + (a0 * b0).sum(1)
    torch.testing.assert_close(found.change, four, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.values.sum(1), four, rtol=0, atol=1e-12)
    assert found.completeness_error.abs().max() < 1e-12 and found.kind == "share"


def test_a_bilinear_encoder_needs_one_step():
    """e(x) = W x on both sides: A_ij = (a − r)_i (Wᵀ W)_ij (b − r)_j."""
    encoder = nn.Linear(3, 5, bias=False, dtype=torch.float64)
    found = dv.DualEncoder(A[1:], A_REFERENCE[None], encoder=encoder, baseline=0.5, steps=1).attribute(encoder, A)
    weight = encoder.weight.detach()
    expected = (A - 0.5) * ((A[1] - A_REFERENCE) @ weight.T @ weight)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-14)


def test_cosine_divides_by_both_lengths_of_the_inputs_themselves():
    dot, cosine = (method(similarity=kind).attribute(A_TOWER, A, targets=1) for kind in ("dot", "cosine"))
    with torch.no_grad():
        lengths = A_TOWER(A).norm(dim=1) * B_TOWER(B[1]).norm()
    torch.testing.assert_close(cosine.values, dot.values / lengths[:, None], rtol=1e-12, atol=0)
    torch.testing.assert_close(cosine.change, dot.change / lengths, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="give the task dv.logit or dv.contrast"):
        method(similarity="cosine").attribute(dv.Task(A_TOWER, output=dv.log_probability), A)


def test_candidates_are_classes_and_the_most_similar_is_explained():
    """By cosine the longest embedding does not win."""
    others = torch.cat([3 * torch.eye(5), torch.ones(1, 5)]).double()
    with torch.no_grad():
        embedded = A_TOWER(A)
    for similarity, best in (
        ("dot", embedded @ others.T),
        ("cosine", embedded @ (others / others.norm(dim=1)[:, None]).T),
    ):
        encoder = dv.DualEncoder(others, torch.full((5,), 0.7), baseline=A_REFERENCE, similarity=similarity)
        found = encoder.attribute(dv.Task(A_TOWER, class_names=list("abcdef")), A)
        assert torch.equal(found.predicted, best.argmax(1)) and torch.equal(found.targets, found.predicted)
    named = encoder.attribute(dv.Task(A_TOWER, classes={"dog": 1, "cat": 4}), A, targets="cat")
    assert torch.equal(named.values, encoder.attribute(A_TOWER, A, targets=4).values)
    with pytest.raises(ValueError, match="label 6"):
        encoder.attribute(A_TOWER, A, targets=6)


def test_contrast_compares_two_candidates():
    """The reference's embedding falls out."""
    task = dv.Task(A_TOWER, output=(dv.logit, dv.contrast(1, 0)))
    found = method().attribute(task, A, targets=1)
    other = method().attribute(A_TOWER, A, targets=0)
    torch.testing.assert_close(found.values[1], found.values[0] - other.values, rtol=0, atol=1e-13)
    bare = dv.DualEncoder(B_TOWER(B), 0.0, baseline=A_REFERENCE).attribute(task, A)
    torch.testing.assert_close(found.values[1], bare.values[1], rtol=0, atol=1e-13)


def test_a_single_candidate_and_one_reference_for_each():
    embedded, references = B_TOWER(B).detach(), torch.randn(2, 5, dtype=torch.float64, generator=GENERATOR)
    both = dv.DualEncoder(embedded, references).attribute(A_TOWER, A, targets=1)
    alone = dv.DualEncoder(embedded[1:], references[1]).attribute(A_TOWER, A)
    torch.testing.assert_close(alone.values, both.values, rtol=0, atol=1e-14)
    assert torch.equal(alone.targets, torch.tensor([0, 0]))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(7, 4), nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.embedding(ids).tanh().sum(1))


def test_texts_are_explained_at_their_embeddings():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Words().double().eval()
    ids, padding = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor(0)
    others = B_TOWER(B).detach()
    found = dv.DualEncoder(others, 0.0, baseline={"": padding}, site="embedding").attribute(model, ids, targets=0)
    assert found.values.shape == (2, 3, 4) and found.site == dv.Site("embedding", "output")
    with torch.no_grad():
        change = (model(ids) - model(torch.zeros_like(ids))) @ others[0]
        words = (model.embedding(ids).tanh() - model.embedding(padding).tanh()) @ model.fc.weight.T @ others[0]
    torch.testing.assert_close(found.change, change, rtol=0, atol=1e-13)
    torch.testing.assert_close(found.values.sum(2), words, rtol=0, atol=1e-12)  # additive in words


def test_its_budget():
    with counted(A_TOWER) as rows, counted(B_TOWER) as others:
        method(steps=7).attribute(A_TOWER, A)
    assert rows.forward == 2 * 7 + 2 + 1 and rows.backward == 2 * 7  # f(a) of each, and f(r_a) of all
    assert others.forward == 2 + 1 and others.backward == 0


def test_it_prints_sizes_and_names():
    assert repr(method()) == (
        "DualEncoder(others=<2 rows>, reference=<1 rows>, encoder=<Tower>, similarity='dot', "
        "baseline=Constant(<tensor 3>), steps=50, site=None)"
    )


class Text(nn.Module):
    """Takes what tokenisers return."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(9, 5), nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.drop(self.embedding(input_ids)) * attention_mask[:, :, None]).sum(1)


def test_candidates_are_whatever_their_encoder_takes():
    text = Text().double().train()
    ids, mask = torch.arange(8).reshape(2, 4), torch.ones(2, 4, dtype=torch.int64)
    with torch.no_grad():
        embeddings = text.eval()(ids, mask)
    text.train()
    expected = dv.DualEncoder(embeddings, 0 * embeddings).attribute(A_TOWER, A).values
    words = {"first": 0, "second": 1, "nothing": 2}
    rows = torch.cat([embeddings, 0 * embeddings[:1]])
    for others, reference, encoder in (
        ({"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:1], "attention_mask": 0 * mask[:1]}, text),
        ((ids, mask), (ids[:1], 0 * mask[:1]), text),
        (["first", "second"], ["nothing"], lambda texts: rows[[words[text] for text in texts]]),
    ):
        found = dv.DualEncoder(others, reference, encoder=encoder).attribute(A_TOWER, A)
        torch.testing.assert_close(found.values, expected, rtol=1e-12, atol=1e-14)
    assert text.training


def test_what_it_refuses():
    with pytest.raises(TypeError, match="`others` must be embeddings .* they are of type list"):
        dv.DualEncoder(["a caption"], 0.0).attribute(A_TOWER, A)
    with pytest.raises(ValueError, match="choose from 'dot' and 'cosine'"):
        unchecked(dv.DualEncoder, others=B, reference=B, similarity="l2")
    with pytest.raises(ValueError, match=r"`others` have embeddings of shape \(5,\); expected \(candidate, dim\)"):
        dv.DualEncoder(torch.ones(5), 0.0).attribute(A_TOWER, A)
    with pytest.raises(ValueError, match=r"`reference` has embeddings of shape \(4,\); expected \(5,\)"):
        dv.DualEncoder(torch.ones(2, 5), torch.ones(4)).attribute(A_TOWER, A)
    with pytest.raises(ValueError, match=r"`others` have 4 numbers each; the model's embeddings have 5"):
        dv.DualEncoder(torch.ones(2, 4), 0.0).attribute(A_TOWER, A)


def test_candidates_that_are_tensors_can_be_compared():
    others = torch.eye(3)
    one = dv.DualEncoder(others, 0.0)
    assert one == dv.DualEncoder(others.clone(), 0.0) and hash(one) == hash(dv.DualEncoder(others.clone(), 0.0))
    assert one != dv.DualEncoder(2 * others, 0.0) and one != dv.DualEncoder(others, 0.0, steps=3) and one != 3


def test_it_explains_similarities_alone():
    with pytest.raises(TypeError, match="explains similarities"):
        dv.Taylor().allocation(dv.DualEncoder(torch.eye(2), 0.0), torch.nn.Linear(3, 2).eval(), torch.ones(1, 3))
