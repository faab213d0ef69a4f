"""Feature attributions as files: every tensor by a path of names, everything else as JSON."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from dualview.engine.files import load_tensors, save_tensors
from dualview.engine.players import Players
from dualview.engine.propagation.account import Absorbed, Account, Branches, Growth, Place
from dualview.engine.site import Site
from dualview.errors import DamagedFile
from dualview.features._attribution import FeatureAttribution

_RESULT = "FeatureAttribution"
_SCORES = ("values", "split", "change", "completeness_error", "checks", "tables", "targets", "predicted")
_SITES = "sites"
_BETWEEN = "\n"  # of the names on a path: no module, place or term holds it


def save(attribution: FeatureAttribution, path: str | os.PathLike[str]) -> None:
    """Save everything but `source` as one safetensors file."""
    tensors = {name: tensor for field in _SCORES for name, tensor in _flat(field, getattr(attribution, field))}
    sites = list(attribution.sites)
    tensors |= {f"{_SITES}{_BETWEEN}{k}": attribution.sites[site] for k, site in enumerate(sites)}
    players = attribution.players
    if players is not None:
        tensors |= dict(_flat("players", players.masks))
    accounts = (attribution.account,) if attribution.account is not None else attribution.accounts
    books = []
    for k, account in enumerate(accounts):
        tensors |= dict(_flat(f"account{k}", {"seed": account.seed, "inputs": account.inputs}))
        tensors |= {f"account{k}{_BETWEEN}absorbed{_BETWEEN}{i}": e.amount for i, e in enumerate(account.absorbed)}
        books.append(
            {
                "absorbed": [[list(entry.place), entry.kind] for entry in account.absorbed],
                "branches": [[list(branch.place), branch.ratio] for branch in account.branches],
                "growth": None if account.growth is None else [list(account.growth.place), account.growth.ratio],
                "residual": account.residual,
                "tolerance": account.tolerance,
            }
        )
    left = {*_SCORES, _SITES, "players", "account", "accounts", "source"}
    facts = {f.name: getattr(attribution, f.name) for f in dataclasses.fields(attribution) if f.name not in left}
    facts["class_names"] = None if attribution.class_names is None else list(attribution.class_names)
    info = {
        "result": _RESULT,
        "names": list(tensors),  # inputs keep their order
        "facts": facts,
        "sites": [list(site) for site in sites],
        "num_players": None if players is None else players.count,
        "accounts": books,
    }
    save_tensors(path, tensors, info)


def load(path: str | os.PathLike[str]) -> FeatureAttribution:
    """Load what `save` wrote; it has no source, so pictures need one.

    Raises:
        DamagedFile: the file is truncated, altered, or holds something else.
    """
    tensors, info = load_tensors(path)
    if not isinstance(info, dict) or info.get("result") != _RESULT:
        raise DamagedFile(f"{path} holds no {_RESULT}")
    tree = _nested({name: tensors[name] for name in info["names"]})
    facts = dict(info["facts"])
    accounts = tuple(_account(tree[f"account{k}"], book) for k, book in enumerate(info["accounts"]))
    several = bool(facts["outputs"])
    facts |= {name: tree[name] for name in _SCORES if name in tree}
    facts |= {name: tuple(facts[name]) for name in ("outputs", "each_linearised", "each_lower_is_better")}
    facts["site"] = None if facts["site"] is None else Site(*facts["site"])
    facts["sites"] = {Site(*site): tree[_SITES][str(k)] for k, site in enumerate(info["sites"])}
    if info["num_players"] is not None:
        facts["players"] = Players(tree["players"], info["num_players"])
    return FeatureAttribution(
        **facts, account=accounts[0] if accounts and not several else None, accounts=accounts if several else ()
    )


def _account(tensors: Any, book: Mapping[str, Any]) -> Account:
    return Account(
        seed=tensors["seed"],
        inputs=tensors["inputs"],
        absorbed=tuple(
            Absorbed(Place(*place), kind, tensors["absorbed"][str(i)])
            for i, (place, kind) in enumerate(book["absorbed"])
        ),
        branches=tuple(Branches(Place(*place), ratio) for place, ratio in book["branches"]),
        residual=book["residual"],
        tolerance=book["tolerance"],
        growth=None if book["growth"] is None else Growth(Place(*book["growth"][0]), book["growth"][1]),
    )


def _flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{name}{_BETWEEN}{key}", part)
    elif value is not None:
        yield name, value.detach()


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *way, last = name.split(_BETWEEN)
        branch = tree
        for step in way:
            branch = branch.setdefault(step, {})
        branch[last] = tensor
    return tree
