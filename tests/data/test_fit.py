"""What can be fitted, in whatever form it comes, and how faithful the fit is."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dualview as dv
from dualview.errors import AugmentationWarning

METHOD = dv.DualView(C=0.02)


def fit(task: dv.Task | nn.Module, train: object, **settings: object) -> dv.Explainer:
    return dv.fit(METHOD, task, train, progress=False, **settings)


# ── forms of data ────────────────────────────────────────────────────────────────────────────────


@dataclass
class Sample:
    x: Tensor
    label: Tensor


class Items(Dataset):
    """Each sample as `make` builds it from input and label."""

    def __init__(self, data: tuple[Tensor, Tensor], make: Callable[[Tensor, Tensor], object]) -> None:
        self.data, self.make = data, make

    def __len__(self) -> int:
        return len(self.data[1])

    def __getitem__(self, position: int) -> object:
        return self.make(self.data[0][position], self.data[1][position])


class TakesX(nn.Module):
    """A network that names its input, as those that take dicts do."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(x)}


FORMS = {
    "TensorDataset": lambda data: TensorDataset(*data),
    "list of pairs": lambda data: list(zip(*data, strict=True)),
    "shuffled DataLoader": lambda data: DataLoader(TensorDataset(*data), batch_size=13, shuffle=True, drop_last=True),
    "pairs with a wide label": lambda data: (data[0], data[1][:, None]),
    "float labels": lambda data: (data[0], data[1].double()),
}
NAMED_FORMS = {
    "dict": lambda data: Items(data, lambda x, y: {"x": x, "labels": y}),
    "dict under another name": lambda data: Items(data, lambda x, y: {"features": x, "label": int(y)}),
    "dataclass": lambda data: Items(data, Sample),
    "DataLoader of dicts": lambda data: DataLoader(Items(data, lambda x, y: {"x": x, "y": y}), shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_fit(problem, explainer, form: str):
    other = fit(problem.model, FORMS[form](problem.train))
    assert torch.equal(other.table.targets, problem.train[1])
    assert torch.equal(other.explain(problem.test[0]).scores, explainer.explain(problem.test[0]).scores)


@pytest.mark.parametrize("form", NAMED_FORMS)
def test_batches_may_name_their_parts(problem, explainer, form: str):
    other = fit(TakesX(problem.model), NAMED_FORMS[form](problem.train))
    data = NAMED_FORMS[form](problem.test)
    assert torch.equal(other.explain(data).scores, explainer.explain(problem.test[0]).scores)
    if "another name" not in form:
        found = other.explain({"x": problem.test[0]})
        assert torch.equal(found.scores, explainer.explain(problem.test[0]).scores)


def test_split_says_what_the_parts_are(problem, explainer):
    def split(batch: tuple) -> tuple:
        label, x, _ = batch
        return x, label

    data = [(y, x, "a note") for x, y in zip(*problem.train, strict=True)]
    other = fit(dv.Task(problem.model, split=split), data)
    assert torch.equal(other.explain(problem.test[0]).scores, explainer.explain(problem.test[0]).scores)


WORDS = ["ant", "bee", "cow", "dog"]


@pytest.mark.parametrize("form", [list, np.array])
def test_labels_may_be_words(problem, explainer, form):
    words = form([WORDS[y] for y in problem.train[1].tolist()])
    train = (problem.train[0], words) if form is np.array else list(zip(problem.train[0], words, strict=True))
    classes = {word: column for column, word in enumerate(WORDS)}
    other = fit(dv.Task(problem.model, classes=classes, class_names=WORDS), train)
    found = other.explain(problem.test[0], "cow")
    assert torch.equal(found.scores, explainer.explain(problem.test[0], 2).scores)
    assert set(found.to_pandas()["target_name"]) == {"cow"}
    with pytest.raises(ValueError, match=r"'cat'.*classes="):
        other.explain(problem.test[0], "cat")
    with pytest.raises(ValueError, match=r"give classes=, a mapping label → column"):
        fit(problem.model, train)


def test_augmented_data_are_warned_of_and_transform_mends_it(problem, explainer):
    class Augmented(Dataset):
        transform = staticmethod(lambda x: x + torch.randn_like(x))

        def __len__(self) -> int:
            return 120

        def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
            return self.transform(problem.train[0][position]), problem.train[1][position]

    with pytest.warns(AugmentationWarning, match="transform="):
        fit(problem.model, Augmented())
    mended = fit(problem.model, Augmented(), transform=lambda x: x)
    assert torch.equal(mended.explain(problem.test[0]).scores, explainer.explain(problem.test[0]).scores)


# ── kinds of networks ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def one_logit() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    inputs = torch.randn(60, 3, generator=generator, dtype=torch.float64) + labels[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)).double()
    return model, inputs, labels


def test_one_logit_counts_as_two_classes(one_logit):
    model, inputs, labels = one_logit
    task = dv.Task(model, loss=nn.BCEWithLogitsLoss())
    explainer = fit(task, (inputs, labels.double()), held_out=0.25)
    assert explainer.num_classes == 2
    assert explainer.certificate["loss_reduction"] == "mean"
    yes, no = (explainer.explain(inputs, c) for c in (1, 0))
    # row sums of the dual are zero to 4 ulp, so the two columns are each other's negatives
    assert ((yes.scores + no.scores).abs() <= 1e-15 + 1e-14 * yes.scores.abs()).all()
    assert yes.scores.abs().max() > 0.01
    logits = model(inputs).detach()
    assert torch.equal(yes.predicted, (logits > 0).long())
    margin = dataclasses.replace(explainer, task=dataclasses.replace(explainer.task, output=dv.margin))
    # of two classes the rival is one: the margin is the difference of the logits, whose gradient is (−1, 1)
    difference = yes.scores - no.scores
    assert ((margin.explain(inputs, 1).scores - difference).abs() <= 1e-12 * difference.abs() + 1e-15).all()
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
    suspects = explainer.suspects()
    torch.testing.assert_close(suspects.columns["loss"], loss[suspects.index], rtol=1e-12, atol=0)
    rest = sorted(set(range(len(labels))) - set(explainer.positions.tolist()))  # the held-out quarter
    wrong = torch.tensor([i for i in rest if (logits[i] > 0).long() != labels[i]], dtype=torch.int64)
    assert len(wrong) and explainer.errors().index.tolist() == wrong[loss[wrong].argsort(descending=True)].tolist()


class Bag(nn.Module):
    """Mean of word vectors, padding apart: a text classifier of the shortest kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.hidden = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        mean = (self.embed(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(self.hidden(mean).relu())


def padded(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([words for words, _ in samples], batch_first=True)
    lengths = torch.tensor([len(words) for words, _ in samples])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).double()
    return {"ids": ids, "mask": mask, "labels": torch.tensor([label for _, label in samples])}


def texts(rows: int, seed: int) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (rows,), generator=generator).tolist()
    return [(torch.randint(20, (length,), generator=generator), row % 2) for row, length in enumerate(lengths)]


def test_samples_of_different_lengths_are_padded_by_the_users_collate_function():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Bag().double()
    train, test = texts(40, seed=1), texts(9, seed=2)
    loader = DataLoader(train, batch_size=8, shuffle=True, collate_fn=padded)
    explainer = fit(model, loader, batch_size=8)
    features = torch.stack([model.hidden(model.embed(words).mean(0)).relu() for words, _ in train]).detach()
    torch.testing.assert_close(explainer.table.values, features, rtol=1e-12, atol=1e-14)
    batch = padded(test)
    together = explainer.explain({"ids": batch["ids"], "mask": batch["mask"]})
    from_loader = dataclasses.replace(explainer, batch_size=2).explain(DataLoader(test, collate_fn=padded))
    torch.testing.assert_close(from_loader.scores, together.scores, rtol=1e-11, atol=1e-15)
    one = explainer.explain({"ids": test[0][0][None], "mask": torch.ones(1, len(test[0][0])).double()})
    torch.testing.assert_close(one.scores, together.scores[:1], rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_of_a_half_precision_model_are_upcast_and_that_is_said(problem, caplog, dtype: torch.dtype):
    half = problem.to(dtype)
    with caplog.at_level(logging.INFO, logger="dualview"):
        explainer = fit(half.model, half.train, held_out=half.test)
    assert f"the model computes in {dtype}; its rows are upcast to float32" in caplog.messages
    assert next(half.model.parameters()).dtype == dtype
    features = half.model[:2](half.train[0]).detach().float()
    assert torch.equal(explainer.table.values, features)  # one batch, so the same kernel
    scores = explainer.explain(half.test[0])
    assert scores.scores.dtype == torch.float32
    total = scores.dense().double().sum(1) + scores.bias
    surrogate = explainer.surrogate_logits(half.test[0]).gather(1, scores.targets[:, None]).squeeze(1)
    assert ((total - surrogate).abs() <= 1e-5 * scores.dense().abs().sum(1)).all()
    assert all(np.isfinite(value) for part in explainer.fidelity.values() for value in part.values())


def test_a_double_model_may_have_a_loss_with_double_weights(problem):
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    explainer = fit(dv.Task(problem.model, loss=nn.CrossEntropyLoss(weight=weights)), problem.train)
    plain = nn.functional.cross_entropy(problem.model(problem.train[0]), problem.train[1], reduction="none").detach()
    suspects = explainer.suspects()
    expected = (weights[problem.train[1]] * plain)[suspects.index]
    torch.testing.assert_close(suspects.columns["loss"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_how_the_loss_reduces_is_detected_and_said(problem, caplog, reduction: str):
    with caplog.at_level(logging.INFO, logger="dualview"):
        explainer = fit(dv.Task(problem.model, loss=nn.CrossEntropyLoss(reduction=reduction)), problem.train)
    assert explainer.certificate["loss_reduction"] == reduction
    said = f"`loss` returns the {reduction} over samples; its per-sample values are taken"
    assert (said in caplog.messages) == (reduction != "none")


# ── held-out data and fidelity ───────────────────────────────────────────────────────────────────


def assert_fidelity(found: dict[str, float], surrogate: Tensor, network: Tensor) -> None:
    first, second = surrogate.argmax(1), network.argmax(1)
    norms = surrogate.norm(dim=1) * network.norm(dim=1)
    taus = [scipy.stats.kendalltau(a, b).statistic for a, b in zip(surrogate, network, strict=True)]
    assert found == pytest.approx(
        {
            "agreement": sklearn.metrics.accuracy_score(first, second),
            "matthews": sklearn.metrics.matthews_corrcoef(first, second),
            "cosine": float(((surrogate * network).sum(1) / norms).mean()),
            "kendall": float(np.mean(taus)),
            "kendall_rows": len(network),
            "rows": len(network),
        },
        rel=1e-12,
    )
    assert 0.5 < found["agreement"] <= 1


def test_fidelity_is_what_others_compute(problem, explainer):
    for name, (inputs, _) in (("train", problem.train), ("held_out", problem.test)):
        logits = problem.model(inputs).detach()
        assert_fidelity(explainer.fidelity[name], explainer.surrogate_logits(inputs), logits)
    assert set(explainer.fidelity) == {"train", "held_out"}


def test_a_held_out_fraction_is_not_seen_by_the_fit(problem):
    explainer = fit(problem.model, problem.train, held_out=0.25)
    rest = torch.tensor(sorted(set(range(120)) - set(explainer.positions.tolist())))
    assert len(rest) == 30 and (explainer.positions.diff() > 0).all()
    assert not set(rest.tolist()) & set(explainer.state.support.tolist())
    assert (explainer.self_influence()[rest] == 0).all()
    inputs = problem.train[0]
    for name, positions in (("train", explainer.positions), ("held_out", rest)):
        surrogate, network = explainer.surrogate_logits(inputs)[positions], problem.model(inputs).detach()[positions]
        assert_fidelity(explainer.fidelity[name], surrogate, network)
    alone = fit(problem.model, tuple(part[explainer.positions] for part in problem.train))
    # the same samples in the same order, so the same problem; batches differ, so rounding may
    torch.testing.assert_close(
        explainer.surrogate_logits(problem.test[0]), alone.surrogate_logits(problem.test[0]), rtol=1e-9, atol=1e-9
    )
    assert torch.equal(explainer.positions, fit(problem.model, problem.train, held_out=0.25).positions)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, True])
def test_a_held_out_fraction_lies_between_0_and_1(problem, fraction: float):
    with pytest.raises(ValueError, match=f"`held_out` is {fraction}; expected a data set, or a fraction"):
        fit(problem.model, problem.train, held_out=fraction)


def test_a_large_fraction_leaves_something_to_fit(problem):
    inputs, labels = (part[:4] for part in problem.train)
    with pytest.raises(ValueError, match="one class only"):  # of one sample left: the solver's own error
        fit(problem.model, (inputs, labels), held_out=0.99)
