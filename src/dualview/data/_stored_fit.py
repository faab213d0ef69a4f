"""What a fit leaves in a store, and how it comes back: rows, state, facts, thumbnails, probe."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualview.data._explainer import Explainer
from dualview.data._method import DataMethod, as_method
from dualview.data._which_fit import chosen_fit, whole_manifests
from dualview.engine.batches import Inputs, batch_size_for
from dualview.engine.datasets import Samples, check_inputs, input_spec
from dualview.engine.fingerprint import (
    data_fingerprint,
    hash_bytes,
    model_fingerprint,
    qualified_name,
    seeded_positions,
)
from dualview.engine.isolation import untouched
from dualview.engine.labels import targets_of
from dualview.engine.manifest import Key, Manifest, as_json
from dualview.engine.packing import pack, unpack
from dualview.engine.pictures import picture_of, thumbnail
from dualview.engine.record import Recorder, Representation, recorded_as
from dualview.engine.replay import Replay
from dualview.engine.shards import RowSpec
from dualview.engine.site import Site
from dualview.engine.source import sample_input
from dualview.engine.store import Store
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.engine.weights import Weights
from dualview.errors import DamagedFile, StoreMismatch

log = logging.getLogger("dualview")

MAX_THUMBNAILS = 20_000
PROBE_TOLERANCE = 1e-3


class Probe(NamedTuple):
    """A few training samples, and what the network made of them before the recording.

    Attributes:
        inputs: as `Task.split` gave them.
        raw: "row cls" raw outputs.
        loss_reduction: "none", "sum" or "mean".
    """

    inputs: Inputs
    raw: Tensor
    loss_reduction: str


def record_in_store(
    store: Store,
    representation: Representation,
    recorder: Recorder,
    probe: Probe,
    data_id: str | None,
    *,
    progress: bool,
) -> tuple[Key, Table]:
    """Record the training set into the store, or read what it holds already, and keep the probe."""
    task, samples = recorder.task, recorder.samples
    recorded = recorded_as(representation, recorder.plan)
    key = Key(recorded, qualified_name(type(task.model)), model_fingerprint(task.model), data_id)
    spec = RowSpec.of(recorder.rows(0, 1), recorder.plan.layout)
    parts = {place: entry["dtype"] for place, entry in input_spec(probe.inputs).items()}
    known = _Fingerprints(recorder)
    has_probe = _check_model(store, key.folder, task)  # else rows of a changed `forward` would be taken over
    with untouched(task.model):  # producing and fingerprinting both read the data set
        table, _ = store.record(
            key, len(samples), known.produce, known.of_rows, spec=spec, input_spec=parts, progress=progress
        )
    if not has_probe:
        tensors, skeleton = pack(probe.inputs)
        store.save_probe(key, {**{f"inputs.{k}": v for k, v in tensors.items()}, "raw": probe.raw}, skeleton)
    return key, table


class _Fingerprints:
    """Fingerprint runs of samples; labels that were just read for recording are not read twice."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._labels: dict[int, Tensor] = {}  # first row of a block → its targets

    def produce(self, start: int, stop: int) -> Iterator[Rows]:
        for rows in self._recorder.batches(start, stop):
            self._labels[int(rows.index[0])] = _as_hashed(rows.targets)
            yield rows

    def of_rows(self, start: int, stop: int) -> str:
        samples, task = self._recorder.samples, self._recorder.task
        chosen = [(p, task.split(samples.batch([p]))) for p in seeded_positions(start, stop)]
        content = [(p, (_plain(inputs), _plain(labels))) for p, (inputs, labels) in chosen]
        return data_fingerprint(self._targets(start, stop), content, [input_spec(inputs) for _, (inputs, _) in chosen])

    def _targets(self, start: int, stop: int) -> Tensor:
        parts, at, task = [], start, self._recorder.task
        while at < stop and at in self._labels:
            parts.append(self._labels.pop(at))
            at += len(parts[-1])
        for _, batch in self._recorder.samples.batches(range(at, stop), self._recorder.batch_size):
            _, labels = task.split(batch)
            parts.append(_as_hashed(targets_of(labels, task.problem, self._recorder.num_classes, task.classes)))
        return torch.cat(parts)


def _as_hashed(targets: Tensor) -> Tensor:
    """Return numbers in single precision, which is how precisely rows of most models hold them."""
    return targets.float() if targets.is_floating_point() else targets


def save_explainer(store: Store, key: Key, explainer: Explainer) -> Explainer:
    """Keep a fit beside its rows: state, facts, names, and thumbnails of the support samples."""
    thumbnails = _thumbnails(explainer)
    method, table = explainer.method, explainer.table
    tensors = {f"state.{name}": tensor for name, tensor in explainer.state._asdict().items()}
    if len(explainer.positions) < len(table):
        tensors["positions"] = explainer.positions
    facts = {
        "method": method.describe(),
        "num_train": len(table),
        "data_fingerprint": store.manifest(key).data_fingerprint,
        # how long the fit took says nothing of it
        "certificate": {k: v for k, v in explainer.certificate.items() if not k.endswith("seconds")},
        "classes": _classes(explainer.task),
        "problem": explainer.task.problem,
        "readout": explainer.task.readout,
        "resolved": method.resolved(explainer.task),
        "fidelity": explainer.fidelity,
        "spec": explainer.spec,
        "names": None if explainer.names is None else list(explainer.names),
        "images": {str(position): list(image.shape) for position, image in thumbnails.items()},
    }
    if thumbnails:
        tensors["images"] = torch.from_numpy(np.concatenate([image.reshape(-1) for image in thumbnails.values()]))
    chosen = [explainer.certificate["C"]] if "curve" in explainer.certificate else []
    chosen += [value for value in (facts["resolved"], explainer.certificate.get("chosen")) if value]
    store.save_fit(key, fit_name(method, len(explainer.positions), len(table), *chosen), tensors, facts)
    return dataclasses.replace(explainer, thumbnails=thumbnails)


def fit_name(method: DataMethod, num_fitted: int, num_train: int, *chosen: Any) -> str:
    """Name a fit by its method's fields, the rows it saw, and the settings that it chose or found elsewhere."""
    fields = str(sorted(as_json(method.describe()).items()))
    digest = hash_bytes(fields, f"{num_fitted} of {num_train}", *map(repr, chosen))
    return f"{type(method).__name__}-{digest[:12]}"


def load_explainer(store: Store, task: Task, samples: Samples | None, method: DataMethod | str | None) -> Explainer:
    """Bring a stored fit back for this model."""
    fingerprint = model_fingerprint(task.model)
    manifests, damaged = whole_manifests(store)
    mine = {folder: one for folder, one in manifests.items() if one.key.model_fingerprint == fingerprint}
    if not mine and damaged:
        raise damaged[0]
    if not mine:
        held = ", ".join(manifest.key.model_class for manifest in manifests.values()) or "nothing"
        raise StoreMismatch(
            f"the store at {store.root} holds no features of this {type(task.model).__name__} with these weights "
            f"(it holds: {held}); fit again with store={str(store.root)!r}, or open it with the model it was made with"
        )
    folder, name, tensors, facts, *_ = chosen_fit(store, mine, method)
    manifest = mine[folder]
    if facts["classes"] != _classes(task):
        raise StoreMismatch(
            f"the fit was made with classes={facts['classes']}; this task has classes={_classes(task)}, so that labels "
            "would mean other output columns: open it with the same mapping"
        )
    if facts["problem"] != task.problem:
        raise StoreMismatch(f"the fit was made for a {facts['problem']} task; this one's problem is {task.problem!r}")
    if isinstance(facts["readout"], list):
        task = dataclasses.replace(task, readout=Site(*facts["readout"]))
    table = store.open(folder, num_rows=facts["num_train"])
    restored = method if isinstance(method, DataMethod) else as_method(facts["method"])
    state = restored.state_from({n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")})
    num_classes = max(2 if task.problem == "classification" else 1, table.num_classes)
    task = task.named(num_classes)
    check_class_names(task, num_classes)
    if not _check_model(store, folder, task):
        raise DamagedFile(f"the probe samples in {store.root / folder}, which tell the model, are gone; fit again")
    inputs = _probe_inputs(*store.load_probe(folder))
    with untouched(task.model):
        sides = restored.representations(task, inputs)
        plan = sides.test.plan(task, inputs)
        recorded = recorded_as(sides.train, plan if sides.train == sides.test else sides.train.plan(task, inputs))
    if recorded != manifest.key.representation:
        raise StoreMismatch(
            f"{restored!r} now records other parts of this {type(task.model).__name__} than it did (another loss, "
            f"other checkpoints, parameters frozen since?): {recorded} instead of {manifest.key.representation}: fit "
            "again"
        )
    resolved = as_json(restored.resolved(task))
    if resolved != facts["resolved"]:
        raise StoreMismatch(f"the fit was made for a task with {facts['resolved']}; this one has {resolved}: fit again")
    if samples is not None:
        recorder = Recorder(task, samples, plan, num_classes, 256)
        table.replay = Replay(task, samples, num_classes, batch_size_for(inputs))
        _check_samples(recorder, manifest, len(table), facts["spec"])
    images = _unpacked_images(tensors.get("images"), facts["images"])
    log.info("opened %s from %s", name, store.root)
    return Explainer(
        restored,
        task,
        state,
        table,
        plan,
        tensors.get("positions", torch.arange(len(table))),
        facts["certificate"],
        facts["fidelity"],
        samples,
        names=facts["names"],
        spec=facts["spec"],
        thumbnails=images,
        weights=Weights.of(task.model, fingerprint),
    )


def check_class_names(task: Task, num_columns: int) -> None:
    """Refuse `class_names` that are not one name per output column."""
    if task.class_names is not None and len(task.class_names) != num_columns:
        raise ValueError(
            f"`class_names` hold {len(task.class_names)} names for {num_columns} output columns; expected one each"
        )


def _check_model(store: Store, folder: str, task: Task) -> bool:
    """Run the stored probe samples again: equal weights do not make an equal `forward`.

    Returns:
        Whether there are stored probe samples; a first recording that was killed left none.
    """
    try:
        tensors, skeleton = store.load_probe(folder)
    except FileNotFoundError:
        return False
    except DamagedFile as error:
        raise DamagedFile(f"{error}: remove this file and run dualview.fit with this store once more") from error
    then = tensors.pop("raw")
    inputs = _probe_inputs(tensors, skeleton)
    with untouched(task.model):
        now = task.forward(inputs).cpu().to(then.dtype)
    if now.shape != then.shape or _differ(now, then):
        raise StoreMismatch(
            f"this {type(task.model).__name__} has the stored weights but gives other outputs on the stored probe "
            f"samples: its code or settings changed since the store at {store.root} was made; fit into another store="
        )
    return True


def _probe_inputs(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    parts = {name: tensor for name, tensor in tensors.items() if name.startswith("inputs.")}
    return unpack({name.removeprefix("inputs."): tensor for name, tensor in parts.items()}, skeleton)


def _check_samples(recorder: Recorder, manifest: Manifest, num_train: int, spec: dict) -> None:
    """Compare all labels, and the content of some samples of each shard, with what was recorded."""
    if len(recorder.samples) < num_train:
        raise StoreMismatch(f"`train` holds {len(recorder.samples)} samples; the fit was made on {num_train}")
    known = _Fingerprints(recorder)
    with untouched(recorder.task.model):
        first, _ = recorder.task.split(recorder.samples.batch([0]))
        try:
            check_inputs(first, spec)
            for shard in manifest.shards:
                if shard.stop <= num_train and known.of_rows(shard.first, shard.stop) != shard.data:
                    raise ValueError(f"samples {shard.first:,} to {shard.stop - 1:,} differ, in labels or inputs")
        except ValueError as error:
            raise StoreMismatch(
                f"`train` is not the data set of the fit: {error}. If it augments, give transform= (--transform on the "
                "command line), the evaluation transform, as it was fitted with"
            ) from None


def _classes(task: Task) -> list[list[str]] | None:
    """Return the label → column mapping as sorted JSON values."""
    return (
        None if task.classes is None else sorted([repr(label), str(column)] for label, column in task.classes.items())
    )


def _differ(now: Tensor, then: Tensor) -> bool:
    return not bool((now - then).abs().max() <= PROBE_TOLERANCE * then.abs().max().clamp(min=1e-6))  # NaN differs


def _thumbnails(explainer: Explainer) -> dict[int, np.ndarray]:
    """Shrink pictures of the support samples, the most important ones where there are very many."""
    support = explainer.method.scored(explainer.state)
    if explainer.samples is None or len(support) == 0:
        return {}
    if len(support) > MAX_THUMBNAILS:
        weights = explainer.importance() if explainer.method.has_surrogate else explainer.self_influence()
        rank = weights[support].argsort(descending=True, stable=True)
        support = support[rank[:MAX_THUMBNAILS]].sort().values
    found = {}
    first = sample_input(explainer.task, explainer.samples, int(support[0]))
    if picture_of(first, explainer.task.display).image is None:  # samples that are no images are shown as words
        return {}
    for position in support.tolist():
        picture = picture_of(sample_input(explainer.task, explainer.samples, position), explainer.task.display)
        if picture.image is not None:
            found[position] = thumbnail(picture.image)
    return found


def _unpacked_images(flat: Tensor | None, shapes: dict[str, list[int]]) -> dict[int, np.ndarray]:
    images, at = {}, 0
    for position, shape in shapes.items():
        size = int(np.prod(shape))
        assert flat is not None
        images[int(position)] = flat[at : at + size].numpy().reshape(shape)
        at += size
    return images


def _plain(value: Any) -> Any:
    return value if not hasattr(value, "items") else dict(value.items())
