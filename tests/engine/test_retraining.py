"""The bank: on ridge regression it says what the exact formulas say, however it was made."""

import functools
import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from dualview.engine import outputs
from dualview.engine.retraining import Bank, retrain
from dualview.engine.subsets import half_subsets, label_flips, leave_groups_out, leave_one_out
from dualview.engine.task import Task
from dualview.errors import DamagedFile, NonFiniteError, StoreError, StoreMismatch

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 5, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(0, 3, (40,), generator=GENERATOR)
TEST = torch.randn(8, 5, generator=GENERATOR, dtype=torch.float64)
TEST_LABELS = torch.randint(0, 3, (8,), generator=GENERATOR)
ONE_HOT = nn.functional.one_hot(LABELS, 3).double()
GRAM = INPUTS.T @ INPUTS + torch.eye(5, dtype=torch.float64)
TASK = Task(nn.Linear(5, 3), output=outputs.logit)
SUBSETS = half_subsets(40, 5)


def ridge(mask: torch.Tensor, seed: int, labels: torch.Tensor = LABELS) -> nn.Module:
    kept, wanted = INPUTS[mask], nn.functional.one_hot(labels, 3).double()[mask]
    model = nn.Linear(5, 3, bias=False).double()
    solved = torch.linalg.solve(kept.T @ kept + torch.eye(5, dtype=torch.float64), kept.T @ wanted)
    model.weight.data = solved.T.contiguous()
    return model


def noisy(mask: torch.Tensor, seed: int) -> nn.Module:
    model = ridge(mask, seed)
    model.weight.data += 0.1 * torch.randn(3, 5)
    return model


def made(folder: Path, train=ridge, subsets=SUBSETS, task=TASK, test=(TEST, TEST_LABELS), **options) -> Bank:
    options = {"seeds": (0,), "workers": 0, "progress": False} | options
    return retrain(train, subsets, task, test, folder=folder, **options)


def changes(bank: Bank) -> torch.Tensor:
    """The change of each output against the whole training set, "subset test"."""
    return bank.outputs[0, 1:] - bank.outputs[0, :1]


def of_target(changed: torch.Tensor) -> torch.Tensor:
    """Of changes "subset test class", the target's."""
    return changed[:, torch.arange(8), TEST_LABELS]


# ── the exact formulas, to float64 ───────────────────────────────────────────────────────────────


def test_leave_one_out_is_the_closed_form(tmp_path):
    # f_{-i}(x) − f(x) = −x'A⁻¹x_i e_i/(1 − h_ii)
    index = torch.arange(0, 40, 3)
    bank = made(tmp_path, subsets=leave_one_out(40, index))
    solved = torch.linalg.solve(GRAM, INPUTS.T)
    residual = ONE_HOT - INPUTS @ (solved @ ONE_HOT)
    leverage = (INPUTS * solved.T).sum(1)
    scaled = residual / (1 - leverage)[:, None]
    expected = -torch.einsum("ti,ic->itc", TEST @ solved, scaled)[index]
    torch.testing.assert_close(changes(bank), of_target(expected), rtol=0, atol=1e-10)


def test_group_removal_is_the_closed_form(tmp_path):
    # f_{-F}(x) − f(x) = −x'A⁻¹X_F'(I − X_F A⁻¹ X_F')⁻¹ e_F
    groups = [torch.arange(0, 4), torch.tensor([7, 30]), torch.arange(10, 30)]
    bank = made(tmp_path, subsets=leave_groups_out(40, groups))
    residual = ONE_HOT - INPUTS @ torch.linalg.solve(GRAM, INPUTS.T @ ONE_HOT)
    expected = []
    for group in groups:
        left = INPUTS[group]
        hat = torch.eye(len(group), dtype=torch.float64) - left @ torch.linalg.solve(GRAM, left.T)
        expected.append(-TEST @ torch.linalg.solve(GRAM, left.T @ torch.linalg.solve(hat, residual[group])))
    torch.testing.assert_close(changes(bank), of_target(torch.stack(expected)), rtol=0, atol=1e-10)


def test_a_label_flip_is_the_closed_form(tmp_path):
    # f is linear in the labels: the change is x'A⁻¹x_i (new − old)
    index = torch.tensor([3, 11, 39])
    subsets = label_flips(LABELS, index, num_classes=3)
    bank = made(tmp_path, subsets=subsets)
    changed = nn.functional.one_hot(torch.tensor(subsets.facts["flipped_to"]), 3) - ONE_HOT[index]
    pull = TEST @ torch.linalg.solve(GRAM, INPUTS[index].T)
    torch.testing.assert_close(changes(bank), of_target(torch.einsum("ti,ic->itc", pull, changed)), rtol=0, atol=1e-10)


# ── workers, order and seeds ─────────────────────────────────────────────────────────────────────


def test_the_number_of_workers_does_not_change_a_bit(tmp_path):
    task = Task(nn.Linear(5, 3), output=(outputs.margin, outputs.loss))
    banks = [
        made(tmp_path / f"{workers}", noisy, task=task, seeds=(4, 1, 0), workers=workers, train_set=(INPUTS, LABELS))
        for workers in (0, 1, 2)
    ]
    assert banks[0].outputs.shape == (2, 3, 5, 8) and banks[0].outputs.dtype == torch.float64
    assert len(banks[0].outputs[0].flatten(0, 1).unique(dim=0)) == 15  # the noise differs in each run
    for bank in banks[1:]:
        for name in ("outputs", "accuracy", "loss", "train_accuracy", "train_loss"):
            assert torch.equal(getattr(bank, name), getattr(banks[0], name)), name
    assert multiprocessing.active_children() == []


def test_a_seed_gives_the_same_beside_other_seeds(tmp_path):
    several = made(tmp_path / "several", noisy, seeds=(2, 0))
    alone = made(tmp_path / "alone", noisy, seeds=(0,))
    assert torch.equal(several.outputs[1], alone.outputs[0])


def test_open_gives_the_bank_again_and_nothing_is_trained_twice(tmp_path):
    trained = []

    def counted(mask: torch.Tensor, seed: int) -> nn.Module:
        trained.append(seed)
        return ridge(mask, seed)

    banks = [made(tmp_path, counted, name="counted"), made(tmp_path, counted, name="counted"), Bank.open(tmp_path)]
    assert len(trained) == 5
    for bank in banks:
        assert torch.equal(bank.outputs, banks[0].outputs) and torch.equal(bank.seconds, banks[0].seconds)
        assert torch.equal(bank.masks, SUBSETS.masks) and torch.equal(bank.targets, TEST_LABELS)
        assert bank.facts == banks[0].facts
        assert (bank.measured, bank.train, bank.seeds) == ("logit", "counted", (0,))


def test_facts_say_how_good_the_models_are(tmp_path):
    bank = made(tmp_path, noisy, seeds=(0, 1), train_set=(INPUTS, LABELS))
    facts = bank.facts
    assert facts["accuracy"] == float(bank.accuracy.mean()) and facts["accuracy_sd"] == float(bank.accuracy.std())
    assert facts["train_loss"] == float(bank.train_loss.mean()) and facts["loss_sd"] == float(bank.loss.std())
    assert facts["train_seconds"] == float(bank.seconds.sum()) > 0
    expected = {"protocol": "half_subsets", "num_subsets": 5, "num_train": 40, "num_kept": [20, 20], "seeds": [0, 1]}
    expected |= {"num_test": 8, "measured": "logit", "train": "noisy", "share": 0.5, "seed": 0}
    assert facts | expected == facts


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_train_names_its_run_and_what_was_done_is_kept(tmp_path, caplog, workers):
    def fails(mask: torch.Tensor, seed: int) -> nn.Module:
        if torch.equal(mask, SUBSETS.masks[3]) and not (tmp_path / "mended").exists():
            raise ArithmeticError("no convergence")
        return noisy(mask, seed)

    with pytest.raises((ArithmeticError, RuntimeError)) as caught:
        made(tmp_path / "bank", fails, name="fails", workers=workers)
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "no convergence" in text and "subset 3, seed 0" in text
    if workers:
        assert 'raise ArithmeticError("no convergence")' in text
    done = len(list((tmp_path / "bank").glob("run-*")))
    assert 2 <= done <= 4 and f"stopped; {done} of 5 runs are kept in {tmp_path / 'bank'}" in caplog.text
    with pytest.raises(StoreError, match=f"lacks {5 - done} of 5 runs; call `retrain` again"):
        Bank.open(tmp_path / "bank")
    (tmp_path / "mended").touch()
    mended = made(tmp_path / "bank", fails, name="fails", workers=workers)
    assert torch.equal(mended.outputs, made(tmp_path / "peace", noisy).outputs)


def test_a_killed_worker_is_reported_and_the_rest_is_kept(tmp_path):
    def killed(mask: torch.Tensor, seed: int) -> nn.Module:
        if torch.equal(mask, SUBSETS.masks[3]) and not (tmp_path / "mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return noisy(mask, seed)

    with pytest.raises(RuntimeError, match="a worker process was killed by SIGKILL at subset 3, seed 0"):
        made(tmp_path / "bank", killed, name="killed", workers=2)
    assert multiprocessing.active_children() == []
    assert len(list((tmp_path / "bank").glob("run-*"))) >= 2
    (tmp_path / "mended").touch()
    mended = made(tmp_path / "bank", killed, name="killed", workers=2)
    assert torch.equal(mended.outputs, made(tmp_path / "peace", noisy).outputs)


def test_a_damaged_record_is_named_and_repeated(tmp_path, caplog):
    bank = made(tmp_path, noisy, seeds=(0, 1))
    path = tmp_path / "run-00002-seed-1.safetensors"
    altered = bytearray(path.read_bytes())
    altered[-1] ^= 1
    path.write_bytes(altered)
    with pytest.raises(DamagedFile, match=r"run-00002-seed-1\.safetensors was altered.*repeats only the runs"):
        Bank.open(tmp_path)
    kept = {other.name: other.stat().st_mtime_ns for other in tmp_path.glob("run-*") if other != path}
    with caplog.at_level(logging.WARNING, "dualview"):
        again = made(tmp_path, noisy, seeds=(0, 1))
    assert "run-00002-seed-1.safetensors was altered" in caplog.text and "this run is repeated" in caplog.text
    assert torch.equal(again.outputs, bank.outputs)
    assert kept == {other.name: other.stat().st_mtime_ns for other in tmp_path.glob("run-*") if other != path}


def test_a_model_that_diverges_is_refused(tmp_path):
    def diverges(mask: torch.Tensor, seed: int) -> nn.Module:
        model = ridge(mask, seed)
        model.weight.data *= torch.inf
        return model

    with pytest.raises(NonFiniteError, match="NaN or infinite at test sample 0"):
        made(tmp_path, diverges)


# ── content ──────────────────────────────────────────────────────────────────────────────────────

CHANGES = {
    "train": {"train": noisy},
    "subsets": {"subsets": half_subsets(40, 5, seed=1)},
    "seeds": {"seeds": (0, 1)},
    "test": {"test": (TEST + 1e-9, TEST_LABELS)},
    "targets": {"targets": (TEST_LABELS + 1) % 3},
    "output": {"task": Task(nn.Linear(5, 3), output=outputs.margin)},
    "loss": {"task": Task(nn.Linear(5, 3), loss=nn.CrossEntropyLoss(label_smoothing=0.1))},
    "train_set": {"train_set": (INPUTS, LABELS)},
}


@pytest.mark.parametrize("part", CHANGES)
def test_other_content_is_refused_and_the_message_says_what_differs(tmp_path, part):
    bank = made(tmp_path)
    with pytest.raises(StoreMismatch) as caught:
        made(tmp_path, **CHANGES[part])
    differs = str(caught.value).split("other content: ")[1].split(". Give another")[0]
    assert [entry.split(" (")[0] for entry in differs.split("; ")] == [part]
    assert torch.equal(Bank.open(tmp_path).outputs, bank.outputs)


def test_a_failed_first_try_does_not_lock_the_bank(tmp_path):
    with pytest.raises(TypeError, match=r"called as train\(mask, seed\); this one takes \(mask\)"):
        made(tmp_path / "bank", lambda mask: ridge(mask, 0), name="short")
    assert not (tmp_path / "bank").exists()  # nothing was made of it

    def fails(mask: torch.Tensor, seed: int) -> nn.Module:
        raise ArithmeticError("no convergence")

    with pytest.raises(ArithmeticError):
        made(tmp_path / "bank", fails)
    bank = made(tmp_path / "bank")
    assert torch.equal(bank.outputs, made(tmp_path / "peace").outputs) and bank.train == "ridge"
    with pytest.raises(StoreMismatch, match=r"train \(ridge there, noisy now\)"):  # now it holds runs
        made(tmp_path / "bank", noisy)


def test_a_bank_at_whose_first_run_another_is_at_work_is_not_taken_over(tmp_path, caplog):
    refused: list[BaseException] = []

    def other() -> None:
        try:
            made(tmp_path, noisy)
        except StoreMismatch as error:
            refused.append(error)

    thread = threading.Thread(target=other)

    def slow(mask: torch.Tensor, seed: int) -> nn.Module:
        if not thread.ident:  # the first run: none has ended
            thread.start()
            while "waiting until it is done" not in caplog.text:
                thread.join(0.001)
        return ridge(mask, seed)

    with caplog.at_level(logging.WARNING, "dualview"):
        bank = made(tmp_path, slow, name="slow")
    thread.join()
    assert "train (slow there, noisy now)" in str(refused[0])
    assert Bank.open(tmp_path).train == "slow" and torch.equal(Bank.open(tmp_path).outputs, bank.outputs)


def test_what_train_carries_counts_and_a_name_stands_for_it(tmp_path):
    def scaled(mask: torch.Tensor, seed: int, by: float) -> nn.Module:
        model = ridge(mask, seed)
        model.weight.data *= by
        return model

    bank = made(tmp_path / "a", functools.partial(scaled, by=2.0))
    with pytest.raises(StoreMismatch, match=r"train \(.*scaled, with another content\)"):
        made(tmp_path / "a", functools.partial(scaled, by=3.0))
    named = made(tmp_path / "b", functools.partial(scaled, by=2.0), name="twice")
    assert torch.equal(named.outputs, bank.outputs)
    assert torch.equal(made(tmp_path / "b", functools.partial(scaled, by=3.0), name="twice").outputs, bank.outputs)
    with pytest.raises(StoreMismatch, match=r"train \(twice there, thrice now\)"):
        made(tmp_path / "b", functools.partial(scaled, by=3.0), name="thrice")
    with pytest.raises(StoreMismatch, match=r"train \(twice, with another content\)"):
        made(tmp_path / "b", noisy, name="twice")


def test_a_lambda_needs_a_name(tmp_path):
    train = lambda mask, seed: ridge(~mask, seed)  # noqa: E731
    with pytest.raises(ValueError, match="`train` cannot be told from another: .* a lambda has no name.* give name="):
        made(tmp_path, train)
    with torch.no_grad():
        expected = ridge(~SUBSETS.masks[2], 0)(TEST)
    found = made(tmp_path, train, name="the other half").outputs[0, 2]
    assert torch.equal(found, expected[torch.arange(8), TEST_LABELS])


def test_a_script_that_a_worker_imports_does_not_start_again(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match="a worker process imported this script.*if __name__ == '__main__'"):
        made(tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


def test_arguments_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match="`workers` is -1; expected 0"):
        made(tmp_path, workers=-1)
    with pytest.raises(ValueError, match=r"`seeds` are \(1, 1\); expected at least one, each once"):
        made(tmp_path, seeds=(1, 1))
    with pytest.raises(ValueError, match="`train_set` holds 8 samples, the subsets' masks are over 40"):
        made(tmp_path, train_set=(TEST, TEST_LABELS))
    with pytest.raises(TypeError, match="`train` .*import it by name.*workers=0"):
        made(tmp_path, lambda mask, seed: ridge(~mask, seed), workers=1, start_method="spawn", name="ridge")
    assert list(tmp_path.iterdir()) == []
