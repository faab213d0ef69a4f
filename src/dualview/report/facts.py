"""The upper part of a page: model, data, certificate, fidelity and classes, each in words."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from dualview.data._explainer import Explainer
from dualview.data._ranking import Ranking
from dualview.engine.site import Site
from dualview.engine.tables import Table
from dualview.engine.task import class_logits
from dualview.plotting.words import class_word, grouped, number

MAX_CLASSES = 30
LOW_AGREEMENT = 0.9

_STATUS = {
    "converged": "The solver reached the gap that was asked for",
    "limit": "The solver stopped at its limit of passes, before the gap that was asked for",
    "interrupted": "The solver was interrupted before the gap that was asked for",
    "stalled": "The precision of the features allowed no further progress towards the gap that was asked for",
}
_FIDELITY = {
    "agreement": ("Same prediction", "Share of samples for which surrogate and network predict the same class."),
    "matthews": (
        "Matthews correlation",
        "The same, corrected for chance: 1 is perfect, 0 is mere guessing.",
    ),
    "cosine": (
        "Cosine of logits",
        "How alike the two logit vectors are, on average: 1 is equal up to length.",
    ),
    "kendall": ("Kendall’s tau of logits", "How alike they order the classes, on average: 1 is the same order."),
}


class Fact(NamedTuple):
    """One line of a table of facts: a term, its value, and a sentence on what it means."""

    term: str
    value: str
    meaning: str = ""


class FidelityRow(NamedTuple):
    """One measure of fidelity, on each set of samples."""

    term: str
    values: list[str]
    meaning: str


class ClassRow(NamedTuple):
    """What happened to one class."""

    name: str
    train: int
    support: int
    test: int
    errors: int
    taken_for: str


def percent(part: int | float, whole: int | float = 1.0) -> str:
    """Write a share as a percentage."""
    return f"{100 * part / whole:.1f}\u202f%" if whole else "none"


def model_facts(explainer: Explainer, table: Table, num_errors: int) -> list[Fact]:
    """Say what was explained: the model, its readout, the data, and how often it errs there."""
    model, readout = explainer.task.model, explainer.task.readout
    parameters = sum(parameter.numel() for parameter in model.parameters())
    seen, whole = len(explainer.positions), len(explainer.table)
    right = len(table) - num_errors
    return [
        Fact("Model", f"{type(model).__name__}, {grouped(parameters)} parameters"),
        Fact("Readout", _readout(readout, explainer.table.width)),
        Fact("Classes", str(explainer.num_classes)),
        Fact("Training samples", grouped(whole) + (f", of which the fit saw {grouped(seen)}" if seen < whole else "")),
        Fact("Samples looked at", grouped(len(table))),
        Fact("Network’s accuracy on them", f"{percent(right, len(table))} ({grouped(num_errors)} errors)"),
        Fact("Method", repr(explainer.method)),
        Fact("Explained output", explainer.task.measured.replace("_", " ")),
    ]


def _readout(readout: Any, width: int) -> str:
    if isinstance(readout, Site):
        return f"{readout.side} of {readout.module or 'the model'}, {grouped(width)} units"
    return f"{readout}, {grouped(width)} units"


def certificate_facts(explainer: Explainer) -> list[Fact]:
    """Say how well the surrogate was fitted; only what the method certifies is there."""
    known = explainer.certificate
    facts = []
    if "gap" in known:
        meaning = "The surrogate’s objective lies at most this far above the best possible one, relative to its size."
        facts.append(Fact("Relative duality gap", number(known["gap"], 2), meaning))
    if "status" in known:
        asked = f" ({number(known['asked_gap'], 1)})" if "asked_gap" in known else ""
        meaning = f"{_STATUS[known['status']]}{asked}." if known["status"] in _STATUS else ""
        facts.append(Fact("Status", known["status"], meaning))
    if "distance" in known:
        meaning = "The surrogate’s weights, as one long vector, are at most this far from the optimal ones."
        facts.append(Fact("Distance of the weights", number(known["distance"], 2), meaning))
    if "C" in known:
        meaning = "Weight of the training errors in the surrogate’s objective: larger values fit them harder."
        facts.append(Fact("C", f"{known['C']:.3g}", f"{meaning}{_chosen(explainer)}"))
    if "support_share" in known:
        value = f"{percent(known['support_share'])} ({grouped(known['support'])} samples)"
        meaning = "Share of the fitted samples that can have a score; every other one counts exactly zero."
        if "bound" in known:
            meaning += f" {grouped(known['bound'])} of them stand at their bound C; all that miss their margin do."
        facts.append(Fact("Support", value, meaning))
    return facts


def _chosen(explainer: Explainer) -> str:
    """Say on which samples C was chosen, and what that does to the fidelity there."""
    curve = explainer.curve
    if curve is None:
        return ""
    if curve.by == "support":
        low, high = (percent(share) for share in curve.reachable_support)
        return f" Chosen for a support share of {percent(curve.asked_support or 0)}; from {low} to {high} were seen."
    if "held_out" in explainer.fidelity:
        return " Chosen by the fidelity on the held\u2011out samples, which is a little too good for that reason."
    return f" Chosen by the fidelity on {grouped(curve.num_held_out)} training samples, set aside for that."


def fidelity_columns(explainer: Explainer) -> list[str]:
    """Name the sets of samples that fidelity was measured on."""
    words = {"train": "training", "held_out": "held\u2011out"}
    return [f"{words.get(name, name)} ({grouped(int(held['rows']))})" for name, held in explainer.fidelity.items()]


def fidelity_rows(explainer: Explainer) -> list[FidelityRow]:
    """Say how far surrogate and network agree, one measure a row."""
    return [
        FidelityRow(
            term,
            [_measure(key, held[key]) for held in explainer.fidelity.values()],
            meaning,
        )
        for key, (term, meaning) in _FIDELITY.items()
        if all(key in held for held in explainer.fidelity.values()) and explainer.fidelity
    ]


def _measure(key: str, value: float) -> str:
    return percent(value) if key == "agreement" else number(value, 3)


def verdict(explainer: Explainer) -> str:
    """Say in one sentence how far an explanation of the surrogate speaks for the network."""
    name = "held_out" if "held_out" in explainer.fidelity else "train"
    held = explainer.fidelity.get(name)
    if not held:
        return "This method has no surrogate: its scores are about the network itself."
    where = "held-out data" if name == "held_out" else "its training data (no held-out data was given)"
    low = held["agreement"] < LOW_AGREEMENT
    return (
        f"On {where}, the surrogate predicts the network’s class for {percent(held['agreement'])} of "
        f"{grouped(int(held['rows']))} samples. Scores are exact for the surrogate; for the network they hold as far "
        f"as the two agree{': here that is not far' if low else ''}."
    )


def class_rows(explainer: Explainer, table: Table, errors: Ranking) -> list[ClassRow]:
    """Count samples, support and errors of each class; where there are many, those with most errors."""
    classes = explainer.num_classes
    names = explainer.task.class_names
    train = explainer.table.targets
    support = train[explainer.method.scored(explainer.state)]
    counts = [torch.bincount(labels, minlength=classes) for labels in (train, support, table.targets)]
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    pairs = (errors.columns["target"], errors.columns["predicted"])
    confusion.index_put_(pairs, torch.ones(len(errors), dtype=torch.int64), accumulate=True)
    wrong = confusion.sum(1)
    shown = range(classes)
    if classes > MAX_CLASSES:
        shown = wrong.argsort(descending=True, stable=True)[:MAX_CLASSES].tolist()
    train_counts, support_counts, test_counts = (tally.tolist() for tally in counts)
    return [
        ClassRow(
            name=class_word(column, names),
            train=train_counts[column],
            support=support_counts[column],
            test=test_counts[column],
            errors=int(wrong[column]),
            taken_for=_taken_for(confusion[column].tolist(), names),
        )
        for column in shown
    ]


def _taken_for(row: list[int], names: Any) -> str:
    """Name the three classes that a class's errors went to most often."""
    ranked = sorted((column for column, times in enumerate(row) if times), key=lambda column: (-row[column], column))
    return ", ".join(f"{class_word(column, names)} ({row[column]})" for column in ranked[:3])


def predictions_of(table: Table) -> torch.Tensor:
    """Return the network's predicted output column of each row."""
    return class_logits(table.outputs).argmax(1)
