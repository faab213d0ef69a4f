"""The loop, what goes into it, and the rankings over a whole data set."""

import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dualview as dv
from dualview.data import _explainer
from dualview.errors import NonFiniteError


@pytest.fixture
def whole_numbers() -> tuple[dv.Explainer, Tensor]:
    """An explainer whose scores are exact in any order of summation, and full of ties; and test inputs.

    Features are small whole numbers, training rows come two or three times, and alpha is rounded to
    quarters of C, a power of two, the same for equal rows.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 3, (23, 5), generator=generator).double()
    inputs = torch.cat([rows, rows, rows[:14]])[torch.randperm(60, generator=generator)]
    labels = (inputs @ torch.arange(5.0).double()).long() % 3
    model = nn.Linear(5, 3).double()
    explainer = dv.fit(dv.DualView(C=2**-5), model, (inputs, labels), progress=False)
    quarters = (explainer.state.entry_value * 2**7).round() / 2**7
    explainer = dataclasses.replace(explainer, state=explainer.state._replace(entry_value=quarters))
    return explainer, torch.randint(0, 3, (11, 5), generator=generator).double()


def sorted_top(scores: list[float], k: int, sign: int) -> list[int]:
    """The k strongest positions of one sign, ties by position, padded with −1."""
    found = sorted((i for i, s in enumerate(scores) if sign * s > 0), key=lambda i: (-sign * scores[i], i))[:k]
    return found + [-1] * (k - len(found))


@pytest.mark.parametrize(
    ("test_block", "train_block", "k"),
    [(1024, 4096, 1), (1024, 4096, 40), (1, 1, 4), (3, 7, 1), (3, 7, 40), (11, 2, 4), (4, 1000, 3)],
)
def test_a_running_top_k_is_the_top_of_all_scores(monkeypatch, whole_numbers, test_block, train_block, k: int):
    explainer, inputs = whole_numbers
    whole = explainer.explain(inputs, 1)
    dense = whole.dense()
    monkeypatch.setattr(_explainer, "TEST_BLOCK", test_block)
    monkeypatch.setattr(_explainer, "TRAIN_BLOCK", train_block)
    assert torch.equal(explainer.explain(inputs, 1).dense(), dense)
    kept = explainer.explain(inputs, 1, top=k)
    assert kept.scores.shape == (11, 2 * k) and kept.top_k == k
    for sign, ranked, all_ranked in (
        (1, kept.top(k).proponents, whole.top(k).proponents),
        (-1, kept.top(k).opponents, whole.top(k).opponents),
    ):
        expected = [sorted_top(row, k, sign) for row in dense.tolist()]
        assert ranked.train_index.tolist() == all_ranked.train_index.tolist() == expected
        assert torch.equal(ranked.scores, all_ranked.scores)
    ties = [len(set(row)) < len(row) for row in ([s for s in row if s] for row in dense.tolist())]
    assert any(ties)
    by_position = dict(zip(whole.train_index.tolist(), whole.bias_shares.T, strict=True))
    for row, column in (kept.train_index >= 0).nonzero().tolist():
        assert kept.bias_shares[row, column] == by_position[int(kept.train_index[row, column])][row]


@pytest.mark.parametrize("top", [0, -1])
def test_top_must_be_at_least_one(problem, explainer, top: int):
    for call in (explainer.explain, explainer.explain_classes):
        with pytest.raises(ValueError, match=f"`top` must be at least 1; it is {top}"):
            call(problem.test[0], top=top)


def test_all_classes_at_once_are_the_classes_one_by_one(monkeypatch, problem, explainer):
    monkeypatch.setattr(_explainer, "TEST_BLOCK", 7)
    monkeypatch.setattr(_explainer, "TRAIN_BLOCK", 16)
    task = dataclasses.replace(explainer.task, output=dv.margin)  # of which explain_classes makes no use
    together = dataclasses.replace(explainer, task=task).explain_classes(problem.test[0], top=5)
    assert list(together) == [0, 1, 2, 3]
    for column, found in together.items():
        alone = explainer.explain(problem.test[0], column, top=5)
        assert found.measured == "logit" and not found.linearised
        for name in ("scores", "train_index", "bias", "bias_shares", "targets", "predicted"):
            assert torch.equal(getattr(found, name), getattr(alone, name)), name
    assert list(explainer.explain_classes(problem.test[0], [2, 0])) == [2, 0]


def test_all_classes_at_the_cost_of_one_product(monkeypatch, problem, explainer):
    products = []
    original = dv.DualView.products

    def counted(self, state, values, train):
        products.append(1)
        return original(self, state, values, train)

    monkeypatch.setattr(dv.DualView, "products", counted)
    explainer.explain_classes(problem.test[0])
    assert len(products) == 1


# ── inputs and targets ───────────────────────────────────────────────────────────────────────────


class Indexed:
    """A map-style data set that inherits from nothing."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.inputs[position], self.labels[position]


def test_inputs_may_come_as_a_data_set(problem, explainer):
    expected = explainer.explain(problem.test[0])
    data = TensorDataset(*problem.test)
    loader = DataLoader(data, batch_size=30, shuffle=True)
    for inputs in (data, loader, Indexed(*problem.test)):
        found = explainer.explain(inputs)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.test_index, torch.arange(30))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(explainer.explain(problem.test[0].numpy()).scores, expected.scores)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("target", [2, np.int64(2), torch.tensor(2), [2] * 30, torch.full((30,), 2)], ids=repr)
def test_one_target_serves_all_samples(problem, explainer, target: object):
    scores = explainer.explain(problem.test[0], target)
    assert scores.targets.tolist() == [2] * 30


def test_targets_default_to_the_predictions(problem, explainer):
    scores = explainer.explain(problem.test[0])
    predicted = problem.model(problem.test[0]).argmax(1)
    assert torch.equal(scores.targets, predicted) and torch.equal(scores.predicted, predicted)
    other = explainer.explain(problem.test[0], problem.test[1])
    assert torch.equal(other.targets, problem.test[1]) and torch.equal(other.predicted, predicted)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1, 2], "`targets` hold 2 labels for 30 test samples"),
        (4, r"label 4 .*columns 0 to 3"),
        (-1, r"label -1 .*columns 0 to 3"),
        ("cat", r"'cat'.*give classes="),
        (1.5, "not whole numbers"),
    ],
)
def test_targets_that_are_no_columns_are_refused(problem, explainer, targets: object, message: str):
    with pytest.raises(ValueError, match=message):
        explainer.explain(problem.test[0], targets)


def test_inputs_of_another_shape_are_refused(problem, explainer):
    inputs = problem.test[0]
    with pytest.raises(ValueError, match=r"`inputs` has shape \(30, 5\); expected \(test, 6\) as in training$"):
        explainer.explain(inputs[:, :5])
    with pytest.raises(ValueError, match=r"\(6,\).*expected \(test, 6\).*for a single sample give inputs\[None\]"):
        explainer.explain(inputs[0])
    with pytest.raises(ValueError, match=r"parts \['0', '1'\]; the training samples have \[''\]"):
        explainer.explain((inputs, inputs))
    with pytest.raises(ValueError, match="`inputs` hold no samples"):
        explainer.explain(inputs[:0])
    with pytest.raises(ValueError, match=r"\(1, 5\); expected \(test, 6\)"):
        explainer.errors((inputs[:, :5], problem.test[1]))


def with_nan(inputs: Tensor, position: int) -> Tensor:
    inputs = inputs.clone()
    inputs[position, 2] = torch.nan
    return inputs


@pytest.mark.parametrize("batch_size", [None, 4])
def test_nan_in_the_inputs_names_the_sample(problem, explainer, batch_size):
    explainer = dataclasses.replace(explainer, batch_size=batch_size)
    with pytest.raises(NonFiniteError, match="sample 17 has NaN or infinite features") as caught:
        explainer.explain(with_nan(problem.test[0], 17))
    assert caught.value.index == (17,)


# ── nothing is left behind ───────────────────────────────────────────────────────────────────────


class Drawing(Dataset):
    """A data set that draws from every global random state when it is read, and gives equal samples."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        return self.inputs[position], self.labels[position]


def everything_about(model: nn.Module) -> tuple:
    """All of a model and of the global state that a library might change.

    Python's own random state apart, from which the checks of annotations draw: see unchecked.py.
    """
    return (
        {name: (tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict().items()},
        {name: (p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()},
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),  # noqa: NPY002
        (torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()),
    )


def same(first: object, second: object) -> bool:
    if isinstance(first, Tensor | np.ndarray):
        return bool((first == second).all())
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def in_odd_state(model: nn.Module) -> nn.Module:
    """Half in training mode, with a gradient here and a frozen parameter there, and dropout that would draw."""
    model = nn.Sequential(copy.deepcopy(model[:2]), nn.Dropout(0.5), copy.deepcopy(model[2]))
    model.train()
    model[0].eval()
    model[0][0].weight.grad = torch.ones_like(model[0][0].weight)
    model[2].bias.requires_grad_(False)
    return model


def test_model_and_random_states_are_left_as_they_were(problem, tmp_path):
    model = in_odd_state(problem.model)
    before = everything_about(model)
    train, test = Drawing(*problem.train), Drawing(*problem.test)
    explainer = dv.fit(dv.DualView(C=0.02), model, train, held_out=test, store=tmp_path, progress=False)
    assert same(before, everything_about(model)), "fit"
    in_memory = dv.fit(dv.DualView(C=0.02), model, train, held_out=0.2, progress=False)
    assert same(before, everything_about(model)), "fit in memory"
    opened = dv.open(tmp_path, model, train=train)
    assert same(before, everything_about(model)), "open"
    for name, call in {
        "explain": lambda: explainer.explain(test),
        "explain_classes": lambda: opened.explain_classes(test),
        "relate": lambda: dv.relate(in_memory, problem.test[0]).by_train(),
        "errors": lambda: opened.errors(test),
        "suspects": opened.suspects,
        "surrogate_logits": lambda: explainer.surrogate_logits(test),
    }.items():
        call()
        assert same(before, everything_about(model)), name


def test_an_error_leaves_no_trace_either(problem, explainer):
    """While its traceback is still held: a notebook keeps the last one."""
    before = everything_about(problem.model)
    bad = Drawing(with_nan(problem.test[0], 29), problem.test[1])
    errors = []
    for call in (explainer.explain, explainer.surrogate_logits, explainer.errors):
        explainer = dataclasses.replace(explainer, batch_size=7)
        with pytest.raises(NonFiniteError) as caught:
            call(bad)
        errors.append(caught)
        assert same(before, everything_about(problem.model)), call.__name__
    with pytest.raises(NonFiniteError):
        dv.fit(dv.DualView(C=0.02), problem.model, bad, progress=False)
    assert same(before, everything_about(problem.model))
    assert len(errors) == 3


# ── rankings ─────────────────────────────────────────────────────────────────────────────────────


def worst_first(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[dict]:
    """The wrong predictions, by loss, with the loss written out."""
    rows = []
    for index, (x, y) in enumerate(zip(inputs, labels.tolist(), strict=True)):
        logits = model(x[None])[0].tolist()
        predicted = max(range(len(logits)), key=logits.__getitem__)
        total = sum(np.exp(z) for z in logits)
        if predicted != y:
            row = {"index": index, "target": y, "predicted": predicted}
            rows.append({**row, "loss": np.log(total) - logits[y], "confidence": np.exp(logits[predicted]) / total})
    return sorted(rows, key=lambda row: -row["loss"])


def assert_same_rows(ranking: dv.Ranking, expected: list[dict]) -> None:
    assert [row["index"] for row in ranking.rows()] == [row["index"] for row in expected]
    for found, row in zip(ranking.rows(), expected, strict=True):
        assert found == pytest.approx(row, rel=1e-12)


def test_errors_are_the_wrong_predictions_worst_first(problem, explainer):
    on_test, on_train = (worst_first(problem.model, *data) for data in (problem.test, problem.train))
    assert 2 <= len(on_test) < 30 and len(on_train) >= 2
    errors = explainer.errors()
    assert_same_rows(errors, on_test)
    assert (errors.by, errors.num_samples) == ("loss", 30)
    assert_same_rows(explainer.errors(problem.train), on_train)
    alone = dv.fit(dv.DualView(C=0.02), problem.model, problem.train, progress=False)
    assert_same_rows(alone.errors(), on_train)


def test_errors_use_the_tasks_own_loss(problem, explainer):
    def brier(logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.softmax(1) - nn.functional.one_hot(targets, 4)).square().sum(1).mean()

    task = dataclasses.replace(explainer.task, loss=brier)
    errors = dataclasses.replace(explainer, task=task).errors(problem.test)
    by_hand = torch.stack([brier(problem.model(x[None]), y[None]) for x, y in zip(*problem.test, strict=True)])
    torch.testing.assert_close(errors.columns["loss"], by_hand[errors.index].detach(), rtol=1e-12, atol=0)
    assert (errors.columns["loss"].diff() <= 0).all()


def test_a_prediction_is_the_largest_logit_even_where_probabilities_tie():
    """exp rounds away what sets these logits apart; `errors` and `explain` must not disagree."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[0.0, 1.0], [1e-9, 1.0]])
    inputs, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 1, 0])
    assert (model(inputs).softmax(1)[0] == 0.5).all()
    explainer = dv.fit(dv.DualView(C=1.0), model, (inputs, labels), progress=False)
    assert explainer.explain(inputs).predicted.tolist() == [1, 0, 1]
    assert sorted(explainer.errors().index.tolist()) == [0, 1, 2]
    assert explainer.suspects().head(3).columns["predicted"].tolist() == [
        [1, 0, 1][i] for i in explainer.suspects().index.tolist()
    ]


def hinge(problem, explainer) -> list[float]:
    """The surrogate's hinge loss of each training sample, one by one from its logits."""
    logits = explainer.surrogate_logits(problem.train[0]).tolist()
    labels = problem.train[1].tolist()
    return [max(z + (c != y) for c, z in enumerate(row)) - row[y] for row, y in zip(logits, labels, strict=True)]


@pytest.mark.parametrize("by", ["slack", "self_influence", "loss"])
def test_suspects_are_ranked_by_what_is_asked(problem, explainer, by):
    columns = {
        "slack": hinge(problem, explainer),
        "self_influence": explainer.self_influence().tolist(),
        "importance": explainer.importance().tolist(),
        "loss": nn.functional.cross_entropy(
            problem.model(problem.train[0]), problem.train[1], reduction="none"
        ).tolist(),
    }
    suspects = explainer.suspects(by=by)
    order = suspects.index.tolist()
    assert sorted(order) == list(range(120))
    assert suspects.columns[by].tolist() == sorted(suspects.columns[by].tolist(), reverse=True)
    for name, values in columns.items():
        assert suspects.columns[name].tolist() == pytest.approx([values[i] for i in order], rel=1e-9, abs=1e-12)
    assert suspects.columns["target"].tolist() == problem.train[1][order].tolist()
    assert suspects.columns["predicted"].tolist() == problem.model(problem.train[0][order]).argmax(1).tolist()
    assert explainer.suspects(5, by=by).rows() == suspects.rows()[:5]
    assert (suspects.by, suspects.num_samples) == (by, 120)


def test_suspects_refuse_what_they_cannot_do(explainer):
    assert explainer.suspects().by == "slack"
    with pytest.raises(ValueError, match="`top` must be at least 1; it is 0"):
        explainer.suspects(0)
    with pytest.raises(ValueError, match="`by` is 'loudness'; choose from 'slack', 'self_influence', 'loss'"):
        explainer.suspects(by="loudness")


def test_rankings_and_scores_carry_the_names_of_samples(problem):
    names = [f"file-{i}.png" for i in range(120)]
    explainer = dv.fit(dv.DualView(C=0.02), problem.model, problem.train, names=names, progress=False)
    assert all(row["name"] == f"file-{row['index']}.png" for row in explainer.suspects(9).rows())
    frame = explainer.explain(problem.test[0], top=2).to_pandas()
    assert (frame["train_name"] == [f"file-{i}.png" for i in frame["train"]]).all()


def test_repr_of_a_method_without_facts(problem):
    assert repr(dv.fit(dv.GradDot(), problem.model, problem.train, progress=False)) == (
        f"Explainer({dv.GradDot()!r}, 120 training samples)"
    )


def test_repr(explainer):
    facts = explainer.certificate
    assert repr(explainer) == (
        "Explainer(DualView(C=0.02, gap=1e-06, seed=0), 120 training samples; "
        f"C 0.02, gap {facts['gap']:.3g}, status converged, support_share {facts['support_share']:.3g})"
    )
