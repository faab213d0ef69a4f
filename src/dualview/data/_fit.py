"""Fitting a method to a task and its training data, and opening a fit that a store holds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualview.data._explainer import TRAIN_BLOCK, Explainer
from dualview.data._guards import HALF, half_precision, outliers, warn_if_rows_unsteady, warn_if_unsteady
from dualview.data._method import DataMethod, HeldOut
from dualview.data._stored_fit import Probe, check_class_names, load_explainer, record_in_store, save_explainer
from dualview.engine.batches import batch_size_for
from dualview.engine.datasets import Samples, as_samples, check_inputs, spec_of, warn_if_augmented
from dualview.engine.isolation import untouched, without_autocast
from dualview.engine.labels import targets_of
from dualview.engine.probabilities import warn_if_probabilities
from dualview.engine.readout import with_readout
from dualview.engine.record import Recorder, Sides
from dualview.engine.replay import Replay
from dualview.engine.store import Store
from dualview.engine.tables import Table
from dualview.engine.task import Task, as_task
from dualview.engine.weights import Weights
from dualview.ops.agreement import label_agreement, logit_agreement, number_agreement

log = logging.getLogger("dualview")

PROBE_ROWS = 4
HELD_OUT_SEED = 0


@without_autocast
def fit(
    method: DataMethod,
    task: Task | torch.nn.Module,
    train: Any,
    *,
    held_out: Any = None,
    store: str | Path | Store | None = None,
    names: Sequence[str] | None = None,
    transform: Callable[[Any], Any] | None = None,
    batch_size: int | None = None,
    data_id: str | None = None,
    progress: bool = True,
) -> Explainer:
    """Fit a data method: one pass of the model over the training set, then the method's own fit.

    The model, its mode, gradients and hooks, and the global random states are left as they were.

    Args:
        method: what to fit, e.g. `dualview.DualView()`.
        task: the model and what is measured of it; a bare model takes every default.
        train: a map-style data set of labelled samples, a tuple of tensors (inputs, labels), or a
            DataLoader, whose order and batch size are not used.
        held_out: labelled data that fidelity is measured on, and that C is chosen on where it is to be
            chosen: a data set as `train`, or a fraction of the training set, which the fit does not see.
        store: a folder (or `Store`) that keeps rows and fit; a killed recording goes on from there.
        names: a name per training sample, for people.
        transform: the evaluation transform, in place of the data set's own augmenting one.
        batch_size: samples per forward pass; by default about 16 MiB of inputs, 256 at most.
        data_id: your own name for the training data, part of the store's key: another name is another
            folder of the store.
        progress: whether to show what is recorded and how long it takes.

    Returns:
        The fitted explainer.

    Raises:
        TypeError: data that has no positions (iterable), or cannot be split into inputs and labels.
        ValueError: an empty data set, labels that are no columns, an unknown or ambiguous readout, or a model
            in half precision whose scores rank otherwise than in float32.
        NonFiniteError: NaN or infinite outputs, features or gradients; it names the sample.
        StoreMismatch: the store holds another data set's rows.

    Warns:
        ProbabilityWarning: outputs of a classification look like probabilities, and logits are needed.

    Example:
        >>> explainer = fit(DualView(), model, (images, labels), progress=False)
    """
    task = as_task(task)
    if not isinstance(method, DataMethod):
        raise TypeError(f"`method` must be a data method such as DualView(); it is {method!r}")
    samples = as_samples(train, name="train", transform=transform)
    if names is not None and len(names) != len(samples):
        raise ValueError(f"`names` hold {len(names)} names for {len(samples)} training samples")
    names = None if names is None else [str(name) for name in names]
    with untouched(task.model):
        warn_if_augmented(samples)
    task, recorder, sides, probe = _prepared(method, task, samples, batch_size)
    held_out = _checked_held_out(held_out, recorder)
    precision = half_precision(method, recorder)
    if store is None:
        key, table = None, recorder.table(progress=progress)
    else:
        store = store if isinstance(store, Store) else Store(Path(store))
        key, table = record_in_store(store, sides.train, recorder, probe, data_id, progress=progress)
    warn_if_probabilities(task, (part.outputs for part in table.parts), stacklevel=3)
    table.replay = Replay(task, samples, recorder.num_classes, recorder.batch_size)
    positions, rest = _held_out(held_out, recorder, table, progress)
    state, certificate = method.fit(task, table, positions, rest)
    certificate["loss_reduction"] = probe.loss_reduction
    certificate["held_out"] = 0 if rest is None else len(rest.table if rest.positions is None else rest.positions)
    if table.width:
        certificate["outliers"] = outliers(table, recorder.plan.noun)
    if precision is not None:
        certificate["half_precision"] = precision
    fidelity = {"train": _fidelity(method, task, state, table, positions)} if method.has_surrogate else {}
    if rest is not None and method.has_surrogate:
        fidelity["held_out"] = _fidelity(method, task, state, rest.table, rest.positions)
    with untouched(task.model):
        plan = recorder.plan if sides.test == sides.train else sides.test.plan(task, probe.inputs)
    explainer = Explainer(
        method, task, state, table, plan, positions, certificate, fidelity, samples,
        held_out=None if rest is None or rest.table is table else rest.table, names=names, spec=recorder.spec or {},
        batch_size=batch_size, progress=progress, weights=Weights.of(task.model),
    )  # fmt: skip
    if key is not None:
        assert isinstance(store, Store)
        explainer = save_explainer(store, key, explainer)
    return explainer


@without_autocast
def open(
    store: str | Path | Store,
    task: Task | torch.nn.Module,
    *,
    train: Any = None,
    transform: Callable[[Any], Any] | None = None,
    method: DataMethod | str | None = None,
) -> Explainer:
    """Open a fit that `fit(..., store=...)` left, in any process, without the training set.

    Args:
        store: the folder.
        task: the same model; its weights and its outputs on stored probe samples are compared.
        train: the training set, where its samples are to be shown or rendered in full; without it,
            stored thumbnails of the support samples stand in.
        transform: of `train`, as for `fit`: the evaluation transform, in place of the data set's own
            augmenting one.
        method: which fit, where the store holds several: the method itself, the name listed, or settings
            that only one has, as "DualView(C=0.01)"; a C that was found counts as it is listed. A text that
            with the defaults for all else describes one fit means that one.

    Raises:
        StoreMismatch: the store holds another model's features, or `train` is another data set.
        DamagedFile: a file was truncated or altered.
        ValueError: several fits and no `method`, or one that fits several; the error lists them. Or a
            `transform` without `train`.
    """
    if train is None and transform is not None:
        raise ValueError("`transform` is of the training set: give train= (--train on the command line) with it")
    store = store if isinstance(store, Store) else Store(Path(store))
    samples = None if train is None else as_samples(train, name="train", transform=transform)
    return load_explainer(store, as_task(task), samples, method)


def _prepared(
    method: DataMethod, task: Task, samples: Samples, batch_size: int | None
) -> tuple[Task, Recorder, Sides, Probe]:
    """Resolve the readout on a few samples, say what was detected, and set up the recording."""
    with untouched(task.model):
        inputs, labels = task.split(samples.batch(range(min(PROBE_ROWS, len(samples)))))
        spec = spec_of(samples, task.split)
    if task.problem not in method.problems:
        raise ValueError(f"{type(method).__name__} explains a {' or '.join(method.problems)}, no {task.problem} task")
    if method.reads_readout:
        task = with_readout(task, inputs)
    with untouched(task.model):
        raw = task.forward(inputs).cpu()
        steady = not warn_if_unsteady(task, inputs, raw)
    dtype = raw.dtype
    raw = raw if raw.dtype == torch.float64 else raw.float()
    logits = task.logits(raw)
    task = task.named(logits.shape[1])
    check_class_names(task, logits.shape[1])
    targets = targets_of(labels, task.problem, logits.shape[1], task.classes)
    reduction = task.loss_reduction(logits, targets, one_logit=raw.shape[1] == 1)
    if reduction != "none":
        log.info("`loss` returns the %s over samples; its per-sample values are taken", reduction)
    parameter = next(task.model.parameters(), None)
    if parameter is not None and parameter.dtype in HALF:
        log.info("the model computes in %s; its rows are upcast to float32", parameter.dtype)
    with untouched(task.model):
        sides = method.representations(task, inputs)
        plan = sides.train.plan(task, inputs)
    if steady and plan.recorded_layout:
        warn_if_rows_unsteady(task, plan, inputs, logits, targets, dtype)
    size = batch_size_for(inputs) if batch_size is None else batch_size  # the recorder refuses 0
    recorder = Recorder(task, samples, plan, logits.shape[1], size, spec=spec)
    return task, recorder, sides, Probe(inputs, raw, reduction)


def _checked_held_out(held_out: Any, recorder: Recorder) -> Samples | float | None:
    """Refuse held-out data that cannot serve, before the long part begins."""
    if held_out is None:
        return None
    if isinstance(held_out, (int, float)):
        if not 0 < held_out < 1:
            raise ValueError(f"`held_out` is {held_out}; expected a data set, or a fraction between 0 and 1")
        return float(held_out)
    samples = as_samples(held_out, name="held_out")
    with untouched(recorder.task.model):
        first, _ = recorder.task.split(samples.batch([0]))
    try:
        check_inputs(first, recorder.spec or {})
    except ValueError as error:
        raise ValueError(f"`held_out`: {error}") from None
    return samples


def _held_out(
    held_out: Samples | float | None, recorder: Recorder, table: Table, progress: bool
) -> tuple[Tensor, HeldOut | None]:
    """Return the positions to fit on, and the samples that fidelity is measured on."""
    everything = torch.arange(len(table))
    if held_out is None:
        return everything, None
    if not isinstance(held_out, Samples):
        number = min(len(table) - 1, max(1, round(held_out * len(table))))
        shuffled = torch.randperm(len(table), generator=torch.Generator().manual_seed(HELD_OUT_SEED))
        return shuffled[number:].sort().values, HeldOut(table, shuffled[:number].sort().values)
    rest = dataclasses.replace(recorder, samples=held_out, name="held_out", spec=None)
    recorded = rest.table(progress=progress)
    recorded.shown = held_out
    return everything, HeldOut(recorded)


def _fidelity(method: DataMethod, task: Task, state: Any, table: Table, positions: Tensor | None) -> dict[str, float]:
    """Compare surrogate and network on these rows."""
    pairs = [
        (method.logits(state, rows.values), task.logits(rows.outputs)) for rows in table.blocks(TRAIN_BLOCK, positions)
    ]
    surrogate, network = (torch.cat(part) for part in zip(*pairs, strict=True))
    compare = {"classification": logit_agreement, "regression": number_agreement, "multi-label": label_agreement}
    return compare[task.problem](surrogate, network)
