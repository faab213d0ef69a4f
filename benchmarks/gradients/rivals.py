"""The rivals, each as its own documentation runs it on a CPU; `run(problem, num_train)` returns its scores."""

import tempfile
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.gradients.networks import Problem, cpu_seconds

BATCH = 100
LIMIT = 40  # CPU seconds beyond which a whole run is not measured
SMALLER = 100, 300  # training samples of the runs that tell its cost
FEWER = 10, 30


class Seconds(NamedTuple):
    seconds: float
    extrapolated: bool


Run = Callable[[Problem, int], Tensor]  # (problem, training samples) → "test train"


def captum_tracin(problem: Problem, num_train: int) -> Tensor:
    from captum.influence import TracInCP

    rival = TracInCP(
        problem.model, _train(problem, num_train), [problem.model.state_dict()], _load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=BATCH, sample_wise_grads_per_batch=True,
    )  # fmt: skip
    return rival.influence((problem.test_inputs, problem.test_labels))


def captum_tracin_fast(problem: Problem, num_train: int) -> Tensor:
    from captum.influence import TracInCPFast

    rival = TracInCPFast(
        problem.model, problem.model[-1], _train(problem, num_train), [problem.model.state_dict()], _load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=BATCH,
    )  # fmt: skip
    return rival.influence((problem.test_inputs, problem.test_labels))


def traker(problem: Problem, num_train: int, *, width: int) -> Tensor:
    from trak import TRAKer

    with tempfile.TemporaryDirectory() as folder:
        rival = TRAKer(
            problem.model, "image_classification", num_train, save_dir=folder, device="cpu", proj_dim=width,
            use_half_precision=False, lambda_reg=1.0,
        )  # fmt: skip
        rival.load_checkpoint(problem.model.state_dict(), model_id=0)
        for batch in zip(problem.inputs[:num_train].split(BATCH), problem.labels[:num_train].split(BATCH), strict=True):
            rival.featurize(batch, num_samples=len(batch[0]))
        rival.finalize_features()
        rival.start_scoring_checkpoint("test", problem.model.state_dict(), 0, len(problem.test_inputs))
        for batch in zip(problem.test_inputs.split(BATCH), problem.test_labels.split(BATCH), strict=True):
            rival.score(batch, num_samples=len(batch[0]))
        return torch.tensor(rival.finalize_scores("test")).T


def traker_512(problem: Problem, num_train: int) -> Tensor:
    return traker(problem, num_train, width=512)


def traker_2048(problem: Problem, num_train: int) -> Tensor:
    return traker(problem, num_train, width=2048)


def dattri_tracin(problem: Problem, num_train: int) -> Tensor:
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    def loss(parameters: dict[str, Tensor], sample: tuple[Tensor, Tensor]) -> Tensor:
        logits = functional_call(problem.model, parameters, sample[0][None])
        return nn.functional.cross_entropy(logits, sample[1][None])

    task = AttributionTask(loss, problem.model, problem.model.state_dict())
    test = TensorDataset(problem.test_inputs, problem.test_labels)
    rival = TracInAttributor(task, torch.ones(1), normalized_grad=False)
    return rival.attribute(DataLoader(_train(problem, num_train), BATCH), DataLoader(test, BATCH)).T


RIVALS: dict[str, Run] = {
    "Captum TracInCP, sample-wise": captum_tracin,
    "Captum TracInCPFast (last layer)": captum_tracin_fast,
    "traker, 512 numbers": traker_512,
    "traker, 2048 numbers": traker_2048,
    "dattri TracIn (its default: 512 numbers)": dattri_tracin,
}


SLOW = (dattri_tracin, traker_2048)  # minutes for a hundred samples


def measured(run: Run, problem: Problem) -> Seconds:
    """Measure a run, or where that would take long lay a line through two runs with fewer training samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rivals warn of their own age
        run(Problem(problem.model, *(values[:10] for values in problem[1:])), 10)  # imports and compiles
        few, more = FEWER if run in SLOW else SMALLER
        small, large = (cpu_seconds(lambda number=number: run(problem, number)) for number in (few, more))
        expected = large + (large - small) / (more - few) * (len(problem.labels) - more)
        if expected > LIMIT:
            return Seconds(expected, extrapolated=True)
        return Seconds(cpu_seconds(lambda: run(problem, len(problem.labels))), extrapolated=False)


def _train(problem: Problem, num_train: int) -> TensorDataset:
    return TensorDataset(problem.inputs[:num_train], problem.labels[:num_train])


def _load(model: nn.Module, checkpoint: dict[str, Any]) -> float:
    model.load_state_dict(checkpoint)
    return 1.0  # the learning rate
