"""What a page holds, and writing it: one HTML file that needs nothing else."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dualview._version import __version__
from dualview.data._curve import Curve
from dualview.data._explainer import Explainer
from dualview.data._ranking import Ranking
from dualview.engine.datasets import as_samples
from dualview.engine.tables import Table
from dualview.features.lrp import LRP
from dualview.plotting.curve import curve_figure, title_of
from dualview.report import facts, gallery
from dualview.report.images import STRIP_HEIGHT, STRIP_WIDTH, Shown, figure_uri
from dualview.report.maps import settled


def write_report(
    explainer: Explainer,
    data: Any,
    path: str | os.PathLike[str],
    *,
    num_errors: int = 12,
    num_correct: int = 6,
    k: int = 5,
    top_suspects: int = 30,
    title: str | None = None,
    rule: LRP | str | None = "auto",
) -> Path:
    """Write one self-contained page about a model: what it got wrong, and which training samples made it.

    The page holds a summary of model and data, the surrogate's certificate and fidelity, explained
    predictions (wrong ones first, worst first), and the training samples most likely mislabelled.
    Each explained prediction has heat maps: picking one of its proponents or opponents shows where
    their score lies on both samples.
    Pictures are embedded, nothing is loaded from elsewhere, and it reads without JavaScript, on
    paper, in the dark and on a telephone. Equal inputs make equal bytes.

    Args:
        explainer: a fitted data method.
        data: labelled samples to explain: a map-style data set, a tuple of tensors (inputs, labels)
            or a DataLoader.
        path: the file to write; folders on the way are made.
        num_errors: wrong predictions shown, those with the highest loss.
        num_correct: correct predictions shown, evenly spaced over the data.
        k: proponents and opponents of each.
        top_suspects: training samples listed.
        title: heading of the page.
        rule: how relevance goes back to the inputs of both samples, or a composite's name, as `LRP`
            takes it; None draws no heat maps. "auto" is `LRP("epsilon-plus-flat")`, or `LRP("epsilon")`
            where any input meets a dense first layer: its flat map would be the same everywhere. Where
            relevance cannot pass the network, or the training samples or a fitted DualView are missing,
            the page has no maps and says why, and so does a warning.

    Returns:
        The path written.

    Raises:
        TypeError: the method has no surrogate of the network.
        ValueError: the task is no classification, a negative number of samples, no neighbours, an unknown `rule`, data
            that the explainer refuses, or samples that have changed since they were recorded.
        NotImplementedError: an operation has no rule, where `rule` is given and not "auto".

    Example:
        >>> write_report(explainer, test_set, "report.html")  # doctest: +SKIP
    """
    for name, value in (("num_errors", num_errors), ("num_correct", num_correct), ("top_suspects", top_suspects)):
        if value < 0:
            raise ValueError(f"`{name}` is {value}; expected 0 or more")
    if k < 1:
        raise ValueError(f"`k` is {k}; expected at least 1")
    if rule is not None and not isinstance(rule, (LRP, str)):  # pyright: ignore[reportUnnecessaryIsInstance]  # users are not checked
        raise TypeError(f"`rule` must be an LRP, a composite's name, None or 'auto'; it is {rule!r}")
    chosen = "auto" if rule == "auto" else LRP(rule) if isinstance(rule, str) else rule
    if explainer.task.problem != "classification":
        raise ValueError(f"a page shows right and wrong classes, and this is a {explainer.task.problem} task")
    if not explainer.method.has_surrogate:
        raise TypeError(
            f"a page shows how far a surrogate can be trusted, and {type(explainer.method).__name__} has none: fit "
            "DualView or TraceNTK for one; dualview.plot draws what explain returns, of any method"
        )
    samples = as_samples(data, name="data")
    table = explainer.record(samples)
    errors = dataclasses.replace(explainer, held_out=table).errors()  # of the rows just recorded, not recorded again
    positions = gallery.choose(table, errors, num_errors, num_correct)
    chosen_rule, no_maps = settled(explainer, samples, positions, chosen)
    predictions = gallery.predictions(explainer, samples, table, positions, k, chosen_rule)
    environment = Environment(
        loader=PackageLoader("dualview.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        title=title or f"What made {type(explainer.task.model).__name__} predict that",
        version=__version__,
        strip=(STRIP_WIDTH, STRIP_HEIGHT),
        predictions=predictions,
        rule=repr(chosen_rule) if any(prediction.maps for prediction in predictions) else None,
        no_maps=no_maps,
        most_neighbours=2 * k,
        suspects=gallery.suspects(explainer, top_suspects) if top_suspects else [],
        **_summary(explainer, table, errors),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _summary(explainer: Explainer, table: Table, errors: Ranking) -> dict[str, Any]:
    return {
        "model": facts.model_facts(explainer, table, len(errors)),
        "certificate": facts.certificate_facts(explainer),
        "fidelity_columns": facts.fidelity_columns(explainer),
        "fidelity": facts.fidelity_rows(explainer),
        "verdict": facts.verdict(explainer),
        "curve": None if explainer.curve is None else _drawn(explainer.curve),
        "classes": facts.class_rows(explainer, table, errors),
        "num_classes": explainer.num_classes,
        "num_errors": len(errors),
        "num_train": len(explainer.table),
        "measured": explainer.task.measured.replace("_", " "),
        "kind": explainer.method.kind,
        "linearised": not getattr(explainer.task.single_output, "linear", False),
        "lower_is_better": getattr(explainer.task.single_output, "lower_is_better", False),
    }


def _drawn(curve: Curve) -> Shown:
    """Draw the choice of C; its numbers stand in the alternative text."""
    columns = [("support", curve.support_share), *([] if curve.fidelity is None else [("fidelity", curve.fidelity)])]
    lines = [
        f"C = {C:.3g}: " + ", ".join(f"{name} {facts.percent(shares[entry])}" for name, shares in columns)
        for entry, C in enumerate(curve.C)
    ]
    return Shown(figure_uri(curve_figure(curve)), None, None, f"{title_of(curve)}. {'; '.join(lines)}.")
