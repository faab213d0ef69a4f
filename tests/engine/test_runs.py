"""One run: seeded by its number, measured as the task says, and without a trace on the outside."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dualview.engine import outputs
from dualview.engine.datasets import as_samples
from dualview.engine.runs import ReadSamples, Retraining, Run, check_train
from dualview.engine.subsets import Subsets, label_flips
from dualview.engine.task import Task
from dualview.errors import NonFiniteError

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(300, 4, generator=GENERATOR)
LABELS = torch.randint(0, 3, (300,), generator=GENERATOR)
MASKS = torch.rand(2, 300, generator=GENERATOR) < 0.5
TASK = Task(nn.Linear(4, 3), output=outputs.margin)


def linear(columns: int = 3) -> nn.Linear:
    model = nn.Linear(4, columns)
    generator = torch.Generator().manual_seed(1)
    model.weight.data = torch.randn(columns, 4, generator=generator)
    model.bias.data = torch.randn(columns, generator=generator)
    return model


def retraining(train, task: Task = TASK, test=(INPUTS, LABELS), targets=None, **options) -> Retraining:
    read = ReadSamples.of(task, as_samples(test), targets)
    return Retraining(train, options.pop("subsets", Subsets(MASKS)), task, read, **options)


def test_train_is_given_the_mask_and_the_seed():
    def train(mask: torch.Tensor, seed: int) -> nn.Module:
        assert torch.equal(mask, MASKS[1]) and seed == 7
        mask.zero_()  # its own copy
        return linear()

    work = retraining(train)
    record = work(Run(1, 7))
    assert record.run == (1, 7) and record.scalars["seconds"] > 0
    assert torch.equal(work.subsets.masks, MASKS) and bool(MASKS.any())


def test_outputs_accuracy_and_loss_are_the_models_own():
    record = retraining(lambda mask, seed: linear())(Run(0, 0))
    with torch.no_grad():
        logits = linear()(INPUTS)
    assert record.outputs.dtype == np.float64
    torch.testing.assert_close(torch.from_numpy(record.outputs[0]).float(), outputs.margin(logits, LABELS))
    assert record.scalars["accuracy"] == float((logits.argmax(1) == LABELS).double().mean())
    assert record.scalars["loss"] == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-6)
    assert "train_loss" not in record.scalars


def test_the_targets_are_what_is_given_and_the_accuracy_still_of_the_labels():
    targets = (LABELS + 1) % 3
    record = retraining(lambda mask, seed: linear(), targets=targets)(Run(0, 0))
    with torch.no_grad():
        logits = linear()(INPUTS)
    torch.testing.assert_close(torch.from_numpy(record.outputs[0]).float(), outputs.margin(logits, targets))
    assert record.scalars["accuracy"] == float((logits.argmax(1) == LABELS).double().mean())


def test_several_outputs_each_have_a_row():
    task = replace(TASK, output=(outputs.logit, outputs.loss))
    record = retraining(lambda mask, seed: linear(), task)(Run(0, 0))
    with torch.no_grad():
        logits = linear()(INPUTS)
    expected = torch.stack([logits.gather(1, LABELS[:, None])[:, 0], F.cross_entropy(logits, LABELS, reduction="none")])
    torch.testing.assert_close(torch.from_numpy(record.outputs).float(), expected)


def test_labels_pass_through_classes_and_one_logit_is_two_columns():
    words = np.array(["cat", "dog"])[LABELS.clamp(max=1)]
    task = Task(nn.Linear(4, 1), output=outputs.log_probability, classes={"cat": 1, "dog": 0})
    record = retraining(lambda mask, seed: linear(1), task, (INPUTS.numpy(), words))(Run(0, 0))
    with torch.no_grad():
        probability = linear(1)(INPUTS)[:, 0].sigmoid()
    expected = torch.where(LABELS == 0, probability, 1 - probability).log()
    torch.testing.assert_close(torch.from_numpy(record.outputs[0]).float(), expected)


def test_the_training_set_tells_how_well_the_model_fits_it():
    train_set = as_samples((INPUTS, LABELS))
    record = retraining(lambda mask, seed: linear(), train_set=train_set)(Run(1, 0))
    with torch.no_grad():
        logits = linear()(INPUTS[MASKS[1]])
    labels = LABELS[MASKS[1]]
    assert record.scalars["train_accuracy"] == float((logits.argmax(1) == labels).double().mean())
    assert record.scalars["train_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)


def test_flipped_labels_reach_train_and_the_training_loss():
    subsets = label_flips(LABELS, torch.tensor([5]), num_classes=3)
    given: list[torch.Tensor] = []

    def train(mask: torch.Tensor, seed: int, labels: torch.Tensor) -> nn.Module:
        given.append(labels)
        return linear()

    work = retraining(train, subsets=subsets, train_set=as_samples((INPUTS, LABELS)))
    plain, flipped = (work(Run(subset, 0)).scalars["train_loss"] for subset in (0, 1))
    assert torch.equal(torch.stack(given), subsets.labels)
    with torch.no_grad():
        losses = -linear()(INPUTS[5]).log_softmax(0)
    change = float(losses[subsets.labels[1, 5]] - losses[LABELS[5]]) / 300
    assert flipped - plain == pytest.approx(change, rel=1e-3)  # a difference of float32 losses


def test_the_global_generators_start_from_seed_and_subset():
    drawn: list[tuple] = []

    def train(mask: torch.Tensor, seed: int) -> nn.Module:
        drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))  # noqa: NPY002
        return linear()

    work = retraining(train)
    for run in (Run(0, 0), Run(1, 0), Run(0, 1), Run(0, 0)):
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002  # what stood before does not count
        work(run)
    assert drawn[0] == drawn[3]
    for column in zip(*drawn[:3], strict=True):
        assert len(set(column)) == 3


def test_the_start_of_the_generators_is_pinned():
    """Another number here is another schema: banks that are half made would go on with other seeds."""
    assert Run(subset=0, seed=0).random_seed == 3888238394
    assert Run(subset=12, seed=1).random_seed == 1384800772


def test_nothing_is_left_behind():
    model = linear().train()
    # Python's own generator is left out: where annotations are checked, beartype draws from it.
    states = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with torch.no_grad():
        assert torch.is_grad_enabled() is False
        retraining(lambda mask, seed: model)(Run(0, 0))
        assert torch.is_grad_enabled() is False
    assert model.training
    assert (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_train_has_gradients_whatever_stands_around_it():
    def train(mask: torch.Tensor, seed: int) -> nn.Module:
        model = linear()
        F.cross_entropy(model(INPUTS), LABELS).backward()
        assert model.weight.grad is not None
        return model

    work = retraining(train)
    with torch.inference_mode():
        work(Run(0, 0))


@pytest.mark.parametrize("failure", [ValueError("oh no"), KeyboardInterrupt()])
def test_an_error_names_the_run(failure):
    def train(mask: torch.Tensor, seed: int) -> nn.Module:
        raise failure

    with pytest.raises(type(failure)) as caught:
        retraining(train)(Run(1, 9))
    assert caught.value.__notes__ == ["while training and measuring subset 1, seed 9"]


def test_what_is_no_model_or_no_number_is_refused():
    with pytest.raises(TypeError, match="`train` must return the trained model; it returned str"):
        retraining(lambda mask, seed: "model")(Run(0, 0))
    broken = linear()
    broken.bias.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"test sample 0 \(300 of 300 samples\): does the training diverge"):
        retraining(lambda mask, seed: broken)(Run(0, 0))
    wide = replace(TASK, output=lambda logits, targets: logits)
    # The checked annotation of Task.measure says it first, where annotations are checked.
    said = r"`output` must be one number per sample, shape \(256,\); it is \(256, 3\)|Task.measure"
    with pytest.raises((ValueError, TypeError), match=said):
        retraining(lambda mask, seed: linear(), wide)(Run(0, 0))


def test_labels_beyond_the_models_columns_and_other_counts_are_refused():
    with pytest.raises(ValueError, match="label 2 .* is no output column: the network has columns 0 to 1"):
        retraining(lambda mask, seed: linear(2))(Run(0, 0))
    with pytest.raises(ValueError, match="`targets` holds 3 columns; expected one for each of 300 samples"):
        retraining(lambda mask, seed: linear(), targets=torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("labels", [False, True])
def test_a_recipe_that_takes_other_arguments_is_refused_by_its_signature(labels):
    def short(mask: torch.Tensor) -> nn.Module: ...

    def two(mask: torch.Tensor, seed: int = 0) -> nn.Module: ...

    def three(mask, seed, labels): ...

    def keyword(mask, *, seed): ...

    def whatever(*arguments): ...

    called = "mask, seed, labels" if labels else "mask, seed"
    right, wrong = (three, two) if labels else (two, three)
    taken = "(mask, seed=0)" if labels else "(mask, seed, labels)"
    for train, words in ((short, "(mask)"), (wrong, taken), (keyword, "(mask, *, seed)")):
        with pytest.raises(TypeError) as caught:
            check_train(train, labels=labels)
        assert str(caught.value) == f"`train` is called as train({called}); this one takes {words}"
    with pytest.raises(TypeError, match=rf"must be a function train\({called}\) that returns a model; it is dict"):
        check_train({}, labels=labels)
    check_train(right, labels=labels)
    check_train(whatever, labels=labels)
    check_train(max, labels=labels)  # which tells no signature
