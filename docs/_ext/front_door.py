"""What the reference holds, page by page: the front door's names, and the public ones behind it that a user meets."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import NamedTuple

import dualview
import dualview.data
import dualview.evaluation
import dualview.features

VIEWS = {"data": dualview.data, "features": dualview.features}


class Entry(NamedTuple):
    """One thing to document.

    Attributes:
        kind: "class", "exception", "function" or "data".
        name: as a user writes it.
        home: the module that defines it.
        members: of a class, those that its base does not promise: what implements a base is its business.
    """

    kind: str
    name: str
    home: str
    members: tuple[str, ...] = ()


class Section(NamedTuple):
    """Entries below a title and a text; a page's first section has neither."""

    title: str
    text: str
    entries: list[Entry]


def _evaluation() -> list[str]:
    """Return the public modules of the room, so that a new one needs no line here."""
    found = pkgutil.walk_packages(dualview.evaluation.__path__, "dualview.evaluation.")
    return sorted(module.name for module in found if "._" not in module.name and not module.ispkg)


# Modules of which a page shows the names that stand in `dualview.__all__`.
AT_THE_DOOR = {
    "fit_and_ask": (
        "dualview.data._fit",
        "dualview.engine.task",
        "dualview.data._explainer",
        "dualview.plotting",
        "dualview.report.page",
        "dualview.engine.store",
        "dualview.engine.site",
        "dualview._version",
    ),
    "data_methods": tuple(getattr(dualview.data, name).__module__ for name in sorted(dualview.data.__all__)),
    "feature_methods": tuple(getattr(dualview.features, name).__module__ for name in dualview.features.__all__),
    "removal_and_players": ("dualview.engine.removal", "dualview.engine.players"),
    "relation": ("dualview.relations.relation", "dualview.relations.render"),
    "results": (
        "dualview.data._attribution",
        "dualview.features._attribution",
        "dualview.data._groups",
        "dualview.data._ranking",
        "dualview.data._selection",
        "dualview.data._curve",
        "dualview.features._allocation",
    ),
    "outputs": ("dualview.engine.outputs",),
}

# Modules of which a page shows every public name, one section each.
BEHIND_IT = {
    "evaluation": _evaluation(),
    "rules": ["dualview.engine.propagation.rules", "dualview.engine.propagation.terminal"],
    "engine": ["dualview.engine.subsets", "dualview.engine.retraining", "dualview.ops.priors", "dualview.errors"],
}

# Classes without a public place that results and signatures name, and of which methods a user calls.
NAMED_BY_THEM = {
    "data_methods": {"dualview.data._method.DataMethod": ()},
    "feature_methods": {"dualview.features._method.FeatureMethod": ("attribute",)},
    "evaluation": {
        "dualview.evaluation._estimate.Estimate": (),
        "dualview.evaluation._table.Line": (),
        "dualview.evaluation._table.Cost": (),
    },
    "results": {
        "dualview.data._attribution.Top": (),
        "dualview.data._attribution.Ranked": (),
        "dualview.features._allocation.Principle": (),
    },
    "relation": {
        "dualview.engine.propagation.account.Account": (),
        "dualview.engine.propagation.account.Absorbed": (),
        "dualview.engine.propagation.account.Branches": (),
        "dualview.engine.propagation.account.Growth": (),
    },
    "rules": {"dualview.engine.propagation.composites.Composite": ()},
    "removal_and_players": {"dualview.engine.players.Players": (), "dualview.engine.removal.Pool": ()},
    "engine": {
        "dualview.data._method.Prepared": (),
        "dualview.data._setting.Setting": (),
        "dualview.engine.datasets.Samples": (),
        "dualview.engine.manifest.Key": (),
        "dualview.engine.weights.Weights": (),
        "dualview.engine.manifest.Manifest": (),
        "dualview.engine.propagation.account.Ledger": (),
        "dualview.engine.propagation.account.Place": (),
        "dualview.engine.propagation.linear_ops.LinearOp": (),
        "dualview.engine.record.Plan": (),
        "dualview.engine.shards.RowSpec": (),
        "dualview.engine.shards.Shard": (),
        "dualview.engine.source.Source": (),
        "dualview.engine.tables.Rows": (),
        "dualview.engine.tables.Table": (),
        "dualview.ops.layout.Part": (),
        "dualview.solvers.metrics.Metric": (),
    },
}

PAGES = (*AT_THE_DOOR, *BEHIND_IT)


def home(name: str) -> str:
    """Return the module that defines a name of the front door; of an output, which is an instance, its class's."""
    return getattr(getattr(dualview, name), "__module__", "dualview._version")


def sections(page: str) -> list[Section]:
    """Return what a page of the reference shows, in order."""
    named = [Entry("class", name, name.rpartition(".")[0], own) for name, own in NAMED_BY_THEM.get(page, {}).items()]
    if page in BEHIND_IT:
        rest = [Section("Named by these", "", named)] if named else []
        return [_section(importlib.import_module(name)) for name in BEHIND_IT[page]] + rest
    order = {module: place for place, module in enumerate(AT_THE_DOOR[page])}
    names = sorted((name for name in dualview.__all__ if home(name) in order), key=lambda name: order[home(name)])
    entries = [_entry(getattr(dualview, name), f"dualview.{name}", home(name)) for name in names]
    return [Section("", "", entries + named)]


def _section(module) -> Section:
    front = {id(getattr(dualview, name)): f"dualview.{name}" for name in dualview.__all__}
    entries = [
        _entry(value, front.get(id(value), f"{module.__name__}.{name}"), module.__name__)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    return Section(module.__name__, inspect.getdoc(module) or "", entries)


def _entry(value: object, name: str, module: str) -> Entry:
    if not inspect.isclass(value):
        return Entry("function" if inspect.isfunction(value) else "data", name, module)
    members = tuple(
        member
        for member, found in vars(value).items()
        if not member.startswith("_")
        and (inspect.isfunction(found) or isinstance(found, (property, classmethod, staticmethod)))
        and not any(hasattr(base, member) for base in value.__bases__)
    )
    return Entry("exception" if issubclass(value, BaseException) else "class", name, module, members)


def methods(view: str) -> dict[str, str]:
    """Return a view's methods, sorted by name without regard to case: name → the name of its card."""
    room = VIEWS[view]
    return {name: getattr(room, name).__module__.split(".")[-1] for name in sorted(room.__all__, key=str.lower)}
